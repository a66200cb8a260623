"""The training worker: what becomes of a run when its program ends well, badly, or not at all.

The programs are real processes; what they do is practice (tests/practice_program.py).
"""

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection
from sqlalchemy.exc import ProgrammingError

from services.worker_train.attempt import Attempt
from services.worker_train.handlers.train import TrainWork
from services.worker_train.leftovers import remove_leftovers
from services.worker_train.mirror import Checkpoints
from services.worker_train.supervise import ProgramEvent
from services.worker_train.worker import Worker
from shared.db.engine import connect
from shared.db.tables import job_events, jobs, workers
from shared.db.tables_training import adapters, training_runs
from shared.jobs.lifecycle import EventKind, Kind
from shared.queue import open_redis
from shared.registration import Registration
from shared.storage import Storage
from shared.training.adapter_files import hash_files
from shared.training.progress import StepReport, record_steps
from tests.support import ROOT, Api, RedisServer, freeze, wait_until
from tests.training import School, WorkerProcess, claim_run, worker_thread
from tests.uploads import uploaded

TIMES = {"lease_s": 4, "heartbeat_s": 1, "reconcile_s": 0.2, "retry_base_s": 0.1}
#: Long enough to be disturbed; nobody waits for its end.
LONG = {"steps": 100_000, "pause_s": 0.02}
DISTURBED = {"steps": 60, "pause_s": 0.03}


@pytest.fixture
def school(make_api) -> School:  # type: ignore[no-untyped-def]
    return School(make_api(**TIMES))


@pytest.fixture
def worker(school: School) -> Iterator[Worker]:
    with worker_thread(school.api.settings) as made:
        yield made


on_one_database = pytest.mark.parametrize("dialect", ["sqlite"], indirect=False)


def resumed_from(school: School, run_id: str) -> int:
    """The step of the checkpoint that the run went on from."""
    found = re.search(r"from the checkpoint of step (\d+)", school.notes(run_id))
    assert found
    return int(found[1])


def events(school: School) -> list[str]:
    with school.api.gateway.database.read() as connection:
        rows = connection.execute(job_events.select().order_by(job_events.c.job_id, job_events.c.seq))
        return [row.kind for row in rows]


def test_a_run_becomes_a_curve_and_a_candidate(school: School, worker: Worker) -> None:
    run = school.wait_for_end(school.submit()["id"])
    assert (run["state"], run["percent"], run["attempt"]) == ("succeeded", 100.0, 1)
    assert (run["total_steps"], run["step"], run["base_revision"]) == (30, 30, "r1")
    assert run["estimate"]["memory_mb"] == 10
    assert run["metrics"] == {"eval_loss": 0.5}
    steps = school.steps(run["id"])
    assert [step["step"] for step in steps] == list(range(1, 31))
    assert steps[19]["loss"] == pytest.approx(1 / 20)
    assert steps[19]["eval_loss"] == pytest.approx(2 / 20), "both figures of a step are in its row"
    assert [step["step"] for step in school.steps(run["id"], after=28)] == [29, 30]
    with school.api.gateway.database.read() as connection:
        adapter = connection.execute(adapters.select()).one()
    assert adapter.sha256 == run["adapter_sha256"]
    assert (adapter.name, adapter.version, adapter.status) == ("asthma", 1, "candidate")
    assert adapter.card == "# A card"
    stored = Path(school.api.settings.storage_url) / "adapters" / adapter.sha256
    assert adapter.files_sha256 == hash_files(stored)
    (event,) = school.api.audit("train.succeeded")
    assert event.actor == "system"


@on_one_database
def test_the_storage_holds_the_adapter_and_nothing_that_is_not_needed(school: School, worker: Worker) -> None:
    run = school.wait_for_end(school.submit()["id"])
    storage = Storage.from_settings(school.api.settings)
    wait_until(lambda: not storage.list("runs"), 10, "for the checkpoints to be removed")
    names = ("README.md", "adapter_config.json", "adapter_model.safetensors", "probe.json")
    assert storage.list("adapters") == [f"adapters/{run['adapter_sha256']}/{name}" for name in names]


