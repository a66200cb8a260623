"""Erases a dataset: its key, and with it rows, report and samples. Adapters that saw it stay, and are named.

It does not delete files; without their key they say nothing, and whoever calls this deletes them afterwards.
"""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, null, or_, select, update

from shared.answers import record_end
from shared.audit import record
from shared.conversations import Conversations
from shared.db.tables import data_keys, jobs
from shared.db.tables_privacy import dataset_conversations
from shared.db.tables_training import adapters, datasets, evaluations, training_runs
from shared.errors import Conflict, NotFound, OnHold
from shared.jobs.records import Job
from shared.jobs.store import JobStore, active
from shared.privacy.holds import holds_on_dataset
from shared.training.states import ERASED, GONE, WITHDRAWN, AdapterStatus, DatasetState

_DETAILS = {
    ERASED: "This dataset was erased: its key was destroyed, so nobody can read or train on it any more.",
    WITHDRAWN: "Rows of this dataset came from a conversation that was erased, so it was withdrawn and "
    "cannot be trained on any more; export the reviewed answers again to make a new one.",
}


@dataclass(frozen=True, kw_only=True)
class AdapterSeen:
    """An adapter that was trained on rows that are erased."""

    sha256: str
    name: str
    version: int
    status: AdapterStatus


@dataclass(frozen=True, kw_only=True)
class ErasedDataset:
    """What became of a dataset."""

    key_ids: list[str]
    #: Work on it that was ended.
    jobs: list[Job]
    adapters: list[AdapterSeen]


def erase_dataset(
    connection: Connection,
    store: JobStore,
    conversations: Conversations,
    dataset_id: str,
    *,
    why: str,
    actor: record.Actor,
    now: datetime,
) -> ErasedDataset:
    """Destroy the dataset's key and end all work on it; `why` is one of `GONE`.

    Raises NotFound; Conflict when nothing was left of it before; and OnHold while rows of it come from a
    conversation that is held. What is withdrawn goes nevertheless: what is held of others stays in their
    conversations, and the erased words must not stay readable among their rows.
    """
    row = connection.execute(
        select(datasets.c.error, datasets.c.key_id).where(datasets.c.id == dataset_id).with_for_update()
    ).one_or_none()
    if row is None:
        raise NotFound("There is no dataset under this id.")
    if row.error in GONE:
        raise Conflict("This dataset was erased before.")
    if why == ERASED and (held := holds_on_dataset(connection, dataset_id)):
        raise OnHold(held)
    ended = []
    for job_id in _work_on(connection, dataset_id):
        job = store.cancel_at_once(connection, job_id)
        if job is not None:
            record_end(connection, conversations, job, actor=actor, now=now)
            ended.append(job)
    key_ids = destroy_keys(
        connection, or_(data_keys.c.key_id == row.key_id, data_keys.c.owner_id == dataset_id), now
    )
    connection.execute(
        update(evaluations).where(evaluations.c.key_id.in_(key_ids)).values(samples_ciphertext=None)
    )
    connection.execute(
        update(datasets)
        .where(datasets.c.id == dataset_id)
        .values(
            state=DatasetState.REJECTED,
            error=why,
            error_detail=_DETAILS[why],
            source_name_ciphertext=None,
            report_ciphertext=None,
            manifest=null(),
            sha256=None,
            progress=null(),
            progress_at=None,
        )
    )
    seen = adapters_trained_on(connection, adapters.c.dataset_id == dataset_id)
    record.append(
        connection,
        now=now,
        actor=actor,
        action="dataset.erased",
        object=f"dataset:{dataset_id}",
        reason=why,
        details={"keys": key_ids, "jobs": len(ended), "adapters": [each.sha256 for each in seen]},
    )
    return ErasedDataset(key_ids=key_ids, jobs=ended, adapters=seen)


def destroy_keys(connection: Connection, where: ColumnElement[bool], now: datetime) -> list[str]:
    """Destroy the data keys that match and still exist; returns their ids."""
    destroyed = connection.execute(
        update(data_keys)
        .where(where, data_keys.c.wrapped_key.is_not(None))
        .values(wrapped_key=None, destroyed_at=now)
        .returning(data_keys.c.key_id)
    )
    return sorted(destroyed.scalars())


def adapters_trained_on(connection: Connection, where: ColumnElement[bool]) -> list[AdapterSeen]:
    """The adapters that match, the oldest first."""
    rows = connection.execute(
        select(adapters.c.sha256, adapters.c.name, adapters.c.version, adapters.c.status)
        .where(where)
        .order_by(adapters.c.created_at, adapters.c.sha256)
    )
    return [AdapterSeen(**{**row._mapping, "status": AdapterStatus(row.status)}) for row in rows]


def made_from(conversation_ids: ColumnElement[bool]) -> ColumnElement[bool]:
    """Whether a row of `adapters` saw rows of the conversations that match; for a WHERE."""
    return adapters.c.dataset_id.in_(select(dataset_conversations.c.dataset_id).where(conversation_ids))


def _work_on(connection: Connection, dataset_id: str) -> list[str]:
    """The jobs that check it, train on it or measure with it now."""
    own = [
        select(datasets.c.job_id).where(datasets.c.id == dataset_id),
        select(training_runs.c.job_id).where(training_runs.c.dataset_id == dataset_id),
        select(evaluations.c.job_id).where(evaluations.c.dataset_id == dataset_id),
        # on other rows too it reads what its adapter was trained on
        select(evaluations.c.job_id)
        .join(adapters, adapters.c.sha256 == evaluations.c.adapter_sha256)
        .where(adapters.c.dataset_id == dataset_id),
    ]
    found = select(jobs.c.id).where(or_(*(jobs.c.id.in_(each) for each in own)), active())
    return list(connection.execute(found.order_by(jobs.c.id)).scalars())
