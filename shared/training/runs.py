"""The training runs in the database: submitted, listed, read. It does not know how training works.

A run's state is its job's; the rest is in tables of its own. Methods run in the caller's transaction.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, func, or_, select, update

from shared.audit import record
from shared.db.rows import put
from shared.db.tables import jobs
from shared.db.tables_training import datasets, training_notes, training_runs, training_steps
from shared.errors import Conflict, InvalidInput, NotFound
from shared.ids import new_id
from shared.jobs.lifecycle import Kind, Lane, State
from shared.jobs.records import JOB_FIELDS, Job, NewJob
from shared.jobs.store import JobStore
from shared.training.datasets import By
from shared.training.progress import add_note
from shared.training.recipe import Recipe, load_preset
from shared.training.states import GONE, DatasetState, RunState
from shared.training.time_left import seconds_left

MAX_ATTEMPTS = 5


def folder_of(run_id: str) -> str:
    """The folder in the storage of what belongs to the run while it may go on: its checkpoints."""
    return f"runs/{run_id}"


@dataclass(frozen=True, kw_only=True)
class NewRun:
    """A wish to train."""

    name: str
    dataset_id: str
    preset: str
    #: Knobs that shall differ from the preset.
    changes: Mapping[str, Any]
    #: The model that the installation serves; an adapter of another could not answer here.
    model: str
    #: About the most tokens of a row of the dataset, as its check counted; None where that is not known.
    longest_row: int | None = None
    idempotency_key: str | None = None
    request_hmac: str | None = None


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run's row with its job's, and how far it is."""

    id: str
    name: str
    job: Job
    dataset_id: str
    dataset_name: str
    #: Of the dataset when the run was submitted, after which it stays; None in runs of before that was kept.
    manifest_sha256: str | None
    recipe: dict[str, Any]
    base_model: str
    base_revision: str | None
    estimate: dict[str, Any] | None
    waiting_reason: str | None
    total_steps: int | None
    metrics: dict[str, Any] | None
    created_by: str
    created_at: datetime
    #: The last step that was trained, 0 before the first.
    step: int

    @classmethod
    def from_row(cls, row: Row[Any]) -> "Run":
        """Build from a row of `_select()`."""
        values = dict(row._mapping)
        names = {name: values.pop(f"job_{name}") for name in JOB_FIELDS}
        return cls(**values, job=Job.from_values(names))

    @property
    def state(self) -> RunState:
        """Where the run is, as a person sees it."""
        if self.job.state is State.QUEUED and self.waiting_reason is not None:
            return RunState.WAITING
        if self.job.state is State.RUNNING and self.job.cancel_requested_at is not None:
            return RunState.CANCELLING
        return RunState(self.job.state.value)

    @property
    def percent(self) -> float:
        """How much of it is done."""
        if self.state is RunState.SUCCEEDED:
            return 100.0  # it may have stopped early
        return round(100.0 * min(1.0, self.step / self.total_steps), 1) if self.total_steps else 0.0


@dataclass(frozen=True)
class Note:
    """Something that a person should know of a run."""

    at: datetime
    text: str


