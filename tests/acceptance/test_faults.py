"""Every process killed, frozen or restarted while it works: nothing is lost, nothing is finished twice.

All processes are real; the answers are long, so that the faults fall into their middle.
"""

import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path

import httpx
import pytest
from sqlalchemy import select, update

from services.local import Stack
from services.smoke import log_in
from shared.db import Database, open_database
from shared.db.tables import audit_events, data_keys, job_events, jobs, messages, released_sentences, workers
from shared.jobs.lifecycle import TERMINAL, Event, EventKind, Kind, State, fold
from shared.jobs.records import JOB_FIELDS, Job
from shared.jobs.store import snapshot
from shared.queue import make_celery, open_redis, task_message, task_name
from shared.registration import is_loading
from shared.settings import Settings
from tests.endless_model import write_endless_model
from tests.postgresql import PostgresServer
from tests.support import ask_async, freeze, sse_events, wait_until

WORKERS = ("worker_infer", "worker_two")
#: Of the model: an answer of some seconds is long enough to fall into.
LAYERS = 3
TOKENS = 800
#: Of an answer whose tokens are counted. What was released is turned into tokens again, and may be half as
#: many again as it was.
MOST_TOKENS = 1200
#: Nothing here is looked at or trained.
WITHOUT = ("ui", "worker_train")
TIMES = {
    "MEDICHAT_LEASE_S": "4",
    "MEDICHAT_HEARTBEAT_S": "1",
    "MEDICHAT_RECONCILE_S": "0.5",
    "MEDICHAT_RETRY_BASE_S": "0.1",
    "MEDICHAT_MAX_NEW_TOKENS": str(MOST_TOKENS),
}


