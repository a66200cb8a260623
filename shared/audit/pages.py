"""Checks the entries of one page of the log, and what they speak of. It knows no tree and no other page.

It trusts no hash of the database: each entry's is made anew from its event, and each event's columns are held
against the bytes that were sealed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from operator import itemgetter
from typing import Any

from sqlalchemy import Connection, bindparam, func, select

from shared.audit.outside import BOUND, Outside
from shared.audit.reading import fetch, moment
from shared.db.tables import audit_events, audit_seals

#: Entries that are read at once.
PAGE = 4096

#: What an event's columns repeat of it; by its id it is joined.
_COLUMNS = ("actor", "session_id", "action", "object", "outcome", "reason", "schema_version")
_said = itemgetter(*_COLUMNS)
_read = json.JSONDecoder().raw_decode
_sequence = audit_seals.c.sequence
_some = (
    select(_sequence)
    .where(_sequence >= bindparam("start"))
    .order_by(_sequence)
    .limit(bindparam("most"))
    .subquery()
)
_LAST = select(func.max(_some.c.sequence))

#: What is wrong with an entry: (what, entry, its event).
Noted = tuple[str, int, str | None]


@dataclass(frozen=True, kw_only=True)
class Page:
    """What was found of one page."""

    #: The place of its first entry, and the one after its last.
    first: int
    after: int
    #: The hashes of its leaves, in order.
    leaves: list[bytes] = field(default_factory=list)
    #: What is wrong with its entries, and with what they speak of.
    entries: list[Noted] = field(default_factory=list)
    outside: list[Noted] = field(default_factory=list)


def bounds(connection: Connection, size: int = PAGE) -> Iterator[tuple[int, int]]:
    """The pages of the log, each as (its first place, the first after it), until it ends.

    What is sealed meanwhile comes behind, and never into a page that was given.
    """
    start = 0
    while (last := fetch(connection, _LAST, {"start": start, "most": size})[0][0]) is not None:
        yield start, last + 1
        start = last + 1


class Pages:
    """Checks pages, in any order."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._outside = Outside(connection, self._note_outside)
        self._page = Page(first=0, after=0)
        self._next = 0
        self._statement = (
            select(
                _sequence,
                audit_seals.c.event_id,
                audit_seals.c.leaf_hash,
                audit_events.c.canonical_bytes,
                moment(connection, audit_events.c.occurred_at),
                *(audit_events.c[name] for name in _COLUMNS),
            )
            .outerjoin(audit_events, audit_events.c.id == audit_seals.c.event_id)
            .where(_sequence >= bindparam("start"), _sequence < bindparam("end"))
            .order_by(_sequence)
            .limit(bindparam("most"))
        )

    def check(self, start: int, end: int) -> Page:
        """Check the entries from `start` up to `end`."""
        rows = fetch(self._connection, self._statement, {"start": start, "end": end, "most": end - start})
        if not rows:
            return Page(first=start, after=start)
        first = self._next = rows[0][0]
        self._page = page = Page(first=first, after=rows[-1][0] + 1)
        page.leaves.extend([self._leaf(row) for row in rows])
        self._outside.check()
        return page

    def _leaf(self, row: Any) -> bytes:
        """Check one entry; returns the hash of its leaf."""
        sequence, event, sealed, data = row[:4]
        if sequence != self._next:
            self._note(missing(self._next, sequence), self._next, None)
        self._next = sequence + 1
        if not isinstance(data, bytes):
            self._note("its event was deleted" if data is None else "its event is no bytes", sequence, event)
            return sealed if isinstance(sealed, bytes) else b""
        leaf = sha256(b"\x00" + data).digest()
        if leaf != sealed:
            self._note("its event was changed", sequence, event)
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
                self._note(f"the column {_differs(record, row)} was changed", sequence, event)
            elif record["action"].startswith(BOUND):
                self._outside.gather(sequence, event, record)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            self._note("its event cannot be read", sequence, event)
        return leaf

    def _note(self, what: str, entry: int, event: Any) -> None:
        self._page.entries.append((what, entry, None if event is None else str(event)))

    def _note_outside(self, what: str, entry: int, event: Any) -> None:
        self._page.outside.append((what, entry, None if event is None else str(event)))


def missing(start: int, end: int) -> str:
    """What is said of entries that are not there."""
    return f"the entries {start} to {end - 1} are missing"


def _differs(record: dict[str, Any], row: Any) -> str:
    """The first column that does not say what was sealed."""
    if record["id"] != row[1]:
        return "id"
    for name, one, other in zip(_COLUMNS, _said(record), row[5:], strict=True):
        if one != other:
            return name
    return "occurred_at"
