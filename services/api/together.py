"""Hands what many callers want at the same moment to one function, in one thread. It knows no database.

While a group is under way the next one gathers, so a caller who is alone waits for nobody, and under
load a transaction is shared by all who wait (group commit). It also keeps the number of threads that
contend for Python's lock at one.
"""

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

from anyio import CapacityLimiter, to_thread

Item = TypeVar("Item")
Result = TypeVar("Result")


class Together(Generic[Item, Result]):
    """Call it with an item and get the item's result; to be used from one event loop."""

    def __init__(
        self,
        work: Callable[[list[Item]], list[Result | Exception]],
        *,
        shared_fate: tuple[type[Exception], ...] = (),
        most: int = 64,
    ) -> None:
        """`work` gives for each item, in order, its result or the exception to raise to its caller.

        When `work` itself raises, nothing of the group may have been kept: each item is then worked on
        alone, so that one cannot fail another, unless the exception is of `shared_fate` (a database that
        is away is away for all). At most `most` items are handed over at once.
        """
        self._work = work
        self._shared_fate = shared_fate
        self._most = most
        self._waiting: list[tuple[Item, asyncio.Future[Result]]] = []
        self._task: asyncio.Task[None] | None = None
        self._one_thread = CapacityLimiter(1)

    async def __call__(self, item: Item) -> Result:
        """The item's result; raises what `work` gave or raised for it."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        return await future

    async def _run(self) -> None:
        try:
            while self._waiting:
                wanted = [(item, future) for item, future in self._waiting if not future.done()]
                group, self._waiting = wanted[: self._most], wanted[self._most :]
                if not group:  # who waited has gone
                    return
                items = [item for item, _ in group]
                outcomes = await to_thread.run_sync(self._try, items, limiter=self._one_thread)
                for (_, future), outcome in zip(group, outcomes, strict=True):
                    if future.done():  # the caller has gone
                        continue
                    if isinstance(outcome, Exception):
                        future.set_exception(outcome)
                    else:
                        future.set_result(outcome)
        finally:
            self._task = None

    def _try(self, items: list[Item]) -> list[Result | Exception]:
        try:
            return self._work(items)
        except Exception as error:
            if len(items) == 1 or isinstance(error, self._shared_fate):
                return [error for _ in items]
        return [outcome for item in items for outcome in self._try([item])]
