"""A worker's entry in `workers`: that it lives, what it serves, how it fares. It knows no job."""

import hashlib
import logging
import os
import secrets
import socket
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, delete, insert, or_, select, update
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
#: So long a silent worker is expected back: a machine starts again, or a container that failed.
AWAITED = timedelta(minutes=10)
#: In the `stats` of a worker that answers: its base model's catalogue name, and the revision of the weights.
SERVED_MODEL, SERVED_REVISION = "base_model", "model_revision"
#: In the `stats` of a worker that cannot answer yet.
_LOADING = "loading"


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

    def prepare(self, kind: Kind, model_id: str, *, memory: str, wanted_bytes: int) -> None:
        """Say that the worker loads what it will serve, and what of which memory it needs for that.

        It does not count as alive before it enters. Those of this host that ended while they loaded are
        forgotten: one that cannot start is started again and again.
        """
        with self._database.write() as connection:
            now = self._clock.now(connection)
            here = select(workers.c.id, workers.c.stats).where(
                workers.c.id.startswith(_here(kind), autoescape=True),
                workers.c.last_seen_at <= now - AWAITED,
            )
            failed = [row.id for row in connection.execute(here) if is_loading(row.stats)]
            connection.execute(delete(workers).where(workers.c.id.in_(failed)))
            stats = {_LOADING: True, "memory": memory, "wanted_bytes": wanted_bytes}
            self._insert(connection, now, kind, model_id, stats)

    @contextmanager
    def beating(self, every_s: float) -> Iterator[None]:
        """Say that the worker lives for as long as the block takes: one that loads reports nothing else."""
        ended = threading.Event()
        thread = threading.Thread(target=self._beat, args=(ended, every_s), name="loading", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def beat(self) -> None:
        """Say that the worker lives, and nothing else."""
        with self._database.write() as connection:
            now = self._clock.now(connection)
            connection.execute(update(workers).where(workers.c.id == self._id).values(last_seen_at=now))

    def _beat(self, ended: threading.Event, every_s: float) -> None:
        while not ended.wait(every_s):
            try:
                self.beat()
            except SQLAlchemyError as error:
                log.warning("cannot report to the database: %s", type(error).__name__)

    def enter(
        self, kind: Kind, model_id: str, details: dict[str, Any], stats: dict[str, Any] | None = None
    ) -> None:
        """Say that the worker serves from now on, and how it fares, and log it with these facts; forget who
        is long gone.
        """
        with self._database.write() as connection:
            now = self._clock.now(connection)
            connection.execute(
                delete(workers).where(
                    or_(workers.c.last_seen_at <= now - REMEMBERED, workers.c.id == self._id)
                )
            )
            self._insert(connection, now, kind, model_id, stats or {})
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

    def _insert(
        self, connection: Connection, now: datetime, kind: Kind, model_id: str, stats: dict[str, Any]
    ) -> None:
        connection.execute(
            insert(workers).values(
                id=self._id, kind=kind, model_id=model_id, started_at=now, last_seen_at=now, stats=stats
            )
        )


def is_loading(stats: Mapping[str, Any]) -> bool:
    """Whether the worker that reported this cannot answer yet."""
    return bool(stats.get(_LOADING))


def served_revisions(connection: Connection, base_model: str, now: datetime, heartbeat_s: float) -> set[str]:
    """The revisions of a base model (its catalogue name) with which workers that live answer; empty when none
    lives that says so.
    """
    rows = connection.execute(
        select(workers.c.stats).where(
            workers.c.kind == Kind.INFER, workers.c.last_seen_at > now - timedelta(seconds=3 * heartbeat_s)
        )
    )
    told = (row.stats for row in rows if not is_loading(row.stats))
    return {str(stats[SERVED_REVISION]) for stats in told if stats.get(SERVED_MODEL) == base_model}


def wanted_memory(connection: Connection, now: datetime, heartbeat_s: float) -> dict[str, int]:
    """Bytes that workers which answer may still take, by the memory they lie in (see `shared.memory`).

    One that had served and fell silent will take all that it had (`footprint_bytes`) again when it is back:
    that is kept for it while it is awaited, or until another took its place. One that loads counts while it
    beats.
    """
    found: dict[str, int] = {}
    #: By memory, those that are awaited: when they were last seen, and what they had.
    awaited: dict[str, list[tuple[datetime, int]]] = defaultdict(list)
    quiet = now - timedelta(seconds=2 * heartbeat_s)  # a whole beat was missed: its memory may be free
    rows = connection.execute(
        select(workers.c.started_at, workers.c.last_seen_at, workers.c.stats)
        .where(workers.c.kind == Kind.INFER, workers.c.last_seen_at > min(quiet, now - AWAITED))
        .order_by(workers.c.started_at)
    )
    for started_at, seen_at, stats in rows:
        name, wanted = str(stats.get("memory", "")), int(stats.get("wanted_bytes", 0))
        footprint, before = int(stats.get("footprint_bytes", 0)), awaited[name]
        if is_loading(stats) and seen_at <= quiet:
            continue  # it ended, and whoever comes after it says so itself
        predecessor = next((one for one in before if one[0] <= started_at), None)
        if predecessor is not None:
            before.remove(predecessor)
        if is_loading(stats):
            wanted = max(wanted, predecessor[1] if predecessor else 0)
        if seen_at > quiet:
            found[name] = found.get(name, 0) + wanted
        elif footprint:
            before.append((seen_at, footprint))
    for name, each in awaited.items():
        if each:
            found[name] = found.get(name, 0) + sum(footprint for _, footprint in each)
    return found


def is_alive(settings: Settings, kind: Kind) -> bool:
    """Whether a worker of this host that can do its work reported within the last heartbeats; for a
    container's health check.
    """
    database = open_database(settings, pool_size=1)
    try:
        with database.read() as connection:
            now = DatabaseClock().now(connection)
            here = workers.c.id.startswith(_here(kind), autoescape=True)
            rows = connection.execute(select(workers.c.last_seen_at, workers.c.stats).where(here)).all()
            return any(
                (now - seen_at).total_seconds() < 3 * settings.heartbeat_s and not is_loading(stats)
                for seen_at, stats in rows
            )
    except SQLAlchemyError as error:
        log.error("the database cannot be asked (%s)", type(error).__name__)
        return False
    finally:
        database.close()
