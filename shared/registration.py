"""A worker's entry in `workers`: that it lives, what it serves, how it fares. It knows no job."""

import hashlib
import logging
import os
import secrets
import socket
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from shared.audit import record
from shared.clock import Clock, DatabaseClock
from shared.db import Database, open_database
from shared.db.tables import workers
from shared.jobs.lifecycle import Kind
from shared.settings import Settings

log = logging.getLogger(__name__)

#: The entry of a worker that was killed stays for this long, so that people see that it fell silent.
REMEMBERED = timedelta(days=1)
#: So that a worker's whole name fits the columns that name who acted.
_HOST_CHARS = 32


def worker_name(kind: Kind) -> str:
    """A name for one life of this process.

    Its end is random: a container that starts again has the host and the number of its last life.
    """
    return f"{_here(kind)}{os.getpid()}:{secrets.token_hex(4)}"


def _here(kind: Kind) -> str:
    """How the names of all workers of this kind on this host begin; a long name of a host is cut short."""
    host = socket.gethostname()
    if len(host) > _HOST_CHARS:  # what tells hosts of a cluster apart may stand at the end
        host = f"{host[: _HOST_CHARS - 9]}-{hashlib.sha256(host.encode()).hexdigest()[:8]}"
    return f"{kind}@{host}:"


class Registration:
    """One worker's row."""

    def __init__(self, database: Database, clock: Clock, worker_id: str) -> None:
        self._database, self._clock, self._id = database, clock, worker_id

    def enter(self, kind: Kind, model_id: str, details: dict[str, Any]) -> None:
        """Say that the worker serves from now on, and log it with these facts; forget who is long gone."""
        with self._database.write() as connection:
            now = self._clock.now(connection)
            connection.execute(delete(workers).where(workers.c.last_seen_at <= now - REMEMBERED))
            connection.execute(
                insert(workers).values(
                    id=self._id, kind=kind, model_id=model_id, started_at=now, last_seen_at=now, stats={}
                )
            )
            record.append(
                connection,
                now=now,
                actor=record.Actor(record.SYSTEM, self._id),
                action="worker.started",
                object=f"worker:{self._id}",
                details=details,
            )

    def report(self, stats: dict[str, Any]) -> None:
        """Say that it lives, and how it fares."""
        with self._database.write() as connection:
            connection.execute(
                update(workers)
                .where(workers.c.id == self._id)
                .values(last_seen_at=self._clock.now(connection), stats=stats)
            )

    def leave(self) -> None:
        """Say that it serves no more."""
        try:
            with self._database.write() as connection:
                connection.execute(delete(workers).where(workers.c.id == self._id))
        except OperationalError:
            log.warning("the database is away; this worker will be seen as silent")


def wanted_memory(connection: Connection, now: datetime, heartbeat_s: float) -> dict[str, int]:
    """Bytes that workers which answer may still take, by the memory they lie in (see `shared.memory`)."""
    found: dict[str, int] = {}
    alive = select(workers.c.stats).where(
        workers.c.kind == Kind.INFER, workers.c.last_seen_at > now - timedelta(seconds=3 * heartbeat_s)
    )
    for stats in connection.execute(alive).scalars():
        name = str(stats.get("memory", ""))
        found[name] = found.get(name, 0) + int(stats.get("wanted_bytes", 0))
    return found


def is_alive(settings: Settings, kind: Kind) -> bool:
    """Whether a worker of this host reported within the last heartbeats; for a container's health check."""
    database = open_database(settings, pool_size=1)
    try:
        with database.read() as connection:
            now = DatabaseClock().now(connection)
            seen = connection.execute(
                select(workers.c.last_seen_at).where(workers.c.id.startswith(_here(kind), autoescape=True))
            ).scalars()
            return any((now - moment).total_seconds() < 3 * settings.heartbeat_s for moment in seen)
    except SQLAlchemyError as error:
        log.error("the database cannot be asked (%s)", type(error).__name__)
        return False
    finally:
        database.close()
