"""Finds what is wrong with the patterns of one policy file. It does not know what they are for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from shared.guard.located import Located, Place
from shared.guard.patterns import compile_pattern


class PatternCheck:
    """The patterns of one file: whether they mean something and everything is there that they name.

    Args:
        located: the file.
        tags: the classes of words that patterns may name.
        macros: the macros that they may name.
    """

    def __init__(self, located: Located, tags: set[str], macros: Mapping[str, Sequence[str]]) -> None:
        self._located, self._tags, self._macros = located, tags, macros
        #: Patterns that were found good; the same one often stands in several places.
        self._good: set[str] = set()

    def check_scopes(self, scopes: Mapping[str, Any]) -> None:
        """Raises PolicyRefused."""
        for name, scope in scopes.items():
            for part in ("any", "not_after"):
                self.check(("scopes", name, part), scope.get(part, []))

    def check(self, place: Place, sources: Any) -> None:
        """Check every pattern of a list. Raises PolicyRefused."""
        for where, source in strings(self._located, sources, place):
            if source in self._good:
                continue
            self.check_elements(where, source)
            try:
                compile_pattern(source, self._macros)
            except ValueError:
                reason = "the pattern has no element that must occur"
                raise self._located.refusal(where, reason) from None
            self._good.add(source)

    def check_names(self, place: Place, names: Any, known: Mapping[str, Any]) -> None:
        """Check that every name of a list is one of a scope. Raises PolicyRefused."""
        for where, name in strings(self._located, names, place):
            if name not in known:
                raise self._located.refusal(where, "there is no scope of this name")

    def check_elements(self, place: Place, source: str) -> None:
        """Check that macros and classes of words exist. Raises PolicyRefused."""
        for element in source.split():
            body = element[:-1] if len(element) > 1 and element.endswith("?") else element
            if body[:1] == "<" and body[-1:] == ">" and body[1:-1] not in self._macros:
                raise self._located.refusal(place, "there is no macro of this name")
            if body[:1] == "{" and body[-1:] == "}" and not self._tags.issuperset(body[1:-1].split("|")):
                raise self._located.refusal(place, "there is no class of words of this name in lexicon.yaml")


def strings(located: Located, value: Any, place: Place) -> Iterator[tuple[Place, str]]:
    """Every text within lists and mappings, with its place."""
    if isinstance(value, str):
        if not value.strip():
            raise located.refusal(place, "the text is empty")
        yield place, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from strings(located, item, (*place, key))
    elif isinstance(value, Sequence):
        for number, item in enumerate(value):
            yield from strings(located, item, (*place, number))
    else:
        raise located.refusal(place, "a text belongs here; put it in quotes")
