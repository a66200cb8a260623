"""Copies among rows: what counts as one, which one goes, and what the split keeps together."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.worker_train.duplicates import Neighbours, digest, signature, split_question
from services.worker_train.splitting import Fate, choose_some, choose_validation, drop_copies
from shared.training.report import Reason

ANSWER = (
    "Asthma is a condition in which the airways narrow and swell and may produce extra mucus, which makes "
    "breathing difficult and triggers coughing, a whistling sound when breathing out, and short breath. "
    "Attacks come with exercise, cold air, pollen, smoke and infections of the nose, and most people need "
    "an inhaler that they carry with them and another one that they use each morning and each evening."
)


def near(*rows: tuple[str, str] | tuple[str, str, str]) -> dict[int, list[int]]:
    """The neighbours among rows of question and answer, each with the hash of a picture or none."""
    neighbours = Neighbours()
    for asked, answer, *picture in rows:
        neighbours.add(signature(*split_question(asked), answer), *picture)
    return neighbours.pairs()


def test_case_and_blanks_do_not_make_another_row() -> None:
    assert digest("What is  Asthma?\n") == digest("what is asthma?")
    assert digest("a", "b") != digest("ab")


def test_a_row_with_a_word_changed_is_near() -> None:
    changed = ANSWER.replace("difficult", "hard")
    assert near(("What is asthma?", ANSWER), ("What is asthma?", changed)) == {1: [0]}


def test_the_same_answer_to_another_question_is_not_near() -> None:
    assert near(("What is asthma?", ANSWER), ("How is wheezing in adults explained?", ANSWER)) == {}


def test_other_rows_are_not_near() -> None:
    assert (
        near(*((f"What is disease number {n}?", f"Text {n} of {n * 7} and {n * 13}.") for n in range(300)))
        == {}
    )


#: As long as a passage of a paper: 194 words.
PASSAGE = " ".join(f"finding{number % 97} of{number % 89} the{number % 83}" for number in range(65))[:-7]
SAID = ("yes", "no", "maybe")


@pytest.mark.parametrize(
    "asked",
    [
        "{passage}\n\nDoes drug {number} help against it?",
        "{passage}\nQuestion: Does drug {number} help against it?\nAnswer:",
        "Does drug {number} help against it?\n\n{passage}",
        "Does drug {number} help against it?\n\n{passage}\n\n{passage}",
    ],
)
def test_questions_on_one_passage_are_not_near(asked: str) -> None:
    rows = [(asked.format(passage=PASSAGE, number=number), SAID[number % 3]) for number in range(40)]
    assert near(*rows) == {}
    assert near(*rows, *rows) == {number + 40: [number] for number in range(40)}


def test_one_question_on_other_passages_is_not_near_and_on_a_passage_with_a_word_changed_is() -> None:
    asked = "Does the drug help against it?"
    other = PASSAGE.replace("of", "with")
    rows = [(f"{passage}\n\n{asked}", "yes") for passage in (PASSAGE, other, f"{PASSAGE} and")]
    assert near(*rows) == {2: [0]}


def test_short_answers_to_one_question_are_near_only_when_they_are_equal() -> None:
    said = (
        "Yes.",
        "No.",
        "Take two tablets a day.",
        "Take ten tablets a day.",
        "5 mg",
        "50 mg",
        "yes",
        "+",
        "-",
    )
    assert near(*(("Does it help?", answer) for answer in said)) == {6: [0]}


def test_a_short_line_that_differs_makes_another_answer() -> None:
    assert near(*(("Does it help?", f"{word}\n\n{ANSWER}") for word in ("Yes.", "No."))) == {}


def test_a_question_with_a_word_changed_is_near() -> None:
    asked = f"Somebody told me this: {ANSWER} Is it right?"
    assert near((asked, ANSWER), (asked.replace("difficult", "hard"), ANSWER)) == {1: [0]}
    assert near((asked, "yes"), (asked.replace("difficult", "hard"), "Yes")) == {1: [0]}


def test_the_same_words_on_other_pictures_are_not_near() -> None:
    rows = [("What does the picture show?", ANSWER, digest(str(number)).hex()) for number in range(40)]
    assert near(*rows, ("What does the picture show?", ANSWER)) == {}
    assert near(*rows, rows[7]) == {40: [7]}


def test_all_of_many_copies_are_near_the_first() -> None:
    rows = [("What is asthma?", f"{ANSWER} {word}.") for word in ("One", "Two", "Three", "Four")]
    assert near(*rows) == {1: [0], 2: [0], 3: [0]}


def test_no_rows_have_no_neighbours() -> None:
    assert near() == {}


def fates(*validation: bool, digests: str = "") -> list[Fate]:
    return [
        Fate(place + 1, b"%d" % place, (digests[place] if digests else str(place)).encode(), validation=side)
        for place, side in enumerate(validation)
    ]


def test_of_two_copies_on_one_side_the_later_goes() -> None:
    rows = fates(False, False, digests="aa")
    drop_copies(rows, {})
    assert [row.reason for row in rows] == [None, Reason.EXACT_DUPLICATE]
    assert "line 1" in (rows[1].advice or "")


@pytest.mark.parametrize("sides", [(False, True), (True, False)])
def test_of_two_copies_on_both_sides_the_one_to_train_on_goes(sides: tuple[bool, bool]) -> None:
    for digests, pairs in (("aa", {}), ("ab", {1: [0]})):
        rows = fates(*sides, digests=digests)
        drop_copies(rows, pairs)
        assert [row.reason for row in rows] == [None if side else Reason.OVERLAP for side in sides]


def test_a_third_copy_is_compared_with_the_one_that_stayed() -> None:
    rows = fates(False, True, False)
    drop_copies(rows, {1: [0], 2: [0]})
    assert [row.reason for row in rows] == [Reason.OVERLAP, None, Reason.OVERLAP]


def test_a_row_dropped_before_takes_no_copy_with_it() -> None:
    rows = fates(False, False, digests="aa")
    rows[0].reason = Reason.DANGEROUS
    drop_copies(rows, {})
    assert rows[1].reason is None


@given(
    sizes=st.lists(st.integers(1, 20), min_size=2, max_size=60),
    fraction=st.floats(0.01, 0.5),
    seed=st.integers(0, 1000),
)
def test_validation_gets_whole_units_and_about_its_share(
    sizes: list[int], fraction: float, seed: int
) -> None:
    units = Counter({b"%d" % number: size for number, size in enumerate(sizes)})
    chosen = choose_validation(units, fraction=fraction, seed=seed)
    rows = sum(units[unit] for unit in chosen)
    assert 0 < len(chosen) < len(units)
    assert rows <= max(round(fraction * sum(sizes)), min(sizes), 1)
    assert chosen == choose_validation(dict(reversed(units.items())), fraction=fraction, seed=seed)


def test_another_seed_chooses_others() -> None:
    units = {b"%d" % number: 1 for number in range(100)}
    first, second = (choose_validation(units, fraction=0.2, seed=seed) for seed in (0, 1))
    assert len(first) == len(second) == 20
    assert first != second


@given(
    sizes=st.lists(st.integers(1, 6), min_size=8, max_size=40),
    alone=st.integers(0, 9),
    seed=st.integers(0, 1000),
)
def test_some_rows_that_stand_for_all_are_whole_units_where_there_are_units(
    sizes: list[int], alone: int, seed: int
) -> None:
    units = [b"%d" % number for number, size in enumerate(sizes) for _ in range(size)] + [b""] * alone
    places = choose_some(units, most=16, seed=seed)
    assert len(places) == len(set(places))
    assert min(len(units), 8) <= len(places) <= 16
    sought = Counter(units)
    assert all(
        count == sought[unit] for unit, count in Counter(units[place] for place in places).items() if unit
    )
    assert places == choose_some(units, most=16, seed=seed)


def test_few_rows_all_stand_for_themselves() -> None:
    assert choose_some([b"a", b"a", b"b", b""], most=4, seed=0) == [0, 1, 2, 3]


def test_units_larger_than_what_is_wanted_are_chosen_from_row_by_row() -> None:
    assert len(choose_some([b"a"] * 40 + [b"b"] * 30 + [b"c"], most=16, seed=0)) == 16


def test_one_unit_or_no_share_leaves_validation_empty() -> None:
    assert choose_validation({b"a": 5}, fraction=0.5, seed=0) == set()
    assert choose_validation({b"a": 5, b"b": 5}, fraction=0, seed=0) == set()
