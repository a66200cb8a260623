"""The sealed log on both databases: sealing, what an event adds to a request, verifying, proving, searching.

`python -m benchmarks.audit`; a log of a million events as the product writes them, made in bulk, then sealed
as the gateway does: of six events one is a question and one its answer, which are bound to stored texts. Each
step runs in a process of its own, so that its memory can be told. It knows nothing of HTTP.

`verify_per_s` is of the whole log, with a checkpoint for each minute of `A_MINUTE` entries, in the database
and in the second place; `verify_bound_per_s` of a log in which every event is bound to texts;
`verify_checkpoint_ms` is what each checkpoint more costs.
"""

from __future__ import annotations

import base64
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import func, insert, select, text

from benchmarks import log_rows, report, searching
from benchmarks.gateway import postgresql
from benchmarks.systems import peak_mb_of, peak_mb_of_children
from shared.audit import checkpoints
from shared.audit.checkpoint import Signer
from shared.audit.growing import Growing
from shared.audit.merkle import inclusion_holds, inclusion_path
from shared.audit.sequencer import Hint, root_at, seal_batch, tree_size
from shared.audit.tiles import read_nodes
from shared.audit.verifying import verify_log
from shared.clock import DatabaseClock
from shared.db import migrate
from shared.db.engine import Database, connect
from shared.db.tables import audit_seals, data_keys
from shared.db.tables_audit import audit_checkpoints
from shared.ids import new_id
from shared.storage import Storage

SMALL, LARGE = 10_000, 1_000_000
QUICK_LARGE, QUICK_CONVERSATIONS, CONVERSATIONS = 60_000, 5_000, 100_000
#: Entries between two checkpoints: the gateway signs one a minute.
A_MINUTE = 100
SIGNER = Signer(base64.b64encode(bytes(range(32))).decode())


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
                log_rows.event(connection)
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


def sign_each_minute(database: Database, place: Storage) -> int:
    """Sign what was not signed yet as if `A_MINUTE` entries came each minute; returns how many that gave.

    They are kept in both places, as the gateway does.
    """
    with database.read() as connection:
        known = connection.execute(select(func.max(audit_checkpoints.c.size))).scalar_one() or 0
        leaves = connection.execute(select(audit_seals.c.leaf_hash).order_by(audit_seals.c.sequence))
        tree, made = Growing(lambda *_: None), []
        for leaf in leaves.scalars():
            tree.extend([bytes(leaf)])
            if tree.size % A_MINUTE == 0 and tree.size > known:
                now, root = datetime.now(UTC), tree.root()
                note = SIGNER.sign(size=tree.size, root=root, now=now)
                made.append(
                    checkpoints.Signed(id=new_id(), size=tree.size, root=root, signed_at=now, note=note)
                )
    with database.write() as connection:
        connection.execute(insert(audit_checkpoints), [dict(each.__dict__) for each in made])
    for each in made:
        checkpoints.publish(place, each, SIGNER.verifier)
    return len(made)


def verify_all(database: Database, place: Storage) -> dict[str, float]:
    """Entries verified a second with all that they speak of, and with the checkpoints of both places.

    `helper_mb` is the most memory that a helping process held; 0 where none was needed.
    """
    helped = [0.0]
    begun = time.perf_counter()
    found = verify_log(
        database, place, SIGNER.verifier, lambda *_: helped.append(peak_mb_of_children(os.getpid()))
    )
    took = time.perf_counter() - begun
    if not found.holds or not found.checkpoints:
        raise AssertionError(f"the log does not hold: {found.findings}")
    return {"per_s": found.size / took, "checkpoints": found.checkpoints, "helper_mb": max(helped)}


def checkpoint_ms(times: int = 200) -> float:
    """Milliseconds to check what signed one checkpoint; the median."""
    note, took = SIGNER.sign(size=1, root=bytes(32), now=datetime.now(UTC)), []
    for _ in range(times):
        begun = time.perf_counter()
        SIGNER.verifier.read(note)
        took.append(1e3 * (time.perf_counter() - begun))
    return statistics.median(took)


