"""What all attempts of a worker share: its model, its stores, the guard that counts now."""

from dataclasses import dataclass

from services.worker_infer.adapters import ActiveAdapter
from services.worker_infer.model import Model
from services.worker_infer.shadow import ShadowJudge
from shared.conversations import Conversations
from shared.db import Database
from shared.jobs.store import JobStore
from shared.policies.live import LiveGuard
from shared.queue import Bell
from shared.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Tools:
    """Threads share it, and each part of it may be shared."""

    settings: Settings
    worker_id: str
    model: Model
    database: Database
    jobs: JobStore
    conversations: Conversations
    guards: LiveGuard
    shadow: ShadowJudge
    bell: Bell
    #: Says which adapter answers.
    active: ActiveAdapter
