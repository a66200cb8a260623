"""Replays: the program judges answers again under another policy. No text passes through here."""

import shutil
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from services.worker_train.work import Tools, Unusable, Work
from shared.errors import NotFound
from shared.jobs.records import Job
from shared.policies.replays import ReplayStore, of_job


class ReplayWork(Work):
    """A replay."""

    def __init__(self, tools: Tools, job: Job) -> None:
        super().__init__(tools, job)
        self._store = ReplayStore(tools.jobs)
        self._id = ""

    @property
    def folder(self) -> Path:
        return self.tools.settings.state_dir.absolute() / "work" / self.job.id

    def open(self, connection: Connection) -> None:
        try:
            self._id = of_job(connection, self.job.id).id
        except NotFound as error:
            raise Unusable("There is no replay for this job.") from error

    def arguments(self) -> list[str]:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return ["--replay", self._id]

    def conclude(self, connection: Connection, done: Mapping[str, Any], now: datetime) -> dict[str, Any]:
        self._store.record_end(connection, self.job.claim, counts=done["counts"], changes=done["changes"])
        return {}

    def tidy(self, job: Job) -> None:
        if job.error is None:
            shutil.rmtree(self.folder, ignore_errors=True)
