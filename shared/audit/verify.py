"""Recomputes the whole log and holds it against every known checkpoint. It changes nothing.

It holds the tree and the checkpoints; what an entry and its page are held against, `pages` knows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from sqlalchemy import Connection, bindparam, func, select

from shared.audit.checkpoint import Verifier
from shared.audit.checkpoints import superseded
from shared.audit.findings import Report
from shared.audit.growing import Growing
from shared.audit.helper import Helper, checked
from shared.audit.known import Known, KnownCheckpoints
from shared.audit.merkle import HASH_BYTES
from shared.audit.pages import PAGE, Noted, Page, missing
from shared.audit.reading import any_text, by_index, fetch
from shared.audit.tiles import WIDTH
from shared.db.tables import audit_events, audit_seals
from shared.db.tables_audit import audit_pending, audit_tiles

_TILE = select(audit_tiles.c.hashes, audit_tiles.c.root).where(
    audit_tiles.c.level == bindparam("of_level"), audit_tiles.c.number == bindparam("of_number")
)


def verify(
    connection: Connection,
    checkpoints: Iterable[tuple[str, Any]],
    verifier: Verifier,
    on_page: Callable[[int], None] = lambda _: None,
    helper: Helper | None = None,
    page_size: int = PAGE,
) -> Report:
    """Check every entry, tile and checkpoint, and what lies outside of the log that its events speak of.

    Args:
        connection: a reader; what is written meanwhile is left for the next time.
        checkpoints: (where it is, its signed text) of those that are kept outside of the database. They are
            read before the log is: it only grows.
        verifier: the key of this log.
        on_page: is told how many entries were checked so far, also while checkpoints are read.
        helper: checks pages of `page_size` entries beside this process.

    Raises ChildProcessError when the helper ended before the log.
    """
    report = Report()
    known = KnownCheckpoints(verifier, report, lambda: on_page(0))
    known.add(checkpoints)
    with any_text(connection):
        restored = superseded(connection, verifier)
    known.add_stored(connection)
    walk = _Walk(connection, report, known, restored)
    with by_index(connection):
        for page in checked(connection, helper, page_size):
            walk.take(page)
            on_page(walk.tree.size)
    walk.end()
    _check_apart(connection, report)
    on_page(report.size)
    return report


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
        self._next = 0
        #: Up to where a checkpoint says that the log is right.
        self._agreed = 0

    def take(self, page: Page) -> None:
        """Take the next entries, and what is wrong with them and with what they speak of."""
        if page.leaves and page.first != self._next:
            self._report.add(missing(self._next, page.first), entry=self._next)
        self._next = page.after
        self._note(page.entries)
        leaves = page.leaves
        begun, done = self.tree.size, 0
        for size, checkpoints in self._known.take(begun, begun + len(leaves)):
            self.tree.extend(leaves[done : size - begun])
            done = size - begun
            for checkpoint in checkpoints:
                self._compare(checkpoint)
        self.tree.extend(leaves[done:])
        self._note(page.outside)

    def _note(self, all_noted: list[Noted]) -> None:
        for what, entry, event in all_noted:
            self._report.add(what, entry=entry, event=event)

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
