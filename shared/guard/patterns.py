"""Turns a short pattern over tagged words into a linear regular expression. It knows no rule.

A pattern is a line of elements parted by blanks:

- `stop|halt`: one of these words; `no_one` is read as the two words;
- `{drug}` or `{drug|remedy}`: one word of these classes, or the last one of a phrase;
- `your?`, `{drug}?`: the same, or nothing;
- `!be|worry`: the next word is none of these;
- `<name>`: one of the patterns of this macro;
- `..`: up to four words of the same clause, none of them a negation;
- `...`: up to eight words, commas and negations among them;
- `^`: the start of the text, `$`: its end, but for punctuation.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from shared.guard.lexicon import START, Tagged

_SHORT_GAP = r'(?:(?!not/|never/)[^\s/,;:.!?()"]+/\S* ){0,4}?'
_LONG_GAP = r'(?:[^\s/;:.!?()"]+/\S* ){0,8}?'
_END = r"(?:(?:[.,;:!?()\"]|'s)/\S* )*\Z"
_FIXED = {"..": _SHORT_GAP, "...": _LONG_GAP, START: r"\A", "$": _END}
_COMMON = frozenset(
    [
        *("a", "an", "the", "you", "your", "i", "is", "are", "be", "it", "not", "no", "to"),
        *("of", "for", "and", "or", "in", "on", "with", "that", "this"),
    ]
)


@dataclass(frozen=True, slots=True)
class Pattern:
    """A compiled pattern.

    Attributes:
        keys: words (or "/tag") of which at least one must occur for the pattern to match.
        starts: the same, of which one begins every match; None where any word may. To look only there takes
            a quarter of the time.
    """

    regex: re.Pattern[str]
    keys: frozenset[str]
    starts: frozenset[str] | None

    def matches(self, tagged: Tagged) -> Iterator[re.Match[str]]:
        """Every place of the tagged text that the pattern fits."""
        if self.keys.isdisjoint(tagged.keys):
            return iter(())
        if self.starts is None:
            return self.regex.finditer(tagged.line)
        return self._matches_at(tagged, 0, len(tagged.line))

    def found_between(self, tagged: Tagged, start: int, end: int) -> bool:
        """Whether the pattern fits within `tagged.line[start:end]`."""
        if self.keys.isdisjoint(tagged.keys):
            return False
        if self.starts is None:
            return bool(self.regex.search(tagged.line, start, end))
        return next(self._matches_at(tagged, start, end), None) is not None

    def found(self, tagged: Tagged) -> bool:
        """Whether the pattern fits anywhere."""
        return next(self.matches(tagged), None) is not None

    def _matches_at(self, tagged: Tagged, start: int, end: int) -> Iterator[re.Match[str]]:
        """The matches within `tagged.line[start:end]`, none of which overlaps the one before."""
        assert self.starts is not None
        places = [tagged.places[key] for key in self.starts & tagged.keys]
        for place in places[0] if len(places) == 1 else sorted({each for some in places for each in some}):
            if place >= start and (match := self.regex.match(tagged.line, place, end)):
                yield match
                start = match.end()


Macros = Mapping[str, Sequence[str]]


def compile_pattern(source: str, macros: Macros) -> Pattern:
    """Compile one pattern.

    Raises:
        ValueError: the pattern has no element that must occur, or names no macro of `macros`.
    """
    part, keys = _sequence(source, macros)
    if not keys:
        raise ValueError(f"the pattern {source!r} has no element that must occur")
    return Pattern(_expression(r"(?<!\S)" + part), keys, _starts(source, macros))


@lru_cache(maxsize=4096)
def _expression(text: str) -> re.Pattern[str]:
    """Compiled once: drafts and versions of a policy share most of their patterns."""
    return re.compile(text)


def _sequence(source: str, macros: Macros) -> tuple[str, frozenset[str]]:
    """The expression of a line of elements, and the best keys of which it needs one."""
    parts: list[str] = []
    keys: list[frozenset[str]] = []
    for element in source.split():
        part, needed = _element(element, macros)
        parts.append(part)
        if needed:
            keys.append(needed)
    return "".join(parts), min(keys, key=_cost, default=frozenset())


def _starts(source: str, macros: Macros) -> frozenset[str] | None:
    """Keys of which one begins whatever the line of elements fits; None where any word may."""
    found: set[str] = set()
    for element in source.split():
        body, optional = _body(element)
        if body.startswith("<") and body.endswith(">"):
            some = [_starts(each, macros) for each in macros[body[1:-1]]]
        elif body.startswith("{") and body.endswith("}"):
            some = [frozenset(f"/{tag}" for tag in body[1:-1].split("|"))]
        elif element == START:
            some = [frozenset((START,))]
        elif element in _FIXED or element.startswith("!"):
            return None
        else:
            some = [frozenset(option.split("_")[0] for option in body.split("|"))]
        for each in some:
            if each is None:
                return None
            found |= each
        if not optional:
            return frozenset(found)
    return None


def _body(element: str) -> tuple[str, bool]:
    """An element without the mark that it may be left out, and whether it has it."""
    optional = len(element) > 1 and element.endswith("?")
    return (element[:-1] if optional else element), optional


def _cost(keys: frozenset[str]) -> tuple[bool, int]:
    """How often a choice of keys may be expected to occur, roughly; the rarest makes the best filter."""
    return bool(keys & _COMMON), len(keys)


def _element(element: str, macros: Macros) -> tuple[str, frozenset[str]]:
    """The expression of one element, and the keys of which it needs one (none when it is optional)."""
    if element in _FIXED:
        return _FIXED[element], frozenset()
    if element.startswith("!"):
        return rf"(?!(?:{'|'.join(map(re.escape, element[1:].split('|')))})/)", frozenset()
    body, optional = _body(element)
    if body.startswith("<") and body.endswith(">"):
        part, needed = _macro(body[1:-1], macros)
    elif body.startswith("{") and body.endswith("}"):
        tags = body[1:-1].split("|")
        part = rf"[^\s/]+/(?:[^\s/]+/)*?(?:{'|'.join(map(re.escape, tags))})/\S* "
        needed = frozenset(f"/{tag}" for tag in tags)
    else:
        options = [option.split("_") for option in body.split("|")]
        part = f"(?:{'|'.join(_words(option) for option in options)})"
        needed = frozenset(option[-1] for option in options)
    return (f"(?:{part})?", frozenset()) if optional else (part, needed)


def _words(words: list[str]) -> str:
    return "".join(rf"{re.escape(word)}/\S* " for word in words)


def _macro(name: str, macros: Macros) -> tuple[str, frozenset[str]]:
    if name not in macros:
        raise ValueError(f"there is no macro {name!r}")
    compiled = [_sequence(source, macros) for source in macros[name]]
    needed = (
        frozenset().union(*(keys for _, keys in compiled))
        if all(keys for _, keys in compiled)
        else frozenset()
    )
    return f"(?:{'|'.join(part for part, _ in compiled)})", needed