class RunStore:
    """The runs; safe to share between threads."""

    def __init__(self, jobs: JobStore) -> None:
        self._jobs = jobs

    def find_repeat(self, connection: Connection, new: NewRun, *, by: By) -> Run | None:
        """The run that the same wish under the same Idempotency-Key made before; None when there is none.

        Raises IdempotencyMismatch when another wish had the key.
        """
        if new.idempotency_key is None or new.request_hmac is None:
            return None
        known = self._jobs.find_repeat(connection, by.user_id, new.idempotency_key, new.request_hmac)
        if known is None:
            return None
        # of a run that was started again its first job is the parent
        mine = or_(training_runs.c.job_id == known.id, jobs.c.parent_job_id == known.id)
        return self._one(connection, mine)

    def submit(self, connection: Connection, new: NewRun, *, by: By, now: datetime) -> Run:
        """Queue a run that is no repeat (see `find_repeat`), and log it.

        Raises NotFound for the dataset, Conflict when it is not ready, and InvalidInput for a recipe that
        cannot be used.
        """
        manifest_sha256 = _require_ready(connection, new.dataset_id)
        recipe = make_recipe(new)
        job = NewJob(
            id=new_id(),
            kind=Kind.TRAIN,
            lane=Lane.BATCH,
            user_id=by.user_id,
            audience=by.audience,
            max_attempts=MAX_ATTEMPTS,
            seed=recipe.seed % 2**31,
            idempotency_key=new.idempotency_key,
            request_hmac=new.request_hmac,
        )
        self._jobs.submit(connection, job, now)
        row = {
            "id": new_id(),
            "name": new.name,
            "job_id": job.id,
            "dataset_id": new.dataset_id,
            "manifest_sha256": manifest_sha256,
            "recipe": recipe.model_dump(mode="json"),
            "base_model": recipe.model,
            "created_by": by.user_id,
            "created_at": now,
        }
        put(connection, training_runs, row)
        if new.longest_row is not None and new.longest_row > recipe.max_tokens:
            text = (
                f"The longest row of the dataset takes about {new.longest_row:,} tokens, and max_tokens is "
                f"{recipe.max_tokens:,}: rows that do not fit will be left out. The run says how many when "
                "it starts; raise max_tokens to use them."
            )
            add_note(connection, str(row["id"]), text, now)
        record.append(
            connection,
            now=now,
            actor=by.actor,
            action="training.submitted",
            object=f"training_run:{row['id']}",
            details={
                "job": job.id,
                "dataset": new.dataset_id,
                "manifest_sha256": manifest_sha256,
                "preset": recipe.preset,
                "base_model": recipe.model,
            },
        )
        return self._one(connection, training_runs.c.id == row["id"])

    def resume(self, connection: Connection, run_id: str, *, by: By, now: datetime) -> Run:
        """Queue a failed run once more; it goes on from its last checkpoint, if one is left, and the log
        says so.

        Raises NotFound, and Conflict unless it failed and its dataset is there and was not removed.
        """
        run = self.get(connection, run_id)
        if run.state is not RunState.FAILED:
            raise Conflict(f"This run is {run.state}; only a failed one can be started again.")
        _require_ready(connection, run.dataset_id, own=True)
        job = NewJob(
            id=new_id(),
            kind=Kind.TRAIN,
            lane=Lane.BATCH,
            user_id=by.user_id,
            audience=by.audience,
            parent_job_id=run.job.parent_job_id or run.job.id,
            max_attempts=MAX_ATTEMPTS,
            seed=run.job.seed,
        )
        self._jobs.submit(connection, job, now)
        # claims go on counting where the former job ended: a checkpoint lies under the claim that wrote it
        connection.execute(update(jobs).where(jobs.c.id == job.id).values(epoch=run.job.epoch))
        taken = connection.execute(
            update(training_runs)
            .where(training_runs.c.id == run_id, training_runs.c.job_id == run.job.id)
            .values(job_id=job.id, waiting_reason=None)
        )
        if taken.rowcount != 1:
            raise Conflict
        add_note(connection, run_id, f"Started again after it failed: {run.job.error_detail}", now)
        record.append(
            connection,
            now=now,
            actor=by.actor,
            action="training.resumed",
            object=f"training_run:{run_id}",
            details={"job": job.id, "before": run.job.id},
        )
        return self.get(connection, run_id)

    def cancel(self, connection: Connection, run_id: str, *, by: By, now: datetime) -> Job | None:
        """Ask for the end of a run. Returns its job as it is then; None when that changed nothing.

        Raises NotFound.
        """
        stopped = self._jobs.cancel(connection, self.get(connection, run_id).job.id)
        if stopped is None:
            return None
        record.append(
            connection,
            now=now,
            actor=by.actor,
            action="training.cancel_asked",
            object=f"training_run:{run_id}",
            details={"job": stopped.id},
        )
        return stopped

    def get(self, connection: Connection, run_id: str) -> Run:
        """One run. Raises NotFound."""
        return self._one(connection, training_runs.c.id == run_id)

    def list(
        self, connection: Connection, *, limit: int, where: ColumnElement[bool] | None = None
    ) -> list[Run]:
        """Runs, the newest first."""
        wanted = _select() if where is None else _select().where(where)
        wanted = wanted.order_by(training_runs.c.created_at.desc(), training_runs.c.id.desc()).limit(limit)
        return [Run.from_row(row) for row in connection.execute(wanted)]

    def steps(
        self, connection: Connection, run_id: str, *, after: int = 0, limit: int = 10_000
    ) -> Sequence[Row[Any]]:
        """Figures of the steps after that one, in order; rows of `training_steps`."""
        return connection.execute(
            select(training_steps)
            .where(training_steps.c.run_id == run_id, training_steps.c.step > after)
            .order_by(training_steps.c.step)
            .limit(limit)
        ).all()

    def notes(self, connection: Connection, run_id: str) -> Sequence[Note]:
        """What a person should know, the oldest first."""
        rows = connection.execute(
            select(training_notes).where(training_notes.c.run_id == run_id).order_by(training_notes.c.seq)
        )
        return [Note(row.at, row.text) for row in rows]

    def seconds_left(self, connection: Connection, run: Run) -> float | None:
        """How long a running run will take; None when that cannot be said."""
        if run.state is not RunState.RUNNING or run.total_steps is None:
            return None
        left = seconds_left(
            connection,
            run.id,
            step=run.step,
            total_steps=run.total_steps,
            eval_steps=int(run.recipe["eval_steps"]),
        )
        if left is not None or run.step:
            return left
        estimated = (run.estimate or {}).get("seconds")
        return None if estimated is None else float(estimated)

    def _one(self, connection: Connection, where: ColumnElement[bool]) -> Run:
        row = connection.execute(_select().where(where)).one_or_none()
        if row is None:
            raise NotFound("There is no training run under this id.")
        return Run.from_row(row)


