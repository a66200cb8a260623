"""The datasets in the database: received, checked, read, hidden. It does not know how rows are checked.

    receiving ──received──> validating ──mark_ready──> ready ──revalidate──> validating …
                                └───────reject───────> rejected ──revalidate──┘

Every method that takes a connection runs in the caller's transaction.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, delete, null, select, update

from shared.audit import record
from shared.db.rows import put
from shared.db.tables import data_keys, jobs
from shared.db.tables_privacy import dataset_conversations
from shared.db.tables_training import datasets, evaluations, training_runs
from shared.errors import Conflict, DatasetDamaged, NotFound
from shared.guard.verdict import Audience
from shared.ids import new_id
from shared.jobs.lifecycle import Kind, Lane, State
from shared.jobs.records import Claim, Job, NewJob
from shared.jobs.store import JobStore, active
from shared.privacy.envelope import CannotDecrypt, DataKey, Envelope, KeyDestroyed
from shared.privacy.keys import create_data_key, load_data_keys
from shared.storage import Storage
from shared.training.dataset_files import (
    DatasetReader,
    Manifest,
    Split,
    folder_of,
    hash_manifest,
    image_path,
    raw_path,
    version_folder,
)
from shared.training.dataset_records import Dataset, name_place, select_datasets
from shared.training.options import DatasetOptions
from shared.training.states import GONE, DatasetState

#: An upload from which nothing came for this long has died with its gateway.
SILENT_FOR = timedelta(minutes=10)
_CHECKS = 3  # attempts


@dataclass(frozen=True)
class By:
    """Who acts on a dataset, and in whose audience their jobs are."""

    user_id: str
    audience: Audience
    actor: record.Actor


class DatasetStore:
    """Datasets and their files; safe to share between threads."""

    def __init__(self, envelope: Envelope, storage: Storage, jobs: JobStore) -> None:
        self.storage = storage
        self._envelope = envelope
        self._jobs = jobs

    # -- receiving

    def create(
        self,
        connection: Connection,
        *,
        name: str | None,
        source: str,
        source_name: str,
        options: DatasetOptions,
        by: By,
        now: datetime,
    ) -> tuple[str, DataKey]:
        """A new dataset that receives its bytes; returns its id and the data key to seal them with.

        Without a name it is called by its hub id, or by when it came.
        """
        dataset_id = new_id()
        key = create_data_key(connection, self._envelope, scope="dataset", owner_id=dataset_id, now=now)
        if name is None:
            # the name stands in the clear, as that of a file must not
            name = source_name[-100:] if source == "hub" else f"Data of {now:%d %b %Y, %H:%M}"
        row = {
            "id": dataset_id,
            "name": name,
            "state": DatasetState.RECEIVING,
            "source": source,
            # a hub id is public, and the worker that fetches it reads it; a file's name may name a person
            "source_name": source_name if source == "hub" else "",
            "source_name_ciphertext": None if source == "hub" else _seal_name(key, dataset_id, source_name),
            "options": options.model_dump(mode="json"),
            "key_id": key.key_id,
            "progress_at": now,
            "created_by": by.user_id,
            "created_at": now,
        }
        put(connection, datasets, row)
        return dataset_id, key

    def note_received(
        self, connection: Connection, dataset_id: str, *, done: int, total: int | None, now: datetime
    ) -> None:
        """Say how many bytes are here. Raises Conflict when the dataset was given up meanwhile."""
        self._change(
            connection,
            dataset_id,
            datasets.c.state == DatasetState.RECEIVING,
            progress={"done": done, "total": total, "what": "bytes received"},
            progress_at=now,
        )

    def received(
        self,
        connection: Connection,
        dataset_id: str,
        *,
        size: int | None,
        sha256: str | None,
        by: By,
        now: datetime,
    ) -> Job:
        """All bytes are in storage: submit the check, and log it. Raises Conflict.

        `size` and `sha256` are None for what the worker has yet to download.
        """
        self._change(
            connection,
            dataset_id,
            datasets.c.state == DatasetState.RECEIVING,
            bytes=size,
            sha256=sha256,
        )
        return self._submit(
            connection, dataset_id, "dataset.received", by, now, {"bytes": size, "sha256": sha256}
        )

    def abandon(self, connection: Connection, dataset_id: str) -> bool:
        """Forget a dataset that was not received to its end, and whose files the caller has deleted.

        Returns whether it is gone; it is not when it was received after all.
        """
        receiving = select(datasets.c.id).where(
            datasets.c.id == dataset_id, datasets.c.state == DatasetState.RECEIVING
        )
        connection.execute(
            delete(dataset_conversations).where(dataset_conversations.c.dataset_id.in_(receiving))
        )
        gone = connection.execute(
            delete(datasets)
            .where(datasets.c.id == dataset_id, datasets.c.state == DatasetState.RECEIVING)
            .returning(datasets.c.key_id)
        ).scalar_one_or_none()
        if gone is not None:
            connection.execute(delete(data_keys).where(data_keys.c.key_id == gone))
        left = connection.execute(select(datasets.c.id).where(datasets.c.id == dataset_id))
        return left.first() is None

    def silent(self, connection: Connection, now: datetime) -> list[str]:
        """The ids of datasets whose gateway died while it received them."""
        silent = (datasets.c.state == DatasetState.RECEIVING) & (datasets.c.progress_at < now - SILENT_FOR)
        found = select(datasets.c.id).where(silent).order_by(datasets.c.id)
        return list(connection.execute(found).scalars())

    def delete_files(self, dataset_id: str) -> None:
        """Remove everything of a dataset from storage."""
        self.storage.delete(folder_of(dataset_id))

    # -- finding

    def get(self, connection: Connection, dataset_id: str) -> Dataset:
        """One dataset that is not hidden. Raises NotFound."""
        return self._one(connection, (datasets.c.id == dataset_id) & datasets.c.hidden_at.is_(None))

    def by_job(self, connection: Connection, job_id: str) -> Dataset:
        """The dataset whose newest check this job is, hidden or not. Raises NotFound."""
        return self._one(connection, datasets.c.job_id == job_id)

    def list(
        self, connection: Connection, *, limit: int, where: ColumnElement[bool] | None = None
    ) -> list[Dataset]:
        """Datasets that are not hidden, the newest first."""
        wanted = select_datasets().where(datasets.c.hidden_at.is_(None))
        if where is not None:
            wanted = wanted.where(where)
        wanted = wanted.order_by(datasets.c.created_at.desc(), datasets.c.id.desc()).limit(limit)
        return [Dataset.from_row(row, self._envelope) for row in connection.execute(wanted)]

    def dead_checks(self, connection: Connection) -> dict[str, str]:
        """The jobs of checks that were ended without a result, and the dataset of each, hidden or not.

        No worker may have tidied up after one: it died, or had it in hand no more.
        """
        ended = (
            select(datasets.c.job_id, datasets.c.id)
            .join(jobs, jobs.c.id == datasets.c.job_id)
            .where(
                datasets.c.state == DatasetState.VALIDATING,
                jobs.c.state.in_([State.FAILED, State.CANCELLED]),
            )
        )
        return {row.job_id: row.id for row in connection.execute(ended)}

    # -- changing

    def revalidate(
        self, connection: Connection, dataset_id: str, options: DatasetOptions, *, by: By, now: datetime
    ) -> Job:
        """Check the upload again with other options. Raises NotFound, or Conflict when it is in use.

        Once a run was trained on it, never again: its rows and manifest then say where an adapter came from,
        and its held-out rows must stay those that the adapter has not seen.
        """
        # a run that is submitted at this moment is seen below, or finds the dataset in its check
        connection.execute(select(datasets.c.id).where(datasets.c.id == dataset_id).with_for_update())
        dataset = self.get(connection, dataset_id)
        _refuse_gone(dataset)
        self._refuse_in_use(connection, dataset)
        used = select(training_runs.c.id).where(training_runs.c.dataset_id == dataset_id).limit(1)
        if connection.execute(used).first() is not None:
            raise Conflict(
                "A training run has used this dataset, so its rows stay as they are; to check the file with "
                "other options, upload it again as a new dataset."
            )
        if dataset.sha256 is None and dataset.source != "hub":
            raise Conflict("This upload could not be read and was not kept; upload it again.")
        self._change(
            connection,
            dataset_id,
            datasets.c.job_id == dataset.job_id,  # nobody else was faster
            options=options.model_dump(mode="json"),
            report_ciphertext=None,  # it is of the former check, however this one ends
            error=None,
            error_detail=None,
        )
        return self._submit(connection, dataset_id, "dataset.revalidated", by, now, {})

    def hide(self, connection: Connection, dataset_id: str, *, by: By, now: datetime) -> Job | None:
        """Take a dataset out of the list; it is not erased. Returns the check that this stopped, if one ran.

        Raises NotFound, or Conflict when it is in use.
        """
        dataset = self.get(connection, dataset_id)
        stopped = None
        if dataset.state is DatasetState.VALIDATING and dataset.job_id is not None:
            stopped = self._jobs.cancel(connection, dataset.job_id)
        else:
            self._refuse_in_use(connection, dataset)
        self._change(connection, dataset_id, datasets.c.hidden_at.is_(None), hidden_at=now)
        record.append(
            connection, now=now, actor=by.actor, action="dataset.hidden", object=f"dataset:{dataset_id}"
        )
        return stopped

    # -- what the supervisor of a check writes; the claim fences each

    def note_progress(
        self, connection: Connection, claim: Claim, *, done: int, total: int | None, what: str
    ) -> None:
        """How far the check is; `what` is a word of ours. Raises LeaseLost."""
        now = self._jobs.hold(connection, claim)
        connection.execute(
            update(datasets)
            .where(datasets.c.job_id == claim.job_id)
            .values(progress={"done": done, "total": total, "what": what}, progress_at=now)
        )

    def mark_ready(
        self,
        connection: Connection,
        claim: Claim,
        *,
        rows_train: int,
        rows_validation: int,
        manifest: dict[str, Any],
        report: dict[str, Any],
    ) -> Dataset:
        """The check yielded these parts. The caller ends the job in the same transaction, then calls `tidy`.

        Raises LeaseLost, and ValueError for a manifest that does not fit the dataset.
        """
        now = self._jobs.hold(connection, claim)
        dataset = self.by_job(connection, claim.job_id)
        checked = Manifest.model_validate(manifest)
        folder = version_folder(dataset.id, self.next_version(connection, dataset.id), claim.name)
        _require_fitting(checked, folder, rows_train, rows_validation)
        connection.execute(
            update(datasets)
            .where(datasets.c.id == dataset.id)
            .values(
                state=DatasetState.READY,
                shape=checked.shape,
                rows_train=rows_train,
                rows_validation=rows_validation,
                manifest=manifest,
                manifest_sha256=hash_manifest(manifest),
                sha256=None if dataset.source == "hub" else dataset.sha256 or checked.raw_sha256,
                report_ciphertext=self._seal_report(connection, dataset, report),
                progress=null(),
                progress_at=None,
                validated_at=now,
            )
        )
        return self.by_job(connection, claim.job_id)

    def reject(
        self,
        connection: Connection,
        claim: Claim,
        *,
        code: str,
        detail: str,
        report: dict[str, Any] | None = None,
        keep_upload: bool = False,
    ) -> Dataset:
        """The check found that the dataset cannot be used. The caller ends the job too, then calls `tidy`.

        Rows of an earlier version stay readable. `keep_upload`: other options may cure it. Raises LeaseLost.
        """
        now = self._jobs.hold(connection, claim)
        dataset = self.by_job(connection, claim.job_id)
        values: dict[str, Any] = {} if keep_upload or dataset.manifest_sha256 else {"sha256": None}
        if report is not None:
            values["report_ciphertext"] = self._seal_report(connection, dataset, report)
        connection.execute(
            update(datasets)
            .where(datasets.c.id == dataset.id)
            .values(
                state=DatasetState.REJECTED,
                error=code,
                error_detail=detail,
                progress=null(),
                progress_at=None,
                validated_at=now,
                **values,
            )
        )
        return self.by_job(connection, claim.job_id)

    def tidy(self, connection: Connection, dataset_id: str) -> None:
        """Remove files that a dataset no longer needs, once the end of its check is committed.

        Nothing happens when it is being checked again. A check that begins meanwhile loses nothing: it writes
        files of its own only, which are not among those listed here. Where the manifest was altered, nobody
        can tell what is needed, and all stays.
        """
        files = self.storage.list(folder_of(dataset_id))
        dataset = self._one(connection, datasets.c.id == dataset_id)
        if dataset.state not in (DatasetState.READY, DatasetState.REJECTED):
            return
        try:
            manifest = self.manifest(connection, dataset_id)
        except DatasetDamaged:
            return
        needed = set() if manifest is None and dataset.sha256 is None else {raw_path(dataset_id)}
        if manifest is not None:
            needed |= {part.path for part in manifest.parts}
            needed |= {image.path or image_path(dataset_id, image.sha256) for image in manifest.images}
        for path in files:
            if path not in needed:
                self.storage.delete(path)

    def seal_names(self, connection: Connection) -> int:
        """Seal the names of files that an earlier release stored in the clear; returns how many it sealed.

        The name of a dataset that was erased goes too; one whose key cannot be read keeps its name.
        """
        count = 0
        clear = connection.execute(
            select(datasets.c.id, datasets.c.key_id, datasets.c.source_name).where(
                datasets.c.source != "hub", datasets.c.source_name != ""
            )
        ).all()
        for row in clear:
            try:
                key = load_data_keys(connection, self._envelope, [row.key_id])[row.key_id]
                sealed = _seal_name(key, row.id, row.source_name)
            except KeyDestroyed:
                sealed = None
            except CannotDecrypt:  # the others wait for nothing
                continue
            connection.execute(
                update(datasets)
                .where(datasets.c.id == row.id)
                .values(source_name="", source_name_ciphertext=sealed)
            )
            count += 1
        return count

    # -- reading

    def key(self, connection: Connection, dataset: Dataset) -> DataKey:
        """The dataset's data key. Raises KeyDestroyed."""
        return load_data_keys(connection, self._envelope, [dataset.key_id])[dataset.key_id]

    def manifest(self, connection: Connection, dataset_id: str) -> Manifest | None:
        """What the dataset consists of; None as long as no check has succeeded. Raises DatasetDamaged."""
        row = connection.execute(
            select(datasets.c.manifest, datasets.c.manifest_sha256).where(datasets.c.id == dataset_id)
        ).one()
        return None if row.manifest is None else Manifest.stored(row.manifest, row.manifest_sha256)

    def next_version(self, connection: Connection, dataset_id: str) -> int:
        """The number of the version that a check under way writes (of its folder `v<n>-<attempt>`).

        It is found in a manifest that was altered too: that check is what makes a whole one.
        """
        stored = connection.execute(
            select(datasets.c.manifest).where(datasets.c.id == dataset_id)
        ).scalar_one()
        return 1 if stored is None else Manifest.model_validate(stored).version + 1

    def reader(self, connection: Connection, dataset_id: str) -> DatasetReader:
        """Reads the rows, after the connection is gone too.

        Raises NotFound, Conflict when unchecked, or DatasetDamaged when the manifest was altered.
        """
        dataset = self.get(connection, dataset_id)
        _refuse_gone(dataset)
        manifest = self.manifest(connection, dataset_id)
        if manifest is None:
            raise Conflict("This dataset has no rows yet; wait until its check has ended.")
        return DatasetReader(self.storage, self.key(connection, dataset), dataset_id, manifest)

    def read_rows(self, connection: Connection, dataset_id: str, split: Split) -> Iterator[dict[str, Any]]:
        """All rows of a split; see `DatasetReader.rows`."""
        return self.reader(connection, dataset_id).rows(split)

    def read_report(self, connection: Connection, dataset: Dataset) -> dict[str, Any] | None:
        """The report of the newest check; None when there is none."""
        sealed = connection.execute(
            select(datasets.c.report_ciphertext).where(datasets.c.id == dataset.id)
        ).scalar_one()
        if sealed is None:
            return None
        text = self.key(connection, dataset).decrypt(sealed, place=_report_place(dataset.id))
        report: dict[str, Any] = json.loads(text)
        return report

    # -- inside

    def _one(self, connection: Connection, where: ColumnElement[bool]) -> Dataset:
        row = connection.execute(select_datasets().where(where)).one_or_none()
        if row is None:
            raise NotFound("There is no dataset under this id.")
        return Dataset.from_row(row, self._envelope)

    def _change(
        self, connection: Connection, dataset_id: str, where: ColumnElement[bool], **values: Any
    ) -> None:
        changed = connection.execute(
            update(datasets).where(datasets.c.id == dataset_id, where).values(**values)
        )
        if changed.rowcount != 1:
            raise Conflict("The dataset is not in a state that allows this; reload it and try again.")

    def _submit(
        self,
        connection: Connection,
        dataset_id: str,
        action: str,
        by: By,
        now: datetime,
        details: dict[str, Any],
    ) -> Job:
        new = NewJob(
            id=new_id(),
            kind=Kind.VALIDATE,
            lane=Lane.BATCH,
            user_id=by.user_id,
            audience=by.audience,
            max_attempts=_CHECKS,
        )
        job = self._jobs.submit(connection, new, now)
        connection.execute(
            update(datasets)
            .where(datasets.c.id == dataset_id)
            .values(state=DatasetState.VALIDATING, job_id=job.id, progress=null(), progress_at=None)
        )
        record.append(
            connection,
            now=now,
            actor=by.actor,
            action=action,
            object=f"dataset:{dataset_id}",
            details={"job": job.id, **details},
        )
        return job

    def _refuse_in_use(self, connection: Connection, dataset: Dataset) -> None:
        if dataset.state in (DatasetState.RECEIVING, DatasetState.VALIDATING):
            raise Conflict("The dataset is being received or checked; wait until that has ended.")
        for table in (training_runs, evaluations):
            using = (
                select(table.c.id)
                .join(jobs, jobs.c.id == table.c.job_id)
                .where(table.c.dataset_id == dataset.id, active())
            )
            if connection.execute(using.limit(1)).first() is not None:
                raise Conflict("A training run or evaluation uses this dataset; wait for it or cancel it.")

    def _seal_report(self, connection: Connection, dataset: Dataset, report: dict[str, Any]) -> bytes:
        text = json.dumps(report, ensure_ascii=False, allow_nan=False)
        return self.key(connection, dataset).encrypt(text, place=_report_place(dataset.id))


def _report_place(dataset_id: str) -> str:
    return f"dataset_report:{dataset_id}"


def _refuse_gone(dataset: Dataset) -> None:
    if dataset.error in GONE:
        raise Conflict(dataset.error_detail)


def _seal_name(key: DataKey, dataset_id: str, name: str) -> bytes:
    return key.encrypt(name, place=name_place(dataset_id))


def _require_fitting(manifest: Manifest, folder: str, rows_train: int, rows_validation: int) -> None:
    paths = [part.path for part in manifest.parts]
    paths += [image.path for image in manifest.images if image.path is not None]
    if not manifest.parts or any(not path.startswith(f"{folder}/") for path in paths):
        raise ValueError(f"the manifest must name parts in {folder}, and nothing else")
    counted = manifest.count(Split.TRAIN), manifest.count(Split.VALIDATION)
    if counted != (rows_train, rows_validation):
        raise ValueError(f"the manifest counts {counted} rows, not {(rows_train, rows_validation)}")
