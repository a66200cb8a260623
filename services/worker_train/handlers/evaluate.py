"""Evaluations: the program measures an adapter against its base, the gate judges. It measures nothing."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from services.worker_train.work import Tools, Unusable, Work
from shared.errors import NotFound
from shared.jobs.records import Job
from shared.training.evaluations import EvaluationStore


class EvaluateWork(Work):
    """An evaluation."""

    no_memory = (
        "The device has too little memory to measure the adapter beside what runs there: measure it while "
        "less runs, or serve the model with MEDICHAT_QUANTISE=nf4, as which it is then measured too."
    )

    def __init__(self, tools: Tools, job: Job) -> None:
        super().__init__(tools, job)
        self._store = EvaluationStore(tools.jobs, tools.envelope)
        self._id = ""

    @property
    def folder(self) -> Path:
        return self.tools.settings.state_dir.absolute() / "work" / self.job.id

    def open(self, connection: Connection) -> None:
        try:
            self._id = self._store.of_job(connection, self.job.id).id
        except NotFound as error:
            raise Unusable("There is no evaluation for this job.") from error

    def arguments(self) -> list[str]:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return ["--evaluation", self._id]

    def started(self, connection: Connection, now: datetime) -> None:
        super().started(connection, now)
        self.tools.jobs.hold(connection, self.job.claim, sampling={})

    def wait(self, connection: Connection, reason: str) -> None:
        self.tools.jobs.hold(connection, self.job.claim, sampling={"waiting_reason": reason})

    def conclude(self, connection: Connection, done: Mapping[str, Any], now: datetime) -> dict[str, Any]:
        samples = self._store.sealed_samples(connection, self.tools.storage, self.job.id)
        self._store.record_end(connection, self.job.claim, figures=done["figures"], samples=samples)
        return {}

    def tidy(self, job: Job) -> None:
        self.tools.storage.delete(f"evaluations/{self._id}")
        self.remove_folder(job)
