"""Recomputes the whole log and holds it against every known checkpoint. It changes nothing.

It trusts no hash of the database: each entry's is made anew from its event, and each event's columns are held
against the bytes that were sealed.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

from sqlalchemy import ColumnElement, Connection, String, bindparam, func, select, type_coerce

from shared.audit.checkpoint import Checkpoint, Verifier
from shared.audit.checkpoints import stored, superseded
from shared.audit.merkle import EMPTY_ROOT, HASH_BYTES, leaf_hash, node_hash, root_of
from shared.audit.outside import Outside
from shared.audit.tiles import HEIGHT, WIDTH
from shared.db.tables import audit_events, audit_seals
from shared.db.tables_audit import audit_pending, audit_tiles
from shared.errors import BadCheckpoint

#: Entries that are read at once, and findings that are told before the rest is only counted.
PAGE, MOST_FINDINGS = 4096, 20

_COLUMNS = ("id", "actor", "session_id", "action", "object", "outcome", "reason", "schema_version")
_said = itemgetter(*_COLUMNS)
_TILE = select(audit_tiles.c.hashes, audit_tiles.c.root).where(
    audit_tiles.c.level == bindparam("of_level"), audit_tiles.c.number == bindparam("of_number")
)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is not as it was sealed."""

    #: The entry's place in the log; None where it has none.
    entry: int | None
    event: str | None
    #: One line: what is wrong.
    what: str


@dataclass(kw_only=True)
class Report:
    """What was found."""

    #: Entries of the log, and its root.
    size: int = 0
    root: bytes = b""
    #: Events that wait to be sealed: they prove nothing yet.
    waiting: int = 0
    #: Checkpoints that the log agrees with, and that a restored backup is older than, by its own word.
    checkpoints: int = 0
    superseded: int = 0
    #: The first ones, in the order of the log, and how many there are in all.
    findings: list[Finding] = field(default_factory=list)
    count: int = 0

    @property
    def holds(self) -> bool:
        """Whether nothing was found."""
        return self.count == 0

    def add(self, what: str, *, entry: int | None = None, event: str | None = None) -> None:
        """Note something that is wrong."""
        self.count += 1
        if len(self.findings) < MOST_FINDINGS:
            self.findings.append(Finding(entry=entry, event=event, what=what))


def verify(
    connection: Connection,
    checkpoints: Iterable[tuple[str, str]],
    verifier: Verifier,
    on_page: Callable[[int], None] = lambda _: None,
) -> Report:
    """Check every entry, tile and checkpoint, and what lies outside of the log that its events speak of.

    Args:
        connection: a reader; what is written meanwhile is left for the next time.
        checkpoints: (where it is, its signed text) of those that are kept outside of the database.
        verifier: the key of this log.
        on_page: is told how many entries were checked so far.
    """
    report = Report()
    restored = superseded(connection, verifier)
    wanted = _wanted([*checkpoints, *_stored(connection, verifier, report)], verifier, report)
    walk, agreed = _Walk(connection, report), 0
    for row in _entries(connection):
        walk.take(row)
        for where, checkpoint in wanted.pop(walk.size, ()):
            agreed = _compare(report, where, checkpoint, walk.root(), restored, agreed)
        if walk.size % PAGE == 0:
            walk.outside.check()
            on_page(walk.size)
    walk.outside.check()
    report.size, report.root = walk.size, walk.root()
    for size, left in sorted(wanted.items()):
        for where, checkpoint in left:
            if (size, checkpoint.root) in restored:
                report.superseded += 1
            elif size:
                report.add(f"{where} names {size} entries, and the log has {report.size}: its end is missing")
    _check_apart(connection, report)
    on_page(report.size)
    return report


def _stored(connection: Connection, verifier: Verifier, report: Report) -> Iterator[tuple[str, str]]:
    """The checkpoints of the database, whose columns must say what was signed."""
    for row in stored(connection):
        where = f"database, checkpoint {row.id}"
        try:
            said = verifier.read(row.note)
        except BadCheckpoint:
            pass  # is told as any other
        else:
            moments = {row.signed_at.replace(microsecond=0), said.signed_at}
            if (row.size, row.root) != (said.size, said.root) or len(moments) > 1:
                report.add(f"{where} does not say what was signed")
        yield where, row.note


def _wanted(
    checkpoints: Iterable[tuple[str, str]], verifier: Verifier, report: Report
) -> dict[int, list[tuple[str, Checkpoint]]]:
    """The checkpoints by size; those that were not signed by this log are findings."""
    by_size: dict[int, list[tuple[str, Checkpoint]]] = defaultdict(list)
    for where, note in checkpoints:
        try:
            checkpoint = verifier.read(note)
        except BadCheckpoint as error:
            report.add(f"{where} cannot be used: {error}")
        else:
            by_size[checkpoint.size].append((where, checkpoint))
    return by_size


def _compare(
    report: Report,
    where: str,
    checkpoint: Checkpoint,
    root: bytes,
    restored: set[tuple[int, bytes]],
    agreed: int,
) -> int:
    """Hold a checkpoint against the tree of its size; returns up to where the log is known to be right."""
    if checkpoint.root == root:
        report.checkpoints += 1
        return checkpoint.size
    if (checkpoint.size, checkpoint.root) in restored:
        report.superseded += 1
    else:
        report.add(
            f"{where}: the first {checkpoint.size} entries are not those that were signed; the first that is "
            f"not lies from entry {agreed} on",
            entry=agreed,
        )
    return agreed