class Clinic:
    """A running installation, its database seen from beside, and somebody who asks."""

    def __init__(self, stack: Stack, restart_database: Callable[[], None]) -> None:
        self.stack = stack
        self.restart_database = restart_database
        secrets = stack.state_dir / "secrets"
        url = stack.environment.get("MEDICHAT_DATABASE_URL", "")
        settings = Settings(state_dir=stack.state_dir, database_url=url, _secrets_dir=secrets)
        self.database: Database = open_database(settings, pool_size=2)
        self.client: httpx.Client = log_in(stack, "user")

    def ask(self, tokens: int = TOKENS) -> str:
        return str(ask_async(self.client, "What is the flu?", max_new_tokens=tokens)["id"])

    def job(self, job_id: str) -> Job:
        with self.database.read() as connection:
            columns = [jobs.c[name] for name in JOB_FIELDS]
            return Job.from_row(connection.execute(select(*columns).where(jobs.c.id == job_id)).one())

    def sentences(self, job_id: str) -> list[tuple[int, int]]:
        """(seq, epoch) of what was released, in the order of seq."""
        with self.database.read() as connection:
            table = released_sentences
            rows = connection.execute(
                select(table.c.seq, table.c.epoch).where(table.c.job_id == job_id).order_by(table.c.seq)
            )
            return [(row.seq, row.epoch) for row in rows]

    def wait_for_sentence(self, job_id: str) -> None:
        wait_until(lambda: self.sentences(job_id), 60, "for the first sentence")

    def wait_for_end(self, job_id: str) -> Job:
        wait_until(lambda: self.job(job_id).state in TERMINAL, 60, f"for {self.job(job_id)}")
        return self.job(job_id)

    def claimed_at(self, job_id: str, epoch: int) -> datetime:
        with self.database.read() as connection:
            moment: datetime = connection.execute(
                select(job_events.c.at).where(
                    job_events.c.job_id == job_id,
                    job_events.c.kind == EventKind.CLAIMED,
                    job_events.c.epoch == epoch,
                )
            ).scalar_one()
        return moment

    def workers(self) -> list[str]:
        """Names of the processes that answer."""
        return [name for name in self.stack.processes if name in WORKERS]

    @property
    def worker(self) -> str:
        """The name of the only process that answers."""
        (name,) = self.workers()
        return name

    def worker_of(self, job_id: str) -> str:
        """The name of the process that works on the job: its number stands in the id it claims under."""
        worker_id = self.job(job_id).worker_id
        assert worker_id is not None
        numbers = {str(self.stack.processes[name].pid): name for name in self.workers()}
        return numbers[worker_id.split(":")[1]]

    def have_workers(self, count: int) -> None:
        """Start or kill processes that answer until there are so many, each of which serves."""
        for name in WORKERS:
            if name not in self.stack.processes and len(self.workers()) < count:
                self.stack.start_process(name)
        for name in self.workers()[count:]:
            self.stack.kill(name)
        wait_until(lambda: self.is_served_by(count), 60, f"for {count} workers")

    def is_served_by(self, count: int) -> bool:
        """Whether each process that answers said that it serves, and the gateway counts so many and no more.

        Fails the test when one of them ended by itself.
        """
        running = {name: self.stack.processes[name] for name in self.workers()}
        ended = [name for name, process in running.items() if process.poll() is not None]
        assert not ended, f"{ended[0]} ended by itself:\n{self.stack.log_tail(ended[0])}"
        if not {str(process.pid) for process in running.values()} <= self.serving():
            return False
        counted: int = self.client.get("/readyz").json()["workers"]
        return counted == count

    def serving(self) -> set[str]:
        """The numbers of processes that said that they serve."""
        with self.database.read() as connection:
            rows = connection.execute(select(workers.c.id, workers.c.stats)).all()
        return {row.id.split(":")[1] for row in rows if not is_loading(row.stats)}

    def freeze(self, name: str) -> None:
        freeze(lambda number: self.stack.signal(name, number), self.database)

    def check(self, job_id: str) -> None:
        """Whatever was done to the processes, the job's traces are as they must be."""
        self.check_end(job_id)
        numbers = [seq for seq, _ in self.sentences(job_id)]
        epochs = [epoch for _, epoch in self.sentences(job_id)]
        assert numbers == list(range(1, len(numbers) + 1))
        assert epochs == sorted(epochs)
        with self.database.read() as connection:
            kept = connection.execute(select(messages).where(messages.c.job_id == job_id)).all()
        assert len(kept) == (1 if numbers else 0)
        events_seen = self.follow(job_id)
        assert [number for event, number in events_seen if event == "sentence"] == [str(n) for n in numbers]

    def check_end(self, job_id: str) -> None:
        """The job ended once, its events tell of it what its row says, and its end is logged once."""
        job = self.job(job_id)
        with self.database.read() as connection:
            rows = connection.execute(
                select(job_events).where(job_events.c.job_id == job_id).order_by(job_events.c.seq)
            ).all()
            given = connection.execute(
                select(audit_events).where(
                    audit_events.c.object == f"job:{job_id}", audit_events.c.action.like("answer.%")
                )
            ).all()
        events = [
            Event(seq=r.seq, kind=EventKind(r.kind), epoch=r.epoch, attempt=r.attempt, worker_id=r.worker_id)
            for r in rows
        ]
        assert job.state in TERMINAL
        assert fold(events) == snapshot(job)
        assert sum(State(event.kind) in TERMINAL for event in events if event.kind in list(State)) == 1
        assert len(given) == 1

    def follow(self, job_id: str) -> list[tuple[str, str]]:
        with self.client.stream("GET", f"/v1/jobs/{job_id}/events") as response:
            return [(event, number) for event, number, _ in sse_events(response)]

    def close(self) -> None:
        self.client.close()
        self.database.close()


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def installation(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Clinic]:
    """All processes that answer, with a model whose answers never end by themselves."""
    folder = tmp_path_factory.mktemp(f"clinic-{request.param}")
    environment = {**TIMES, "MEDICHAT_MODEL_PATH": str(write_endless_model(folder / "model", LAYERS))}
    if request.param == "sqlite":
        yield from serve(Stack(folder, without=WITHOUT, environment=environment), lambda: None)
        return
    server = PostgresServer(folder / "postgresql")
    environment["MEDICHAT_DATABASE_URL"] = server.url
    yield from serve(Stack(folder, without=WITHOUT, environment=environment), server.restart)
    server.stop()


