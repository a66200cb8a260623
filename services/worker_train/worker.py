"""Builds the training worker from the settings and runs it under Celery. It trains nothing itself.

Each job runs in a subprocess, so that a crash costs a job and not the worker, and so that all memory of the
device comes back. One job at a time has the device; a check of a dataset or a replay runs beside it.
"""

import logging
import sys
import threading
from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

from celery import Celery, signals
from sqlalchemy.exc import OperationalError

from services.worker_train.attempt import Attempt
from services.worker_train.handlers.evaluate import EvaluateWork
from services.worker_train.handlers.replay import ReplayWork
from services.worker_train.handlers.train import TrainWork
from services.worker_train.handlers.validate import ValidateWork
from services.worker_train.lane import Lane
from services.worker_train.leftovers import Sweep
from services.worker_train.work import Tools, Work
from shared.clock import DatabaseClock
from shared.conversations import Conversations
from shared.db import open_database
from shared.errors import LeaseLost
from shared.jobs.leases import LeaseKeeper
from shared.jobs.lifecycle import Kind
from shared.jobs.lookout import Lookout
from shared.jobs.store import JobRules, JobStore
from shared.logs import where
from shared.privacy.master_keys import open_envelope
from shared.queue import Bell, make_celery, open_redis, task_name
from shared.registration import Registration, worker_name
from shared.settings import Settings
from shared.storage import Storage

log = logging.getLogger(__name__)

_HERE = "services.worker_train"
PROGRAMS: Mapping[Kind, Sequence[str]] = MappingProxyType(
    {
        Kind.VALIDATE: (sys.executable, "-m", f"{_HERE}.validate"),
        Kind.TRAIN: (sys.executable, "-m", f"{_HERE}.finetune"),
        Kind.EVALUATE: (sys.executable, "-m", f"{_HERE}.evaluate"),
        Kind.REPLAY: (sys.executable, "-m", f"{_HERE}.replay"),
    }
)
WORK: Mapping[Kind, type[Work]] = MappingProxyType(
    {
        Kind.VALIDATE: ValidateWork,
        Kind.TRAIN: TrainWork,
        Kind.EVALUATE: EvaluateWork,
        Kind.REPLAY: ReplayWork,
    }
)
#: One of them on the device, and a check or a replay beside it.
_JOBS_AT_ONCE = 2
#: Kinds that need the device, one job of them at a time: the shorter first, lest a queue of runs hold it up.
ON_DEVICE = (Kind.EVALUATE, Kind.TRAIN)
#: Kinds that run beside it, one job of them at a time too, lest they take its place; the shorter first.
BESIDE_DEVICE = (Kind.REPLAY, Kind.VALIDATE)


