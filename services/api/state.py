"""What every request handler may need, made once per process. It handles no request."""

from dataclasses import dataclass

from services.api.limiter import Limiter
from shared.clock import Clock, DatabaseClock
from shared.conversations import Conversations
from shared.db import Database, open_database
from shared.guard import Guard, load_guard
from shared.jobs.store import JobRules, JobStore
from shared.privacy.envelope import Envelope
from shared.queue import Bell
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
    guard: Guard
    bell: Bell
    datasets: DatasetStore
    limiter: Limiter

    def close(self) -> None:
        """Give back connections and stop the bell's thread."""
        self.bell.close()
        self.limiter.close()
        self.database.close()


def open_gateway(settings: Settings) -> Gateway:
    """Open the database, the bell and the guard. Raises ValueError for a missing or bad secret."""
    clock = DatabaseClock()
    envelope = Envelope.from_base64(settings.secret("master_key"))
    jobs = JobStore(clock, JobRules.from_settings(settings))
    return Gateway(
        settings=settings,
        database=open_database(settings),
        clock=clock,
        envelope=envelope,
        jobs=jobs,
        conversations=Conversations(envelope),
        guard=load_guard(),
        bell=Bell(settings),
        datasets=DatasetStore(envelope, Storage.from_settings(settings), jobs),
        limiter=Limiter(settings),
    )