def step(name: str, url: str, count: int, place: Path) -> dict[str, float]:
    """Run one step in a process of its own; its figures, and the most memory that it held, in MB."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.audit", "--step", name, url, str(count), str(place)],
        stdout=subprocess.PIPE,
        check=True,
    )
    return dict(json.loads(done.stdout))


def run_step(name: str, url: str, count: int, place: Path) -> None:
    """What `step` runs; prints its figures."""
    database = connect(url)
    figures: dict[str, float] = {}
    if name in ("append", "append_bound"):
        log_rows.append(database, count, bound_only=name == "append_bound")
        _analyse(database)
    elif name == "seal":
        figures["per_s"] = seal(database)
    elif name == "sign":
        figures["signed"] = sign_each_minute(database, Storage(str(place)))
    elif name == "verify":
        figures |= verify_all(database, Storage(str(place)))
    elif name == "prove":
        figures["ms"] = prove(database, count)
    elif name == "added":
        figures["ms"] = added_by_an_event(database, count)
    database.close()
    figures["mb"] = peak_mb_of(os.getpid())
    print(json.dumps(figures))


def _analyse(database: Database) -> None:
    """What PostgreSQL's own housekeeping does within a minute."""
    if database.dialect == "postgresql":
        with database.read() as connection:
            connection.execute(text("ANALYZE"))


def measure(url: str, place: Path, *, large: int, conversations: int) -> dict[str, float]:
    """All figures of one database; `place` is an empty folder for its checkpoints."""
    database = connect(url)
    migrate.upgrade(database.writer)
    database.close()

    def run(name: str, count: int = 0) -> dict[str, float]:
        return step(name, url, count, place)

    run("append_bound", SMALL)
    run("seal")
    run("sign")
    small = run("verify")
    added = run("added", 500)
    run("append", large - SMALL)
    sealed = run("seal")  # with what `added` wrote
    run("sign")
    checked, proved = run("verify"), run("prove", 200)
    return {
        "entries": large,
        "seal_per_s": round(sealed["per_s"]),
        "write_added_ms": round(added["ms"], 3),
        "verify_per_s": round(checked["per_s"]),
        "verify_bound_per_s": round(small["per_s"]),
        "verify_checkpoints": round(checked["checkpoints"]),
        "verify_checkpoint_ms": round(checkpoint_ms(), 3),
        "proof_ms": round(proved["ms"], 2),
        "verify_mb_small": round(small["mb"]),
        "verify_mb": round(checked["mb"]),
        "verify_helper_mb": round(checked["helper_mb"]),
        "seal_mb": round(sealed["mb"]),
        "conversations": conversations,
        "search_ms": round(searching.measure(url, conversations), 1),
    }


def main() -> None:
    """Measure on both databases, print, keep."""
    parser = report.options(__doc__ or "")
    parser.add_argument(
        "--step", nargs=4, metavar=("NAME", "URL", "COUNT", "PLACE"), help="run one step (for itself)"
    )
    flags = parser.parse_args()
    if flags.step:
        name, url, count, place = flags.step
        return run_step(name, url, int(count), Path(place))
    large, conversations = (QUICK_LARGE, QUICK_CONVERSATIONS) if flags.quick else (LARGE, CONVERSATIONS)
    result: dict[str, Any] = report.machine()
    sizes = {"large": large, "conversations": conversations}
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{Path(folder) / 'medichat.db'}"
        result["sqlite"] = measure(url, Path(folder) / "checkpoints", **sizes)
    with tempfile.TemporaryDirectory() as folder, postgresql() as url:
        result["postgresql"] = measure(url, Path(folder), **sizes)
    report.save("audit", result, quick=flags.quick)
    print(json.dumps(result) if flags.json else json.dumps(result, indent=1))
    return None


if __name__ == "__main__":
    main()
