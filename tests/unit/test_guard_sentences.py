"""How a text is cut into sentences."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.guard.sentences import MAX_SENTENCE_CHARS, SentenceSplitter

_PIECES = [
    "Take 2.5 mg",
    "Dr. Osei",
    " e.g. ",
    "No. 3",
    "1. ",
    "\n- ",
    "**bold.** ",
    "\n## Head\n",
    "😀",
    "👍🏽",
    "…",
    "...",
    "?! ",
    ". ",
    " ",
    "\n",
    "\n\n",
    "(see p. 4.) ",
    '"Stop!" ',
    "word",
    "U.S. ",
    "5 p.m. ",
    "x" * 150,
    "。",
    "你好",
    "！",
    "\t",
    "ﬁ",
    "e\u0301",
    "\u200d",
    ".",
    "vitamin C.",
    "etc. ",
    "J. Smith",
    "; ",
    ";",
    "and " * 50,
]
texts = st.lists(st.one_of(st.sampled_from(_PIECES), st.text(max_size=12)), max_size=40).map("".join)


def split(chunks: list[str]) -> list[str]:
    """All sentences of a text that comes in these chunks."""
    splitter = SentenceSplitter()
    sentences = [sentence for chunk in chunks for sentence in splitter.feed(chunk)]
    return sentences + splitter.close()


def chunked(text: str, cuts: list[int]) -> list[str]:
    """The text cut at these places."""
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[start:end] for start, end in itertools.pairwise(places)]


@given(text=texts, cuts=st.lists(st.integers(min_value=0, max_value=5000), max_size=60))
def test_nothing_is_lost_and_chunks_do_not_matter(text: str, cuts: list[int]) -> None:
    whole = split([text])
    assert "".join(whole) == text
    assert split(chunked(text, cuts)) == whole
    assert split(list(text)) == whole


@given(text=texts)
def test_no_sentence_is_empty_or_longer_than_the_limit(text: str) -> None:
    assert all(0 < len(sentence) <= MAX_SENTENCE_CHARS for sentence in split([text]))


@pytest.mark.parametrize(
    "text",
    [
        "Take 2.5 mg of it today.",
        "Dr. Osei and Mrs. Lind can help.",
        "Pulses, e.g. lentils, are fine.",
        "See leaflet No. 3 for more.",
        "It closes at 5 p.m. on Fridays.",
        "J. Smith wrote this.",
        'He shouted "Stop!" and left.',
        "You could... wait a little.",
        "1. Wash your hands.",
        "- **Rest** and drink.",
        "Visit www.example.org/a.b for more.",
        "A line that goes on\nin lower case.",
        "He weighs approx. 70 kg.",
    ],
)
def test_stays_one_sentence(text: str) -> None:
    assert split([text]) == [text]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Rest. Drink.", ["Rest.", " Drink."]),
        ("Really?! Yes.", ["Really?!", " Yes."]),
        ("No. You should rest.", ["No.", " You should rest."]),
        ("Take vitamin C. It helps.", ["Take vitamin C.", " It helps."]),
        ("It closes at 5 p.m. She left.", ["It closes at 5 p.m.", " She left."]),
        ("Good!😀👍🏽 Next.", ["Good!😀👍🏽", " Next."]),
        ('She said "Rest." Then she left.', ['She said "Rest."', " Then she left."]),
        ("(Rest.) Drink.", ["(Rest.)", " Drink."]),
        ("**Rest.** Drink.", ["**Rest.**", " Drink."]),
        ("Well… No.", ["Well…", " No."]),
        ("1. Rest\n2. Drink", ["1. Rest", "\n2. Drink"]),
        ("## Care\n\nRest.", ["## Care", "\n\nRest."]),
        ("- Rest\n- Drink\n", ["- Rest", "\n- Drink", "\n"]),
        ("休む。飲む。", ["休む。", "飲む。"]),
    ],
)
def test_ends_here(text: str, expected: list[str]) -> None:
    assert split([text]) == expected


def test_a_long_sentence_is_cut_before_its_last_blank() -> None:
    text = "word " * 100
    first = split([text])[0]
    assert 390 < len(first) <= MAX_SENTENCE_CHARS
    assert first.endswith("word")


def test_a_semicolon_ends_what_is_long_already() -> None:
    long, short = "word " * 40 + "end;", "word " * 39 + "end;"
    assert split([f"{long} then more."]) == [long, " then more."]
    assert split([f"{short} then more."]) == [f"{short} then more."]
    assert split([f"{long}then more."]) == [f"{long}then more."]


def test_a_long_word_is_cut_at_the_limit() -> None:
    assert [len(sentence) for sentence in split(["x" * 1000])] == [400, 400, 200]


def test_a_sentence_is_given_as_soon_as_its_end_is_known() -> None:
    splitter = SentenceSplitter()
    assert splitter.feed("Rest.") == []
    assert splitter.feed(" ") == ["Rest."]
