"""Brings a backup into an empty database, all of it or nothing. It does not know whose texts they are.

What was erased since the backup is erased again, what was held since is held again, and the restore is an
entry of the log: whoever compares the log with a checkpoint that was signed after the backup finds there why
it is shorter.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Table, delete, exists, inspect, select, text
from sqlalchemy.exc import DBAPIError

from shared.audit import record
from shared.audit.checkpoint import Signer
from shared.audit.checkpoints import RESTORED
from shared.backup.erased_again import destroyed_keys, erase_again
from shared.backup.held_again import held_in, hold_again
from shared.backup.manifest import LEFT_OUT, storage_path
from shared.backup.opened import Backup, BackupRefused
from shared.backup.rows import batches, decode, insert_lines
from shared.backup.superseded import superseded
from shared.clock import Clock
from shared.db import Database
from shared.db.tables import audit_events, metadata
from shared.db.tables_audit import audit_pending
from shared.db.tables_guard import guard_policies
from shared.db.tables_privacy import search_pending
from shared.errors import Conflict
from shared.privacy.erased import read_erased
from shared.privacy.held import read_holds
from shared.storage import Storage

_ROWS_AT_ONCE = 500
#: What `medichat migrate` leaves in new tables: these come with the release, and stay.
_OF_THE_RELEASE = {
    "audit_events": audit_events.c.action == "policy.packaged",
    "audit_pending": audit_pending.c.event_id.in_(
        select(audit_events.c.id).where(audit_events.c.action == "policy.packaged")
    ),
    "guard_policies": guard_policies.c.created_by.is_(None),
}

#: Filled by triggers of other tables, so they come after those.
_QUEUES = (audit_pending, search_pending)

#: Is told what is being written, and how many rows or files of it were.
Told = Callable[[str, int], None]


@dataclass(frozen=True, kw_only=True)
class Restored:
    """What was done."""

    rows: int
    files: int
    #: Data keys that the backup held and that were destroyed since.
    erased_again: int
    #: Keys that were destroyed before the backup, and that the list of what was erased lacks.
    unlisted: int
    #: Legal holds that were placed since, and that were placed again.
    held_again: int
    #: Whether the list of holds cannot be the right one: it lacks some of the backup's, or nothing is there.
    holds_doubted: bool
    #: Signed checkpoints of the log that are newer than the backup.
    superseded: int


def restore(
    database: Database,
    backup: Backup,
    *,
    clock: Clock,
    checkpoints: Storage,
    storage: Storage,
    signer: Signer,
    told: Told,
) -> Restored:
    """Bring all of the backup in: files first, then the rows in one transaction.

    The log's key signs which checkpoints the log is now older than: nobody else may say so.

    Raises:
        Conflict: the database holds rows, or a file of a checkpoint or of a hold is none.
        BackupRefused: it is of other tables, or a row of it cannot be stored.
        OSError: `checkpoints` or `storage` cannot be used.
    """
    manifest = backup.manifest
    erased, newer = read_erased(checkpoints), superseded(checkpoints, manifest.sealed, signer.verifier)
    held = read_holds(checkpoints)
    nothing_there = not checkpoints.list()
    with database.read() as connection:
        check_empty(connection)
    for number, part in enumerate(manifest.storage or [], start=1):
        with backup.open(part) as source, storage.create(storage_path(part.name)) as file:
            while block := source.read(1 << 20):
                file.write(block)
        told("storage", number)
    with database.write() as connection:
        try:
            rows = _load(connection, backup, told)
        except DBAPIError as error:
            reason = type(error.orig).__name__
            raise BackupRefused(
                f"The database refused a row of the backup ({reason}), so nothing was restored. Is something "
                "else at work on it? Stop every process, and try again."
            ) from error
        unlisted = destroyed_keys(connection) - erased
        again = erase_again(connection, erased, clock=clock, delete_files=storage.delete)
        now, here = clock.now(connection), held_in(connection)
        held_again = hold_again(connection, held, now=now)
        record.append(
            connection,
            now=now,
            actor=record.OPERATOR_ACTOR,
            action=RESTORED,
            details={
                "backup_size": manifest.sealed,
                "superseded": newer,
                "erased_again": len(again),
                "held_again": len(held_again),
                "statement": signer.sign_restore(
                    manifest.sealed, [(each["size"], bytes.fromhex(each["root"])) for each in newer]
                ),
            },
        )
    return Restored(
        rows=rows,
        files=len(manifest.storage or []),
        erased_again=len(again),
        unlisted=len(unlisted),
        held_again=len(held_again),
        holds_doubted=nothing_there or not here <= {hold.id for hold in held},
        superseded=len(newer),
    )


def check_empty(connection: Connection) -> None:
    """Raises Conflict, with the way out, when the database holds rows."""
    for table in metadata.sorted_tables:
        found = select(exists().select_from(table))
        if (of_release := _OF_THE_RELEASE.get(table.name)) is not None:
            found = select(exists().where(~of_release).select_from(table))
        if connection.execute(found).scalar_one():
            raise Conflict(
                f"the database is not empty ({table.name} holds rows), and a backup is not mixed with what "
                "is there: name another database in MEDICHAT_DATABASE_URL, or move the SQLite file away"
            )


def _load(connection: Connection, backup: Backup, told: Told) -> int:
    tables = [table for table in metadata.sorted_tables if table not in _QUEUES] + [*_QUEUES]
    with _references_checked_at_the_end(connection):
        return sum(
            _load_table(connection, table, backup, told) for table in tables if table.name not in LEFT_OUT
        )


@contextmanager
def _references_checked_at_the_end(connection: Connection) -> Iterator[None]:
    """Within a table a row may refer to one that comes after it: an account to who approved it."""
    if connection.dialect.name == "sqlite":
        connection.execute(text("PRAGMA defer_foreign_keys = ON"))  # until the transaction ends
        yield
        return
    connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
    quoted = connection.dialect.identifier_preparer.quote
    within = [
        f"ALTER TABLE {quoted(table)} ALTER CONSTRAINT {quoted(str(key['name']))} "
        for table in sorted(metadata.tables)
        for key in inspect(connection).get_foreign_keys(table)
        if key["referred_table"] == table
    ]
    for alter in within:
        connection.execute(text(f"{alter} DEFERRABLE INITIALLY DEFERRED"))
    yield
    connection.execute(text("SET CONSTRAINTS ALL IMMEDIATE"))
    for alter in within:
        connection.execute(text(f"{alter} NOT DEFERRABLE"))


def _load_table(connection: Connection, table: Table, backup: Backup, told: Told) -> int:
    described = backup.manifest.tables.get(table.name)
    if described is None or described.columns != [column.name for column in table.columns]:
        raise BackupRefused(f"The backup's table {table.name} is not as this release knows it.")
    _leave_queue(connection, table)
    present = {tuple(row) for row in connection.execute(select(*table.primary_key.columns))}
    statement, rows = insert_lines(table, connection), 0
    for part in described.parts:
        for lines in batches(backup.read(part).splitlines(), _ROWS_AT_ONCE):
            new = [row for row in decode(table, lines) if _key(table, row) not in present]
            if new:
                connection.execute(statement, new)
            rows += len(lines)
        told(table.name, rows)
    if rows != described.rows:
        raise BackupRefused(f"The backup's table {table.name} lacks rows.")
    return rows


def _key(table: Table, row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[column.name] for column in table.primary_key.columns)


def _leave_queue(connection: Connection, table: Table) -> None:
    """Triggers put each row that was just loaded into its queue; the backup knows which belong there."""
    if table is search_pending:
        connection.execute(delete(table))
    elif table is audit_pending:
        connection.execute(delete(table).where(~_OF_THE_RELEASE["audit_pending"]))
