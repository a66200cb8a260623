"""Reads the doses that a text states: how much, how often, how far apart. It knows no medicine.

Each word of the text has one letter for its kind (dose_words.py), and short expressions over these letters
find amounts and rhythms: "two 500 mg tablets every 4 to 6 hours" reads `NNUFENTNH`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from shared.guard.dose_words import Token, read_words
from shared.guard.names import Named

#: What an amount may be, in the order in which they are tried.
_AMOUNTS = re.compile(
    "|".join(
        (
            # the strength of a liquid: 250 mg per 5 ml
            r"(?P<strength>NU[Ei](?:N|A)?L)",
            # no dose: per kg, per litre of blood, of salt, 500/30 mg
            r"(?P<other>(?:NT)?N[UI]y?[EA]N?[KC]|(?:NT)?N[UI]y?n|N(?:EN)+[UI])",
            # so many tablets of so much
            r"(?P<counted>(?:NT)?NA?[Xy]*(?:Ry*)?NU[yR]*F|(?:NT)?Ny*(?:NU[yR]*R|RNU)|(?:NT)?NXNU)",
            r"(?P<tablets_of>(?:NT)?Ny*R?F[y(R]*NU)",
            r"(?P<multiplied>NUXN)",
            r"(?P<between>BN[UIL]?&N[UIL])",
            r"(?P<amount>(?:N[UIL]?T)?(?:NA?|A)[UIL])",
            # a strip or a handful, or so many tablets, after a word such as "take"
            r"(?P<batch>(?<=v)[yATw]{0,3}NA?y*S|(?<=v)[yATw]{0,3}S)",
            r"(?P<tablets>(?<=v)[yATw]{0,2}(?:NT)?NA?y*(?:R?F|R))",
        )
    )
)
_HOURS = re.compile(r"E(?:(?:NT)?N)?A?[HM]|(?:(?:NT)?N)?J")
_TIMES = re.compile(r"(?:NT)?N[YX][yiAE]{0,2}N?[Dd]|V[yiAE]{0,2}[Dd]|Q")
_WEEKLY = re.compile(r"(?:V|(?:NT)?N[YX])?(?:[AE]W|k)")
_OTHER_DAY = re.compile(r"EOD")
_AGAIN = re.compile(r"[Gg][^p]{0,5}?(?:i(?:N|A)A?[HM]|(?:N|A)A?[HM]i)")
_ANOTHER = re.compile(r"g[^p]{0,3}?(?:i(?:N|A)A?[HM]|(?:N|A)A?[HM]i)")
_COUNT = re.compile(r"(?:NT)?N(?=[AE]D|d)")
_A_DAY = re.compile(r"(?<!r)[AE]D|d|[iE]y?N?D")


@dataclass(frozen=True, slots=True, kw_only=True)
class StatedDose:
    """One dose that a text states."""

    #: The most at once, or in 24 hours when `total`; None when only a rhythm is stated.
    amount: float | None
    #: "mg", "units" or "tablets" (of a strength that does not stand with them).
    unit: str = "mg"
    #: Whether the amount is that of a whole day.
    total: bool = False
    #: How often in 24 hours, the least of a range; None when it is not stated.
    times: float | None = None
    #: The shortest time between two, in hours; None when it is not stated.
    hours: float | None = None
    #: The characters of the text that state the amount.
    start: int
    end: int

    @property
    def single(self) -> float | None:
        """The most at once; None when it cannot be told."""
        return None if self.total else self.amount

    @property
    def day(self) -> float | None:
        """The most in 24 hours; None when it cannot be told."""
        if self.total or self.amount is None:
            return self.amount
        return None if self.times is None else self.amount * self.times


def read_doses(text: str, medicines: Iterable[Named] = ()) -> list[StatedDose]:
    """Every dose that the text states, in its order. Linear in its length.

    Args:
        medicines: where names of medicines stand in it; with them "take eight ibuprofen" states tablets.
    """
    tokens = read_words(text, medicines)
    kinds = _kinds(tokens)
    found = list(_amounts(tokens, kinds))
    if not found:
        return _rhythm_alone(tokens, kinds) if "R" in kinds else []
    # a rhythm belongs to the amount before it; what stands before the first amount, to that
    edges = [0, *(first for first, _, _ in found[1:]), len(tokens)]
    return [
        _with_rhythm(dose, tokens[left:right], kinds[left:right], first - left, last - left)
        for (first, last, dose), (left, right) in zip(found, pairwise(edges), strict=True)
    ]


def read_count(text: str) -> list[StatedDose]:
    """The tablets of a whole day in a text that names no form: "sixteen a day", "up to 16 daily"."""
    tokens = read_words(text, ())
    kinds = _kinds(tokens)
    parts = [tokens[match.start() : match.end()] for match in _COUNT.finditer(kinds)]
    return [replace(_dose("tablets", part), total=True) for part in parts]


def read_strength(text: str) -> float | None:
    """The strength of the tablets that a text names last, in mg; None when it names none."""
    tokens = read_words(text, ())
    matches = list(re.finditer(r"NU(?=w{0,2}F)|F[yvw(]{0,2}NU", _kinds(tokens)))
    return _masses(tokens[matches[-1].start() : matches[-1].end()])[-1] if matches else None


def read_amount(text: str) -> float:
    """One amount such as "1.5 g", in mg. Raises ValueError when the text is none."""
    tokens = read_words(text, ())
    if _kinds(tokens) != "NU":
        raise ValueError("an amount is a number with mg, g or mcg")
    return _masses(tokens)[0]


def _kinds(tokens: Sequence[Token]) -> str:
    return "".join(token.kind for token in tokens)


def _amounts(tokens: Sequence[Token], kinds: str) -> Iterator[tuple[int, int, StatedDose]]:
    """The amounts, each with its first token and the one after its last."""
    per_ml: float | None = None
    found: list[tuple[int, int, StatedDose]] = []
    for match in _AMOUNTS.finditer(kinds):
        part = tokens[match.start() : match.end()]
        if match["strength"]:
            volume = part[-2].value if part[-2].kind == "N" else 1.0
            per_ml = _masses(part)[0] / (volume * part[-1].value)
        elif not match["other"]:
            found.append((match.start(), match.end(), _dose(str(match.lastgroup), part)))
    for first, last, dose in found:
        if dose.unit != "ml":
            yield first, last, dose
        elif per_ml is not None and dose.amount is not None:
            yield first, last, replace(dose, unit="mg", amount=dose.amount * per_ml)


def _dose(form: str, part: Sequence[Token]) -> StatedDose:
    """The amount that some tokens state, the most of a range."""
    start, end = part[0].start, part[-1].end
    numbers = [token.value for token in part if token.kind == "N"] or [1.0]
    if form == "tablets":
        return StatedDose(amount=max(numbers), unit="tablets", start=start, end=end)
    if form == "batch":
        return StatedDose(amount=max(numbers) * part[-1].value, unit="tablets", start=start, end=end)
    if form in ("counted", "tablets_of"):
        return StatedDose(amount=max(numbers[:-1]) * _masses(part)[-1], start=start, end=end)
    if form == "multiplied":
        return StatedDose(amount=numbers[-1] * _masses(part)[0], start=start, end=end)
    unit = {"U": "mg", "I": "units", "L": "ml"}[part[-1].kind]
    return StatedDose(amount=max(_masses(part)), unit=unit, start=start, end=end)


def _masses(part: Sequence[Token]) -> list[float]:
    """What each number of an amount is in mg, units or ml; a number without a unit has the next one's."""
    units = [token.value for token in part if token.kind in "UIL"]
    masses: list[float] = []
    for token in part:
        if token.kind == "N":
            masses.append(token.value * units[0])
        elif token.kind in "UIL" and len(units) > 1:
            units.pop(0)
    return masses or units


