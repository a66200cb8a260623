"""What a dataset looks like to the code that handles it. It changes nothing.

A dataset whose check died (the job failed or was cancelled) is seen as rejected, whoever ended the job.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row, Select, select

from shared.db.tables import data_keys, jobs
from shared.db.tables_training import datasets
from shared.jobs.lifecycle import State
from shared.privacy.envelope import CannotDecrypt, Envelope, KeyDestroyed
from shared.training.states import DatasetState

#: Told in the place of a file's name that was tampered with, or whose key this server lacks.
UNREADABLE = "(cannot be read)"
#: Large ones, which few need, and what only queries use.
_LEFT_OUT = ("manifest", "report_ciphertext", "hidden_at")
_COLUMNS = tuple(column for column in datasets.c if column.name not in _LEFT_OUT)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A dataset's row, and how its check fares."""

    id: str
    name: str
    state: DatasetState
    source: str
    #: The file's name, its path on the server, or the hub id; empty when it was erased, `UNREADABLE` when it
    #: cannot be decrypted.
    source_name: str
    options: dict[str, Any]
    key_id: str
    job_id: str | None
    bytes: int | None
    #: Of the upload; None when it was thrown away, and for a dataset of the hub.
    sha256: str | None
    #: The commit of a dataset of the hub, once it was checked.
    revision: str | None
    shape: str | None
    rows_train: int | None
    rows_validation: int | None
    #: None as long as no check has succeeded.
    manifest_sha256: str | None
    progress: dict[str, Any] | None
    progress_at: datetime | None
    error: str | None
    error_detail: str | None
    created_by: str
    created_at: datetime
    validated_at: datetime | None

    @classmethod
    def from_row(cls, row: Row[Any], envelope: Envelope) -> "Dataset":
        """Build from a row of `select_datasets()`."""
        values = dict(row._mapping)
        sealed, *key = (values.pop(name) for name in ("source_name_ciphertext", "wrapped_key", "key_version"))
        if sealed is not None:
            values["source_name"] = _open_name(envelope, row, sealed, *key)
        job_state, error, detail = (values.pop(f"job_{name}") for name in ("state", "error", "error_detail"))
        values["state"] = DatasetState(values["state"])
        if values["state"] is DatasetState.VALIDATING and job_state in (State.FAILED, State.CANCELLED):
            values["state"] = DatasetState.REJECTED
            values["error"] = error or "cancelled"
            values["error_detail"] = detail or "The check was stopped; start it again."
        return cls(**values)


def select_datasets() -> Select[Any]:
    """The columns of `Dataset`, for every dataset."""
    found = select(
        *_COLUMNS,
        data_keys.c.wrapped_key,
        data_keys.c.master_key_version.label("key_version"),
        datasets.c.manifest["revision"].as_string().label("revision"),
        jobs.c.state.label("job_state"),
        jobs.c.error.label("job_error"),
        jobs.c.error_detail.label("job_error_detail"),
    )
    found = found.outerjoin(jobs, jobs.c.id == datasets.c.job_id)
    return found.join(data_keys, data_keys.c.key_id == datasets.c.key_id)


def name_place(dataset_id: str) -> str:
    """What the ciphertext of a file's name is bound to."""
    return f"dataset_source_name:{dataset_id}"


def _open_name(envelope: Envelope, row: Row[Any], sealed: bytes, wrapped: bytes | None, version: int) -> str:
    try:
        return envelope.unwrap(row.key_id, wrapped, version).decrypt(sealed, place=name_place(row.id))
    except KeyDestroyed:  # a dataset that was erased is still listed
        return ""
    except CannotDecrypt:
        return UNREADABLE
