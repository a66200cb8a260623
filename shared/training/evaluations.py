"""Keeps evaluations of adapters in the database. It measures nothing; the figures are handed in.

Every method runs in the caller's transaction, so that an evaluation, its job and its audit event are
committed together or not at all.
"""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Select, select, update

from shared.audit import record
from shared.db.rows import put
from shared.db.tables import jobs
from shared.db.tables_training import adapters, datasets, evaluations
from shared.errors import Conflict, NotFound
from shared.guard.verdict import Audience
from shared.ids import new_id
from shared.jobs.lifecycle import Kind, Lane
from shared.jobs.records import Claim, Job, NewJob
from shared.jobs.store import JobStore
from shared.jobs.store import active as active_job
from shared.privacy.envelope import DataKey, Envelope, KeyDestroyed
from shared.privacy.keys import load_data_keys
from shared.privacy.sealed import SealedReader
from shared.storage import Storage
from shared.training.adapters import why_unmeasurable
from shared.training.gate import Gate, Limits, judge
from shared.training.states import OF_REVIEWS, AdapterStatus, DatasetState


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One measuring of an adapter against its base."""

    id: str
    job_id: str
    adapter_sha256: str
    #: Whose held-out rows are used.
    dataset_id: str
    #: Whether that is what the adapter was trained on; only then does it decide the adapter's gate.
    own: bool
    #: None until it ended.
    figures: dict[str, Any] | None
    gate: dict[str, Any] | None
    passed: bool | None
    created_by: str
    created_at: datetime


_OWN = "own"
_COLUMNS = select(
    *(evaluations.c[name] for name in Evaluation.__dataclass_fields__ if name != _OWN),
    (evaluations.c.dataset_id == adapters.c.dataset_id).label(_OWN),
).join(adapters, adapters.c.sha256 == evaluations.c.adapter_sha256)


class EvaluationStore:
    """The evaluations in the database; safe to share between threads."""

    def __init__(self, jobs: JobStore, envelope: Envelope, *, limits: Limits | None = None) -> None:
        """`limits`: how much worse than its base an adapter may be."""
        self._jobs = jobs
        self._envelope = envelope
        self._limits = limits or Limits()

    def submit(
        self,
        connection: Connection,
        *,
        adapter_sha256: str,
        dataset_id: str | None,
        user_id: str,
        actor: record.Actor,
        now: datetime,
    ) -> Evaluation:
        """Ask for an evaluation, on the held-out rows of the adapter's own dataset unless another is named;
        that one is kept and shown, and does not count for its promotion.

        Raises:
            NotFound: there is no such adapter or dataset.
            Conflict: the adapter was recalled, or what it was trained on was erased, or the dataset has no
                held-out rows, or the adapter is being measured on them already.
        """
        adapter = connection.execute(
            select(adapters.c.status, adapters.c.dataset_id)
            .where(adapters.c.sha256 == adapter_sha256)
            # a recall, which ends evaluations, and whoever asks for one too wait and then see this one
            .with_for_update(key_share=True)
        ).one_or_none()
        if adapter is None:
            raise NotFound("There is no adapter of this SHA-256.")
        if adapter.status == AdapterStatus.RECALLED:
            raise Conflict("The adapter was recalled; there is nothing to evaluate it for.")
        dataset_id = dataset_id or str(adapter.dataset_id)
        own = dataset_id == adapter.dataset_id
        _check_dataset(connection, dataset_id, own=own)
        if why_unmeasurable(connection, str(adapter.dataset_id), on_others=True):
            raise Conflict(
                "What the adapter was trained on was erased, so nobody can tell any more which rows it has "
                "learnt. Promote it by an override with a reason, or train it again on another dataset."
            )
        on_the_same = evaluations.c.dataset_id == dataset_id
        if connection.execute(_under_way(adapter_sha256).where(on_the_same)).first() is not None:
            raise Conflict("The adapter is being measured on these rows already; wait for it, or cancel it.")
        new = NewJob(
            id=new_id(), kind=Kind.EVALUATE, user_id=user_id, audience=Audience.CLINICIAN, lane=Lane.BATCH
        )
        self._jobs.submit(connection, new, now)
        evaluation = Evaluation(
            id=new_id(),
            job_id=new.id,
            adapter_sha256=adapter_sha256,
            dataset_id=dataset_id,
            own=own,
            figures=None,
            gate=None,
            passed=None,
            created_by=user_id,
            created_at=now,
        )
        row = {name: value for name, value in evaluation.__dict__.items() if name != _OWN}
        put(connection, evaluations, row)
        record.append(
            connection,
            now=now,
            actor=actor,
            action="evaluation.submitted",
            object=f"evaluation:{evaluation.id}",
            details={"adapter": adapter_sha256, "dataset": dataset_id, "job": new.id},
        )
        return evaluation

    def cancel(
        self, connection: Connection, evaluation_id: str, *, actor: record.Actor, now: datetime
    ) -> Job | None:
        """Ask for the end of an evaluation. Returns its job as it is then; None when that changed nothing.

        Raises NotFound.
        """
        stopped = self._jobs.cancel(connection, self.get(connection, evaluation_id).job_id)
        if stopped is None:
            return None
        record.append(
            connection,
            now=now,
            actor=actor,
            action="evaluation.cancel_asked",
            object=f"evaluation:{evaluation_id}",
            details={"job": stopped.id},
        )
        return stopped

    def cancel_all(
        self, connection: Connection, adapter_sha256: str, *, actor: record.Actor, now: datetime
    ) -> list[Job]:
        """Ask for the end of every evaluation of an adapter; returns the jobs that this changed."""
        found = connection.execute(_under_way(adapter_sha256)).scalars().all()
        asked = (self.cancel(connection, each, actor=actor, now=now) for each in found)
        return [job for job in asked if job is not None]

    def get(self, connection: Connection, evaluation_id: str) -> Evaluation:
        """One evaluation. Raises NotFound."""
        row = connection.execute(_COLUMNS.where(evaluations.c.id == evaluation_id)).one_or_none()
        if row is None:
            raise NotFound("There is no evaluation of this id.")
        return Evaluation(**row._mapping)

    def of_job(self, connection: Connection, job_id: str) -> Evaluation:
        """The evaluation that a job carries out. Raises NotFound."""
        row = connection.execute(_COLUMNS.where(evaluations.c.job_id == job_id)).one_or_none()
        if row is None:
            raise NotFound("There is no evaluation of this job.")
        return Evaluation(**row._mapping)

    def of_adapter(self, connection: Connection, adapter_sha256: str) -> list[Evaluation]:
        """An adapter's evaluations, newest first."""
        rows = connection.execute(
            _COLUMNS.where(evaluations.c.adapter_sha256 == adapter_sha256).order_by(
                evaluations.c.created_at.desc(), evaluations.c.id.desc()
            )
        )
        return [Evaluation(**row._mapping) for row in rows]

    def newest_gate(self, connection: Connection, adapter_sha256: str) -> dict[str, Any] | None:
        """The gate of the adapter's newest finished evaluation on its own rows; None when there is none."""
        found = (one for one in self.of_adapter(connection, adapter_sha256) if one.own)
        return next((one.gate for one in found if one.gate is not None), None)

    def record_end(
        self, connection: Connection, claim: Claim, *, figures: Mapping[str, Any], samples: Mapping[str, Any]
    ) -> Gate:
        """Keep what was measured, and what the gate makes of it; the caller finishes the job with it.

        Raises LeaseLost when the claim is no longer good.
        """
        self._jobs.hold(connection, claim)
        evaluation = self.of_job(connection, claim.job_id)
        key = self._dataset_key(connection, evaluation.dataset_id)
        gate = judge(figures, self._limits)
        connection.execute(
            update(evaluations)
            .where(evaluations.c.id == evaluation.id)
            .values(
                figures=dict(figures),
                gate=gate.to_json(),
                passed=gate.passed,
                samples_ciphertext=key.encrypt(json.dumps(samples), place=_place(evaluation.id)),
                key_id=key.key_id,
            )
        )
        return gate

    def samples(self, connection: Connection, evaluation_id: str) -> dict[str, Any]:
        """The texts behind the figures; empty until it ended. Raises KeyDestroyed when they were erased."""
        row = connection.execute(
            select(evaluations.c.samples_ciphertext, evaluations.c.key_id).where(
                evaluations.c.id == evaluation_id
            )
        ).one()
        if row.key_id is None:
            return {}
        if row.samples_ciphertext is None:
            raise KeyDestroyed
        key = load_data_keys(connection, self._envelope, [row.key_id])[row.key_id]
        found: dict[str, Any] = json.loads(key.decrypt(row.samples_ciphertext, place=_place(evaluation_id)))
        return found

    def is_of_conversations(self, connection: Connection, evaluation: Evaluation) -> bool:
        """Whether rows that it was measured on, or its adapter trained on, are of people's conversations."""
        trained_on = select(adapters.c.dataset_id).where(adapters.c.sha256 == evaluation.adapter_sha256)
        found = select(datasets.c.id).where(
            datasets.c.source == OF_REVIEWS,
            (datasets.c.id == evaluation.dataset_id) | datasets.c.id.in_(trained_on),
        )
        return connection.execute(found.limit(1)).first() is not None

    def sealed_samples(self, connection: Connection, storage: Storage, job_id: str) -> dict[str, Any]:
        """The samples as the evaluating program left them in storage. Raises CannotDecrypt."""
        evaluation = self.of_job(connection, job_id)
        key = self._dataset_key(connection, evaluation.dataset_id)
        sealed = SealedReader(storage.open(samples_path(evaluation.id)), key, place=_place(evaluation.id))
        with io.BufferedReader(sealed) as file:
            found: dict[str, Any] = json.load(file)
        return found

    def _dataset_key(self, connection: Connection, dataset_id: str) -> DataKey:
        key_id: str = connection.execute(
            select(datasets.c.key_id).where(datasets.c.id == dataset_id)
        ).scalar_one()
        return load_data_keys(connection, self._envelope, [key_id])[key_id]


