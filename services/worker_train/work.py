"""What every kind of work of this worker has in common. It starts no process and moves no job."""

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from services.worker_train.supervise import ProgramEvent
from shared.audit import record
from shared.conversations import Conversations
from shared.db import Database
from shared.jobs.leases import LeaseKeeper
from shared.jobs.lifecycle import Kind, State
from shared.jobs.records import Job
from shared.jobs.store import JobStore
from shared.memory import WANTED_BY_SERVING
from shared.privacy.envelope import Envelope
from shared.queue import Bell
from shared.registration import wanted_memory
from shared.settings import Settings
from shared.storage import Storage


@dataclass(frozen=True, kw_only=True)
class Tools:
    """What the work needs of its process; each is safe to share between threads."""

    settings: Settings
    worker_id: str
    database: Database
    jobs: JobStore
    storage: Storage
    envelope: Envelope
    conversations: Conversations
    bell: Bell
    keeper: LeaseKeeper
    #: The program of each kind of work, to which its arguments are added.
    programs: Mapping[Kind, Sequence[str]]

    @property
    def actor(self) -> record.Actor:
        """As the audit log names this process."""
        return record.Actor(record.SYSTEM, self.worker_id)


#: Why a job failed whose program ended in a way that nobody foresaw; only its log says more.
CRASHED = "crashed"


class Unusable(Exception):
    """What a program delivered cannot be kept; the message says why, in words of ours."""


class Work:
    """One job's work: which program does it, and what its events mean.

    Methods that take a connection run in a transaction that is fenced by the claim.
    """

    #: What to do when the memory is too small, however the work is changed.
    no_memory = "The machine has too little memory for this: free some, or give it more."

    def __init__(self, tools: Tools, job: Job) -> None:
        self.tools = tools
        self.job = job
        #: What the workers that answer will still take of each memory, in bytes.
        self._wanted: dict[str, int] = {}

    @property
    def folder(self) -> Path:
        """Where this host keeps what belongs to the work."""
        raise NotImplementedError

    def open(self, connection: Connection) -> None:
        """Read what the work is about. Raises Unusable when that is gone."""
        raise NotImplementedError

    def arguments(self) -> list[str]:
        """Get the folder ready; returns what is added to the program's command. Raises OSError."""
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        """What is added to the program's environment: what answers will need, and a single process sees a
        single GPU, for with several the trainer would share out each batch among them, which TRL refuses.
        """
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
        return {
            "CUDA_VISIBLE_DEVICES": visible.split(",")[0],
            WANTED_BY_SERVING: json.dumps(self._wanted),
        }

    def started(self, connection: Connection, now: datetime) -> None:
        """The program is about to start."""
        self._wanted = wanted_memory(connection, now, self.tools.settings.heartbeat_s)

    def keep_files(self, events: Sequence[ProgramEvent], stopped: Callable[[], bool]) -> None:
        """Bring files that these events speak of into the storage, before the rows that name them; they are
        not needed once the work is `stopped`.
        """

    def columns(self, events: Sequence[ProgramEvent]) -> dict[str, Any]:
        """What the job's row learns of these events: by default how far the work is."""
        progress = [event.fields for event in events if event.name == "progress"]
        return {"sampling": {"progress": dict(progress[-1])}} if progress else {}

    def record(self, connection: Connection, events: Sequence[ProgramEvent], now: datetime) -> None:
        """Store what these events say."""

    def note(self, connection: Connection, text: str, now: datetime) -> None:
        """Tell people something about the work, in words of ours."""

    def shrink(self, connection: Connection, now: datetime) -> bool:
        """The device had too little memory: change the work so that it needs less, if that is possible."""
        return False

    def wait(self, connection: Connection, reason: str) -> None:
        """There is no room for the work now."""

    def is_new(self, connection: Connection, done: Mapping[str, Any]) -> bool:
        """Whether the result is to be delivered: it is not known already."""
        return True

    def deliver(self, done: Mapping[str, Any]) -> None:
        """Bring the result into the storage, before the rows that name it. Raises OSError or Unusable."""

    def conclude(self, connection: Connection, done: Mapping[str, Any], now: datetime) -> dict[str, Any]:
        """Store the result, with the end of the job; returns columns for the job's row. Raises Unusable."""
        raise NotImplementedError

    def refuse(self, connection: Connection, code: str, detail: str) -> None:
        """The job fails for good, in this transaction."""

    def tidy(self, job: Job) -> None:
        """Remove files that nobody needs now that the job is as `job` says. Raises OSError."""

    def remove_folder(self, job: Job) -> None:
        """Remove the work's folder, unless the program crashed: people were told to look at its log."""
        if not (job.state is State.FAILED and job.error == CRASHED):
            shutil.rmtree(self.folder, ignore_errors=True)
