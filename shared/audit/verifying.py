"""Verifies a log in a process of its own: `python -m shared.audit.verifying`.

It reads one JSON object (`database`, `checkpoints`, `key`) from its standard input, and prints JSON lines:
`{"checked": n, "of": m}` while it works, the report last. SIGTERM ends it, with whoever helps it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
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

    Raises OSError when the second place cannot be read: what it knows must not be left out unnoticed; or
    ChildProcessError, which is one, when the helper ended.
    """
    with database.read() as connection:
        size = tree_size(connection)
    notes = chain(kept(place), also)  # read before the log is, in a transaction of its own: it only grows
    with _help(database, size) as helper, database.read() as connection:
        return verify(connection, notes, verifier, lambda checked: on_page(checked, size), helper)


def _help(database: Database, size: int) -> AbstractContextManager[Helper | None]:
    """A helper where it is worth its start, and has a processor of its own."""
    alone = size < HELPED_FROM or len(os.sched_getaffinity(0)) < 2
    return nullcontext() if alone else helping(database)


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


def _stop(*_: Any) -> None:
    """End, and the helper with it. Nobody reads on: what was not written yet must keep nobody waiting."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(128 + signal.SIGTERM)


def main() -> None:
    """Verify what standard input names."""
    signal.signal(signal.SIGTERM, _stop)
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