@on_one_database
def test_the_same_weights_again_are_no_new_version(school: School, worker: Worker) -> None:
    first = school.wait_for_end(school.submit()["id"])
    again = school.wait_for_end(school.submit("again")["id"])
    other = school.wait_for_end(school.submit(changes={"seed": 7})["id"])
    assert again["adapter_sha256"] == first["adapter_sha256"]
    assert "version 1 of asthma already" in school.notes(again["id"])
    with school.api.gateway.database.read() as connection:
        versions = {row.sha256: row.version for row in connection.execute(adapters.select())}
    assert versions == {first["adapter_sha256"]: 1, other["adapter_sha256"]: 2}


@on_one_database
def test_the_same_weights_again_leave_the_registered_files_as_they_are(
    school: School, worker: Worker
) -> None:
    first = school.wait_for_end(school.submit()["id"])
    storage = Storage.from_settings(school.api.settings)
    path = f"adapters/{first['adapter_sha256']}/probe.json"
    with storage.create(path) as file:
        file.write(b"the first")
    school.wait_for_end(school.submit("again")["id"])
    with storage.open(path) as file:
        assert file.read() == b"the first"


@on_one_database
def test_a_cancelled_run_ends_within_seconds(school: School, worker: Worker) -> None:
    school.wish(**LONG)
    run_id = school.submit()["id"]
    school.wait_for_step(run_id)
    assert school.cancel(run_id)["state"] in ("cancelling", "cancelled")
    assert school.wait_for_end(run_id, timeout_s=5)["state"] == "cancelled"
    assert [event.action for event in school.api.audit() if event.action.startswith("train")] == [
        "training.submitted",
        "training.cancel_asked",
        "train.cancelled",
    ]


@on_one_database
def test_a_run_is_cancelled_within_seconds_by_a_worker_without_redis(make_api) -> None:  # type: ignore[no-untyped-def]
    school = School(make_api(**{**TIMES, "heartbeat_s": 60, "lease_s": 180}))
    school.wish(**LONG)
    with worker_thread(school.api.settings.model_copy(update={"redis_url": "redis://127.0.0.1:1"})):
        run_id = school.submit()["id"]
        school.wait_for_step(run_id)
        school.cancel(run_id)
        assert school.wait_for_end(run_id, timeout_s=10)["state"] == "cancelled"


