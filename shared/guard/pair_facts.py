"""Judges whether a text endorses what interactions.yaml calls dangerous together. It knows no dose."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shared.guard.named_text import NamedText
from shared.guard.names import Named, listed
from shared.guard.patterns import Pattern
from shared.guard.rules import Scope

#: What stands right before a name that is not meant: "not with warfarin", "unless you are pregnant".
_NOT_MEANT = re.compile(
    r"(?:\b(?:not|no|never|nor|without|unless|avoid|avoiding|instead of|rather than|other than|except|free"
    r" of)\s+"
    r"(?:(?:an?|any|the|you|you['’]re|are|is|have|having|has|history|of|been|currently|your|with|diagnosed|known|"
    r"taking|take|on|using|use|in|to|for)\s+){0,4}|\bnon[- ])$",
    re.IGNORECASE,
)
_NOT_MEANT_CHARS = 60
#: What turns that round: "no reason to avoid".
_NO_NEED = re.compile(r"(?:\b(?:no|not|never)|n['’]t)\s+(?:\w+\s+){0,2}to\s+$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Endorsed:
    """A pair, how sure the wording is, and the characters of the text that endorse it."""

    pair: str
    score: float
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Wording:
    """Some ways to endorse a pair, how sure they are (0 to 1), and what lifts them."""

    score: float
    triggers: tuple[Pattern, ...]
    unless: tuple[Scope, ...]


@dataclass(frozen=True, slots=True)
class _Member:
    """A name as one of a class: of its thing number `thing`, or of the class as a whole when that is None."""

    group: str
    thing: int | None


class PairFacts:
    """The pairs of all classes, compiled once.

    Args:
        document: interactions.yaml.
        wordings: how a text endorses a pair.
        together: how a text that names nothing speaks of what was named before it.
    """

    def __init__(
        self, document: Mapping[str, Any], wordings: Iterable[Wording], together: Iterable[Pattern]
    ) -> None:
        self._harmless = listed(document["harmless"])
        self._members: dict[str, list[_Member]] = {}
        for group, name, thing in members_of(document):
            self._members.setdefault(name, []).append(_Member(group, thing))
        self._pairs: dict[tuple[str, str], str] = {}
        for pair in document["pairs"]:
            one, other = pair["between"]
            self._pairs.setdefault((one, other), pair["id"])
            self._pairs.setdefault((other, one), pair["id"])
        self._wordings = tuple(wordings)
        self._together = tuple(together)

    @property
    def names(self) -> Iterable[str]:
        """Every name that is in a class, or holds one that is and does not mean it."""
        return [*self._members, *self._harmless]

    def find(self, reading: NamedText) -> Endorsed | None:
        """The first pair that the text endorses."""
        pair = self._named_pair(reading)
        if pair is None:
            return None
        for wording in self._wordings:
            span = reading.first(wording.triggers, wording.unless)
            if span is not None:
                return Endorsed(pair, wording.score, *reading.text.original_span(*span))
        return None

    def _named_pair(self, reading: NamedText) -> str | None:
        """The pair that the text speaks of: it names both, or one of both, or means both by "together"."""
        here = self._meant(reading.sentence, reading.named)
        if here:
            return self._pair(here, here) or self._pair(
                here, self._meant(reading.before, reading.named_before)
            )
        if reading.named:
            return None
        before = self._meant(reading.before, reading.named_before)
        pair = self._pair(before, before)
        return pair if pair and self._speaks_of_both(reading) else None

    def _speaks_of_both(self, reading: NamedText) -> bool:
        return not reading.text.spans_of("drug") and any(p.found(reading.text) for p in self._together)

    def _meant(self, text: str, named: Iterable[Named]) -> list[Named]:
        """Of the names in a text the members of classes, without those that it excludes."""
        return [one for one in named if one.name in self._members and not _excluded(text, one)]

    def _pair(self, ones: Sequence[Named], others: Sequence[Named]) -> str | None:
        """The first pair of which a member is among each."""
        for one in ones:
            for other in others:
                if one.name != other.name and (pair := self._between(one.name, other.name)):
                    return pair
        return None

    def _between(self, one: str, other: str) -> str | None:
        for member in self._members[one]:
            for second in self._members[other]:
                pair = self._pairs.get((member.group, second.group))
                # two names of one thing, or a thing and the name of its own class, are no two things
                if pair and (member.group != second.group or _two_things(member, second)):
                    return pair
        return None


def _excluded(text: str, named: Named) -> bool:
    before = text[max(named.start - _NOT_MEANT_CHARS, 0) : named.start]
    match = _NOT_MEANT.search(before)
    return match is not None and not _NO_NEED.search(before[: match.start()])


def _two_things(one: _Member, other: _Member) -> bool:
    return one.thing is not None and other.thing is not None and one.thing != other.thing


def members_of(document: Mapping[str, Any]) -> Iterator[tuple[str, str, int | None]]:
    """Every name with its class and the number of its thing there, which a name of the whole class lacks."""
    for group, fields in document["classes"].items():
        for name in listed(fields.get("called", "")):
            yield group, name, None
        for thing, line in enumerate(fields["members"]):
            for name in listed(line):
                yield group, name, thing