def _with_rhythm(dose: StatedDose, tokens: Sequence[Token], kinds: str, first: int, last: int) -> StatedDose:
    """The dose with how often it is taken, as the words around it say."""
    kinds = kinds[:first] + "#" * (last - first) + kinds[last:]
    dose = replace(dose, times=_times(tokens, kinds), hours=None)
    if rhythm := _hours(tokens, kinds):
        least, most = rhythm
        dose = replace(dose, hours=least, times=dose.times or 24 / most)
    if dose.times is None:
        dose = _rarer_or_total(dose, tokens, kinds)
    return dose


def _rarer_or_total(dose: StatedDose, tokens: Sequence[Token], kinds: str) -> StatedDose:
    if match := _WEEKLY.search(kinds):
        times = _least(tokens[match.start() : match.end()])
        return replace(dose, times=times / 7, hours=168 / times)
    if _OTHER_DAY.search(kinds):
        return replace(dose, times=0.5, hours=48.0)
    if match := _AGAIN.search(kinds):
        return replace(dose, hours=_in_hours(tokens[match.start() : match.end()])[0])
    if _A_DAY.search(kinds):
        return replace(dose, total=True)
    parts_of_day = {token.word for token in tokens if token.kind == "P"}
    return replace(dose, times=float(len(parts_of_day)) or None)


def _times(tokens: Sequence[Token], kinds: str) -> float | None:
    match = _TIMES.search(kinds)
    return _least(tokens[match.start() : match.end()]) if match else None


def _least(part: Sequence[Token]) -> float:
    """The least number among some tokens, 1 when there is none."""
    return min((token.value for token in part if token.kind in "NVQ"), default=1.0) or 1.0


def _hours(tokens: Sequence[Token], kinds: str) -> tuple[float, float] | None:
    match = _HOURS.search(kinds)
    return _in_hours(tokens[match.start() : match.end()]) if match else None


def _in_hours(part: Sequence[Token]) -> tuple[float, float]:
    """The shortest and the longest time that some tokens name."""
    unit = 1 / 60 if any(token.kind == "M" for token in part) else 1.0
    numbers = [token.value * unit for token in part if token.kind == "N" and token.value] or [unit]
    return min(numbers), max(numbers)


def _rhythm_alone(tokens: Sequence[Token], kinds: str) -> list[StatedDose]:
    """A time between doses of an amount that is not stated, after a word such as "take"."""
    match = _HOURS.search(kinds) or _ANOTHER.search(kinds)
    if match is None or "v" not in kinds[: match.start()]:
        return []
    part = tokens[match.start() : match.end()]
    return [StatedDose(amount=None, hours=_in_hours(part)[0], start=part[0].start, end=part[-1].end)]
