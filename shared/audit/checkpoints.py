"""Keeps signed checkpoints in the database and in a second place. It does not compute the tree.

Before anything is signed the log is held against the newest checkpoint of both places: a log that was altered
meanwhile gets no signature.
"""

from __future__ import annotations

import heapq
import json
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Select, desc, insert, select

from shared.audit.checkpoint import Checkpoint, Signer, Verifier
from shared.audit.merkle import EMPTY_ROOT
from shared.audit.sequencer import root_at, tree_size
from shared.db.engine import Database
from shared.db.tables import audit_events, audit_seals
from shared.db.tables_audit import audit_checkpoints
from shared.db.types import as_stored, moment_of
from shared.errors import BadCheckpoint, LogAltered
from shared.ids import new_id
from shared.storage import Storage

FOLDER, KEY_FILE = "signed", "log-key.txt"
#: A file of the second place; former releases wrote all of them into one folder.
_NAME = re.compile(rf"{FOLDER}/(?:\d{{8,}}/)?checkpoint-(\d{{12,}})-.+\.txt")
#: Checkpoints of so many sizes lie in one folder, so that the newest are found without a list of all.
_SIZES = 10_000
#: The event by which a restored backup says which checkpoints its log is older than.
RESTORED = "backup.restored"

#: The checkpoints of the database, as `stored` reads them.
ROWS = select(*(as_stored(column).label(column.name) for column in audit_checkpoints.c))
#: The largest first. Not the one whose id is the last: ids are of hosts' clocks, and one may have been fast.
LARGEST_FIRST = ROWS.order_by(desc(audit_checkpoints.c.size), desc(audit_checkpoints.c.id))
#: Stands for a moment that is none: nothing was signed then.
_NEVER = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True, kw_only=True)
class Signed:
    """A checkpoint that was signed and stored."""

    id: str
    size: int
    root: bytes
    signed_at: datetime
    note: str

    @property
    def path(self) -> str:
        """Its file in the second place; names sort by size."""
        return f"{FOLDER}/{self.size // _SIZES:08d}/checkpoint-{self.size:012d}-{self.id}.txt"


def sign(connection: Connection, signer: Signer, now: datetime, *, kept: Checkpoint | None = None) -> Signed:
    """Sign the tree as it is, and store the checkpoint.

    Args:
        kept: the newest checkpoint of the second place, if there is one; checked beside the database's own.

    Raises:
        LogAltered: the log does not begin as those say; nothing is signed.
    """
    own = newest(connection)  # before the size: another may sign a larger tree meanwhile
    size = tree_size(connection)
    excused = superseded(connection, signer.verifier)
    for former in (kept, None if own is None else _read_own(own, signer.verifier)):
        if former is not None and (former.size, former.root) not in excused:
            check_begins_with(connection, former, size)
    root = root_at(connection, size) if size else EMPTY_ROOT
    made = Signed(
        id=new_id(),
        size=size,
        root=root,
        signed_at=now,
        note=signer.sign(size=size, root=root, now=now),
    )
    connection.execute(insert(audit_checkpoints).values(**made.__dict__))
    return made


def check_begins_with(connection: Connection, former: Checkpoint, size: int) -> None:
    """Whether the log of `size` entries begins as the checkpoint says. Raises LogAltered."""
    if former.size > size or (former.size and root_at(connection, former.size) != former.root):
        raise LogAltered


