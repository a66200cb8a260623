"""Finds known names (medicines, foods, conditions) in a text. It does not know what they mean together."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

#: A word of letters and digits, without the "'s" after it; hyphens part words.
_WORD = re.compile(r"[^\W_]+(?:['’]s\b)?")


@dataclass(frozen=True, slots=True)
class Named:
    """One name at `text[start:end]`."""

    name: str
    start: int
    end: int


class Names:
    """Names of one or more words, compiled once.

    Args:
        names: in small letters; "st john's wort" and "co-codamol" are found in every usual spelling, and so
            are plurals in -s.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._by_first: dict[str, list[tuple[tuple[str, ...], str]]] = {}
        for name in sorted(set(names), key=len, reverse=True):
            words = words_of(name)
            for first in {words[0], *([_plural(words[0])] if len(words) == 1 else [])}:
                self._by_first.setdefault(first, []).append((words, name))

    def find(self, text: str) -> list[Named]:
        """Every name in the order of the text, of overlapping ones the longest. Linear in its length."""
        text = small(text)
        words = words_of(text)
        if self._by_first.keys().isdisjoint(words):
            return []
        spans = [match.span() for match in _WORD.finditer(text)]
        found: list[Named] = []
        index = 0
        while index < len(words):
            name, length = self._at(words, index)
            if length:
                found.append(Named(name, spans[index][0], spans[index + length - 1][1]))
            index += length or 1
        return found

    def _at(self, words: tuple[str, ...], index: int) -> tuple[str, int]:
        """The longest name that begins with word `index`, and how many words it has; 0: there is none."""
        for parts, name in self._by_first.get(words[index], ()):
            *most, last = parts
            ahead = words[index : index + len(parts)]
            if ahead[:-1] == tuple(most) and ahead[len(most) :] in ((last,), (_plural(last),)):
                return name, len(parts)
        return "", 0


def words_of(text: str) -> tuple[str, ...]:
    """The words of a text, each without an "'s"."""
    return tuple(word[:-2] if word[-2:] in ("'s", "’s") else word for word in _WORD.findall(text))


def listed(line: str) -> list[str]:
    """The names in a line that commas part."""
    return [name for part in line.split(",") if (name := part.strip())]


def small(text: str) -> str:
    """The text in small letters, each at the place where it was."""
    lowered = text.lower()
    if len(lowered) == len(text):
        return lowered
    return "".join(letter if len(letter.lower()) > 1 else letter.lower() for letter in text)


def _plural(word: str) -> str:
    return f"{word}s"
