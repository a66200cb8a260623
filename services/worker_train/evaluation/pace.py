"""Shares out the time of an evaluation and tells how far it is. It does not know what is measured."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

_T = TypeVar("_T")

#: Items asked about at once; time is looked at between two batches.
BATCH = 16


class Pace:
    """The clock of one evaluation.

    Each part may take an equal share of the time that is left when it begins; what one part saves the
    next ones may use. A part that runs out of time stops after a batch, and its figure says on how many
    items it rests: they come in an order of chance, so that the first of them are a fair sample.

    Args:
        seconds: what all parts may take together.
        parts: how many parts there are.
        tell: hears of progress: items done, items in all, and the part's name.
        clock: seconds from any fixed point, never going back.
    """

    def __init__(
        self,
        seconds: float,
        parts: int,
        *,
        tell: Callable[[int, int, str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tell, self._clock = tell, clock
        self._end = clock() + seconds
        self._parts_left = parts

    def batches(self, items: Sequence[_T], what: str, *, size: int = BATCH) -> Iterator[Sequence[_T]]:
        """The items in batches, the first one in any case, until the part's time is over."""
        now = self._clock()
        until = now + max(self._end - now, 0.0) / max(self._parts_left, 1)
        self._parts_left -= 1
        for start in range(0, len(items), size):
            if start and self._clock() > until:
                return
            self._tell(start, len(items), what)
            yield items[start : start + size]
        self._tell(len(items), len(items), what)