def make_recipe(new: NewRun) -> Recipe:
    """The preset with the changes, for this dataset. Raises InvalidInput, naming what cannot be used.

    A preset of the demo model is taken for another only with a learning rate: its own spoils a large model.
    """
    preset = load_preset(new.preset)
    known = {knob.name for knob in preset.knobs()}
    if unknown := set(new.changes) - known:
        raise InvalidInput(
            f"{len(unknown)} of the changes name no knob of a recipe; GET /v1/recipes lists the knobs."
        )
    if not preset.suits(new.model) and "learning_rate" not in new.changes:
        raise InvalidInput(
            f"The preset {new.preset} is for the demo model, and its learning rate is too high for "
            f"{new.model}: choose qlora or lora-bf16, or set learning_rate."
        )
    data = {**preset.data.model_dump(), "train": f"medichat:{new.dataset_id}", "validation": ""}
    return preset.changed({**new.changes, "model": new.model, "data": data})


def _require_ready(connection: Connection, dataset_id: str, *, own: bool = False) -> str | None:
    """The SHA-256 of the dataset's manifest, which is locked until the run is in the database.

    That it was removed is said to whoever starts a run of it again (its `own`); to others there is none.
    """
    dataset = connection.execute(
        select(
            datasets.c.state,
            datasets.c.manifest_sha256,
            datasets.c.error,
            datasets.c.error_detail,
            datasets.c.hidden_at,
        )
        .where(datasets.c.id == dataset_id)
        .with_for_update()
    ).one_or_none()
    if dataset is None or (dataset.hidden_at is not None and not own):
        raise NotFound("There is no dataset under this id.")
    if dataset.error in GONE:
        raise Conflict(dataset.error_detail)
    if dataset.hidden_at is not None:
        raise Conflict(
            "The dataset of this run was removed, so the run cannot be started again: upload the file again, "
            "and start a new run."
        )
    if dataset.state != DatasetState.READY:
        raise Conflict(
            "This dataset cannot be trained on: wait until its check has ended, or choose another."
        )
    sha256: str | None = dataset.manifest_sha256
    return sha256


_LAST_STEP = (
    select(func.max(training_steps.c.step))
    .where(training_steps.c.run_id == training_runs.c.id)
    .scalar_subquery()
)


def _select() -> Select[Any]:
    own = [column for column in training_runs.c if column.name != "job_id"]
    return (
        select(
            *own,
            datasets.c.name.label("dataset_name"),
            func.coalesce(_LAST_STEP, 0).label("step"),
            *(jobs.c[name].label(f"job_{name}") for name in JOB_FIELDS),
        )
        .join(jobs, jobs.c.id == training_runs.c.job_id)
        .join(datasets, datasets.c.id == training_runs.c.dataset_id)
    )
