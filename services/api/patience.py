"""Ends a caller's wait for a database that does not answer. What was waited for goes on: it may be stored."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from sqlalchemy.exc import TimeoutError

T = TypeVar("T")
#: How long a request waits at each step, in seconds: longer than SQLite waits for its lock, and less than the
#: dashboard waits for an answer, in which a person in need reads where help is found.
PATIENCE_S = 6.0


async def in_time(step: Coroutine[Any, Any, T]) -> T:
    """The step's result. Raises sqlalchemy's TimeoutError when it takes longer than `PATIENCE_S`."""
    task = asyncio.ensure_future(step)
    # not cancelled: a thread that waits keeps its place, so that there are never more of them
    await asyncio.wait((task,), timeout=PATIENCE_S)
    if not task.done():
        task.add_done_callback(_forget)
        raise TimeoutError("the database does not answer")
    return task.result()


def _forget(task: asyncio.Task[Any]) -> None:
    """Nobody is left to be told; unread, an exception would be logged with its message."""
    if not task.cancelled():
        task.exception()
