"""Ends a caller's wait for a database that does not answer, and gives what a person in need waits for threads
of its own. What had begun when the wait ended goes on: it may be stored. What had not is dropped.
"""

import asyncio
import builtins
from collections.abc import Awaitable, Callable
from typing import TypeVar

from anyio import CapacityLimiter, to_thread
from sqlalchemy.exc import TimeoutError

T = TypeVar("T")
#: How long a request waits at each step, in seconds: longer than SQLite waits for its lock, and less than the
#: dashboard waits for an answer, in which a person in need reads where help is found.
PATIENCE_S = 6.0
_THREADS = 4


async def in_time(step: Awaitable[T]) -> T:
    """The step's result. Raises sqlalchemy's TimeoutError, and cancels it, after `PATIENCE_S`."""
    limit = asyncio.timeout(PATIENCE_S)
    try:
        async with limit:
            return await step
    except builtins.TimeoutError:
        if not limit.expired():
            raise
        raise TimeoutError("the database does not answer") from None


class Threads:
    """A few threads beside those of the handlers, which may all be waiting for something else."""

    def __init__(self) -> None:
        self._limiter = CapacityLimiter(_THREADS)

    async def in_time(self, work: Callable[[], T]) -> T:
        """The work's result. Raises sqlalchemy's TimeoutError after `PATIENCE_S`."""
        wanted = True

        def step() -> T:
            if not wanted:
                raise TimeoutError("nobody waits for this any more")
            return work()

        # not cancelled: a thread that waits keeps its place, so that there are never more of them
        task = asyncio.ensure_future(to_thread.run_sync(step, limiter=self._limiter))
        task.add_done_callback(forget)
        try:
            return await in_time(asyncio.shield(task))
        finally:
            wanted = False


def forget(task: asyncio.Task[T]) -> None:
    """For a task whose end nobody hears: unread, an exception would be logged with its message."""
    if not task.cancelled():
        task.exception()
