"""Recomputes the whole log and holds it against every known checkpoint. It changes nothing.

It trusts no hash of the database: each entry's is made anew from its event, and each event's columns are held
against the bytes that were sealed.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from operator import itemgetter
from typing import Any

from sqlalchemy import Connection, bindparam, func, select

from shared.audit.checkpoint import Checkpoint, Verifier
from shared.audit.checkpoints import superseded
from shared.audit.merkle import EMPTY_ROOT, leaf_hash, node_hash, root_of
from shared.audit.tiles import HEIGHT, WIDTH
from shared.db.tables import audit_events, audit_seals, data_keys, messages
from shared.db.tables_audit import audit_pending, audit_tiles
from shared.errors import BadCheckpoint

#: Entries that are read at once, and findings that are told before the rest is only counted.
PAGE, MOST_FINDINGS = 4096, 20

_COLUMNS = ("id", "actor", "session_id", "action", "object", "outcome", "reason", "schema_version")
_said = itemgetter(*_COLUMNS)
_TILE = select(audit_tiles.c.hashes, audit_tiles.c.root).where(
    audit_tiles.c.level == bindparam("of_level"), audit_tiles.c.number == bindparam("of_number")
)
_ENTRIES = (
    select(
        audit_seals.c.sequence,
        audit_seals.c.event_id,
        audit_seals.c.leaf_hash,
        audit_events.c.canonical_bytes,
        audit_events.c.occurred_at,
        *(audit_events.c[name] for name in _COLUMNS),
    )
    .outerjoin(audit_events, audit_events.c.id == audit_seals.c.event_id)
    .where(audit_seals.c.sequence >= bindparam("start"))
    .order_by(audit_seals.c.sequence)
    .limit(PAGE)
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
    """Check every entry, tile and checkpoint.

    Args:
        connection: a reader; what is written meanwhile is left for the next time.
        checkpoints: (where it is, its signed text) of every one that is known.
        verifier: the key of this log.
        on_page: is told how many entries were checked so far.
    """
    report = Report()
    wanted, restored = _wanted(checkpoints, verifier, report), superseded(connection)
    walk = _Walk(connection, report)
    for row in _entries(connection):
        walk.take(row)
        for where, checkpoint in wanted.pop(walk.size, ()):
            _compare(report, where, checkpoint, walk.root(), restored)
        if walk.size % PAGE == 0:
            walk.check_texts()
            on_page(walk.size)
    walk.check_texts()
    report.size, report.root = walk.size, walk.root()
    for size, left in sorted(wanted.items()):
        for where, checkpoint in left:
            if (size, checkpoint.root) in restored:
                report.superseded += 1
            elif size:
                report.add(f"{where} names {size} entries, and the log has {report.size}: its end is missing")
    _check_waiting(connection, report)
    on_page(report.size)
    return report


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
    report: Report, where: str, checkpoint: Checkpoint, root: bytes, restored: set[tuple[int, bytes]]
) -> None:
    if checkpoint.root == root:
        report.checkpoints += 1
    elif (checkpoint.size, checkpoint.root) in restored:
        report.superseded += 1
    else:
        report.add(
            f"{where}: the first {checkpoint.size} entries are not those that were signed",
            entry=checkpoint.size - 1,
        )


def _entries(connection: Connection) -> Iterator[Any]:
    start = 0
    while rows := connection.execute(_ENTRIES, {"start": start}).all():
        yield from rows
        start = rows[-1].sequence + 1


class _Walk:
    """Goes along the log, and remembers the tree so far."""

    def __init__(self, connection: Connection, report: Report) -> None:
        self.size = 0
        self._connection, self._report = connection, report
        self._next = 0
        #: By level, what the next tile of it holds so far.
        self._tiles: list[list[bytes]] = [[]]
        #: By message, the entry that is bound to its text, and the hash of it.
        self._texts: dict[str, tuple[int, str, str]] = {}

    def take(self, row: Any) -> None:
        """Check one entry."""
        sequence, event, sealed, data, occurred_at, *columns = row
        if sequence != self._next:
            self._report.add(f"the entries {self._next} to {sequence - 1} are missing", entry=self._next)
        self._next = sequence + 1
        leaf = bytes(sealed) if data is None else leaf_hash(data)
        if data is None:
            self._report.add("its event was deleted", entry=sequence, event=event)
        elif leaf != sealed:
            self._report.add("its event was changed", entry=sequence, event=event)
        elif (wrong := _differs(data, occurred_at, columns)) is not None:
            self._report.add(f"the column {wrong} was changed", entry=sequence, event=event)
        elif b'"ciphertext_sha256"' in data:
            self._bind(sequence, event, data)
        self.size += 1
        self._tiles[0].append(leaf)
        if len(self._tiles[0]) == WIDTH:
            self._end_tile(0)

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

    def check_texts(self) -> None:
        """Hold the messages of the last entries against what these say of their ciphertexts."""
        if not self._texts:
            return
        rows = self._connection.execute(
            select(messages.c.id, messages.c.ciphertext, data_keys.c.destroyed_at)
            .join(data_keys, data_keys.c.key_id == messages.c.key_id)
            .where(messages.c.id.in_(self._texts))
        )
        left = dict(self._texts)
        self._texts.clear()
        for row in rows:
            entry, event, sealed = left.pop(row.id)
            if row.destroyed_at is None and hashlib.sha256(row.ciphertext).hexdigest() != sealed:
                self._report.add(f"the text of message {row.id} was changed", entry=entry, event=event)
        for message, (entry, event, _) in left.items():
            self._report.add(f"the message {message} was deleted", entry=entry, event=event)

    def _bind(self, sequence: int, event: str, data: bytes) -> None:
        details = json.loads(data)["details"]
        if details.get("message") and details.get("ciphertext_sha256"):
            self._texts[details["message"]] = (sequence, event, details["ciphertext_sha256"])

    def _end_tile(self, level: int) -> None:
        hashes, number = self._tiles[level], (self.size >> (HEIGHT * (level + 1))) - 1
        root = root_of(hashes)
        stored = self._connection.execute(_TILE, {"of_level": level, "of_number": number}).one_or_none()
        if stored is None or (bytes(stored.hashes), bytes(stored.root)) != (b"".join(hashes), root):
            fault = "is missing" if stored is None else "is not that of its entries"
            self._report.add(f"tile {level}/{number} of the tree {fault}")
        hashes.clear()
        if level + 1 == len(self._tiles):
            self._tiles.append([])
        self._tiles[level + 1].append(root)
        if len(self._tiles[level + 1]) == WIDTH:
            self._end_tile(level + 1)


def _differs(data: bytes, occurred_at: datetime, columns: list[Any]) -> str | None:
    """The first column that does not say what was sealed."""
    record = json.loads(data.decode())
    said = _said(record)
    if said != tuple(columns):
        return next(name for name, one, other in zip(_COLUMNS, said, columns, strict=True) if one != other)
    if record["occurred_at"] != occurred_at.isoformat(timespec="microseconds"):
        return "occurred_at"
    return None


def _check_waiting(connection: Connection, report: Report) -> None:
    """What is not sealed: it waits, or was put past the queue, or was taken away while it waited."""
    report.waiting = connection.execute(select(func.count()).select_from(audit_pending)).scalar_one()
    lost = select(audit_pending.c.event_id).where(
        ~select(audit_events.c.id).where(audit_events.c.id == audit_pending.c.event_id).exists()
    )
    for event in connection.execute(lost).scalars():
        report.add("was deleted before it was sealed", event=event)
    past = select(audit_events.c.id).where(
        ~select(audit_seals.c.event_id).where(audit_seals.c.event_id == audit_events.c.id).exists(),
        ~select(audit_pending.c.event_id).where(audit_pending.c.event_id == audit_events.c.id).exists(),
    )
    for event in connection.execute(past).scalars():
        report.add("was written past the queue, and nothing seals it", event=event)