def serve(stack: Stack, restart_database: Callable[[], None]) -> Iterator[Clinic]:
    with stack:
        stack.commands["worker_two"] = stack.commands["worker_infer"]
        clinic = Clinic(stack, restart_database)
        yield clinic
        clinic.close()


@pytest.fixture
def clinic(whole: Clinic) -> Clinic:
    """The installation with one worker."""
    whole.have_workers(1)
    return whole


@pytest.fixture
def pair(whole: Clinic) -> Clinic:
    """The installation with two workers."""
    whole.have_workers(2)
    return whole


@pytest.fixture
def whole(installation: Clinic) -> Iterator[Clinic]:
    """The installation, whole again before each test but for its workers."""
    stack = installation.stack
    if "redis" not in stack.processes:
        stack.start_process("redis")
    stack.wait_ready()
    yield installation
    for name in stack.processes:
        stack.signal(name, signal.SIGCONT)


def test_a_frozen_worker_that_wakes_after_its_lease_writes_nothing(pair: Clinic) -> None:
    job_id = pair.ask()
    pair.wait_for_sentence(job_id)
    frozen = pair.worker_of(job_id)
    pair.freeze(frozen)
    released = len(pair.sentences(job_id))
    wait_until(lambda: pair.job(job_id).epoch == 2, 30, "for another worker to take over")
    pair.stack.signal(frozen, signal.SIGCONT)  # while the other one is writing
    job = pair.wait_for_end(job_id)
    noticed = f"job {job_id} belongs to another worker now"
    wait_until(lambda: noticed in pair.stack.log_path(frozen).read_text(), 30, "for the frozen one to notice")
    assert (job.state, job.epoch) == (State.SUCCEEDED, 2)
    assert pair.job(job_id) == job
    epochs = [epoch for _, epoch in pair.sentences(job_id)]
    assert epochs[:released] == [1] * released
    assert set(epochs[released:]) == {2}
    pair.check(job_id)


@pytest.mark.parametrize("installation", ["postgresql"], indirect=True)
def test_a_job_whose_worker_is_lost_at_its_last_attempt_fails_and_holds_nobody_up(pair: Clinic) -> None:
    """Its first attempt is its last here, and on one database only: to start a worker takes seconds."""
    poison = pair.ask()
    pair.wait_for_sentence(poison)
    with pair.database.write() as connection:
        connection.execute(update(jobs).where(jobs.c.id == poison).values(max_attempts=1))
    pair.stack.kill(pair.worker_of(poison))
    neighbour = pair.ask(20)
    assert pair.wait_for_end(neighbour).state is State.SUCCEEDED
    ended = pair.wait_for_end(poison)
    assert (ended.state, ended.attempt, ended.error) == (State.FAILED, 1, "worker-lost")
    assert ended.error_detail
    for job_id in (poison, neighbour):
        pair.check(job_id)


def test_a_worker_killed_in_the_middle_of_an_answer(pair: Clinic) -> None:
    def killed() -> Job:
        pair.have_workers(2)
        job_id = pair.ask(MOST_TOKENS)
        pair.wait_for_sentence(job_id)
        pair.stack.kill(pair.worker_of(job_id))
        lost = pair.job(job_id)
        assert lost.state is State.RUNNING
        job = pair.wait_for_end(job_id)
        assert lost.lease_expires_at is not None
        assert pair.claimed_at(job_id, epoch=2) <= lost.lease_expires_at + timedelta(seconds=5)
        assert (job.state, job.attempt, job.epoch) == (State.SUCCEEDED, 2, 2)
        assert {epoch for _, epoch in pair.sentences(job_id)} == {1, 2}, "it went on where it had stopped"
        pair.check(job_id)
        return job

    job = killed()
    if job.finish_reason == "guard":  # a sentence's check took too long on a busy machine, and ended it
        job = killed()
    told = f"it is no longer than one that was not interrupted ({job.finish_reason})"
    assert job.completion_tokens == MOST_TOKENS, told


