"""Training runs: the program fine-tunes, its steps become the curve, its adapter a candidate.

It does not know how training works. Checkpoints are mirrored to the storage, so that any host can go on.
"""

import hashlib
import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row, select, update

from services.worker_train.child import KNOWN_STEP
from services.worker_train.mirror import Checkpoints, copy_in
from services.worker_train.supervise import ProgramEvent
from services.worker_train.work import Tools, Unusable, Work
from shared.db.tables_training import adapters, training_runs
from shared.errors import InvalidInput
from shared.jobs.lifecycle import EventKind, State
from shared.jobs.records import Job
from shared.logs import where
from shared.training.adapter_files import CARD, FILES, WEIGHTS, hash_files
from shared.training.adapters import AdapterStore, NewAdapter
from shared.training.progress import StepReport, add_note, known_step, record_steps
from shared.training.recipe import Recipe, stored_recipe

log = logging.getLogger(__name__)


class TrainWork(Work):
    """A training run."""

    no_memory = (
        "The device has too little memory for this, even at batch size 1: choose quantisation nf4, "
        "fewer max_tokens or a lower rank."
    )

    def __init__(self, tools: Tools, job: Job) -> None:
        super().__init__(tools, job)
        self._run: Row[Any] | None = None
        self._recipe = Recipe()
        #: As the program that runs said that it runs: it may cut the passes smaller.
        self._ran = self._recipe
        self._card = self._files_sha256 = ""
        #: The first event of a step by the program that runs: it stays the first when it is stored once more,
        #: after a transaction that failed.
        self._first: ProgramEvent | None = None
        #: How many programs were started in this attempt.
        self._programs = 0
        #: The last step in the curve before the program that runs.
        self._known_step = 0
        #: The time when this process's monotonic clock read 0: found once, so that later steps are later.
        self._clock_zero: datetime | None = None
        self._mirror_failed = False
        #: Steps of checkpoints in the storage that are not as they were mirrored.
        self._skipped: list[int] = []

    @property
    def run(self) -> Row[Any]:
        """The run's row, as it was when the work began."""
        assert self._run is not None
        return self._run

    @property
    def folder(self) -> Path:
        return self.tools.settings.state_dir.absolute() / "runs" / str(self.run.id)

    @property
    def checkpoints(self) -> Checkpoints:
        """The run's checkpoints."""
        return Checkpoints(
            self.tools.storage,
            self.tools.envelope,
            self.run.id,
            self.folder / "checkpoints",
            epoch=self.job.epoch,
        )

    def open(self, connection: Connection) -> None:
        self._run = connection.execute(
            select(training_runs).where(training_runs.c.job_id == self.job.id)
        ).one_or_none()
        if self._run is None:
            raise Unusable("There is no training run for this job.")
        try:
            self._recipe = stored_recipe(self._run.recipe)
        except InvalidInput as error:
            raise Unusable(
                f"{error.detail} It was made for another release of MediChat: start a new run."
            ) from error

    def arguments(self) -> list[str]:
        self._programs += 1
        self._first, self._ran = None, self._recipe
        checkpoints = self.checkpoints
        checkpoints.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        _, self._skipped = checkpoints.fetch()
        recipe = self.folder / "RUN.yaml"
        recipe.write_text(self._recipe.to_yaml(), encoding="utf-8")
        return [str(recipe), "--supervised"]

    def environment(self) -> dict[str, str]:
        added = super().environment()
        if self._recipe.processes > 1:
            del added["CUDA_VISIBLE_DEVICES"]
        return added | {KNOWN_STEP: str(self._known_step)}

    def started(self, connection: Connection, now: datetime) -> None:
        super().started(connection, now)
        self._known_step = known_step(connection, self.run.id)
        self._set(connection, waiting_reason=None)
        if self._programs == 1 and self._was_lost(connection):
            self.note(
                connection,
                f"The worker that ran it stopped answering; {self.tools.worker_id} took it up.",
                now,
            )
        for skipped in self._skipped:
            self.note(
                connection,
                f"The checkpoint of step {skipped} in the storage is not used: it was damaged or changed, or "
                "is of an earlier release.",
                now,
            )
        step = self.checkpoints.newest()
        if step is not None:
            self.note(
                connection, f"Goes on from the checkpoint of step {step}, on {self.tools.worker_id}.", now
            )

    def keep_files(self, events: Sequence[ProgramEvent], stopped: Callable[[], bool]) -> None:
        for step in [int(event.fields["step"]) for event in events if event.name == "checkpoint"][-1:]:
            try:
                self.checkpoints.mirror(step, stopped)
                self._mirror_failed = False
            except OSError as error:  # the checkpoint on this host is whole, and training goes on
                log.warning("checkpoint %d of run %s is not mirrored: %s", step, self.run.id, where(error))
                self._mirror_failed = True

    def record(self, connection: Connection, events: Sequence[ProgramEvent], now: datetime) -> None:
        if self._clock_zero is None:
            self._clock_zero = now - timedelta(seconds=time.monotonic())
        zero = self._clock_zero
        steps = [event for event in events if event.name == "step"]
        if steps:
            self._first = self._first or steps[0]
            reports = [
                StepReport.from_fields(event.fields, zero + timedelta(seconds=event.received))
                for event in steps
            ]
            record_steps(connection, self.run.id, reports, starting=steps[0] is self._first)
        for event in events:
            if event.name == "history":
                at = zero + timedelta(seconds=event.received)
                told = [StepReport.from_fields(fields, at) for fields in event.fields["steps"]]
                record_steps(connection, self.run.id, told, starting=False)
            elif event.name == "note":
                self.note(connection, str(event.fields["text"]), now)
            elif event.name == "estimate":
                self._set(connection, estimate=dict(event.fields))
            elif event.name == "plan":
                self._refuse_other_base(str(event.fields["base_revision"]))
                plan = {name: event.fields[name] for name in ("total_steps", "base_revision")}
                self._set(connection, **plan, waiting_reason=None)
                passes = {name: event.fields[name] for name in ("batch_size", "accumulation")}
                self._ran = self._recipe.changed(passes)
            elif event.name == "checkpoint" and self._mirror_failed:
                self.note(
                    connection, "A checkpoint could not be copied to the storage; only this host has it.", now
                )

    def _refuse_other_base(self, revision: str) -> None:
        """Raise Unusable when it would go on, from a checkpoint, over other weights than it began with."""
        before = self.run.base_revision
        if before is not None and before != revision and self.checkpoints.newest() is not None:
            raise Unusable(
                f"The run began on other weights of {self.run.base_model} than those that are here now: "
                "restore them and start it again, or start a new run."
            )

    def note(self, connection: Connection, text: str, now: datetime) -> None:
        add_note(connection, self.run.id, text, now)

    def shrink(self, connection: Connection, now: datetime) -> bool:
        smaller = self._ran.after_out_of_memory()
        if smaller is None:
            return False
        self._recipe = smaller
        self._set(connection, recipe=smaller.model_dump(mode="json"))
        text = (
            "The device ran out of memory: started again with batch size "
            f"{smaller.batch_size} and accumulation {smaller.accumulation}"
            f"{', with gradient checkpointing' if smaller.gradient_checkpointing else ''}."
        )
        self.note(connection, text, now)
        return True

    def wait(self, connection: Connection, reason: str) -> None:
        self._set(connection, waiting_reason=reason)

    def is_new(self, connection: Connection, done: Mapping[str, Any]) -> bool:
        """The files of an adapter that is registered stay as they were hashed."""
        known = select(adapters.c.sha256).where(adapters.c.sha256 == str(done["sha256"]))
        return connection.execute(known).first() is None

    def deliver(self, done: Mapping[str, Any]) -> None:
        folder, sha256 = self.folder / "output", str(done["sha256"])
        if missing := [name for name in FILES if not (folder / name).is_file()]:
            raise Unusable(f"The adapter lacks {' and '.join(missing)}; train again.")
        if _hash(folder / WEIGHTS) != sha256:
            raise Unusable("The adapter's weights are not what the program said; train again.")
        self._card = (folder / CARD).read_text(encoding="utf-8")
        self._files_sha256 = hash_files(folder)
        for name in FILES:
            copy_in(self.tools.storage, folder / name, f"adapters/{sha256}/{name}")

    def conclude(self, connection: Connection, done: Mapping[str, Any], now: datetime) -> dict[str, Any]:
        new = NewAdapter(
            sha256=str(done["sha256"]),
            files_sha256=self._files_sha256,
            name=self.run.name,
            run_id=self.run.id,
            dataset_id=self.run.dataset_id,
            base_model=self.run.base_model,
            base_revision=str(done["base_revision"]),
            bytes=int(done["bytes"]),
            card=self._card,
        )
        store = AdapterStore(self.tools.jobs.clock, self.tools.envelope)
        adapter = store.add(connection, new, self.tools.actor)
        if adapter.run_id != self.run.id:
            known = f"version {adapter.version} of {adapter.name}"
            self.note(connection, f"The same weights are {known} already; they are not added again.", now)
        self._set(
            connection, metrics=dict(done["metrics"]), base_revision=new.base_revision, waiting_reason=None
        )
        return {"adapter_sha256": new.sha256}

    def tidy(self, job: Job) -> None:
        if job.state is not State.FAILED:  # a failed run may be started again
            self.checkpoints.delete()
            shutil.rmtree(self.folder / "output", ignore_errors=True)

    def _was_lost(self, connection: Connection) -> bool:
        """Whether the worker before this one let its lease run out: it could leave no note."""
        events = self.tools.jobs.events(connection, self.job.id)
        before = [event.kind for event in events if event.seq == self.job.event_seq - 1]
        return before == [EventKind.LEASE_EXPIRED]

    def _set(self, connection: Connection, **values: Any) -> None:
        connection.execute(update(training_runs).where(training_runs.c.id == self.run.id).values(**values))


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
