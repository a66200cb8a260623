"""Verifies a log in a process of its own: `python -m shared.audit.verifying`.

It reads one JSON object (`database`, `checkpoints`, `key`) from its standard input, and prints JSON lines:
`{"checked": n, "of": m}` while it works, the report last.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

from shared.audit.checkpoint import Verifier
from shared.audit.checkpoints import kept
from shared.audit.findings import Report
from shared.audit.helper import Helper, helping
from shared.audit.sequencer import tree_size
from shared.audit.verify import verify
from shared.db.engine import Database, connect
from shared.storage import Storage

#: Entries from which on a log is verified with a helper: to start it takes as long as some ten thousand.
HELPED_FROM = 100_000
#: How far the process stands back behind what answers (as `nice`): it takes up to two processors.
_BEHIND = 10

log = logging.getLogger(__name__)


def verify_log(
    database: Database,
    place: Storage,
    verifier: Verifier,
    on_page: Callable[[int, int], None],
    also: Sequence[tuple[str, str]] = (),
) -> Report:
    """Hold the log against the checkpoints of the database and of the second place.

    Args:
        on_page: is told how many entries were checked, and how many there are.
        also: more checkpoints, as (where it is, its text).

    Raises OSError when the second place cannot be read: what it knows must not be left out unnoticed.
    """
    with database.read() as connection:
        size = tree_size(connection)

    def walk(helper: Helper | None) -> Report:
        notes = chain(kept(place), also)  # read before the log is, in a transaction of its own: it only grows
        with database.read() as connection:
            return verify(connection, notes, verifier, lambda checked: on_page(checked, size), helper)

    if _is_worth_help(size):
        try:
            with helping(database) as helper:
                return walk(helper)
        except ChildProcessError as error:  # where memory is short it is the first to go
            log.warning("%s The log is verified from its beginning, by one process.", error)
    return walk(None)


def _is_worth_help(size: int) -> bool:
    """Whether a helper is worth its start, and has a processor of its own."""
    return size >= HELPED_FROM and len(os.sched_getaffinity(0)) > 1


def report_json(report: Report) -> dict[str, Any]:
    """The report as JSON."""
    return {
        "holds": report.holds,
        "size": report.size,
        "root": report.root.hex(),
        "waiting": report.waiting,
        "checkpoints": report.checkpoints,
        "superseded": report.superseded,
        "count": report.count,
        "findings": [finding.__dict__ for finding in report.findings],
    }


def _say(told: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(told) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Verify what standard input names."""
    os.nice(_BEHIND)
    asked = json.load(sys.stdin)
    database = connect(asked["database"], pool_size=1)
    try:
        report = verify_log(
            database,
            Storage(asked["checkpoints"]),
            Verifier.from_text(asked["key"]),
            lambda checked, size: _say({"checked": checked, "of": size}),
        )
    finally:
        database.close()
    _say(report_json(report))


if __name__ == "__main__":
    main()
