"""The lists of names: the US census's of 1990, as the `names` package carries them. It reads no text."""

import unicodedata
from functools import lru_cache
from importlib.resources import files

from shared.privacy.recognisers.words import COMMON_CAPITALISED

_FIRST_NAMES_MALE, _FIRST_NAMES_FEMALE = 1219, 2500
#: A census surname rarer than this many of the first is too often another word.
_SURNAMES = 40_000


@lru_cache
def census() -> tuple[frozenset[str], frozenset[str]]:
    """First names and surnames in capitals."""
    first = frozenset(
        _column("dist.male.first", _FIRST_NAMES_MALE) + _column("dist.female.first", _FIRST_NAMES_FEMALE)
    )
    return first, frozenset(_column("dist.all.last", _SURNAMES))


@lru_cache
def frequent_surnames(most: int) -> frozenset[str]:
    """So many of the most frequent surnames, in capitals."""
    return frozenset(_column("dist.all.last", most))


@lru_cache
def unmistakable() -> frozenset[str]:
    """First names so frequent that one alone is a person, unless it is another word as well."""
    both = _column("dist.male.first", 150) + _column("dist.female.first", 200)
    return frozenset(both) - {word.upper() for word in COMMON_CAPITALISED}


def as_listed(name: str) -> str:
    """A name as the lists write it: `Nguyễn` is NGUYEN, `O'Brien` OBRIEN."""
    if name.isascii() and name.isalpha():
        return name.upper()
    return "".join(letter for letter in unicodedata.normalize("NFKD", name) if letter.isalpha()).upper()


def _column(name: str, most: int) -> list[str]:
    lines = files("names").joinpath(name).read_text().splitlines()
    return [line.split()[0] for line in lines[:most]]
