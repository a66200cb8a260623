"""Checks of datasets: the program reads the upload, its report goes to the dataset. No row is read here."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from services.worker_train.supervise import ProgramEvent
from services.worker_train.work import Tools, Unusable, Work
from shared.errors import NotFound
from shared.jobs.records import Job
from shared.privacy.sealed import SealedReader
from shared.training.dataset_files import place_of, report_path
from shared.training.dataset_records import Dataset
from shared.training.datasets import DatasetStore
from shared.training.report import CURABLE


class ValidateWork(Work):
    """A check of a dataset."""

    def __init__(self, tools: Tools, job: Job) -> None:
        super().__init__(tools, job)
        self._store = DatasetStore(tools.envelope, tools.storage, tools.jobs)
        self._id = ""

    @property
    def folder(self) -> Path:
        return self.tools.settings.state_dir.absolute() / "work" / self.job.id

    def open(self, connection: Connection) -> None:
        self._id = self._dataset(connection).id

    def arguments(self) -> list[str]:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return ["--dataset", self._id, "--attempt", self.job.claim.name]

    def columns(self, events: Sequence[ProgramEvent]) -> dict[str, Any]:
        return {}  # the dataset says how far its check is

    def record(self, connection: Connection, events: Sequence[ProgramEvent], now: datetime) -> None:
        progress = [event.fields for event in events if event.name == "progress"]
        if progress:
            fields = {name: progress[-1][name] for name in ("done", "total", "what")}
            self._store.note_progress(connection, self.job.claim, **fields)

    def conclude(self, connection: Connection, done: Mapping[str, Any], now: datetime) -> dict[str, Any]:
        report = self._read_report(connection, self._dataset(connection), str(done["report_path"]))
        try:
            self._store.mark_ready(
                connection,
                self.job.claim,
                rows_train=int(done["rows_train"]),
                rows_validation=int(done["rows_validation"]),
                manifest=done["manifest"],
                report=report,
            )
        except ValueError as error:
            raise Unusable("The check's result does not fit the dataset; check it again.") from error
        return {}

    def refuse(self, connection: Connection, code: str, detail: str) -> None:
        ours = code in _OURS
        dataset = self._store.by_job(connection, self.job.id)
        version = self._store.next_version(connection, dataset.id)
        path = report_path(dataset.id, version, self.job.claim.name)
        found = not ours and self.tools.storage.exists(path)  # there is none of a file that cannot be read
        self._store.reject(
            connection,
            self.job.claim,
            code=code,
            detail=detail,
            report=self._read_report(connection, dataset, path) if found else None,
            keep_upload=code in CURABLE or ours,
        )

    def tidy(self, job: Job) -> None:
        with self.tools.database.read() as connection:
            self._store.tidy(connection, self._id)
        self.remove_folder(job)

    def _read_report(self, connection: Connection, dataset: Dataset, path: str) -> dict[str, Any]:
        key = self._store.key(connection, dataset)
        with SealedReader(self.tools.storage.open(path), key, place=place_of(path)) as reader:
            report: dict[str, Any] = json.loads(reader.readall())
        return report

    def _dataset(self, connection: Connection) -> Dataset:
        try:
            return self._store.by_job(connection, self.job.id)
        except NotFound as error:
            raise Unusable("There is no dataset for this check.") from error


#: Failures of this worker, not of the upload.
_OURS = frozenset({"unusable", "out-of-memory", "disk-full"})
