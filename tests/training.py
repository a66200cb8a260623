"""What tests of training need: a checked dataset, an admin with runs, workers in threads and in processes."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
from sqlalchemy import insert

from services.worker_train.worker import Worker
from shared.auth.roles import Role
from shared.db.tables_training import datasets
from shared.ids import new_id
from shared.jobs.lifecycle import Kind
from shared.jobs.records import Job
from shared.privacy.keys import create_data_key
from shared.settings import Settings
from shared.training.states import DatasetState
from tests.practice_worker import PROGRAMS
from tests.support import ROOT, Api, Person, wait_until

ENDED = ("succeeded", "failed", "cancelled")


def add_dataset(api: Api, person: Person, state: DatasetState = DatasetState.READY) -> str:
    """A dataset's row, as if it had been uploaded and checked."""
    gateway = api.gateway
    with gateway.database.write() as connection:
        now, dataset_id = gateway.clock.now(connection), new_id()
        key = create_data_key(connection, gateway.envelope, scope="dataset", owner_id=dataset_id, now=now)
        connection.execute(
            insert(datasets).values(
                id=dataset_id,
                name="questions",
                state=state,
                source="upload",
                source_name="questions.jsonl",
                options={},
                key_id=key.key_id,
                created_by=person.id,
                created_at=now,
            )
        )
    return dataset_id


class School:
    """An admin who trains on a dataset."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.admin = api.person(Role.ADMIN)
        self.client: httpx.Client = api.client(self.admin)
        self.dataset_id = add_dataset(api, self.admin)
        self.state_dir: Path = api.settings.state_dir
        self.wish()

    def wish(self, **wishes: Any) -> None:
        """What the practice program shall do from now on."""
        (self.state_dir / "practice.json").write_text(json.dumps(wishes))

    def submit(self, name: str = "asthma", **body: Any) -> dict[str, Any]:
        """Start a run."""
        wanted = {"name": name, "dataset_id": self.dataset_id, "preset": "quick", **body}
        response = self.client.post("/v1/training-runs", json=wanted)
        assert response.status_code == 202, response.text
        run: dict[str, Any] = response.json()
        return run

    def run(self, run_id: str) -> dict[str, Any]:
        """The run as the admin sees it."""
        response = self.client.get(f"/v1/training-runs/{run_id}")
        assert response.status_code == 200, response.text
        run: dict[str, Any] = response.json()
        return run

    def steps(self, run_id: str, after: int = 0) -> list[dict[str, Any]]:
        """The curve."""
        response = self.client.get(f"/v1/training-runs/{run_id}/steps", params={"after": after})
        items: list[dict[str, Any]] = response.json()["items"]
        return items

    def notes(self, run_id: str) -> str:
        """All notes of the run."""
        return "\n".join(note["text"] for note in self.run(run_id)["notes"])

    def cancel(self, run_id: str) -> dict[str, Any]:
        """Ask for the end of the run."""
        response = self.client.post(f"/v1/training-runs/{run_id}/cancel")
        assert response.status_code == 202, response.text
        run: dict[str, Any] = response.json()
        return run

    def resume(self, run_id: str) -> dict[str, Any]:
        """Start a failed run again."""
        response = self.client.post(f"/v1/training-runs/{run_id}/resume")
        assert response.status_code == 202, response.text
        run: dict[str, Any] = response.json()
        return run

    def wait_for_step(self, run_id: str, step: int = 1) -> None:
        """Wait until the run has trained this step."""
        wait_until(lambda: self.run(run_id)["step"] >= step, 60, f"for step {step}")

    def wait_for_end(self, run_id: str, timeout_s: float = 60) -> dict[str, Any]:
        """Wait until the run has ended, and until nothing of its programs is left."""
        wait_until(lambda: self.run(run_id)["state"] in ENDED, timeout_s, f"for {self.run(run_id)}")
        self.wait_until_alone(run_id)
        return self.run(run_id)

    def folder(self, run_id: str) -> Path:
        """Where the worker keeps what belongs to the run."""
        return self.state_dir / "runs" / run_id

    def program_pids(self, run_id: str) -> list[int]:
        """The practice program of the run, and its helper."""
        path = self.folder(run_id) / "pids"
        return [int(pid) for pid in path.read_text().split()] if path.exists() else []

    def wait_until_alone(self, run_id: str) -> None:
        """No program of the run and no helper of it is alive."""
        for pid in self.program_pids(run_id):
            wait_until(lambda pid=pid: not _alive(pid), 15, f"for process {pid} to be gone")


def _alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@contextmanager
def worker_thread(settings: Settings, programs: Mapping[Kind, Sequence[str]] = PROGRAMS) -> Iterator[Worker]:
    """A training worker in a thread of this process, which looks for work without waiting for rings."""
    worker = Worker(settings, programs)
    worker.keeper.start()
    worker.sweep.start()
    closing = threading.Event()

    def work() -> None:
        while not closing.wait(0.02):
            while any(worker.work_next(kind) for kind in programs):
                continue

    thread = threading.Thread(target=work, name="practice-worker")
    thread.start()
    try:
        yield worker
    finally:
        closing.set()
        worker.drain()
        thread.join(timeout=30)
        worker.close()


def environment_of(settings: Settings) -> dict[str, str]:
    """The settings as a process of its own reads them."""
    times = ("lease_s", "heartbeat_s", "reconcile_s", "retry_base_s")
    names = ("database_url", "redis_url", "storage_url", "state_dir", *times)
    values = {f"MEDICHAT_{name.upper()}": str(getattr(settings, name)) for name in names}
    secrets = {"MEDICHAT_MASTER_KEY": settings.secret("master_key")}
    return {**os.environ, **values, **secrets, "PYTHONUNBUFFERED": "1"}


class WorkerProcess:
    """A training worker in a process of its own."""

    def __init__(self, settings: Settings, module: str = "tests.practice_worker") -> None:
        self.log = settings.state_dir / "worker.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module],
                cwd=ROOT,
                env=environment_of(settings),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill(self) -> None:
        """`kill -9`, the worker alone."""
        self.process.kill()
        self.process.wait()

    def terminate(self) -> int:
        """What a container's stop does; returns the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=30)

    def __enter__(self) -> "WorkerProcess":
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if error is not None:
            error.add_note(f"the worker (status {self.process.poll()}) said:\n{self.log.read_text()}")
        if self.process.poll() is None:
            self.terminate()


def claim_run(api: Api) -> Job:
    """Begin the best queued run."""
    return api.claim(kind=Kind.TRAIN)
