"""Tells the time of the database, so that hosts with wrong clocks agree on leases. It schedules nothing."""

from datetime import UTC, datetime
from typing import Protocol

from sqlalchemy import Connection, text


class Clock(Protocol):
    """Anything that tells the time within a transaction."""

    def now(self, connection: Connection) -> datetime:
        """The present moment, timezone-aware, in UTC."""


class DatabaseClock:
    """PostgreSQL's own clock; on SQLite, where the database is a file of this host, the host's."""

    def now(self, connection: Connection) -> datetime:
        if connection.dialect.name == "postgresql":
            moment: datetime = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
            return moment.astimezone(UTC)
        return datetime.now(UTC)
