"""Cuts a text into words of one kind each: numbers, units, forms, times. It does not join them to doses."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from shared.guard.names import Named, small

#: What one of each unit of mass is in mg.
MASS = {
    **dict.fromkeys(("mg", "mgs", "milligram", "milligrams", "milligramme", "milligrammes"), 1.0),
    **dict.fromkeys(("g", "gm", "gms", "gram", "grams", "gramme", "grammes"), 1000.0),
    **dict.fromkeys(("mcg", "mcgs", "µg", "μg", "ug", "microgram", "micrograms", "mics"), 0.001),
    **dict.fromkeys(("microgramme", "microgrammes"), 0.001),
}
_VOLUME = {
    **dict.fromkeys(("ml", "mls", "millilitre", "millilitres", "milliliter", "milliliters", "cc"), 1.0),
    **dict.fromkeys(("teaspoon", "teaspoons", "teaspoonful", "teaspoonfuls", "tsp"), 5.0),
    **dict.fromkeys(("tablespoon", "tablespoons", "tablespoonful", "tbsp"), 15.0),
}
#: So often in 24 hours.
_OFTEN = {
    **dict.fromkeys(("once", "od", "qd", "nightly", "nocte"), 1.0),
    **dict.fromkeys(("twice", "bd", "bid", "b.d", "b.i.d"), 2.0),
    **dict.fromkeys(("thrice", "tds", "tid", "t.d.s", "t.i.d"), 3.0),
    **dict.fromkeys(("qds", "qid", "q.d.s", "q.i.d"), 4.0),
}
_NUMBERS = {
    **{"half": 0.5, "½": 0.5, "one": 1.0, "two": 2.0, "couple": 2.0, "three": 3.0, "four": 4.0, "five": 5.0},
    **{"six": 6.0, "seven": 7.0, "eight": 8.0, "nine": 9.0, "ten": 10.0, "eleven": 11.0, "twelve": 12.0},
    **{"dozen": 12.0, "fifteen": 15.0, "sixteen": 16.0, "eighteen": 18.0, "twenty": 20.0, "thirty": 30.0},
    **{"forty": 40.0, "fifty": 50.0, "sixty": 60.0, "seventy": 70.0, "eighty": 80.0, "ninety": 90.0},
}
#: At the least so many tablets.
_BATCHES = {"strip": 6.0, "strips": 12.0, "blister": 6.0, "blisters": 12.0, "handful": 5.0, "handfuls": 10.0}
_SCALES = {"dozen": 12.0, "hundred": 100.0, "thousand": 1000.0}

NUMBER_WORDS = frozenset(_NUMBERS) | frozenset(_SCALES)

#: The words of each kind. A number is `N`, a named medicine `R`, a mark `p`, any other word `w`.
_WORDS = {
    "U": " ".join(MASS),
    "I": "iu unit units",
    "L": " ".join(_VOLUME),
    "F": "tablet tablets tab tabs pill pills capsule capsules caps caplet caplets",
    "T": "to or – — ‑ −",
    "X": "x × *",
    "Y": "times time doses",
    "V": "once twice thrice",
    "Q": "od qd nightly nocte bd bid b.d b.i.d tds tid t.d.s t.i.d qds qid q.d.s q.i.d",
    "E": "every each per / q",
    "A": "a an",
    "D": "day",
    "d": "daily",
    "W": "week",
    "k": "weekly",
    "H": "hour hours hr hrs h",
    "M": "minute minutes min mins",
    "J": "hourly",
    "O": "other alternate second",
    "P": "morning noon midday lunch evening night bedtime breakfast",
    "B": "between",
    "&": "and",
    "r": "for",
    "i": "in within over after later",
    "G": "again then more",
    "g": "another repeat repeated",
    "S": "strip strips blister blisters handful handfuls",
    "K": "kg kilo kilogram kilograms m2 m²",
    "C": "l litre liter dl decilitre deciliter",
    "y": "of the those these your his her my their standard ordinary regular whole strong adult single"
    " extra all any",
    "v": "take taken taking have swallow pop give use try chew need neck start down up add",
    "n": "salt sodium sugar sugars fat protein fibre fiber alcohol carbohydrate carbohydrates"
    " carbs glucose water",
    "(": "(",
    "p": ". , ; : ! ? )",
}
_KINDS = {word: kind for kind, words in _WORDS.items() for word in words.split()}
_VALUES = MASS | _VOLUME | _OFTEN | _BATCHES

_TOKEN = re.compile(
    r"(?P<number>\d{1,3}(?:,\d{3})+(?:\.\d+)?(?!\d)|\d{1,3}(?: 000)+(?!\d)|\d+(?:[.,]\d+)?)"
    r"|[a-z](?:\.[a-z]){1,2}\b|m²|[^\W\d_]+|[^\w\s]"
)
_DECIMAL_COMMA = re.compile(r"\d+,\d{1,2}")


@dataclass(frozen=True, slots=True)
class Token:
    """One word at `text[start:end]`; a unit's value is what one of it is, a number's the number."""

    kind: str
    value: float
    word: str
    start: int
    end: int


def read_words(text: str, medicines: Iterable[Named]) -> list[Token]:
    """The words of a text; a named medicine is one word."""
    text = small(text)
    names = {named.start: named.end for named in medicines}
    tokens: list[Token] = []
    skip_to = 0
    for match in _TOKEN.finditer(text):
        start, end = match.span()
        if start < skip_to:
            continue
        if start in names:
            skip_to = names[start]
            tokens.append(Token("R", 1, "", start, skip_to))
        elif match["number"]:
            kind = "w" if _is_part_of_a_word(text, start) else "N"
            tokens.append(Token(kind, _value(match["number"]), match["number"], start, end))
        elif match.group() == "-":
            if _is_a_range(text, start):
                tokens.append(Token("T", 1, "-", start, end))
        else:
            tokens.append(_token(match.group(), start, end))
    return _joined(tokens)


def _is_part_of_a_word(text: str, start: int) -> bool:
    """Whether the number is that of a name, as in "B12" or "covid-19"."""
    before = text[max(start - 2, 0) : start]
    return (before[-1:].isalpha() and before[-1:] not in "qx") or (
        before[-1:] == "-" and before[:1].isalpha()
    )


def _is_a_range(text: str, at: int) -> bool:
    return text[at + 1 :].lstrip()[:1].isdigit() and text[:at].rstrip()[-1:].isalnum()


def _value(number: str) -> float:
    if _DECIMAL_COMMA.fullmatch(number):
        return float(number.replace(",", "."))
    return float(number.replace(",", "").replace(" ", ""))


def _token(word: str, start: int, end: int) -> Token:
    if word in _NUMBERS or word in _SCALES:
        return Token("N", _NUMBERS.get(word) or _SCALES[word], word, start, end)
    kind = _KINDS.get(word, "w" if word[0].isalnum() else "p")
    return Token(kind, _VALUES.get(word, 1.0), word, start, end)


def _joined(tokens: list[Token]) -> list[Token]:
    """Numbers of several words as one ("two hundred and fifty"), and "24 hours" as a day."""
    joined: list[Token] = []
    for token in tokens:
        last = joined[-1] if joined else None
        before = joined[-2].word if len(joined) > 1 else ""
        if last is None:
            joined.append(token)
        elif token.word == "dozen" and before == "half":
            joined[-2:] = [replace(joined[-2], value=6.0, word="dozen", end=token.end)]
        elif token.word in _SCALES and last.kind in "NA":
            joined[-1] = replace(
                last, kind="N", value=last.value * token.value, word="hundred", end=token.end
            )
        elif token.word in _NUMBERS and token.value < 10 and last.word in _NUMBERS and last.value >= 20:
            joined[-1] = replace(last, value=last.value + token.value, end=token.end)
        elif token.word in _NUMBERS and last.kind == "&" and before == "hundred":
            joined[-2:] = [replace(joined[-2], value=joined[-2].value + token.value, end=token.end)]
        elif (
            token.kind == "H"
            and last.kind == "N"
            and last.value == 24
            and before not in ("every", "each", "q")
        ):
            joined[-1] = replace(token, kind="D", start=last.start)
        else:
            joined.append(token)
    return joined
