"""Seals what waits: gives events their place in the log, and builds the tree above them. It runs no loop.

Everything of a batch is one transaction, and no two seals have the same place or event: so a process that is
killed leaves nothing half done, and two that seal at once cannot fork the log; one of them begins again.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import Connection, bindparam, delete, func, insert, select
from sqlalchemy.exc import IntegrityError

from shared.audit.merkle import leaf_hash, tree_root
from shared.audit.tiles import read_nodes, store_tiles, whole_tiles
from shared.clock import Clock
from shared.db.engine import Database
from shared.db.tables import audit_events, audit_seals
from shared.db.tables_audit import audit_pending
from shared.db.types import as_stored, moment_of
from shared.errors import LogAltered

#: Events of one batch.
BATCH = 256
#: Who cannot seal, though nobody else does, tries so often.
_TRIES = 3
TAKEN = "A place or an event of the log is taken by what MediChat did not write; verify the log."

#: Each event is looked up by itself: a join may be planned to go through the whole log for every batch.
_QUEUE = (
    select(
        audit_pending.c.event_id.label("id"),
        select(as_stored(audit_events.c.canonical_bytes))
        .where(audit_events.c.id == audit_pending.c.event_id)
        .scalar_subquery()
        .label("canonical_bytes"),
    )
    .where(audit_pending.c.event_id > bindparam("after"))
    .subquery()
)
#: What waits, the oldest ids first.
WAITING = select(_QUEUE).where(_QUEUE.c.canonical_bytes.is_not(None)).order_by(_QUEUE.c.id).limit(BATCH)
_SIZE = select(func.coalesce(func.max(audit_seals.c.sequence), -1) + 1)


@dataclass(frozen=True)
class Lag:
    """How much waits to be sealed, and for how many seconds the oldest of it has."""

    waiting: int
    seconds: float


@dataclass
class Hint:
    """Where the last batch ended: a long queue is read on from there.

    PostgreSQL looks at each row that left a queue until it tidies up. What waits before that place is taken
    when no whole batch waits behind it.
    """

    after: str = ""


def seal_batch(connection: Connection, now: datetime, hint: Hint | None = None) -> int:
    """Seal up to `BATCH` events, the oldest ids first; returns how many.

    Raises sqlalchemy's IntegrityError when another process sealed meanwhile: roll back, and try again.
    """
    hint = hint or Hint()
    rows = connection.execute(WAITING, {"after": hint.after}).all()
    if hint.after and len(rows) < BATCH:
        rows = connection.execute(WAITING, {"after": ""}).all()
    if not rows:
        return 0
    hint.after = rows[-1].id
    size = tree_size(connection)
    leaves = [leaf_hash(row.canonical_bytes) for row in rows]
    tiles = whole_tiles(connection, size, leaves)
    connection.execute(
        insert(audit_seals),
        [
            {"sequence": size + at, "event_id": row.id, "leaf_hash": leaf, "sealed_at": now}
            for at, (row, leaf) in enumerate(zip(rows, leaves, strict=True))
        ],
    )
    store_tiles(connection, tiles)
    sealed = [row.id for row in rows]
    connection.execute(delete(audit_pending).where(audit_pending.c.event_id.in_(sealed)))
    return len(rows)


def seal_all(database: Database, clock: Clock) -> None:
    """Seal everything that waits now, whoever holds the sequencer's lease.

    Raises LogAltered when a place, or an event, is taken by what no sequencer wrote.
    """
    in_vain, size, hint = 0, -1, Hint()
    while in_vain < _TRIES:
        try:
            with database.write() as connection:
                if seal_batch(connection, clock.now(connection), hint) < BATCH:
                    return
        except IntegrityError:  # the sequencer was faster: then the log has grown
            with database.read() as connection:
                before, size = size, tree_size(connection)
            in_vain = in_vain + 1 if size == before else 0
    raise LogAltered(TAKEN)


def anything_waits(connection: Connection) -> bool:
    """Whether there is something to seal."""
    return connection.execute(select(audit_pending.c.event_id).limit(1)).first() is not None


def tree_size(connection: Connection) -> int:
    """How many entries are sealed."""
    return int(connection.execute(_SIZE).scalar_one())


def root_at(connection: Connection, size: int) -> bytes:
    """The root of the first `size` entries. Raises LogAltered."""
    return tree_root(size, read_nodes(connection, size))


def lag(connection: Connection, now: datetime) -> Lag:
    """What waits to be sealed now; a moment that cannot be read is the oldest of all."""
    stored, waiting = connection.execute(
        select(as_stored(func.min(audit_events.c.occurred_at)), func.count()).select_from(
            audit_pending.join(audit_events, audit_events.c.id == audit_pending.c.event_id, isouter=True)
        )
    ).one()
    if stored is None:
        return Lag(waiting, 0.0)
    oldest = moment_of(stored) or datetime.fromtimestamp(0, UTC)
    return Lag(waiting, max((now - oldest).total_seconds(), 0.0))