def test_a_worker_told_to_stop_hands_its_answer_back(clinic: Clinic) -> None:
    job_id = clinic.ask()
    clinic.wait_for_sentence(job_id)
    name = clinic.worker
    process = clinic.stack.processes.pop(name)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 0
    handed_back = clinic.job(job_id)
    assert (handed_back.state, handed_back.attempt) == (State.QUEUED, 0)
    clinic.stack.start_process(name)
    job = clinic.wait_for_end(job_id)
    assert (job.state, job.attempt) == (State.SUCCEEDED, 1)
    clinic.check(job_id)


def test_redis_killed_and_wiped(clinic: Clinic) -> None:
    running = clinic.ask()
    clinic.wait_for_sentence(running)
    clinic.freeze(clinic.worker)
    told = [clinic.ask(20) for _ in range(3)]
    with closing(open_redis(clinic.stack.settings)) as redis:
        wait_until(lambda: redis.llen("infer"), 10, "for what wakes a worker for them to lie in Redis")
    clinic.stack.kill("redis")
    meanwhile = [clinic.ask(20) for _ in range(3)]
    shutil.rmtree(clinic.stack.state_dir / "redis")
    (clinic.stack.state_dir / "redis").mkdir()
    clinic.stack.signal(clinic.worker, signal.SIGCONT)
    for job_id in (running, *told):
        assert clinic.wait_for_end(job_id).state is State.SUCCEEDED
    clinic.stack.start_process("redis")
    after = clinic.ask(20)
    for job_id in (running, *told, *meanwhile, after):
        assert clinic.wait_for_end(job_id).state is State.SUCCEEDED
        clinic.check(job_id)


def test_redis_frozen(clinic: Clinic) -> None:
    running = clinic.ask()
    clinic.wait_for_sentence(running)
    clinic.stack.signal("redis", signal.SIGSTOP)
    meanwhile = clinic.ask(20)
    for job_id in (running, meanwhile):
        assert clinic.wait_for_end(job_id).state is State.SUCCEEDED
        assert clinic.follow(job_id)[-1][0] == "end"
    later = clinic.ask(20)  # when no answer is under way whose worker would look for the next
    assert clinic.wait_for_end(later).state is State.SUCCEEDED
    clinic.stack.signal("redis", signal.SIGCONT)
    for job_id in (running, meanwhile, later):
        clinic.check(job_id)


def test_the_database_restarted(clinic: Clinic) -> None:
    """On SQLite nothing can be restarted, and the answer simply comes."""
    job_id = clinic.ask()
    clinic.wait_for_sentence(job_id)
    clinic.restart_database()
    clinic.database.close()  # this test's own connections; MediChat's mend themselves
    assert clinic.wait_for_end(job_id).state is State.SUCCEEDED
    clinic.check(job_id)


def test_every_message_delivered_three_times(clinic: Clinic) -> None:
    asked = [clinic.ask(200) for _ in range(6)]
    again = [task_message(Kind.INFER, job_id) for job_id in asked]
    with closing(open_redis(clinic.stack.settings)) as redis:
        redis.lpush(Kind.INFER.value, *again, *again)
    for job_id in asked:
        job = clinic.wait_for_end(job_id)
        assert (job.state, job.attempt) == (State.SUCCEEDED, 1)
        clinic.check(job_id)


def test_a_hundred_identical_questions_at_once_are_one_answer(clinic: Clinic) -> None:
    body = {"query": "What is the flu?", "max_new_tokens": 20}
    headers = {"Prefer": "respond-async", "Idempotency-Key": "a hundred at once"}
    together = threading.Barrier(100)
    clinic.freeze(clinic.worker)  # who asks after the answer came reads it, and no 202

    def ask(_: int) -> httpx.Response:
        together.wait(60)
        return clinic.client.post("/predict", json=body, headers=headers)

    with ThreadPoolExecutor(100) as pool:
        answers = list(pool.map(ask, range(100)))
    assert {answer.status_code for answer in answers} == {202}
    clinic.stack.signal(clinic.worker, signal.SIGCONT)
    (job_id,) = {answer.json()["id"] for answer in answers}
    assert clinic.wait_for_end(job_id).state is State.SUCCEEDED
    clinic.check(job_id)
    conversation = clinic.client.get(f"/v1/conversations/{clinic.job(job_id).conversation_id}").json()
    assert [message["role"] for message in conversation["messages"]] == ["user", "assistant"]


