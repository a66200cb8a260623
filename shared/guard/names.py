"""Finds known names (medicines, foods, conditions) in a text. It does not know what they mean together."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

#: A word of letters and digits; hyphens part words, and what follows an apostrophe is dropped.
_WORD = re.compile(r"[^\W_]+")
_APOSTROPHES = "'’"


@dataclass(frozen=True, slots=True)
class Named:
    """One name at `text[start:end]`."""

    name: str
    start: int
    end: int


class Names:
    """Names of one or more words, compiled once.

    Args:
        names: written in small letters; "st john's wort" and "co-codamol" are found in every usual spelling, and so
            are plurals in -s.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._by_first: dict[str, list[tuple[tuple[str, ...], str]]] = {}
        for name in sorted(names, key=len, reverse=True):
            words = tuple(word for word, _, _ in _words(name))
            self._by_first.setdefault(words[0], []).append((words, name))

    def find(self, text: str) -> list[Named]:
        """Every name in the order of the text, of overlapping ones the longest. Linear in its length."""
        words = list(_words(text))
        found: list[Named] = []
        index = 0
        while index < len(words):
            taken = self._at(words, index, found)
            index += taken or 1
        return found

    def _at(self, words: list[tuple[str, int, int]], index: int, found: list[Named]) -> int:
        """Adds the longest name that begins with word `index`, and says how many words it takes."""
        first = words[index][0]
        candidates = self._by_first.get(first) or self._by_first.get(_singular(first)) or ()
        for parts, name in candidates:
            ahead = words[index : index + len(parts)]
            if len(ahead) == len(parts) and all(map(_same, (word for word, _, _ in ahead), parts)):
                found.append(Named(name, ahead[0][1], ahead[-1][2]))
                return len(parts)
        return 0


def _words(text: str) -> Iterator[tuple[str, int, int]]:
    for match in _WORD.finditer(text.lower()):
        start, end = match.span()
        if end - start == 1 and text[start - 1 : start] and text[start - 1] in _APOSTROPHES:
            continue  # the "s" of "john's"
        yield match.group(), start, end


def _same(word: str, part: str) -> bool:
    return word == part or _singular(word) == part


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") else word
