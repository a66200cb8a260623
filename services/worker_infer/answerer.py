"""Takes jobs from the queue, one per call, and brings each to an end or back to the queue.

It knows neither Celery nor HTTP, nor how an answer is made (`attempt`) or stored (`answer_rows`).
"""

import logging
from datetime import timedelta

from services.worker_infer.adapters import ActiveAdapter
from services.worker_infer.attempt import Attempt
from services.worker_infer.model import Model
from services.worker_infer.shadow import ShadowJudge
from services.worker_infer.tools import Tools
from shared.conversations import Conversations
from shared.db import Database
from shared.errors import LeaseLost
from shared.jobs.leases import LeaseKeeper
from shared.jobs.lifecycle import Kind
from shared.jobs.records import Job
from shared.jobs.store import JobStore
from shared.logs import where
from shared.policies.live import LiveGuard
from shared.queue import Bell
from shared.settings import Settings

log = logging.getLogger(__name__)

#: Who has waited for longer is told that the answer begins. Others would see it flash by, and telling them
#: takes time of processors that their own answer needs.
_NEWS_AFTER = timedelta(seconds=0.5)


class Answerer:
    """Answers jobs, one per call of `answer_next`; safe to share between threads."""

    def __init__(
        self,
        *,
        settings: Settings,
        worker_id: str,
        model: Model,
        database: Database,
        jobs: JobStore,
        conversations: Conversations,
        guards: LiveGuard,
        shadow: ShadowJudge,
        bell: Bell,
        keeper: LeaseKeeper,
        active: ActiveAdapter,
    ) -> None:
        self._worker_id = worker_id
        self._keeper = keeper
        self._tools = Tools(
            settings=settings,
            worker_id=worker_id,
            model=model,
            database=database,
            jobs=jobs,
            conversations=conversations,
            guards=guards,
            shadow=shadow,
            bell=bell,
            active=active,
        )
        #: Whether a ring found the engine unwell.
        self._refused = False
        #: By the name of their request, those under way.
        self._attempts: dict[str, Attempt] = {}
        guards.when_stopped(self._stop_all)

    def answer_next(self) -> bool:
        """Claim the best queued job and bring it to an end, or back to the queue.

        Returns whether to look for another: false when none is queued, or this worker cannot take one.
        """
        tools = self._tools
        if not tools.model.engine.health().ok:
            self._refused = True  # the jobs are for workers that are well
            return False
        with tools.database.write() as connection:
            job = tools.jobs.claim(connection, Kind.INFER, self._worker_id)
        if job is None:
            return False
        if _waited(job) > _NEWS_AFTER:
            tools.bell.news(job.id)
        request_id = f"{job.id}:{job.epoch}"
        with self._keeper.holding(job.claim, lambda: tools.model.engine.cancel(request_id)) as hold:
            attempt = self._attempts[request_id] = Attempt(tools, job, hold, request_id)
            try:
                attempt.run()
            except LeaseLost:
                log.warning("job %s belongs to another worker now; this attempt wrote nothing more", job.id)
            except Exception as error:  # a bug must not leave a job running for ever
                log.error("job %s failed in %s", job.id, where(error))
                attempt.rows.retry(
                    "internal", "Something went wrong inside MediChat; tell your admin the job's id."
                )
            finally:
                del self._attempts[request_id]
        tools.bell.news(job.id)
        tools.bell.give_way()
        return not attempt.rows.handed_back

    def ring_when_well(self) -> None:
        """Wake a worker for what this one left in the queue, once its engine is well again."""
        if self._refused and self._tools.model.engine.health().ok:
            self._refused = False
            self._tools.bell.work(Kind.INFER, "")

    def _stop_all(self) -> None:
        """An admin stopped all answers: end those under way. One that begins now looks for itself."""
        for attempt in list(self._attempts.values()):
            attempt.stop()


def _waited(job: Job) -> timedelta:
    """How long a claimed job was in the queue, its earlier attempts included."""
    return (job.started_at or job.created_at) - job.created_at if job.epoch == 1 else timedelta.max
