"""Tells the time of the database, so that hosts with wrong clocks agree on leases. It schedules nothing."""

import time
from datetime import UTC, datetime, timedelta
from typing import Protocol

from sqlalchemy import Connection, text

#: How long a comparison with the database's clock is good, in seconds: clocks drift by far less meanwhile.
_COMPARE_EVERY_S = 10.0
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
    third of what a question cost.
    """

    def __init__(self) -> None:
        self._asked: tuple[datetime, float] | None = None

    def now(self, connection: Connection) -> datetime:
        if connection.dialect.name != "postgresql":
            return datetime.now(UTC)
        asked, steady = self._asked, time.clock_gettime(_STEADY)
        if asked is None or steady - asked[1] > _COMPARE_EVERY_S:
            moment: datetime = connection.execute(_NOW).scalar_one()
            # the steady clock was read before, so that time spent asking makes this clock late, never early
            asked = self._asked = (moment.astimezone(UTC), time.clock_gettime(_STEADY))
            return asked[0]
        return asked[0] + timedelta(seconds=steady - asked[1])