class Worker:
    """Everything a worker process holds."""

    def __init__(self, settings: Settings, programs: Mapping[Kind, Sequence[str]] = PROGRAMS) -> None:
        """Open database and storage; raises a readable error when one cannot be."""
        self.settings = settings
        self.id = worker_name(Kind.TRAIN)
        self.database = open_database(settings, pool_size=6)
        self.jobs = JobStore(DatabaseClock(), JobRules.from_settings(settings))
        self.registration = Registration(self.database, self.jobs.clock, self.id)
        self.keeper = LeaseKeeper(
            self.database,
            self.jobs,
            open_redis(settings),
            heartbeat_s=settings.heartbeat_s,
            on_beat=self._report,
        )
        envelope = open_envelope(settings)
        self.tools = Tools(
            settings=settings,
            worker_id=self.id,
            database=self.database,
            jobs=self.jobs,
            storage=Storage.from_settings(settings),
            envelope=envelope,
            conversations=Conversations(envelope),
            bell=Bell(settings),
            keeper=self.keeper,
            programs=programs,
        )
        self.sweep = Sweep(self.tools)
        self.lookout = Lookout(self.database, self.jobs, WORK, self._overlooked, places=_JOBS_AT_ONCE)
        beside, device = (Lane(partial(self._next_of, kinds)) for kinds in (BESIDE_DEVICE, ON_DEVICE))
        self._lanes = dict.fromkeys(BESIDE_DEVICE, beside) | dict.fromkeys(ON_DEVICE, device)
        self._attempts: set[Attempt] = set()
        self._lock = threading.Lock()
        self._draining = False

    def start(self) -> None:
        """Be known to the others, remove what runs left, and look for work that nobody rings for."""
        self._register()
        self.keeper.start()
        self.sweep.start()
        self.lookout.start()

    def run(self) -> None:
        """Work until told to stop (SIGTERM or SIGINT), then hand back what is unfinished."""
        self.start()
        app = self._celery()
        signals.worker_shutting_down.connect(self.drain, weak=False)
        try:
            app.Worker(
                pool="threads",
                concurrency=_JOBS_AT_ONCE,
                queues=[kind.value for kind in WORK],
                hostname=self.id,
                loglevel="WARNING",
                without_gossip=True,
                without_mingle=True,
                without_heartbeat=True,
                quiet=True,
            ).start()
        finally:
            self.close()

    def work_next(self, kind: Kind) -> bool:
        """Claim the best queued job of this kind and bring it to an end, or back to the queue.

        Returns whether to look for another.
        """
        if self._draining:
            return False
        with self.database.write() as connection:
            job = self.jobs.claim(connection, kind, self.id)
        if job is None:
            return False
        self.tools.bell.news(job.id)
        attempt = Attempt(self.tools, job, WORK[kind](self.tools, job))
        with self._lock:
            self._attempts.add(attempt)
        if self._draining:  # it may have begun before the attempt was known
            attempt.drain()
        with self.keeper.holding(job.claim, attempt.stop) as hold:
            try:
                attempt.run(hold)
            except LeaseLost:
                log.warning("job %s belongs to another worker now; this attempt wrote nothing more", job.id)
            except Exception as error:  # a bug must not leave a job running for ever
                log.error("job %s failed in %s", job.id, where(error))
                attempt.retry(
                    "internal", "Something went wrong inside MediChat; tell your admin the job's id."
                )
            finally:
                with self._lock:
                    self._attempts.discard(attempt)
        self.tools.bell.news(job.id)
        if kind is Kind.TRAIN and not self._draining:
            self.sweep.wake()  # its program is dead: it writes no more, whoever ended the run
        return not attempt.handed_back

    def _next_of(self, kinds: Sequence[Kind]) -> bool:
        """Work on a job of the first of these kinds that has one; returns whether to look for another."""
        return any(self.work_next(kind) for kind in kinds)

    def _overlooked(self) -> None:
        """There may be work of any kind that nobody rang for; what needs no device first: runs take hours."""
        for lane in dict.fromkeys(self._lanes.values()):
            lane.work_off()

    def _celery(self) -> Celery:
        app = make_celery(self.settings)
        for kind in WORK:
            app.task(self._task(kind), name=task_name(kind))
        app.finalize()
        return app

    def _task(self, kind: Kind) -> Any:
        def work(job_id: str) -> None:
            """The hint names a job, but the best queued one is taken, and then the next."""
            try:
                with self.lookout.places:
                    self._lanes[kind].work_off()
            except OperationalError as error:
                log.warning(
                    "the database is away (%s); the job will be announced again", type(error).__name__
                )

        return work

    def drain(self, **_: Any) -> None:
        """Take no more work, let the programs save theirs, and hand the jobs back. Returns at once."""
        self._draining = True
        # in a thread: this is called inside a signal handler, which must not wait for locks
        threading.Thread(target=self._drain_attempts, name="drain", daemon=True).start()

    def _drain_attempts(self) -> None:
        with self._lock:
            attempts = list(self._attempts)
        for attempt in attempts:
            attempt.drain()

    def _register(self) -> None:
        self.registration.enter(Kind.TRAIN, self.settings.model, {"model": self.settings.model})

    def _report(self) -> None:
        """Say that this worker lives, and how many jobs it has in hand."""
        with self._lock:
            stats = {"jobs": len(self._attempts)}
        self.registration.report(stats)

    def close(self) -> None:
        """Give everything back, once nothing is worked on any more."""
        if not self._draining:
            self.drain()
        self.lookout.close()
        self.sweep.close()
        self.keeper.close()
        self.registration.leave()
        self.tools.bell.close()
        self.database.close()
