"""The sealed log on both databases: sealing, what an event adds to a request, verifying, proving, searching.

`python -m benchmarks.audit`; a log of a million events, made in bulk, then sealed as the gateway does. Each
step runs in a process of its own, so that its memory can be told. It knows nothing of HTTP.
"""

from __future__ import annotations

import base64
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import insert, select

from benchmarks import report, searching
from benchmarks.gateway import postgresql
from shared.audit import checkpoints, record
from shared.audit.checkpoint import Signer
from shared.audit.merkle import inclusion_holds, inclusion_path
from shared.audit.sequencer import Hint, root_at, seal_batch, tree_size
from shared.audit.tiles import read_nodes
from shared.audit.verify import verify
from shared.clock import DatabaseClock
from shared.db import migrate
from shared.db.engine import Database, connect
from shared.db.rows import Rows
from shared.db.tables import audit_seals, data_keys
from shared.ids import new_id

SMALL, LARGE = 10_000, 1_000_000
QUICK_LARGE, QUICK_CONVERSATIONS, CONVERSATIONS = 60_000, 5_000, 100_000
SIGNER = Signer(base64.b64encode(bytes(range(32))).decode())


def append(database: Database, count: int) -> None:
    """Events as a question makes them, a thousand to a transaction."""
    for _ in range(count // 1000):
        rows = Rows()
        for _ in range(1000):
            _event(rows)
        with database.write() as connection:
            rows.store(connection)


def _event(into: Any) -> None:
    record.append(
        into,
        now=datetime.now(UTC),
        actor=record.Actor(new_id(), new_id()),
        action="question.asked",
        object=f"job:{new_id()}",
        details={"conversation": new_id(), "message": new_id(), "commitment": "0" * 64, "adapter": None},
    )


def seal(database: Database) -> float:
    """Events sealed a second until none waits, batch by batch, each durable."""
    clock, hint, sealed, begun = DatabaseClock(), Hint(), 0, time.perf_counter()
    while True:
        with database.write() as connection:
            done = seal_batch(connection, clock.now(connection), hint)
        if not done:
            return sealed / (time.perf_counter() - begun)
        sealed += done


def added_by_an_event(database: Database, rounds: int) -> float:
    """Milliseconds that an event adds to a transaction that stores something, as a request does; the median.

    Transactions with and without take turns, so that a machine that changes its speed does so for both.
    """
    took: dict[bool, list[float]] = {True: [], False: []}
    for turn in range(2 * rounds):
        logged = turn % 2 == 0
        begun = time.perf_counter()
        with database.write() as connection:
            row = {
                "key_id": new_id(),
                "scope": "conversation",
                "owner_id": new_id(),
                "wrapped_key": b"x" * 60,
            }
            connection.execute(
                insert(data_keys).values(**row, master_key_version=1, created_at=datetime.now(UTC))
            )
            if logged:
                _event(connection)
        took[logged].append(1e3 * (time.perf_counter() - begun))
    return statistics.median(took[True]) - statistics.median(took[False])


def prove(database: Database, proofs: int) -> float:
    """Milliseconds of one inclusion proof, cold, in the whole tree; the median. Each proof is checked."""
    took, drawn = [], random.Random(1)
    with database.read() as connection:
        size = tree_size(connection)
        root = root_at(connection, size)
        for _ in range(proofs):
            index = drawn.randrange(size)
            begun = time.perf_counter()
            path = inclusion_path(index, size, read_nodes(connection, size))
            took.append(1e3 * (time.perf_counter() - begun))
            leaf = connection.execute(
                select(audit_seals.c.leaf_hash).where(audit_seals.c.sequence == index)
            ).scalar_one()
            if not inclusion_holds(bytes(leaf), index, size, path, root):
                raise AssertionError(f"the proof of entry {index} does not hold")
    return statistics.median(took)


def verify_all(database: Database) -> float:
    """Entries verified a second, with one checkpoint."""
    with database.write() as connection:
        note = checkpoints.sign(connection, SIGNER, datetime.now(UTC)).note
    with database.read() as connection:
        begun = time.perf_counter()
        found = verify(connection, [("kept", note)], SIGNER.verifier)
        took = time.perf_counter() - begun
    if not found.holds or not found.checkpoints:
        raise AssertionError(f"the log does not hold: {found.findings}")
    return found.size / took


def step(name: str, url: str, count: int) -> dict[str, float]:
    """Run one step in a process of its own; its figures, and the most memory that it held, in MB."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.audit", "--step", name, url, str(count)],
        stdout=subprocess.PIPE,
        check=True,
    )
    return dict(json.loads(done.stdout))


def run_step(name: str, url: str, count: int) -> None:
    """What `step` runs; prints its figures."""
    database = connect(url)
    figures: dict[str, float] = {}
    if name == "append":
        append(database, count)
    elif name == "seal":
        figures["per_s"] = seal(database)
    elif name == "verify":
        figures["per_s"] = verify_all(database)
    elif name == "prove":
        figures["ms"] = prove(database, count)
    elif name == "added":
        figures["ms"] = added_by_an_event(database, count)
    database.close()
    figures["mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(figures))


def measure(url: str, *, large: int, conversations: int) -> dict[str, float]:
    """All figures of one database."""
    database = connect(url)
    migrate.upgrade(database.writer)
    database.close()
    added = step("added", url, 500)
    step("append", url, SMALL)
    step("seal", url, 0)  # with what `added` wrote
    small = step("verify", url, 0)
    step("append", url, large - SMALL)
    sealed, checked, proved = (
        step(name, url, count) for name, count in (("seal", 0), ("verify", 0), ("prove", 200))
    )
    return {
        "entries": large,
        "seal_per_s": round(sealed["per_s"]),
        "write_added_ms": round(added["ms"], 3),
        "verify_per_s": round(checked["per_s"]),
        "proof_ms": round(proved["ms"], 2),
        "verify_mb_small": round(small["mb"]),
        "verify_mb": round(checked["mb"]),
        "seal_mb": round(sealed["mb"]),
        "conversations": conversations,
        "search_ms": round(searching.measure(url, conversations), 1),
    }


def main() -> None:
    """Measure on both databases, print, keep."""
    parser = report.options(__doc__ or "")
    parser.add_argument("--step", nargs=3, metavar=("NAME", "URL", "COUNT"), help="run one step (for itself)")
    flags = parser.parse_args()
    if flags.step:
        name, url, count = flags.step
        return run_step(name, url, int(count))
    large, conversations = (QUICK_LARGE, QUICK_CONVERSATIONS) if flags.quick else (LARGE, CONVERSATIONS)
    result: dict[str, Any] = report.machine()
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{Path(folder) / 'medichat.db'}"
        result["sqlite"] = measure(url, large=large, conversations=conversations)
    with postgresql() as url:
        result["postgresql"] = measure(url, large=large, conversations=conversations)
    report.save("audit", result, quick=flags.quick)
    print(json.dumps(result) if flags.json else json.dumps(result, indent=1))
    return None


if __name__ == "__main__":
    main()
