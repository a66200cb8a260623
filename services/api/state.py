"""What every request handler may need, made once per process. It handles no request."""

from dataclasses import dataclass

from services.api.limiter import Limiter
from services.api.patience import Threads
from services.api.pictures import PictureIntake
from shared.audit.checkpoint import Signer
from shared.clock import Clock, DatabaseClock
from shared.conversations import Conversations
from shared.db import Database, open_database
from shared.guard import Guard
from shared.jobs.store import JobRules, JobStore
from shared.policies.live import LiveGuard
from shared.privacy.envelope import Envelope
from shared.privacy.master_keys import open_envelope
from shared.queue import Bell
from shared.review.filling import Filling
from shared.review.store import ReviewStore
from shared.settings import Settings
from shared.storage import Storage
from shared.training.datasets import DatasetStore


@dataclass(frozen=True, kw_only=True)
class Gateway:
    """The gateway's tools; each is safe to share between threads."""

    settings: Settings
    database: Database
    clock: Clock
    envelope: Envelope
    jobs: JobStore
    conversations: Conversations
    guards: LiveGuard
    bell: Bell
    datasets: DatasetStore
    limiter: Limiter
    threads: Threads
    pictures: PictureIntake
    #: Signs checkpoints of the log, which are kept in `checkpoints` too.
    signer: Signer
    checkpoints: Storage
    filling: Filling
    reviews: ReviewStore

    @property
    def guard(self) -> Guard:
        """The guard that counts now; take it once for what belongs together."""
        return self.guards.now.guard

    @property
    def help_line(self) -> str:
        """Where help is found, for somebody whose question is not answered: no layer may have read it all."""
        return self.guard.responses(self.settings.locale).unanswered

    def close(self) -> None:
        """Give back connections and stop the threads."""
        self.guards.close()
        self.bell.close()
        self.limiter.close()
        self.database.close()


def open_gateway(settings: Settings) -> Gateway:
    """Open the database and the bell; the guard follows changes once it is started.

    Raises ValueError for a missing or bad secret.
    """
    clock = DatabaseClock()
    envelope = open_envelope(settings)
    jobs = JobStore(clock, JobRules.from_settings(settings))
    database = open_database(settings)
    conversations = Conversations(envelope)
    filling = Filling(envelope, clock, settings)
    return Gateway(
        settings=settings,
        database=database,
        clock=clock,
        envelope=envelope,
        jobs=jobs,
        conversations=conversations,
        guards=LiveGuard(database),
        bell=Bell(settings),
        datasets=DatasetStore(envelope, Storage.from_settings(settings), jobs),
        limiter=Limiter(settings),
        threads=Threads(),
        pictures=PictureIntake(settings),
        signer=Signer(settings.secret("audit_key")),
        checkpoints=Storage.of_checkpoints(settings),
        filling=filling,
        reviews=ReviewStore(conversations, filling),
    )
