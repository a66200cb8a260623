"""What several tests need: a Redis, a gateway that listens with people in it, a worker driven by hand.

Everything is real: databases and Redis are processes, the gateway answers over HTTP.
"""

import asyncio
import secrets
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol, TypeVar

import httpx
import uvicorn
from fastapi import FastAPI
from sqlalchemy import select, update
from sqlalchemy.exc import OperationalError

from services.api.__main__ import serving
from services.api.main import create_app
from services.api.state import Gateway
from services.local import free_ports
from services.redis_server import redis_binary
from shared.answers import record_end
from shared.audit import record
from shared.auth import accounts, sessions
from shared.auth.consent import CONSENT_VERSION
from shared.auth.roles import AccountStatus, Role
from shared.conversations import StoredVerdict
from shared.db import Database
from shared.db.tables import audit_events, users
from shared.guard.verdict import Action, Audience, Verdict
from shared.ids import new_id
from shared.jobs.lifecycle import EventKind, Kind
from shared.jobs.records import Job
from shared.policies.live import Standing
from shared.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
#: argon2 is slow by design, so accounts made for tests share one hash.
PASSWORD = "correct horse battery"


def wait_until(condition: Callable[[], Any], timeout_s: float = 30.0, what: str = "") -> Any:
    """Look until `condition()` is true and return it; fails the test after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {timeout_s} s in vain {what}"
        time.sleep(0.02)
    return found


def freeze(send: Callable[[signal.Signals], None], database: Database) -> None:
    """Stop a process at a moment when it does not write.

    SQLite's lock cannot be taken from a process: one that freezes with it stops all others until it goes on.
    (PostgreSQL ends such a transaction by itself.)
    """

    def stopped_without_the_lock() -> bool:
        send(signal.SIGSTOP)
        try:
            with database.write():
                return True
        except OperationalError:
            send(signal.SIGCONT)
            return False

    wait_until(stopped_without_the_lock, 60, "for a moment without a transaction")


class RedisServer:
    """A server for wake-ups of our own on a port that stays the same when it is started again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (self.port,) = free_ports(1)
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> "RedisServer":
        """Start with whatever the folder holds, and wait until it answers."""
        command = [str(redis_binary()), "--port", str(self.port), "--dir", str(self._folder), "--save", ""]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(self._answers, 10, "for Redis")
        return self

    def kill(self) -> None:
        """`kill -9`: everything in memory is lost."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False


@dataclass
class Person:
    """Somebody with an account."""

    id: str
    name: str
    role: Role


@dataclass
class Installation:
    """Settings with their own database, not yet served."""

    settings: Settings

    def serve(self) -> "Api":
        """A gateway that listens; close it."""
        return Api(self.settings)


#: Nothing here is encrypted on its way. Made once: it reads the certificates of all authorities.
_TLS = ssl.create_default_context()


#: Applications that ended, by what is fixed in them: a new one makes its routes anew, in a tenth of a second.
_APPS: dict[tuple[int, int], list[FastAPI]] = defaultdict(list)


class _Server(uvicorn.Server):
    """Looks ten times as often whether it shall end."""

    async def main_loop(self) -> None:
        tick = 0  # at which the headers that all answers share are made
        while not await self.on_tick(tick):
            tick = 1
            await asyncio.sleep(0.01)


class SupportsClose(Protocol):
    """Something that holds connections."""

    def close(self) -> None:
        """Give them back."""


Client = TypeVar("Client", bound=SupportsClose)


class Api:
    """The gateway on a port of this machine, in a thread, with ways to make people and to play the worker."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._idle = _APPS[settings.max_body_bytes, settings.max_dataset_bytes]
        self.app: FastAPI = self._idle.pop() if self._idle else create_app(settings)
        self.app.state.settings = settings
        config = uvicorn.Config(self.app, timeout_graceful_shutdown=1, **serving(settings))
        self._server = _Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        wait_until(lambda: self._server.started, 20, "for the gateway")
        self.url = settings.api_url
        self._clients: list[SupportsClose] = []
        self._closed = False

    @property
    def gateway(self) -> Gateway:
        """The gateway's tools, to look at rows and to play a worker."""
        gateway: Gateway = self.app.state.gateway
        return gateway

    def close(self) -> None:
        """Stop listening; again does nothing."""
        if self._closed:
            return
        self._closed = True
        for client in self._clients:
            client.close()
        self._server.should_exit = True
        self._thread.join(timeout=10)
        assert not self._thread.is_alive(), "the gateway did not stop"
        self._idle.append(self.app)

    def wait_for_maintenance(self) -> None:
        """Until a round of the gateway's own maintenance is over: with a long pause, it does no more."""
        assert self.app.state.maintenance.resting.wait(30), "waited for the maintenance"

    def judge_with(self, standing: Standing) -> None:
        """Have this judge in the gateway from now on, until another policy counts."""
        guards = self.gateway.guards
        guards.refresh()  # a gateway that has just begun would take up the database's after this
        with guards._lock:
            guards._now = standing

    # -- people

    def person(
        self,
        role: Role = Role.USER,
        *,
        audience: Audience = Audience.PATIENT,
        status: AccountStatus = AccountStatus.ACTIVE,
        consented: bool = True,
    ) -> Person:
        """Make an account with the password `PASSWORD`."""
        name = f"{role.value}-{secrets.token_hex(4)}"
        with self.gateway.database.write() as connection:
            now = self.gateway.clock.now(connection)
            user_id = new_id()
            connection.execute(
                users.insert().values(
                    id=user_id,
                    name=name,
                    role=role,
                    audience=audience,
                    status=status,
                    password_hash=password_hash(),
                    consent_version=CONSENT_VERSION if consented else None,
                    consented_at=now if consented else None,
                    created_at=now,
                )
            )
        return Person(user_id, name, role)

    def client(self, person: Person | None = None) -> httpx.Client:
        """A client of the gateway: logged in as the person, or as nobody."""
        client = httpx.Client(base_url=self.url, timeout=30, verify=_TLS)
        self._clients.append(client)
        if person is not None:
            client.headers["Authorization"] = f"Bearer {self.token(person)}"
        return client

    def closing(self, client: Client) -> Client:
        """The client of another library; it is closed with the gateway."""
        self._clients.append(client)
        return client

    def token(self, person: Person) -> str:
        """A fresh access token of the person."""
        with self.gateway.database.write() as connection:
            now = self.gateway.clock.now(connection)
            account = accounts.get_account(connection, person.id)
            key = self.settings.secret("token_key")
            return sessions.start_token_session(connection, account, key=key, now=now).access_token

    def browser_token(self, person: Person) -> str:
        """What the log-in page would put into a browser's cookie."""
        with self.gateway.database.write() as connection:
            now = self.gateway.clock.now(connection)
            account = accounts.get_account(connection, person.id)
            return sessions.start_browser_session(connection, account, life=timedelta(hours=1), now=now)

    def principal(self, person: Person) -> sessions.Principal:
        """The person as a route knows who calls."""
        token = self.token(person)
        with self.gateway.database.read() as connection:
            return sessions.resolve(
                connection,
                token,
                key=self.settings.secret("token_key"),
                idle=timedelta(hours=1),
                now=self.gateway.clock.now(connection),
            )

    def log_in(self, role: Role = Role.USER) -> httpx.Client:
        """A client logged in as a new person of this role."""
        return self.client(self.person(role))

    def write_history(self, person: Person, questions: Sequence[str]) -> list[str]:
        """Conversations of the person that hold one question each, the oldest first; returns their ids."""
        store = self.gateway.conversations
        with self.gateway.database.write() as connection:
            begun = self.gateway.clock.now(connection) - timedelta(seconds=len(questions))
            return [
                store.create(
                    connection, user_id=person.id, question=text, now=begun + timedelta(seconds=number)
                )[0].conversation_id
                for number, text in enumerate(questions)
            ]

    # -- playing the worker

    def claim(self, worker_id: str = "hand", kind: Kind = Kind.INFER) -> Job:
        """Claim the best queued job; again until there is one, as the maintenance may just hold its row.

        Where several wait, that is not sure to be the oldest: claim one before the next is asked for.
        """

        def claimed() -> Job | None:
            with self.gateway.database.write() as connection:
                return self.gateway.jobs.claim(connection, kind, worker_id)

        job: Job = wait_until(claimed, 10, "for a job to claim")
        return job

    def release(
        self, job: Job, text: str, seq: int = 1, *, verdict: Verdict = Verdict.ALLOWED, suppressed: str = ""
    ) -> None:
        """Release one sentence of a claimed job, and ring; `suppressed` is what the guard replaced by it."""
        gateway = self.gateway
        assert job.conversation_id is not None
        with gateway.database.write() as connection:
            values = {"first_sentence_at": gateway.clock.now(connection)} if seq == 1 else {}
            now = gateway.jobs.hold(connection, job.claim, **values)
            verdict_id = None
            if verdict.action is not Action.ALLOW:
                stored = StoredVerdict(
                    verdict=verdict, policy_version=gateway.guard.policy_version, text=suppressed or text
                )
                verdict_id = gateway.conversations.store_verdict(
                    connection, job_id=job.id, stored=stored, now=now
                )
            gateway.conversations.release(
                connection,
                gateway.conversations.key(connection, job.conversation_id),
                job_id=job.id,
                seq=seq,
                epoch=job.epoch,
                text=text,
                suppressed=suppressed or None,
                verdict_id=verdict_id,
                action=verdict.action,
                now=now,
            )
        gateway.bell.news(job.id, seq)

    def finish(self, job: Job, kind: EventKind = EventKind.SUCCEEDED, **values: Any) -> Job:
        """End a claimed job, and ring."""
        gateway = self.gateway
        with gateway.database.write() as connection:
            done = gateway.jobs.finish(connection, job.claim, kind, **values)
            now = gateway.clock.now(connection)
            record_end(connection, gateway.conversations, done, actor=record.SYSTEM_ACTOR, now=now)
        gateway.bell.news(job.id)
        return done

    def answer(self, *sentences: str) -> Job:
        """Claim the best queued job and answer it with these sentences."""
        job = self.claim()
        for seq, text in enumerate(sentences, start=1):
            self.release(job, text, seq)
        return self.finish(job)

    # -- looking

    def waits_for_lock(self, transactions: int = 1) -> bool:
        """Whether this many transactions wait for another's row; on PostgreSQL, with maintenance at rest."""
        waiting = (
            "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        with self.gateway.database.read() as connection:
            return len(connection.exec_driver_sql(waiting).all()) >= transactions

    def audit(self, action: str | None = None) -> list[Any]:
        """The audit events, oldest first."""
        statement = select(audit_events).order_by(audit_events.c.id)
        if action is not None:
            statement = statement.where(audit_events.c.action == action)
        with self.gateway.database.read() as connection:
            return list(connection.execute(statement).all())

    def count(self, table: Any, *conditions: Any) -> int:
        """How many rows match."""
        with self.gateway.database.read() as connection:
            return len(connection.execute(select(table).where(*conditions)).all())

    def set(self, table: Any, condition: Any, **values: Any) -> None:
        """Change rows behind the gateway's back, to stand for time that passed."""
        with self.gateway.database.write() as connection:
            connection.execute(update(table).where(condition).values(**values))


_HASH: list[str] = []


def password_hash() -> str:
    """The hash of `PASSWORD`, made once."""
    if not _HASH:
        from shared.auth.passwords import hash_password

        _HASH.append(hash_password(PASSWORD))
    return _HASH[0]


def ask_async(client: httpx.Client, query: str = "What is asthma?", **body: Any) -> dict[str, Any]:
    """Ask without waiting; returns the job."""
    response = client.post("/predict", json={"query": query, **body}, headers={"Prefer": "respond-async"})
    assert response.status_code == 202, response.text
    job: dict[str, Any] = response.json()
    return job


def assert_problem(response: httpx.Response, status: int, code: str) -> str:
    """The response is a problem of RFC 9457 with this status and the code of an error; returns its detail."""
    assert (response.status_code, response.headers["Content-Type"]) == (status, "application/problem+json")
    problem = response.json()
    assert (problem["status"], problem["type"]) == (status, f"urn:medichat:problem:{code}")
    assert problem["title"]
    detail: str = problem["detail"]
    return detail


def sse_events(response: httpx.Response) -> Iterator[tuple[str, str, str]]:
    """The server-sent events of a streamed response as (event, id, data)."""
    event = {"event": "", "id": "", "data": ""}
    for line in response.iter_lines():
        if not line and event["event"]:
            yield event["event"], event["id"], event["data"]
            event = {"event": "", "id": "", "data": ""}
        elif line and not line.startswith(":"):
            name, _, value = line.partition(":")
            event[name] = value.strip()


@dataclass
class FakeClock:
    """A clock that goes on only when told to."""

    moment: datetime = field(default_factory=lambda: datetime(2026, 1, 1, tzinfo=UTC))

    def now(self, _connection: object) -> datetime:
        """The moment it was set to."""
        return self.moment

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.moment += timedelta(seconds=seconds)


@contextmanager
def closed_after(api: Api) -> Iterator[Api]:
    """Close the gateway at the end of the block."""
    with closing(api):
        yield api