def _under_way(adapter_sha256: str) -> Select[Any]:
    """The ids of the adapter's evaluations that wait or run."""
    return (
        select(evaluations.c.id)
        .join(jobs, jobs.c.id == evaluations.c.job_id)
        .where(evaluations.c.adapter_sha256 == adapter_sha256, active_job())
    )


def samples_path(evaluation_id: str) -> str:
    """Where the evaluating program leaves the samples, sealed."""
    return f"evaluations/{evaluation_id}/samples.json"


def _place(evaluation_id: str) -> str:
    return f"evaluation:{evaluation_id}"


def _check_dataset(connection: Connection, dataset_id: str, *, own: bool) -> None:
    """What an adapter was trained on (its `own`) may be out of the list: its rows are kept."""
    dataset = connection.execute(
        select(datasets.c.state, datasets.c.rows_validation, datasets.c.hidden_at).where(
            datasets.c.id == dataset_id
        )
    ).one_or_none()
    if dataset is None or (dataset.hidden_at is not None and not own):
        raise NotFound("There is no dataset of this id.")
    gone = why_unmeasurable(connection, dataset_id) if own else None
    if gone is not None:
        raise Conflict(
            f"The adapter cannot be measured on its own held-out rows: {gone}. Promote it by an override "
            "with a reason, or train it again on a dataset that holds rows out."
        )
    if dataset.state != DatasetState.READY or not dataset.rows_validation:
        raise Conflict("The dataset has no held-out rows that are ready; validate it with a share for them.")