def superseded(connection: Connection, verifier: Verifier) -> set[tuple[int, bytes]]:
    """The checkpoints, as (size, root), that a restored backup is older than, by signed words of the log."""
    found: set[tuple[int, bytes]] = set()
    rows = connection.execute(
        select(as_stored(audit_events.c.canonical_bytes))
        .join(audit_seals, audit_seals.c.event_id == audit_events.c.id)
        .where(audit_events.c.action == RESTORED)
    ).scalars()
    for row in rows:
        try:
            found |= verifier.read_restore(json.loads(row)["details"]["statement"])
        except (BadCheckpoint, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue  # anybody may have written it
    return found


def newest(connection: Connection) -> Signed | None:
    """The largest checkpoint of the database; None when there is none."""
    return next(stored(connection, LARGEST_FIRST.limit(1)), None)


def _read_own(own: Signed, verifier: Verifier) -> Checkpoint:
    """What a checkpoint of the database says. Raises LogAltered: nothing else writes there than who signs."""
    try:
        said = verifier.read(own.note)
    except BadCheckpoint as error:
        raise LogAltered("A checkpoint in the database is not signed by this log; verify it.") from error
    if (said.size, said.root) != (own.size, own.root):
        raise LogAltered("A checkpoint in the database does not say what was signed; verify the log.")
    return said


def publish(place: Storage, signed: Signed, verifier: Verifier) -> None:
    """Write the checkpoint into the second place, and the key that it is checked with; safe to repeat.

    Raises OSError.
    """
    if place.exists(signed.path):
        return
    if not place.exists(KEY_FILE):
        with place.create(KEY_FILE) as file:
            file.write(f"{verifier}\n".encode())
    with place.create(signed.path) as file:
        file.write(signed.note.encode())


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What the second place says that nothing excuses."""

    #: The largest checkpoint of it; None when there is none.
    newest: Checkpoint | None
    #: Files that bear the name of a larger one, and are none or another.
    bad: tuple[str, ...] = ()


def look(database: Database, place: Storage, verifier: Verifier) -> Kept:
    """What the second place says that nothing excuses, before the log is signed. Raises OSError."""
    with database.read() as connection:
        size, excused = tree_size(connection), superseded(connection, verifier)
    return newest_kept(place, verifier, size, excused)


def newest_kept(
    place: Storage, verifier: Verifier, size: int, excused: Collection[tuple[int, bytes]] = ()
) -> Kept:
    """The largest checkpoint of the second place.

    Args:
        size: entries of the log now.
        excused: the checkpoints, as (size, root), that a restored backup is older than.

    Raises OSError.
    """
    larger, found, bad = {each for each, _ in excused if each > size}, [], []
    for named, path in _largest_first(place):
        if named in larger:
            continue  # nothing but what is excused was ever signed there
        try:
            checkpoint = verifier.read(_read(place, path))
        except BadCheckpoint:
            bad.append(path)
            continue
        if (checkpoint.size, checkpoint.root) in excused:
            continue
        found.append(checkpoint)
        if checkpoint.size == named:
            break
        bad.append(path)
    return Kept(newest=max(found, key=lambda each: each.size, default=None), bad=tuple(bad))


def _largest_first(place: Storage) -> Iterator[tuple[int, str]]:
    """The checkpoints of the second place by their names, as (entries, path); other files are passed over."""
    names = place.names(FOLDER)
    folders = sorted((name for name in names if name.isdecimal()), key=int, reverse=True)
    in_folders = (each for name in folders for each in _named(place.names(f"{FOLDER}/{name}"), f"{name}/"))
    return heapq.merge(_named(names, ""), in_folders, reverse=True)


def _named(names: Iterable[str], folder: str) -> list[tuple[int, str]]:
    paths = (f"{FOLDER}/{folder}{name}" for name in names)
    matched = ((_NAME.fullmatch(path), path) for path in paths)
    return sorted(((int(match[1]), path) for match, path in matched if match is not None), reverse=True)


def kept(place: Storage) -> Iterator[tuple[str, str]]:
    """Every file of the second place: where it is, and its text (of what is none, what can be read of it).

    Raises OSError.
    """
    for path in place.list(FOLDER):
        with place.open(path) as file:
            yield path, file.read().decode(errors="replace")


def stored(
    connection: Connection, statement: Select[Any] = ROWS.order_by(audit_checkpoints.c.id)
) -> Iterator[Signed]:
    """Checkpoints of the database, or all; what is of another kind than its column becomes what none says."""
    for row in connection.execute(statement):
        try:
            size = int(row.size)
        except ValueError:
            size = -1
        yield Signed(
            id=_text(row.id),
            size=size,
            root=row.root,
            signed_at=moment_of(row.signed_at) or _NEVER,
            note=_text(row.note),
        )


def first_sealed(connection: Connection) -> datetime | None:
    """When the first entry of the log was sealed; None when there is none."""
    row = connection.execute(
        select(as_stored(audit_seals.c.sealed_at)).order_by(audit_seals.c.sequence).limit(1)
    ).one_or_none()
    return None if row is None else moment_of(row[0]) or _NEVER


def _text(stored: bytes | str) -> str:
    return stored if isinstance(stored, str) else stored.decode(errors="replace")


def kept_beyond(place: Storage, size: int, verifier: Verifier) -> Iterator[Checkpoint]:
    """What the checkpoints of the second place say that are of more than `size` entries.

    Raises OSError, and BadCheckpoint for a file that this log did not sign.
    """
    for path in place.list(FOLDER):
        named = _NAME.fullmatch(path)
        if named is not None and int(named[1]) > size:
            try:
                yield verifier.read(_read(place, path))
            except BadCheckpoint as error:
                raise BadCheckpoint(f"{path} is no checkpoint of this log") from error


def _read(place: Storage, path: str) -> str:
    with place.open(path) as file:
        data = file.read()
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise BadCheckpoint(f"{path} is no text") from error
