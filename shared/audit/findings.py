"""What a verification found. It verifies nothing."""

from __future__ import annotations

import math
from bisect import insort
from dataclasses import dataclass, field

#: Findings that are told before the rest is only counted.
MOST_FINDINGS = 20
_LONGEST = 300


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is not as it was sealed."""

    #: The entry's place in the log; None where it has none.
    entry: int | None
    event: str | None
    #: One line: what is wrong.
    what: str


@dataclass(kw_only=True)
class Report:
    """What was found."""

    #: Entries of the log, and its root.
    size: int = 0
    root: bytes = b""
    #: Events that wait to be sealed: they prove nothing yet.
    waiting: int = 0
    #: Checkpoints that the log agrees with, and that a restored backup is older than, by its own word.
    checkpoints: int = 0
    superseded: int = 0
    #: How many there are in all.
    count: int = 0
    _first: list[tuple[float, Finding]] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether nothing was found."""
        return self.count == 0

    @property
    def findings(self) -> list[Finding]:
        """The first ones in the order of the log; those without a place in it come last."""
        return [finding for _, finding in self._first]

    def add(
        self, what: str, *, entry: int | None = None, event: str | None = None, by: int | None = None
    ) -> None:
        """Note something that is wrong.

        Args:
            by: where nothing tells which entry it is, the one that it lies before: an entry that is known
                to be wrong is told first.
        """
        self.count += 1
        place = by if by is not None else math.inf if entry is None else entry
        if len(self._first) < MOST_FINDINGS or place < self._first[-1][0]:
            found = Finding(entry=entry, event=None if event is None else _shown(event), what=_shown(what))
            insort(self._first, (place, found), key=lambda each: each[0])
            del self._first[MOST_FINDINGS:]


def _shown(value: object) -> str:
    """As text that can be sent on: what was altered may hold anything."""
    text = str(value)
    shown = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
    return shown.encode("utf-8", "backslashreplace").decode()