@on_one_database
def test_a_program_that_ignores_being_cancelled_is_killed(
    school: School, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.worker_train.attempt.CANCEL_GRACE_S", 0.3)
    school.wish(**LONG, deaf=True)
    run_id = school.submit()["id"]
    school.wait_for_step(run_id)
    school.cancel(run_id)
    assert school.wait_for_end(run_id, timeout_s=10)["state"] == "cancelled"


@on_one_database
def test_what_a_cancelled_program_saves_is_not_copied_to_the_storage(
    school: School, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirrored: list[int] = []
    monkeypatch.setattr(Checkpoints, "mirror", lambda _, step, stopped: mirrored.append(step))
    school.wish(**LONG, save_every=100_000)
    run_id = school.submit()["id"]
    school.wait_for_step(run_id)
    school.cancel(run_id)
    assert school.wait_for_end(run_id, timeout_s=5)["state"] == "cancelled"
    assert mirrored == []


@on_one_database
def test_a_run_that_is_cancelled_while_a_checkpoint_is_copied_waits_for_no_copy(
    school: School, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    copying = threading.Event()

    def endless(_: Checkpoints, step: int, stopped: Callable[[], bool]) -> None:
        copying.set()
        wait_until(stopped, 10, "for the copy to be stopped")

    monkeypatch.setattr(Checkpoints, "mirror", endless)
    school.wish(**LONG, save_every=1)
    run_id = school.submit()["id"]
    assert copying.wait(10)
    school.cancel(run_id)
    assert school.wait_for_end(run_id, timeout_s=5)["state"] == "cancelled"


@on_one_database
def test_a_worker_that_stops_gives_a_cancelled_program_no_more_time(
    school: School, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.worker_train.attempt.CANCEL_GRACE_S", 2)
    school.wish(**LONG, deaf=True)
    run_id = school.submit()["id"]
    school.wait_for_step(run_id)
    (attempt,) = worker._attempts
    school.cancel(run_id)
    wait_until(lambda: attempt._held.stop, 5, "for the worker to hear of it")
    worker.drain()
    assert school.wait_for_end(run_id, timeout_s=10)["state"] == "cancelled"


@on_one_database
def test_a_run_that_waits_for_a_worker_is_cancelled_at_once(school: School) -> None:
    run_id = school.submit()["id"]
    assert school.cancel(run_id)["state"] == "cancelled"


def test_a_killed_program_is_started_again_from_its_last_checkpoint(school: School, worker: Worker) -> None:
    school.wish(**DISTURBED)
    run_id = school.submit()["id"]
    school.wait_for_step(run_id, 25)
    program = school.program_pids(run_id)[0]
    os.kill(program, signal.SIGKILL)
    run = school.wait_for_end(run_id)
    assert (run["state"], run["attempt"]) == ("succeeded", 2)
    assert "signal 9" in school.notes(run_id)
    assert resumed_from(school, run_id) >= 20
    assert [step["step"] for step in school.steps(run_id)] == list(range(1, 61))


@on_one_database
def test_steps_that_are_trained_again_leave_the_curve(school: School, worker: Worker) -> None:
    school.wish(steps=60, exit_at={"29": 3, "21": 3})
    run_id = school.submit()["id"]
    run = school.wait_for_end(run_id)
    assert run["state"] == "succeeded"
    moments = [step["at"] for step in school.steps(run_id)]
    assert moments == sorted(moments)


class _RolledBack(Exception):
    """The commit did not reach the database."""


@on_one_database
def test_a_recipe_of_another_release_fails_the_run_at_once_with_its_knob(school: School) -> None:
    run_id = school.submit()["id"]
    recipe = school.run(run_id)["recipe"]
    school.api.set(training_runs, training_runs.c.id == run_id, recipe={**recipe, "canaries": 1})
    with worker_thread(school.api.settings):
        run = school.wait_for_end(run_id)
    assert (run["state"], run["attempt"], run["error"]["code"]) == ("failed", 1, "unusable")
    assert "canaries" in run["error"]["detail"]
    assert run["error"]["detail"].endswith("start a new run.")


@on_one_database
def test_a_transaction_that_is_tried_again_writes_what_the_first_try_would_have(school: School) -> None:
    database, run_id = school.api.gateway.database, school.submit()["id"]
    claim_run(school.api)
    school.api.set(jobs, jobs.c.kind == "train", lease_expires_at=datetime.now(UTC) - timedelta(seconds=1))
    wait_until(lambda: school.run(run_id)["state"] == "queued", 10, "for the lease to be missed")
    school.api.set(jobs, jobs.c.kind == "train", available_at=datetime.now(UTC) - timedelta(seconds=1))
    now = datetime.now(UTC)

    def write_at_the_second_try(write: Callable[[Connection], None]) -> None:
        with suppress(_RolledBack), database.write() as connection:
            write(connection)
            raise _RolledBack
        with database.write() as connection:
            write(connection)

    def told(step: int) -> list[ProgramEvent]:
        return [ProgramEvent("step", {"step": step, "loss": 1.0}, time.monotonic())]

    with worker_thread(school.api.settings, {}) as idle:
        work = TrainWork(idle.tools, claim_run(school.api))
        with database.write() as connection:
            work.open(connection)
            trained = [StepReport(step, now, {"loss": 2.0}) for step in range(1, 6)]
            record_steps(connection, run_id, trained, starting=True)
        work.arguments()
        write_at_the_second_try(lambda connection: work.started(connection, now))
        for batch in (told(3), told(4)):
            write_at_the_second_try(lambda connection, batch=batch: work.record(connection, batch, now))
    assert school.notes(run_id).count("stopped answering") == 1
    curve = [(step["step"], step["loss"]) for step in school.steps(run_id)]
    assert curve == [(1, 2.0), (2, 2.0), (3, 1.0), (4, 1.0)]


@on_one_database
def test_a_worker_whose_database_went_away_leaves_the_run_to_its_lease(
    school: School, tmp_path: Path
) -> None:
    run_id = school.submit()["id"]
    hurried = school.api.settings.model_copy(update={"lease_s": 0.2})
    with (
        worker_thread(school.api.settings, {}) as worker,
        closing(connect(f"sqlite:///{tmp_path}/nowhere/medichat.db")) as away,
    ):
        worker.tools = replace(worker.tools, database=away, settings=hurried)
        assert worker.work_next(Kind.TRAIN)
        assert school.run(run_id)["state"] == "running"
    school.api.set(jobs, jobs.c.kind == "train", lease_expires_at=datetime.now(UTC) - timedelta(seconds=1))
    wait_until(lambda: school.run(run_id)["state"] == "queued", 10, "for the lease to be missed")


class Faulty(TrainWork):
    """Its statement is none, which trying again does not mend."""

    def open(self, connection: Connection) -> None:
        raise OSError

    def note(self, connection: Connection, text: str, now: datetime) -> None:
        connection.exec_driver_sql("SELECT ?")


@on_one_database
def test_a_fault_of_ours_is_not_taken_for_a_database_that_is_away(school: School) -> None:
    school.submit()
    with worker_thread(school.api.settings, {}) as worker:
        job = claim_run(school.api)
        attempt = Attempt(worker.tools, job, Faulty(worker.tools, job))
        with worker.keeper.holding(job.claim, attempt.stop) as hold, pytest.raises(ProgrammingError):
            attempt.run(hold)


@on_one_database
def test_a_program_that_crashes_every_time_fails_the_run_with_what_to_look_at(
    school: School, worker: Worker
) -> None:
    school.wish(steps=60, exit_at={str(step): 3 for step in range(1, 60)}, save_every=1)
    run = school.wait_for_end(school.submit()["id"])
    assert (run["state"], run["attempt"]) == ("failed", 5)
    assert run["error"]["code"] == "crashed"
    assert f"runs/{run['id']}/log.txt" in run["error"]["detail"]


@on_one_database
def test_what_cannot_be_reached_is_tried_again_before_the_run_fails_with_its_words(
    school: School, worker: Worker
) -> None:
    school.wish(away="Check the network.")
    run = school.wait_for_end(school.submit()["id"])
    assert (run["state"], run["attempt"]) == ("failed", 5)
    assert run["error"] == {"code": "no-model", "detail": "Check the network."}


@on_one_database
@pytest.mark.parametrize(("processes", "gpus"), [(1, "2"), (2, "2,5")])
def test_a_run_sees_as_many_gpus_as_it_has_processes(
    school: School, monkeypatch: pytest.MonkeyPatch, processes: int, gpus: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    with worker_thread(school.api.settings):
        run = school.wait_for_end(school.submit(changes={"processes": processes})["id"])
    assert (school.folder(run["id"]) / "gpus").read_text() == gpus


@on_one_database
def test_a_run_gives_way_to_the_answers_of_its_machine(school: School, worker: Worker) -> None:
    run = school.wait_for_end(school.submit()["id"])
    assert int((school.folder(run["id"]) / "nice").read_text()) > os.nice(0)


@on_one_database
def test_out_of_memory_halves_the_batch_and_says_so(school: School, worker: Worker) -> None:
    school.wish(needs_batch=2)
    run_id = school.submit(changes={"batch_size": 8, "accumulation": 1})["id"]
    run = school.wait_for_end(run_id)
    assert (run["state"], run["attempt"]) == ("succeeded", 1)
    assert (run["recipe"]["batch_size"], run["recipe"]["accumulation"]) == (2, 4)
    assert "batch size 4 and accumulation 2" in school.notes(run_id)


@on_one_database
def test_out_of_memory_halves_the_passes_that_ran(school: School, worker: Worker) -> None:
    school.wish(cuts_to=4, needs_batch=2)
    run_id = school.submit(changes={"batch_size": 32, "accumulation": 1})["id"]
    run = school.wait_for_end(run_id)
    assert (run["state"], run["recipe"]["batch_size"], run["recipe"]["accumulation"]) == ("succeeded", 2, 16)
    started_again = [note for note in school.notes(run_id).splitlines() if "ran out of memory" in note]
    assert len(started_again) == 1
    assert "batch size 2 and accumulation 16" in started_again[0]


@on_one_database
def test_out_of_memory_with_one_row_fails_with_advice(school: School, worker: Worker) -> None:
    school.wish(needs_batch=0)
    run = school.wait_for_end(school.submit()["id"])
    assert (run["state"], run["error"]["code"]) == ("failed", "out-of-memory")
    assert "nf4" in run["error"]["detail"]


@on_one_database
@pytest.mark.parametrize(("killed", "attempt", "batch_size"), [(1, 1, 4), (0, 2, 8)])
def test_a_program_that_the_kernel_killed_for_memory_goes_on_with_half_the_batch(
    school: School,
    worker: Worker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    killed: int,
    attempt: int,
    batch_size: int,
) -> None:
    counts = tmp_path / "memory.events"
    counts.write_text("oom 7\noom_kill 3\n")
    monkeypatch.setattr("services.worker_train.supervise.memory_events", lambda: counts)
    school.wish(**DISTURBED)
    run_id = school.submit(changes={"batch_size": 8, "accumulation": 1})["id"]
    school.wait_for_step(run_id)
    counts.write_text(f"oom 8\noom_kill {3 + killed}\n")
    os.kill(school.program_pids(run_id)[0], signal.SIGKILL)
    run = school.wait_for_end(run_id)
    assert (run["state"], run["attempt"], run["recipe"]["batch_size"]) == ("succeeded", attempt, batch_size)


@on_one_database
def test_a_run_is_told_what_answers_may_still_need(school: School, worker: Worker) -> None:
    gateway = school.api.gateway
    serving = Registration(gateway.database, gateway.clock, "infer@host:1")
    serving.enter(Kind.INFER, "demo", {})
    serving.report({"memory": "gpu:a", "wanted_bytes": 7})
    run = school.wait_for_end(school.submit()["id"])
    assert json.loads((school.folder(run["id"]) / "wanted").read_text()) == {"gpu:a": 7}


@on_one_database
def test_a_run_without_room_waits_with_the_reason_and_burns_no_attempt(
    school: School, worker: Worker
) -> None:
    school.wish(wait="The model that serves leaves 2,000 MB.")
    run_id = school.submit()["id"]
    wait_until(lambda: school.run(run_id)["state"] == "waiting", 20, "for the run to wait")
    waiting = school.run(run_id)
    assert (waiting["waiting_reason"], waiting["attempt"]) == ("The model that serves leaves 2,000 MB.", 0)
    assert events(school)[-1] == EventKind.POSTPONED
    school.wish()
    with school.api.gateway.database.write() as connection:  # a minute later
        now = school.api.gateway.clock.now(connection)
        connection.execute(jobs.update().values(available_at=now))
    run = school.wait_for_end(run_id)
    assert (run["state"], run["waiting_reason"], run["attempt"]) == ("succeeded", None, 1)


@on_one_database
def test_a_refused_run_fails_at_once_with_the_programs_reason(school: School, worker: Worker) -> None:
    school.wish(refuse="The loss was not a number at step 7: lower the learning rate.")
    run = school.wait_for_end(school.submit()["id"])
    assert (run["state"], run["attempt"]) == ("failed", 1)
    assert run["error"] == {
        "code": "diverged",
        "detail": "The loss was not a number at step 7: lower the learning rate.",
    }


def test_a_failed_run_that_is_started_again_goes_on_from_its_last_checkpoint(
    school: School, worker: Worker
) -> None:
    school.wish(steps=30, exit_at={"25": 78})
    run_id = school.submit()["id"]
    failed = school.wait_for_end(run_id)
    assert (failed["state"], failed["step"]) == ("failed", 24)
    assert school.resume(run_id)["error"] is None
    run = school.wait_for_end(run_id)
    assert (run["state"], run["attempt"]) == ("succeeded", 1)
    assert resumed_from(school, run_id) == 20
    assert [step["step"] for step in school.steps(run_id)] == list(range(1, 31))


def failed_before(school: School, days: int) -> str:
    """A run that failed so long ago, with checkpoints."""
    school.wish(steps=30, exit_at={"25": 78})
    run_id = str(school.wait_for_end(school.submit()["id"])["id"])
    school.api.set(jobs, jobs.c.state == "failed", finished_at=datetime.now(UTC) - timedelta(days=days))
    school.wish()
    return run_id


@on_one_database
def test_the_end_of_a_run_removes_checkpoints_of_one_that_failed_over_a_month_ago(
    school: School, worker: Worker
) -> None:
    storage, run_id = Storage.from_settings(school.api.settings), failed_before(school, days=31)
    assert storage.list(f"runs/{run_id}")
    school.wait_for_end(school.submit()["id"])
    wait_until(lambda: not storage.list(f"runs/{run_id}"), 10, "for the checkpoints to be removed")
    assert not (school.folder(run_id) / "checkpoints").exists()


@on_one_database
def test_a_run_that_failed_less_than_a_month_ago_keeps_its_checkpoints(
    school: School, worker: Worker
) -> None:
    storage, run_id = Storage.from_settings(school.api.settings), failed_before(school, days=29)
    remove_leftovers(worker.tools)
    assert storage.list(f"runs/{run_id}")
    assert (school.folder(run_id) / "checkpoints" / "checkpoint-20").exists()


@on_one_database
@pytest.mark.parametrize("end", ["succeeded", "cancelled"])
def test_weights_that_a_run_left_which_will_not_go_on_are_removed(
    school: School, worker: Worker, end: str
) -> None:
    storage, run_id = Storage.from_settings(school.api.settings), failed_before(school, days=0)
    remove_leftovers(worker.tools)
    assert storage.list(f"runs/{run_id}")
    (school.folder(run_id) / "output").mkdir()
    school.api.set(jobs, jobs.c.state == "failed", state=end)  # on a worker that died at once, or on none
    remove_leftovers(worker.tools)
    assert not storage.list(f"runs/{run_id}")
    assert not (school.folder(run_id) / "checkpoints").exists()
    assert not (school.folder(run_id) / "output").exists()


#: Copies an adapter, and is not done before somebody ends it.
COPIES = """
import sys; from pathlib import Path; from services.worker_train.copies import folder_for_copy
with folder_for_copy(Path(sys.argv[1])) as copy:
    (copy / "weights").touch(); print(copy, flush=True); sys.stdin.read()
"""


@on_one_database
def test_a_copy_of_an_adapter_is_removed_once_its_program_was_killed(school: School) -> None:
    command = [sys.executable, "-c", COPIES, str(school.state_dir)]
    with (
        worker_thread(school.api.settings, {}) as idle,
        subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as copying,
    ):
        assert copying.stdout is not None
        copy = Path(copying.stdout.readline().strip())
        assert copy.is_relative_to(school.state_dir)
        remove_leftovers(idle.tools)
        assert (copy / "weights").exists()
        copying.kill()
        copying.wait()
        remove_leftovers(idle.tools)
    assert not copy.exists()


def erase(school: School) -> None:
    """Erase the dataset that is trained on."""
    school.client.post(f"/v1/datasets/{school.dataset_id}/erase").raise_for_status()


@on_one_database
def test_a_run_whose_dataset_is_erased_leaves_no_weights_anywhere(school: School, worker: Worker) -> None:
    storage = Storage.from_settings(school.api.settings)
    school.wish(**LONG)
    run_id = school.submit()["id"]
    here = school.folder(run_id) / "checkpoints"
    wait_until(lambda: storage.list(f"runs/{run_id}"), 30, "for a checkpoint in the storage")
    assert list(here.iterdir())
    erase(school)
    wait_until(lambda: not here.exists() and not storage.list("runs"), 15, "for the worker to notice")
    school.wait_until_alone(run_id)


@on_one_database
def test_a_worker_that_starts_removes_the_weights_of_a_failed_run_only_if_its_dataset_was_erased(
    school: School,
) -> None:
    run_id = school.submit()["id"]
    school.api.set(jobs, jobs.c.kind == Kind.TRAIN, state="failed", finished_at=datetime.now(UTC))
    weights = school.folder(run_id) / "checkpoints" / "checkpoint-20"
    weights.mkdir(parents=True)
    seen = []
    for erased in (False, True):
        if erased:
            erase(school)
        with closing(Worker(school.api.settings)) as worker:
            worker.start()
        seen.append(weights.exists())
    assert seen == [True, False]


@on_one_database
def test_a_run_does_not_go_on_over_other_weights_than_it_began_with(school: School, worker: Worker) -> None:
    run_id = failed_before(school, days=0)
    school.wish(base="r2")
    school.resume(run_id)
    run = school.wait_for_end(run_id)
    assert (run["state"], run["base_revision"]) == ("failed", "r1")
    assert "began on other weights" in run["error"]["detail"]
    school.wish()
    school.resume(run_id)
    assert school.wait_for_end(run_id)["state"] == "succeeded"


@on_one_database
def test_weights_that_are_not_what_the_program_said_are_refused(school: School, worker: Worker) -> None:
    school.wish(sha256="0" * 64)
    run = school.wait_for_end(school.submit()["id"])
    assert (run["state"], run["error"]["code"]) == ("failed", "unusable")
    assert not Storage.from_settings(school.api.settings).list("adapters")


@on_one_database
def test_what_a_program_writes_is_for_its_owner_only(school: School, worker: Worker) -> None:
    run_id = school.wait_for_end(school.submit()["id"])["id"]
    assert school.folder(run_id).stat().st_mode & 0o777 == 0o700
    assert (school.folder(run_id) / "log.txt").stat().st_mode & 0o777 == 0o600


def test_a_killed_worker_leaves_no_program_and_another_goes_on(school: School) -> None:
    school.wish(**DISTURBED)
    with WorkerProcess(school.api.settings) as first:
        run_id = school.submit()["id"]
        school.wait_for_step(run_id, 15)
        first.kill()
        school.wait_until_alone(run_id)
        # another host has no file of this one
        (school.folder(run_id) / "checkpoints").rename(school.state_dir / "of-the-first-host")
        with WorkerProcess(school.api.settings):
            run = school.wait_for_end(run_id)
    assert (run["state"], run["attempt"]) == ("succeeded", 2)
    assert resumed_from(school, run_id) >= 10
    assert [step["step"] for step in school.steps(run_id)] == list(range(1, 61))
    assert EventKind.LEASE_EXPIRED in events(school)
    assert school.notes(run_id).count("stopped answering") == 1


@on_one_database
def test_a_worker_told_to_stop_saves_and_hands_the_run_back(school: School) -> None:
    school.wish(**DISTURBED)
    with WorkerProcess(school.api.settings) as first:
        run_id = school.submit()["id"]
        school.wait_for_step(run_id, 12)
        assert first.terminate() == 0
        handed_back = school.run(run_id)
        assert (handed_back["state"], handed_back["attempt"]) == ("queued", 0)
        assert school.api.count(workers) == 0
        school.wait_until_alone(run_id)
        with WorkerProcess(school.api.settings):
            run = school.wait_for_end(run_id)
    assert (run["state"], run["attempt"]) == ("succeeded", 1)
    assert resumed_from(school, run_id) == handed_back["step"], "not one step was lost"


@on_one_database
def test_one_run_at_a_time_has_the_device(school: School) -> None:
    school.wish(**LONG)
    with WorkerProcess(school.api.settings):
        first, second = (school.submit()["id"] for _ in range(2))
        school.wait_for_step(first)
        school.wait_for_step(first, school.run(first)["step"] + 30)
        assert school.run(second)["state"] == "queued"
        school.cancel(first)
        school.wait_for_step(second)
        school.cancel(second)
        school.wait_for_end(second)


@on_one_database
def test_a_dataset_is_checked_while_a_run_has_the_device(school: School) -> None:
    school.wish(**LONG)
    with WorkerProcess(school.api.settings):
        run_id = school.submit()["id"]
        school.wait_for_step(run_id)
        dataset_id = uploaded(school.client)
        wait_until(lambda: seen(school, dataset_id)["state"] == "rejected", 30, "for the check")
        assert seen(school, dataset_id)["error"]["code"] == "unknown-shape"
        assert school.run(run_id)["state"] == "running"


@on_one_database
def test_a_run_starts_however_many_datasets_wait_for_their_check(make_api) -> None:  # type: ignore[no-untyped-def]
    school = School(make_api(**{**TIMES, "reconcile_s": 300}))  # nobody rings twice
    school.wish(**LONG)
    settings = school.api.settings
    with (school.state_dir / "barrier").open("w") as barrier, WorkerProcess(settings):
        fcntl.flock(barrier, fcntl.LOCK_EX)
        checks = [uploaded(school.client) for _ in range(2)]
        with closing(open_redis(settings)) as redis:
            wait_until(lambda: redis.llen(Kind.VALIDATE.value) == 0, 60, "for both to be heard of")
        run_id = school.submit()["id"]
        school.wait_for_step(run_id)
        assert {seen(school, check)["state"] for check in checks} == {"validating"}
        fcntl.flock(barrier, fcntl.LOCK_UN)
        for check in checks:
            wait_until(lambda check=check: seen(school, check)["state"] == "rejected", 30, "for the checks")
        assert school.run(run_id)["state"] == "running"


@on_one_database
def test_a_refused_check_leaves_no_folder(school: School, worker: Worker) -> None:
    dataset_id = uploaded(school.client)
    wait_until(lambda: seen(school, dataset_id)["state"] == "rejected", 30, "for the check")
    wait_until(lambda: not list((school.state_dir / "work").iterdir()), 10, "for its folder to go")


@on_one_database
@pytest.mark.parametrize(("code", "kept"), [("disk-full", True), ("unreadable", True), ("bad-zip", False)])
def test_what_is_no_fault_of_an_upload_does_not_cost_it(school: School, code: str, kept: bool) -> None:
    say = f"from services.worker_train.child import Exit, stop; stop(Exit.REFUSED, {code!r}, 'Free space.')"
    with worker_thread(school.api.settings, {Kind.VALIDATE: (sys.executable, "-c", say)}):
        dataset_id = uploaded(school.client)
        wait_until(lambda: seen(school, dataset_id)["state"] == "rejected", 30, "for the check")
    assert school.api.gateway.datasets.storage.exists(f"datasets/{dataset_id}/raw") is kept
    assert (seen(school, dataset_id)["sha256"] is not None) is kept


@on_one_database
def test_a_crashed_check_leaves_its_log(school: School) -> None:
    crash = (sys.executable, "-c", "import sys; sys.exit('Out of luck')")
    with worker_thread(school.api.settings, {Kind.VALIDATE: crash}):
        dataset_id = uploaded(school.client)
        wait_until(lambda: seen(school, dataset_id)["state"] == "rejected", 30, "for the check")
    (folder,) = (school.state_dir / "work").iterdir()
    assert f"work/{folder.name}/log.txt" in seen(school, dataset_id)["error"]["detail"]
    assert "Out of luck" in (folder / "log.txt").read_text()


def seen(school: School, dataset_id: str) -> dict[str, Any]:
    found: dict[str, Any] = school.client.get(f"/v1/datasets/{dataset_id}").json()
    return found


@on_one_database
def test_a_run_is_trained_while_redis_is_frozen(make_api: Any, tmp_path: Path) -> None:
    redis = RedisServer(tmp_path).start()
    try:
        school = School(make_api(redis_url=redis.url, **TIMES))
        run_id = school.submit()["id"]
        assert redis.process is not None
        redis.process.send_signal(signal.SIGSTOP)
        with WorkerProcess(school.api.settings):
            assert school.wait_for_end(run_id)["state"] == "succeeded"
            redis.process.send_signal(signal.SIGCONT)
    finally:
        redis.kill()


@on_one_database
def test_a_frozen_worker_that_lost_its_lease_writes_nothing_and_kills_its_program(school: School) -> None:
    school.wish(**DISTURBED)
    with WorkerProcess(school.api.settings) as frozen:
        run_id = school.submit()["id"]
        school.wait_for_step(run_id, 12)
        freeze(frozen.process.send_signal, school.api.gateway.database)
        orphans = school.program_pids(run_id)
        with worker_thread(school.api.settings):
            wait_until(lambda: school.run(run_id)["attempt"] == 2, 20, "for another to take over")
            frozen.process.send_signal(signal.SIGCONT)
            run = school.wait_for_end(run_id)
        wait_until(lambda: "belongs to another worker" in frozen.log.read_text(), 20, "for it to notice")
    assert run["state"] == "succeeded"
    assert orphans != school.program_pids(run_id)
    assert [step["step"] for step in school.steps(run_id)] == list(range(1, 61)), (
        "trained by whichever program"
    )
    assert all(step["loss"] for step in school.steps(run_id))
    assert school.api.count(adapters) == 1


def test_a_worker_is_seen_by_the_gateway(school: School, api: Api) -> None:
    with WorkerProcess(school.api.settings):
        client = school.api.client()
        wait_until(lambda: client.get("/readyz").json()["trainers"] == 1, 20, "for the worker")
        assert client.get("/readyz").json()["workers"] == 0