def test_one_message_is_enough_for_all_that_wait(tmp_path: Path) -> None:
    environment = {
        **TIMES,
        "MEDICHAT_RECONCILE_S": "600",
        "MEDICHAT_MODEL_PATH": str(write_endless_model(tmp_path, LAYERS)),
    }
    stack = Stack(tmp_path / "state", without=WITHOUT, environment=environment)
    for clinic in serve(stack, lambda: None):
        clinic.freeze(clinic.worker)
        asked = [clinic.ask(20) for _ in range(5)]
        with closing(open_redis(stack.settings)) as redis:
            redis.delete("infer")
        celery = make_celery(stack.settings)
        celery.send_task(task_name(Kind.INFER), kwargs={"job_id": asked[0]}, queue=Kind.INFER.value)
        celery.close()
        stack.signal(clinic.worker, signal.SIGCONT)
        assert {clinic.wait_for_end(job_id).state for job_id in asked} == {State.SUCCEEDED}


def test_a_forged_message_does_no_harm(clinic: Clinic) -> None:
    celery = make_celery(clinic.stack.settings)
    for hint in ("nobody's", "", "x" * 10_000):
        celery.send_task(task_name(Kind.INFER), kwargs={"job_id": hint}, queue=Kind.INFER.value)
    celery.close()
    assert clinic.wait_for_end(clinic.ask(20)).state is State.SUCCEEDED


def test_a_job_that_fails_every_time_ends_and_holds_nobody_up(clinic: Clinic) -> None:
    clinic.freeze(clinic.worker)
    broken, erased, healthy = clinic.ask(20), clinic.ask(20), clinic.ask(20)
    with clinic.database.write() as connection:
        question = clinic.job(broken).question_id
        connection.execute(update(messages).where(messages.c.id == question).values(ciphertext=b"broken"))
        owner = clinic.job(erased).conversation_id
        connection.execute(update(data_keys).where(data_keys.c.owner_id == owner).values(wrapped_key=None))
    clinic.stack.signal(clinic.worker, signal.SIGCONT)
    assert clinic.wait_for_end(healthy).state is State.SUCCEEDED
    for poison in (broken, erased):
        ended = clinic.wait_for_end(poison)
        assert (ended.state, ended.attempt, ended.error) == (State.FAILED, 3, "internal")
        assert ended.error_detail
        clinic.check_end(poison)


def test_a_cancelled_answer_frees_its_place_at_once(clinic: Clinic) -> None:
    job_id = clinic.ask()
    clinic.wait_for_sentence(job_id)
    clinic.client.post(f"/v1/jobs/{job_id}/cancel")
    job = clinic.wait_for_end(job_id)
    assert job.state is State.CANCELLED
    assert job.completion_tokens is not None
    assert job.completion_tokens < TOKENS
    clinic.check(job_id)


def test_a_question_longer_than_the_context_is_refused_with_what_to_do(clinic: Clinic) -> None:
    response = clinic.client.post("/predict", json={"query": "What is the flu? " * 900})
    assert response.status_code == 422
    assert response.json()["type"] == "urn:medichat:problem:prompt-too-long"


def test_no_log_of_any_process_holds_a_word_of_a_question(clinic: Clinic) -> None:
    marker = "zebrafinch"
    asked = clinic.client.post("/predict", json={"query": f"What is the flu of a {marker}? " * 400})
    assert asked.status_code == 422
    logs = {path.stem: path for path in clinic.stack.log_path("api").parent.iterdir()}
    assert set(logs) >= {"api", "worker_infer", "redis"}
    for name, path in logs.items():
        assert marker not in path.read_text(errors="replace"), name
    stored = b"".join(path.read_bytes() for path in (clinic.stack.state_dir / "redis").rglob("*.aof"))
    assert marker.encode() not in stored
