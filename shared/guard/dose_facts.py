"""Judges the doses that a text states by the ceilings of doses.yaml. It knows no pair of medicines."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shared.guard.dose_words import NUMBER_WORDS
from shared.guard.doses import StatedDose, read_amount, read_count, read_doses, read_strength
from shared.guard.named_text import NamedText
from shared.guard.names import Named, listed
from shared.guard.rules import Scope

#: A dose is too high from this part over its ceiling on: 3 x 33.4 mg is 100 mg.
_TOLERANCE = 1.01
#: No text without one of these states a dose: most end here.
_MAY_STATE_A_DOSE = re.compile(
    rf"\d|\b(?:{'|'.join(NUMBER_WORDS)}|grams?|hour(?:ly)?|minutes?)\b", re.IGNORECASE
)
_SLOW = re.compile(
    r"\b(?:(?i:(?:modified|extended|sustained|prolonged|slow|controlled|delayed)[ -]release|retard)"
    r"|[MSXC]R|XL|LA)\b"
)
#: At the most so many words without a comma stand between an amount and the medicine that follows it.
_AHEAD = re.compile(r"[\s)]*(?:(?!and\b|with\b|plus\b|then\b|or\b)[\w-]+[\s)(]+){0,4}", re.IGNORECASE)
_ENDED = re.compile(r"[.;:!?]\s")
#: "2 g of something" that is no form and no pronoun is no dose of what was named before.
_OF_SOMETHING = re.compile(
    r"\s+of\s+(?!it\b|this\b|that\b|these\b|those\b|them\b|the\b|your\b|his\b|her\b|each\b|an?\b|any\b|day|time)[a-z]",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceiling:
    """The most of one medicine that an adult takes; mg or units, and hours."""

    #: The first of its names, as verdicts give it.
    medicine: str
    dose: float | None
    day: float | None
    #: The shortest time between two doses.
    hours: float | None
    #: The least strength of its tablets.
    tablet: float | None
    #: A word beside it with which other doses are right.
    unless: re.Pattern[str] | None

    def exceeded_by(self, dose: StatedDose, strength: float | None, *, slow: bool) -> str | None:
        """Which ceiling a stated dose is over: `dose`, `day` or `hours`; None: none."""
        factor = 1.0
        if dose.unit == "tablets":
            factor = strength or self.tablet or 0.0
        elif dose.unit != "mg":
            return None
        most_at_once = self.day if slow else self.dose
        if dose.single is not None and _over(dose.single * factor, most_at_once):
            return "dose"
        if dose.day is not None and _over(dose.day * factor, self.day):
            return "day"
        hours = _hours(dose)
        return "hours" if hours and self.hours and hours < self.hours / _TOLERANCE else None


def _over(amount: float, most: float | None) -> bool:
    return most is not None and amount > most * _TOLERANCE


def _hours(dose: StatedDose) -> float | None:
    """The shortest time between two doses that a text states or implies."""
    if dose.hours is not None:
        return dose.hours
    return 24.0 if dose.total else 24 / dose.times if dose.times else None


@dataclass(frozen=True, slots=True)
class Excess:
    """A dose over a ceiling, and where the text states it."""

    medicine: str
    ceiling: str
    start: int
    end: int


class DoseFacts:
    """The ceilings of all medicines, compiled once.

    Args:
        rows: the medicines of doses.yaml.
        unless: what makes a dose over its ceiling no recommendation.

    Raises:
        ValueError: an amount is none.
    """

    def __init__(self, rows: Iterable[Mapping[str, Any]], unless: Sequence[Scope]) -> None:
        self._ceilings: dict[str, Ceiling] = {}
        for row in rows:
            self._ceilings |= dict.fromkeys(listed(row["names"]), _ceiling(row))
        self._unless = tuple(unless)

    @property
    def names(self) -> Iterable[str]:
        """Every name that has a ceiling."""
        return self._ceilings

    def find(self, reading: NamedText) -> Excess | None:
        """The first dose that the text recommends over its ceiling."""
        text, context = reading.sentence, reading.before
        if not _MAY_STATE_A_DOSE.search(text):
            return None
        named = [name for name in reading.named if name.name in self._ceilings]
        before = [] if named else [name for name in reading.named_before if name.name in self._ceilings]
        if not named and not before:
            return None
        for dose in read_doses(text, named) or _count(text, reading.before, named):
            medicine = _medicine(text, dose, named) or (before[-1] if before else None)
            excess = self._excess(medicine.name, dose, text, context) if medicine else None
            if excess is not None and not self._is_lifted(reading, dose, named):
                return excess
        return None

    def _excess(self, name: str, dose: StatedDose, text: str, context: str) -> Excess | None:
        ceiling = self._ceilings[name]
        strength = (read_strength(text) or read_strength(context)) if dose.unit == "tablets" else None
        over = ceiling.exceeded_by(dose, strength, slow=bool(_SLOW.search(text)))
        if over is None or (ceiling.unless and ceiling.unless.search(f"{context} {text}")):
            return None
        return Excess(ceiling.medicine, over, dose.start, dose.end)

    def _is_lifted(self, reading: NamedText, dose: StatedDose, named: Sequence[Named]) -> bool:
        """Whether a scope lifts it, or the dose is one of something else, of which nothing is known here."""
        text = reading.sentence
        if _OF_SOMETHING.match(text, dose.end) and not any(
            name.start - dose.end < 6 for name in _after(dose, named)
        ):
            return True
        others = [Named("", *span) for span in reading.text.spans_of("drug")]
        others = [
            other for other in others if not any(n.start < other.end and other.start < n.end for n in named)
        ]
        nearest = _medicine(text, dose, sorted([*named, *others], key=lambda name: name.start))
        if nearest is not None and not nearest.name:
            return True
        return reading.lifted(self._unless, *reading.text.line_span(dose.start, dose.end))


def _count(text: str, context: str, named: Sequence[Named]) -> list[StatedDose]:
    """So many a day of the tablets whose strength the sentence before states."""
    sentence_before = _ENDED.split(context.rstrip())[-1]
    return read_count(text) if not named and read_strength(sentence_before) else []


def _medicine(text: str, dose: StatedDose, named: Sequence[Named]) -> Named | None:
    """Whose dose it is: a medicine's that follows closely, else the last's before, else the next one's."""
    after = _after(dose, named)
    if after:
        gap = text[dose.end : after[0].start]
        if after[0].start < dose.end or _AHEAD.fullmatch(gap):
            return after[0]
    before = [name for name in named if name.start < dose.start]
    if before:
        return before[-1]
    return after[0] if after and not _ENDED.search(text, dose.end, after[0].start) else None


def _after(dose: StatedDose, named: Sequence[Named]) -> list[Named]:
    return [name for name in named if name.start >= dose.start]


def _ceiling(row: Mapping[str, Any]) -> Ceiling:
    amounts = {part: read_amount(row[part]) if part in row else None for part in ("dose", "day", "tablet")}
    words = "|".join(re.escape(word) for word in listed(row["unless"])) if "unless" in row else ""
    return Ceiling(
        medicine=listed(row["names"])[0],
        hours=row.get("hours"),
        unless=re.compile(rf"\b(?:{words})\b", re.IGNORECASE) if words else None,
        **amounts,
    )
