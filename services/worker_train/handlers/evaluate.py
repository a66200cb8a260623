"""Evaluations: the program measures an adapter against its base, the gate judges. It measures nothing."""

import shutil
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, select, update

from services.worker_train.work import Tools, Unusable, Work
from shared.db.tables_training import datasets, evaluations
from shared.jobs.records import Job
from shared.privacy.envelope import DataKey
from shared.privacy.keys import load_data_keys
from shared.privacy.sealed import SealedReader
from shared.training.gate import judge


class EvaluateWork(Work):
    """An evaluation."""

    def __init__(self, tools: Tools, job: Job) -> None:
        super().__init__(tools, job)
        self._id = self._key_id = ""

    @property
    def folder(self) -> Path:
        return self.tools.settings.state_dir.absolute() / "work" / self.job.id

    def open(self, connection: Connection) -> None:
        row = connection.execute(
            select(evaluations.c.id, datasets.c.key_id)
            .join(datasets, datasets.c.id == evaluations.c.dataset_id)
            .where(evaluations.c.job_id == self.job.id)
        ).one_or_none()
        if row is None:
            raise Unusable("There is no evaluation for this job.")
        self._id, self._key_id = row.id, row.key_id

    def arguments(self) -> list[str]:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return ["--evaluation", self._id]

    def conclude(self, connection: Connection, done: Mapping[str, Any], now: datetime) -> dict[str, Any]:
        key = load_data_keys(connection, self.tools.envelope, [self._key_id])[self._key_id]
        place = f"evaluation:{self._id}"
        samples = key.encrypt_bytes(self._samples(key, str(done["samples_path"]), place), place=place)
        gate = judge(done["figures"])
        verdict = {**gate.to_json(), "failures": [asdict(check) for check in gate.failures]}
        connection.execute(
            update(evaluations)
            .where(evaluations.c.id == self._id)
            .values(
                figures=done["figures"],
                gate=verdict,
                passed=gate.passed,
                samples_ciphertext=samples,
                key_id=key.key_id,
            )
        )
        return {}

    def tidy(self, job: Job) -> None:
        self.tools.storage.delete(f"evaluations/{self._id}")
        if job.error is None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _samples(self, key: DataKey, path: str, place: str) -> bytes:
        with SealedReader(self.tools.storage.open(path), key, place=place) as reader:
            return reader.readall()
