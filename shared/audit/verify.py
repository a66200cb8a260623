"""Recomputes the whole log and holds it against every known checkpoint. It changes nothing.

It trusts no hash of the database: each entry's is made anew from its event, and each event's columns are held
against the bytes that were sealed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from hashlib import sha256
from operator import itemgetter
from typing import Any

from sqlalchemy import Connection, bindparam, func, select

from shared.audit.checkpoint import Verifier
from shared.audit.checkpoints import superseded
from shared.audit.findings import Report
from shared.audit.growing import Growing
from shared.audit.known import Known, KnownCheckpoints
from shared.audit.merkle import HASH_BYTES
from shared.audit.outside import BOUND, Outside
from shared.audit.reading import any_text, fetch, moment
from shared.audit.tiles import WIDTH
from shared.db.tables import audit_events, audit_seals
from shared.db.tables_audit import audit_pending, audit_tiles

#: Entries that are read at once.
PAGE = 4096

#: What an event's columns repeat of it; by its id it is joined.
_COLUMNS = ("actor", "session_id", "action", "object", "outcome", "reason", "schema_version")
_said = itemgetter(*_COLUMNS)
_read = json.JSONDecoder().raw_decode
_TILE = select(audit_tiles.c.hashes, audit_tiles.c.root).where(
    audit_tiles.c.level == bindparam("of_level"), audit_tiles.c.number == bindparam("of_number")
)


def verify(
    connection: Connection,
    checkpoints: Iterable[tuple[str, Any]],
    verifier: Verifier,
    on_page: Callable[[int], None] = lambda _: None,
) -> Report:
    """Check every entry, tile and checkpoint, and what lies outside of the log that its events speak of.

    Args:
        connection: a reader; what is written meanwhile is left for the next time.
        checkpoints: (where it is, its signed text) of those that are kept outside of the database. They are
            read before the log is: it only grows.
        verifier: the key of this log.
        on_page: is told how many entries were checked so far, also while checkpoints are read.
    """
    report = Report()
    known = KnownCheckpoints(verifier, report, lambda: on_page(0))
    known.add(checkpoints)
    with any_text(connection):
        restored = superseded(connection, verifier)
    known.add_stored(connection)
    walk = _Walk(connection, report, known, restored)
    for rows in _pages(connection):
        walk.take(rows)
        on_page(walk.tree.size)
    walk.end()
    _check_apart(connection, report)
    on_page(report.size)
    return report


def _pages(connection: Connection) -> Iterator[list[Any]]:
    statement = (
        select(
            audit_seals.c.sequence,
            audit_seals.c.event_id,
            audit_seals.c.leaf_hash,
            audit_events.c.canonical_bytes,
            moment(connection, audit_events.c.occurred_at),
            *(audit_events.c[name] for name in _COLUMNS),
        )
        .outerjoin(audit_events, audit_events.c.id == audit_seals.c.event_id)
        .where(audit_seals.c.sequence >= bindparam("start"))
        .order_by(audit_seals.c.sequence)
        .limit(PAGE)
    )
    start = 0
    while rows := fetch(connection, statement, {"start": start}):
        yield rows
        start = rows[-1][0] + 1


class _Walk:
    """Goes along the log."""

    def __init__(
        self,
        connection: Connection,
        report: Report,
        known: KnownCheckpoints,
        restored: set[tuple[int, bytes]],
    ) -> None:
        self.tree = Growing(self._on_tile)
        self._connection, self._report = connection, report
        self._known, self._restored = known, restored
        self._outside = Outside(
            connection, lambda what, entry, event: report.add(what, entry=entry, event=event)
        )
        self._next = 0
        #: Up to where a checkpoint says that the log is right.
        self._agreed = 0

    def take(self, rows: list[Any]) -> None:
        """Check the next entries, and what they speak of."""
        leaves = [self._leaf(row) for row in rows]
        begun, done = self.tree.size, 0
        for size, checkpoints in self._known.take(begun, begun + len(leaves)):
            self.tree.extend(leaves[done : size - begun])
            done = size - begun
            for checkpoint in checkpoints:
                self._compare(checkpoint)
        self.tree.extend(leaves[done:])
        self._outside.check()

    def end(self) -> None:
        """Say how long the log is; the checkpoints that are left are of a longer one."""
        report, size = self._report, self.tree.size
        report.size, report.root = size, self.tree.root()
        for of_size, known in self._known.left():
            if (of_size, known.root) in self._restored:
                report.superseded += 1
            elif of_size:
                report.add(
                    f"{known.where} names {of_size} entries, and the log has {size}: its end is missing"
                )

    def _leaf(self, row: Any) -> bytes:
        """Check one entry; returns the hash of its leaf."""
        sequence, event, sealed, data = row[:4]
        if sequence != self._next:
            self._report.add(f"the entries {self._next} to {sequence - 1} are missing", entry=self._next)
        self._next = sequence + 1
        if not isinstance(data, bytes):
            what = "its event was deleted" if data is None else "its event is no bytes"
            self._report.add(what, entry=sequence, event=event)
            return sealed if isinstance(sealed, bytes) else b""
        leaf = sha256(b"\x00" + data).digest()
        if leaf != sealed:
            self._report.add("its event was changed", entry=sequence, event=event)
            return leaf
        try:
            text = data.decode()
            record, end = _read(text)
            if end != len(text):
                raise ValueError("something follows the event")
            at = row[4]
            if (
                _said(record) != row[5:]
                or record["id"] != event
                or record["occurred_at"] != f"{at[:10]}T{at[11:]}+00:00"
            ):
                what = f"the column {_differs(record, row)} was changed"
                self._report.add(what, entry=sequence, event=event)
            elif record["action"].startswith(BOUND):
                self._outside.gather(sequence, event, record)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            self._report.add("its event cannot be read", entry=sequence, event=event)
        return leaf

    def _compare(self, known: Known) -> None:
        """Hold a checkpoint against the tree of its size."""
        report, size = self._report, self.tree.size
        if known.root == self.tree.root():
            report.checkpoints += 1
            self._agreed = size
        elif (size, known.root) in self._restored:
            report.superseded += 1
        else:
            report.add(
                f"{known.where}: the first {size} entries are not those that were signed; the first that is "
                f"not lies from entry {self._agreed} on",
                entry=self._agreed,
                by=size,
            )

    def _on_tile(self, level: int, number: int, hashes: list[bytes], root: bytes) -> None:
        """Hold a tile against what was stored, and say which entry it was not made of, where it tells."""
        tile = f"tile {level}/{number} of the tree"
        rows = fetch(self._connection, _TILE, {"of_level": level, "of_number": number})
        if not rows:
            return self._report.add(f"{tile} is missing")
        stored, stored_root = rows[0]
        if (stored, stored_root) == (b"".join(hashes), root):
            return None
        entry = None
        if level == 0 and isinstance(stored, bytes):
            was = (stored[at : at + HASH_BYTES] for at in range(0, len(stored), HASH_BYTES))
            differ = (at for at, (one, other) in enumerate(zip(hashes, was, strict=False)) if one != other)
            entry = next((number * WIDTH + at for at in differ), None)
        return self._report.add(f"{tile} was made of something else than this", entry=entry)


def _differs(record: dict[str, Any], row: Any) -> str:
    """The first column that does not say what was sealed."""
    if record["id"] != row[1]:
        return "id"
    for name, one, other in zip(_COLUMNS, _said(record), row[5:], strict=True):
        if one != other:
            return name
    return "occurred_at"


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
        for (event,) in fetch(connection, statement):
            report.add(what, event=event)
