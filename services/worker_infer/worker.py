"""Builds the inference worker from the settings and runs it under Celery. It answers nothing itself.

One process owns one device. Celery's threads wait for rings; each ring answers one job (see
generate.py) or verifies an adapter (see verify.py) through the one engine, which batches them. What no ring
told of is found by looking (see shared/jobs/lookout.py).
"""

import gc
import logging
import threading
from collections.abc import Callable
from typing import Any

from celery import Celery, signals
from sqlalchemy.exc import OperationalError

from services.worker_infer.adapters import ActiveAdapter
from services.worker_infer.answerer import Answerer
from services.worker_infer.fitting import choose_device
from services.worker_infer.judge import ModelAsker
from services.worker_infer.loading import expected_memory, held_bytes, open_model
from services.worker_infer.model import Model
from services.worker_infer.shadow import ShadowJudge
from services.worker_infer.verify import Verifier
from shared.catalogue import find_model
from shared.clock import DatabaseClock
from shared.conversations import Conversations
from shared.db import Database, open_database
from shared.jobs.leases import LeaseKeeper
from shared.jobs.lifecycle import Kind
from shared.jobs.lookout import Lookout
from shared.jobs.store import JobRules, JobStore
from shared.policies.live import LiveGuard
from shared.privacy.master_keys import open_envelope
from shared.privacy.phi import without_names
from shared.prompts import prompt_version
from shared.queue import Bell, make_celery, open_redis, task_name
from shared.registration import SERVED_MODEL, SERVED_REVISION, Registration, worker_name
from shared.settings import Settings

log = logging.getLogger(__name__)


