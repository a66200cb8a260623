"""Which doses a text states, in whatever way it is written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.guard.doses import StatedDose, read_amount, read_doses, read_strength
from shared.guard.names import Named, Names

MEDICINES = Names(["paracetamol", "ibuprofen"])


def read(text: str) -> StatedDose:
    """The one dose that a text states."""
    (dose,) = read_doses(text, MEDICINES.find(text))
    return dose


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("500 mg", 500),
        ("500mg", 500),
        ("a 500-mg tablet", 500),
        ("0.5 g", 500),
        ("1,000 mg", 1000),
        ("1 000 mg", 1000),
        ("1,5 g", 1500),
        ("one gram", 1000),
        ("half a gram", 500),
        ("250 micrograms", 0.25),
        ("250 mcg", 0.25),
        ("250 µg", 0.25),
        ("250 μg", 0.25),
        ("two hundred and fifty milligrams", 250),
        ("twenty-five mg", 25),
        ("400 to 800 mg", 800),
        ("400–800 mg", 800),
        ("between 400 and 800 mg", 800),
        ("500 mg to 1.5 g", 1500),
        ("two 500 mg tablets", 1000),
        ("2 x 500 mg", 1000),
        ("2 500 mg tablets", 1000),
        ("500 mg x 3", 1500),
        ("a dozen 500 mg tablets", 6000),
        ("half a dozen of the 500 mg tablets", 3000),
        ("one or two 500 mg tablets", 1000),
        ("six tablets of 500 mg each", 3000),
        ("four 200 mg ibuprofens", 800),
        ("six ibuprofen 200 mg tablets", 1200),
        ("10 ml of the 250 mg/5 ml syrup", 500),
        ("two teaspoons (120 mg per 5 ml)", 240),
    ],
)
def test_an_amount_is_read(text: str, amount: float) -> None:
    dose = read(text)
    assert (dose.amount, dose.unit, dose.total) == (pytest.approx(amount), "mg", False)


@pytest.mark.parametrize(
    ("text", "times", "hours"),
    [
        ("1 g every 4 hours", 6, 4),
        ("1 g every 4 to 6 hours", 4, 4),
        ("1 g q4h", 6, 4),
        ("1 g four-hourly", 6, 4),
        ("1 g hourly", 24, 1),
        ("1 g every hour", 24, 1),
        ("1 g every half hour", 48, 0.5),
        ("1 g every 30 minutes", 48, 0.5),
        ("every 2 hours take 1 g", 12, 2),
        ("1 g four times a day", 4, None),
        ("1 g 4x/day", 4, None),
        ("1 g up to four times daily", 4, None),
        ("1 g, three to four times a day", 3, None),
        ("1 g twice a day", 2, None),
        ("1 g once daily", 1, None),
        ("1 g b.i.d.", 2, None),
        ("1 g TDS", 3, None),
        ("1 g qid", 4, None),
        ("1 g at night", 1, None),
        ("1 g in the morning and at night", 2, None),
        ("1 g every 4 hours, no more than 3 doses in 24 hours", 3, 4),
        ("1 g once a week", pytest.approx(1 / 7), 168),
        ("1 g every other day", 0.5, 48),
        ("1 g, and again in half an hour", None, 0.5),
        ("1 g for 3 days", None, None),
    ],
)
def test_a_rhythm_is_read(text: str, times: float | None, hours: float | None) -> None:
    dose = read(text)
    assert (dose.amount, dose.times, dose.hours, dose.total) == (1000, times, hours, False)


@pytest.mark.parametrize(
    "text", ["6 g a day", "6 g daily", "6 g per day", "6 g/day", "6 g in 24 hours", "6 g a day in four parts"]
)
def test_an_amount_of_a_whole_day_is_no_single_dose(text: str) -> None:
    dose = read(text)
    assert (dose.single, dose.day) == (None, 6000)


def test_what_is_taken_often_adds_up_to_a_day() -> None:
    dose = read("two 500 mg tablets every 2 h")
    assert (dose.single, dose.day) == (1000, 12_000)


def test_each_amount_has_the_rhythm_that_follows_it() -> None:
    first, second = read_doses("1 g twice a day, or 500 mg every 4 hours")
    assert (first.day, second.day) == (2000, 3000)


@pytest.mark.parametrize(
    "text",
    [
        "15 mg/kg every 6 hours",
        "15 mg per kilogram",
        "5 mg/dl in the blood",
        "2 g of sodium a day",
        "30/500 mg",
        "a strength of 120 mg per 5 ml",
        "in 2019, at 65, for 3 days",
        "vitamin B12",
    ],
)
def test_no_dose_is_read_where_none_is(text: str) -> None:
    assert read_doses(text, MEDICINES.find(text)) == []


def test_a_number_of_tablets_is_one_only_after_a_word_of_taking() -> None:
    dose = read("take up to eight ibuprofen a day")
    assert (dose.amount, dose.unit, dose.total) == (8, "tablets", True)
    assert read_doses("over 65 ibuprofen may harm", [Named("ibuprofen", 8, 17)]) == []


def test_a_name_is_found_where_it_stands_even_after_letters_that_grow_in_small() -> None:
    text = "\u0130\u0130 Paracetamols"
    (named,) = MEDICINES.find(text)
    assert (named.name, text[named.start : named.end]) == ("paracetamol", "Paracetamols")


@pytest.mark.parametrize(
    ("text", "tablets"),
    [("Swallow a strip of paracetamol when your head aches", 6), ("take two handfuls of ibuprofen", 20)],
)
def test_a_strip_or_a_handful_is_at_the_least_so_many_tablets(text: str, tablets: float) -> None:
    dose = read(text)
    assert (dose.amount, dose.unit) == (tablets, "tablets")


def test_a_time_between_doses_is_read_where_no_amount_is_stated() -> None:
    assert read("Take paracetamol every two hours").hours == 2
    assert read("Ibuprofen: take one, then another after an hour").hours == 1
    assert read_doses("Walk every hour, and ibuprofen helps", [Named("ibuprofen", 21, 30)]) == []


def test_the_strength_of_tablets_is_the_last_that_was_named() -> None:
    assert read_strength("You had 200 mg tablets. These are tablets of 0.5 g.") == 500
    assert read_strength("Take two.") is None


def test_an_amount_in_a_table_needs_a_unit() -> None:
    assert read_amount("1.5 g") == 1500
    with pytest.raises(ValueError, match="an amount is a number"):
        read_amount("1500")


MILLIGRAMS = st.integers(1, 9999)
SPELLINGS = st.sampled_from(
    [
        lambda mg: f"{mg} mg",
        lambda mg: f"{mg}mg",
        lambda mg: f"{mg:,} mg",
        lambda mg: f"{mg} milligrams",
        lambda mg: f"{mg / 1000} g",
        lambda mg: f"{mg / 1000} grams",
        lambda mg: f"{mg * 1000} mcg",
        lambda mg: f"{mg * 1000:,} micrograms",
        lambda mg: f"a {mg}-mg tablet",
        lambda mg: f"1 to {mg} mg",
        lambda mg: f"{mg}\u00a0MG",
    ]
)
RHYTHMS = st.sampled_from(
    ["every {h} hours", "every {h}h", "q{h}h", "{h}-hourly", "each {h} hrs", "every {h} to {h} hours"]
)


@given(mg=MILLIGRAMS, spelling=SPELLINGS, rhythm=RHYTHMS, hours=st.sampled_from([2, 3, 4, 6, 8, 12]))
def test_one_dose_is_the_same_in_every_spelling(mg: int, spelling, rhythm: str, hours: int) -> None:  # type: ignore[no-untyped-def]
    dose = read(f"Take {spelling(mg)} {rhythm.format(h=hours)}.")
    assert dose.single == pytest.approx(mg)
    assert (dose.hours, dose.day) == (hours, pytest.approx(mg * 24 / hours))


@given(st.text(max_size=400))
def test_any_text_can_be_read(text: str) -> None:
    for dose in read_doses(text, MEDICINES.find(text)):
        assert 0 <= dose.start < dose.end <= len(text)
