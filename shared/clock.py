"""Tells the time of the database, so that hosts with wrong clocks agree on leases. It schedules nothing."""

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Protocol

from sqlalchemy import Connection, text

#: How long a comparison with the database's clock is good, in seconds: clocks drift by far less meanwhile.
_COMPARE_EVERY_S = 10.0
#: The first time is found by so many comparisons.
_FIRST_COMPARISONS = 3
#: Goes on while the machine sleeps, and nobody can set it.
_STEADY = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
_NOW = text("SELECT clock_timestamp()")


class Clock(Protocol):
    """Anything that tells the time within a transaction."""

    def now(self, connection: Connection) -> datetime:
        """The present moment, timezone-aware, in UTC."""


class DatabaseClock:
    """PostgreSQL's own clock; on SQLite, where the database is a file of this host, the host's.

    PostgreSQL is asked every few seconds, and the time since then is added: asking each time was a
    third of what a question cost. How long an answer takes bounds how wrong it can be, so each answer only
    corrects what contradicts it: a slow one does not set the clock back, and a job that was queued a moment
    ago is not in the future. Safe to share between threads.
    """

    def __init__(
        self,
        *,
        steady: Callable[[], float] = lambda: time.clock_gettime(_STEADY),
        compare_every_s: float = _COMPARE_EVERY_S,
    ) -> None:
        self._steady = steady
        self._compare_every_s = compare_every_s
        #: The database's time when the steady clock read 0, and what that clock read when it was compared.
        self._compared: tuple[datetime, float] | None = None
        self._comparing = threading.Lock()

    def now(self, connection: Connection) -> datetime:
        if connection.dialect.name != "postgresql":
            return datetime.now(UTC)
        compared = self._compared
        if compared is None:
            compared = [self._compare(connection) for _ in range(_FIRST_COMPARISONS)][-1]
        elif self._steady() - compared[1] > self._compare_every_s:
            compared = self._compare(connection)
        return compared[0] + timedelta(seconds=self._steady())

    def _compare(self, connection: Connection) -> tuple[datetime, float]:
        before = self._steady()
        moment: datetime = connection.execute(_NOW).scalar_one()
        after = self._steady()
        moment = moment.astimezone(UTC)
        earliest, latest = moment - timedelta(seconds=after), moment - timedelta(seconds=before)
        with self._comparing:
            zero = earliest if self._compared is None else self._compared[0]
            self._compared = min(max(zero, earliest), latest), after
            return self._compared