class Worker:
    """Everything a worker process holds."""

    def __init__(self, settings: Settings) -> None:
        """Load the model and open the database; raises a readable error when either cannot be."""
        self.settings = settings
        self._draining = False
        self.id = worker_name(Kind.INFER)
        self.database: Database = open_database(settings, pool_size=settings.worker_concurrency + 2)
        self.jobs = JobStore(DatabaseClock(), JobRules.from_settings(settings))
        self.registration = Registration(self.database, self.jobs.clock, self.id)
        self.bell = Bell(settings)
        self.model = self._load()
        self.conversations = Conversations(open_envelope(settings))
        self.keeper = LeaseKeeper(
            self.database,
            self.jobs,
            open_redis(settings),
            heartbeat_s=settings.heartbeat_s,
            on_beat=self._report,
        )
        asker = ModelAsker(self.model) if find_model(settings.model).judges else None
        self.guards = LiveGuard(self.database, asker=asker)
        self.shadow = ShadowJudge(self.database, self.conversations, self.jobs.clock)
        self.answerer = Answerer(
            settings=settings,
            worker_id=self.id,
            model=self.model,
            database=self.database,
            jobs=self.jobs,
            conversations=self.conversations,
            guards=self.guards,
            shadow=self.shadow,
            bell=self.bell,
            keeper=self.keeper,
            active=ActiveAdapter(self.model.name),
        )
        self.verifier = Verifier(
            worker_id=self.id,
            model=self.model,
            source=self.model.source,
            database=self.database,
            jobs=self.jobs,
            conversations=self.conversations,
            bell=self.bell,
            keeper=self.keeper,
        )
        self.lookout = Lookout(
            self.database,
            self.jobs,
            (Kind.INFER, Kind.VERIFY),
            self._overlooked,
            places=settings.worker_concurrency,
        )

    def _load(self) -> Model:
        """The model; nothing else is let into the memory that it will take, from now on."""
        entry, (memory, wanted) = find_model(self.settings.model), expected_memory(self.settings)
        self.registration.prepare(Kind.INFER, entry.hub_id or entry.name, memory=memory, wanted_bytes=wanted)
        try:
            with self.registration.beating(self.settings.heartbeat_s):
                return open_model(self.settings, self.database)
        except BaseException:  # what cannot be loaded keeps nothing from training
            self.registration.leave()
            raise

    def run(self) -> None:
        """Answer questions until told to stop (SIGTERM or SIGINT), then hand back what is unfinished."""
        self.model.engine.start()
        without_names("Peter")  # reads its lists of names now, and not while somebody waits
        # what is loaded stays: searching it for garbage would stop every answer for a moment
        gc.collect()
        gc.freeze()
        self._register()
        self.guards.start()
        self.shadow.start()
        self.keeper.start()
        self.lookout.start()
        app = self._celery()
        signals.worker_shutting_down.connect(self._drain, weak=False)
        try:
            app.Worker(
                pool="threads",
                concurrency=self.settings.worker_concurrency,
                queues=[Kind.INFER.value, Kind.VERIFY.value],
                hostname=self.id,
                loglevel="WARNING",
                without_gossip=True,
                without_mingle=True,
                without_heartbeat=True,
                quiet=True,
            ).start()
        finally:
            self._close()

    def _celery(self) -> Celery:
        app = make_celery(self.settings)

        @app.task(name=task_name(Kind.INFER))  # type: ignore[untyped-decorator]
        def infer(job_id: str) -> None:
            """There is work: the hint names a job, but the best queued one is taken, and then the next."""
            with self.lookout.places:
                self._work_off(self.answerer.answer_next)

        @app.task(name=task_name(Kind.VERIFY))  # type: ignore[untyped-decorator]
        def verify(job_id: str) -> None:
            """Likewise."""
            with self.lookout.places:
                self._work_off(self.verifier.verify_next)

        app.finalize()
        return app

    def _overlooked(self) -> None:
        """There may be work of either kind that nobody rang for."""
        self._work_off(self.verifier.verify_next)
        self._work_off(self.answerer.answer_next)

    def _work_off(self, take_next: Callable[[], bool]) -> None:
        try:
            while not self._draining and take_next():
                continue
        except OperationalError as error:
            log.warning("the database is away (%s); the job will be announced again", type(error).__name__)

    def _drain(self, **_: Any) -> None:
        self._draining = True
        # in a thread: this is called inside a signal handler, which must not wait for locks
        threading.Thread(target=self.model.engine.drain, name="drain", daemon=True).start()

    def _register(self) -> None:
        details = {
            "model": self.model.model_id,
            "model_revision": self.model.revision,
            "system_prompt": self.settings.system_prompt,
            "prompt_version": prompt_version(self.settings.system_prompt),
        }
        self.registration.enter(Kind.INFER, self.model.model_id, details, self._serves() | self._memory())

    def _report(self) -> None:
        """Say that this worker lives, and how it fares."""
        self.answerer.ring_when_well()
        stats = vars_of(self.model.engine.stats()) | self.guards.stats() | self._memory()
        self.registration.report({**stats, **self._serves(), "shadow_left_out": self.shadow.left_out})

    def _serves(self) -> dict[str, Any]:
        """On which weights it answers: an adapter of others must not be promoted."""
        return {SERVED_MODEL: self.model.name, SERVED_REVISION: self.model.revision}

    def _memory(self) -> dict[str, Any]:
        """Where it lies, what it may still take, and what it then has in all."""
        wanted = self.model.engine.stats().wanted_bytes
        held = held_bytes(choose_device(self.settings.device))
        return {
            "memory": self.model.memory,
            "wanted_bytes": wanted,
            "footprint_bytes": held + wanted,
        }

    def _close(self) -> None:
        self._draining = True
        self.model.engine.close()
        self.lookout.close()
        self.guards.close()
        self.shadow.close()
        self.keeper.close()
        self.registration.leave()
        self.bell.close()
        self.database.close()


def vars_of(stats: Any) -> dict[str, Any]:
    """A frozen record's fields, as JSON can hold them."""
    return {name: getattr(stats, name) for name in stats.__dataclass_fields__}
