"""Words of texts, what is typed to search for, and the hashes that stand for them in the index."""

import pytest

from shared.errors import InvalidInput
from shared.privacy.search import MOST_WORDS, TERM_BYTES, holds, terms_of, wanted_of, words_of


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Is 5 mg of Warfarin safe?", ["is", "5", "mg", "of", "warfarin", "safe"]),
        ("ﬁbre STRASSE straße", ["fibre", "strasse", "strasse"]),
        ("Cafe\u0301 café", ["café", "café"]),
        ("snake_case, x-ray; don't", ["snake", "case", "x", "ray", "don", "t"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("…—!", []),
    ],
)
def test_words_are_whole_runs_of_letters_marks_and_digits_in_one_case(text: str, words: list[str]) -> None:
    assert words_of(text) == words


def test_a_term_is_short_depends_on_the_key_and_says_no_word() -> None:
    (term,) = terms_of(b"k" * 32, ["asthma"])
    assert len(term) == TERM_BYTES
    assert terms_of(b"k" * 32, ["asthma"]) == [term]
    assert terms_of(b"j" * 32, ["asthma"]) != [term]
    assert terms_of(b"k" * 32, ["asthm"]) != [term]


def test_quoted_words_are_a_phrase_and_words_too() -> None:
    wanted = wanted_of('dose "left it Off" „two words“ "alone"')
    assert wanted.words == ("dose", "left", "it", "off", "two", "words", "alone")
    assert wanted.phrases == (("left", "it", "off"), ("two", "words"))


@pytest.mark.parametrize("query", ["?!", '""', " ".join(f"w{number}" for number in range(MOST_WORDS + 1))])
def test_a_search_without_a_word_or_with_too_many_is_refused(query: str) -> None:
    with pytest.raises(InvalidInput):
        wanted_of(query)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("I LEFT it off.", True),
        ("left it, off", True),
        ("left off it", False),
        ("cleft it off", False),
        ("left it offset", False),
    ],
)
def test_a_phrase_is_its_words_in_their_order(text: str, found: bool) -> None:
    assert holds(text, (("left", "it", "off"),)) is found
