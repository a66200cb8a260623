"""Re-wraps data keys under the newest master key, while everything runs. It does not know where that is.

Each step is small and complete in itself, so that one who is killed is followed by one who goes on.
"""

from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial

from sqlalchemy import Connection, Row, func, select, update

from shared.db import Database
from shared.db.tables import audit_events, data_keys
from shared.privacy.envelope import CannotDecrypt, Envelope

#: So many data keys are re-wrapped in one transaction.
_BATCH = 200
#: A process makes data keys under the version before until it has looked, and commits them later still.
SETTLED = timedelta(minutes=10)
ROTATED = "keys.rotated"


def count_by_version(connection: Connection) -> dict[int, int]:
    """How many living data keys there are under each version of the master key."""
    rows = connection.execute(
        select(data_keys.c.master_key_version, func.count())
        .where(data_keys.c.wrapped_key.is_not(None))
        .group_by(data_keys.c.master_key_version)
    )
    return {row[0]: row[1] for row in rows}


def rewrap_all(database: Database, envelope: Envelope, *, told: Callable[[int], None]) -> int:
    """Bring every living data key that can be opened under the newest version; returns how many were not yet.

    `told` hears from time to time how many are done. Data keys that are made meanwhile are brought along.
    """
    done = 0
    while changed := _pass(database, envelope, partial(_told_more, told, done)):
        done += changed
    return done


def _told_more(told: Callable[[int], None], before: int, count: int) -> None:
    told(before + count)


def settled_at(connection: Connection, version: int) -> datetime | None:
    """From when on no data keys are made under a version before this one; None: not rotated to it yet."""
    rotated: datetime | None = connection.execute(
        select(func.min(audit_events.c.occurred_at)).where(
            audit_events.c.action == ROTATED, audit_events.c.object == master_key_name(version)
        )
    ).scalar()
    return None if rotated is None else rotated + SETTLED


def master_key_name(version: int) -> str:
    """A version of the master key as the log names it."""
    return f"master-key:{version}"


def _pass(database: Database, envelope: Envelope, told: Callable[[int], None]) -> int:
    done, after = 0, ""
    while rows := _next(database, envelope.version, after):
        after = rows[-1].key_id
        fresh = [(row, again) for row in rows if (again := _again(envelope, row)) is not None]
        with database.write() as connection:
            for row, (wrapped, version) in fresh:
                done += connection.execute(
                    update(data_keys)
                    .where(
                        data_keys.c.key_id == row.key_id,
                        # neither destroyed nor re-wrapped meanwhile
                        data_keys.c.wrapped_key == row.wrapped_key,
                        data_keys.c.master_key_version == row.master_key_version,
                    )
                    .values(wrapped_key=wrapped, master_key_version=version)
                ).rowcount
        told(done)
    return done


def _next(database: Database, newest: int, after: str) -> list[Row[tuple[str, bytes, int]]]:
    with database.read() as connection:
        return list(
            connection.execute(
                select(data_keys.c.key_id, data_keys.c.wrapped_key, data_keys.c.master_key_version)
                .where(
                    data_keys.c.key_id > after,
                    data_keys.c.master_key_version != newest,
                    data_keys.c.wrapped_key.is_not(None),
                )
                .order_by(data_keys.c.key_id)
                .limit(_BATCH)
            )
        )


def _again(envelope: Envelope, row: Row[tuple[str, bytes, int]]) -> tuple[bytes, int] | None:
    """The data key under the newest version; None when it cannot be opened."""
    try:
        return envelope.rewrap(row.key_id, row.wrapped_key, row.master_key_version)
    except CannotDecrypt:
        return None
