"""The checkpoints that a log is held against: those of the database, and those that are kept elsewhere.

It checks what signed them, and each text once: both places hold the same. It does not know the tree.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, bindparam, select

from shared.audit.checkpoint import Checkpoint, Verifier, parse
from shared.audit.findings import Report
from shared.audit.reading import fetch, moment
from shared.db.tables_audit import audit_checkpoints
from shared.errors import BadCheckpoint

#: Checkpoints that are read at once, and after which it is told that the work goes on.
TOGETHER = 500

_FRACTION = re.compile(r"\.\d{6}")


@dataclass(frozen=True, slots=True)
class Known:
    """A checkpoint that this log signed."""

    #: Where it is.
    where: str
    root: bytes
    #: SHA-256 of its text.
    text: bytes


class KnownCheckpoints:
    """Gathers checkpoints by their size; those that this log did not sign are findings."""

    def __init__(self, verifier: Verifier, report: Report, on_some: Callable[[], None]) -> None:
        """`on_some` is called now and then: checking signatures takes its time."""
        self._verifier, self._report, self._on_some = verifier, report, on_some
        self._by_size: dict[int, list[Known]] = defaultdict(list)
        self._seen = 0

    def take(self, after: int, up_to: int) -> Iterator[tuple[int, list[Known]]]:
        """Those of more than `after` and at most `up_to` entries, the smallest first; they are forgotten."""
        for size in range(after + 1, up_to + 1):
            if size in self._by_size:
                yield size, self._by_size.pop(size)

    def left(self) -> Iterable[tuple[int, Known]]:
        """Those that nobody took, the smallest first."""
        return ((size, known) for size in sorted(self._by_size) for known in self._by_size[size])

    def add(self, checkpoints: Iterable[tuple[str, Any]]) -> None:
        """Read signed texts: (where it is, the text)."""
        for where, note in checkpoints:
            self._read(where, note)

    def add_stored(self, connection: Connection) -> None:
        """Read those of the database, whose columns must say what was signed."""
        columns = audit_checkpoints.c
        statement = (
            select(
                columns.id, columns.note, columns.size, columns.root, moment(connection, columns.signed_at)
            )
            .where(columns.id > bindparam("after"))
            .order_by(columns.id)
            .limit(TOGETHER)
        )
        after: Any = ""
        while rows := fetch(connection, statement, {"after": after}):
            for name, note, size, root, signed_at in rows:
                where = f"database, checkpoint {name}"
                said = self._read(where, note)
                if said is not None and not _agrees(said, size, root, signed_at):
                    self._report.add(f"{where} does not say what was signed")
            after = rows[-1][0]

    def _read(self, where: str, note: Any) -> Checkpoint | None:
        self._seen += 1
        if self._seen % TOGETHER == 0:
            self._on_some()
        try:
            checkpoint, text = self._checked(note)
        except BadCheckpoint as error:
            self._report.add(f"{where} cannot be used: {error}")
            return None
        self._by_size[checkpoint.size].append(Known(where, checkpoint.root, text))
        return checkpoint

    def _checked(self, note: Any) -> tuple[Checkpoint, bytes]:
        """What the text says, and its hash. Raises BadCheckpoint unless this log signed it."""
        if not isinstance(note, str):
            raise BadCheckpoint("it is no text")
        digest = hashlib.sha256(note.encode("utf-8", "surrogatepass")).digest()
        body, _, _signatures = note.rpartition("\n\n")
        with suppress(BadCheckpoint):
            said = parse(f"{body}\n")
            if any(known.text == digest for known in self._by_size.get(said.size, ())):
                return said, digest
        return self._verifier.read(note), digest


def _agrees(said: Checkpoint, size: Any, root: Any, signed_at: Any) -> bool:
    """Whether the columns say the same as the text, which gives the moment in whole seconds."""
    if (size, root) != (said.size, said.root) or not isinstance(signed_at, str) or said.signed_at is None:
        return False
    second = said.signed_at.strftime("%Y-%m-%d %H:%M:%S")
    return signed_at.startswith(second) and _FRACTION.fullmatch(signed_at, len(second)) is not None