def _entries(connection: Connection) -> Iterator[Any]:
    moment: ColumnElement[Any] = audit_events.c.occurred_at
    if connection.dialect.name == "postgresql":  # which makes text of it faster than Python does
        moment = func.to_char(func.timezone("UTC", moment), "YYYY-MM-DD HH24:MI:SS.US")
    statement = (
        select(
            audit_seals.c.sequence,
            audit_seals.c.event_id,
            audit_seals.c.leaf_hash,
            audit_events.c.canonical_bytes,
            type_coerce(moment, String),  # on SQLite as it is: who altered it may have written anything
            *(audit_events.c[name] for name in _COLUMNS),
        )
        .outerjoin(audit_events, audit_events.c.id == audit_seals.c.event_id)
        .where(audit_seals.c.sequence >= bindparam("start"))
        .order_by(audit_seals.c.sequence)
        .limit(PAGE)
    )
    start = 0
    while rows := connection.execute(statement, {"start": start}).all():
        yield from rows
        start = rows[-1].sequence + 1


class _Walk:
    """Goes along the log, and remembers the tree so far."""

    def __init__(self, connection: Connection, report: Report) -> None:
        self.size = 0
        self.outside = Outside(
            connection, lambda what, entry, event: report.add(what, entry=entry, event=event)
        )
        self._connection, self._report = connection, report
        self._next = 0
        #: By level, what the next tile of it holds so far.
        self._tiles: list[list[bytes]] = [[]]

    def take(self, row: Any) -> None:
        """Check one entry."""
        sequence, event, sealed, data, occurred_at, *columns = row
        if sequence != self._next:
            self._report.add(f"the entries {self._next} to {sequence - 1} are missing", entry=self._next)
        self._next = sequence + 1
        leaf = leaf_hash(data) if isinstance(data, bytes) else bytes(sealed)
        if data is None:
            self._report.add("its event was deleted", entry=sequence, event=event)
        elif leaf != sealed:
            self._report.add("its event was changed", entry=sequence, event=event)
        else:
            try:
                self._read(sequence, event, data, occurred_at, columns)
            except (ValueError, KeyError, TypeError, AttributeError):
                self._report.add("its event cannot be read", entry=sequence, event=event)
        self.size += 1
        self._tiles[0].append(leaf)
        if len(self._tiles[0]) == WIDTH:
            self._end_tile(0)

    def _read(self, sequence: int, event: str, data: bytes, occurred_at: str, columns: list[Any]) -> None:
        record = json.loads(data.decode())
        wrong = _differs(record, occurred_at, columns)
        if wrong is not None:
            self._report.add(f"the column {wrong} was changed", entry=sequence, event=event)
        elif b"_sha256" in data or b'"verdict"' in data:
            self.outside.gather(sequence, event, record)

    def root(self) -> bytes:
        """The root of the entries so far."""
        root = b""
        for level in self._tiles:  # the last subtree first: each begins where the one before it ended
            hashes = list(level)
            while hashes:
                width = len(hashes) & -len(hashes)
                hashes, last = hashes[:-width], root_of(hashes[-width:])
                root = node_hash(last, root) if root else last
        return root or EMPTY_ROOT

    def _end_tile(self, level: int) -> None:
        hashes, number = self._tiles[level], (self.size >> (HEIGHT * (level + 1))) - 1
        root = root_of(hashes)
        stored = self._connection.execute(_TILE, {"of_level": level, "of_number": number}).one_or_none()
        if stored is None or (bytes(stored.hashes), bytes(stored.root)) != (b"".join(hashes), root):
            self._name_tile(level, number, hashes, None if stored is None else bytes(stored.hashes))
        hashes.clear()
        if level + 1 == len(self._tiles):
            self._tiles.append([])
        self._tiles[level + 1].append(root)
        if len(self._tiles[level + 1]) == WIDTH:
            self._end_tile(level + 1)

    def _name_tile(self, level: int, number: int, hashes: list[bytes], stored: bytes | None) -> None:
        """Say which entry is not the one that the tile was made of, where it tells."""
        tile = f"tile {level}/{number} of the tree"
        if stored is None:
            self._report.add(f"{tile} is missing")
            return
        was = [stored[at : at + HASH_BYTES] for at in range(0, len(stored), HASH_BYTES)]
        differ = (at for at, (one, other) in enumerate(zip(hashes, was, strict=False)) if one != other)
        first = next(differ, None)
        entry = None if first is None or level else number * WIDTH + first
        self._report.add(f"{tile} was made of something else than this", entry=entry)


def _differs(record: dict[str, Any], occurred_at: str, columns: list[Any]) -> str | None:
    """The first column that does not say what was sealed."""
    said = _said(record)
    if said != tuple(columns):
        return next(name for name, one, other in zip(_COLUMNS, said, columns, strict=True) if one != other)
    if record["occurred_at"] != f"{occurred_at[:10]}T{occurred_at[11:]}+00:00":
        return "occurred_at"
    return None


def _check_apart(connection: Connection, report: Report) -> None:
    """What has no place in the log: it waits, was put past the queue, or was taken away while it waited."""
    report.waiting = connection.execute(select(func.count()).select_from(audit_pending)).scalar_one()
    sealed = select(audit_seals.c.event_id).where(audit_seals.c.event_id == audit_events.c.id).exists()
    queued = select(audit_pending.c.event_id).where(audit_pending.c.event_id == audit_events.c.id).exists()
    known = select(audit_events.c.id).where(audit_events.c.id == audit_pending.c.event_id).exists()
    kinds = {
        "was deleted before it was sealed": select(audit_pending.c.event_id).where(~known),
        "was written past the queue, and nothing seals it": select(audit_events.c.id).where(~sealed, ~queued),
        "waits to be sealed though it has a seal": select(audit_events.c.id).where(sealed, queued),
        "has a seal outside of the log": select(audit_seals.c.event_id).where(audit_seals.c.sequence < 0),
    }
    for what, statement in kinds.items():
        for event in connection.execute(statement).scalars():
            report.add(what, event=event)
