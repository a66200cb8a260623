"""Writes how a training run fares: its steps, and notes for people. The caller fences the transaction.

A step that is trained again, after a crash, replaces its row, and rows after it are dropped: the curve that
a person sees is the one that led to the weights.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, delete, func, select
from sqlalchemy.dialects import postgresql, sqlite

from shared.db.rows import put
from shared.db.tables_training import training_notes, training_steps

#: What a program may report of a step.
FIGURES = ("loss", "eval_loss", "learning_rate", "grad_norm", "tokens_per_s", "memory_mb")


@dataclass(frozen=True)
class StepReport:
    """Figures of one step, as far as they are known at that moment."""

    step: int
    at: datetime
    figures: Mapping[str, float]

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any], at: datetime) -> "StepReport":
        """From the fields of a program's `step` event. Raises KeyError, TypeError or ValueError."""
        figures = {name: float(fields[name]) for name in FIGURES if fields.get(name) is not None}
        return cls(int(fields["step"]), at, figures)


def known_step(connection: Connection, run_id: str) -> int:
    """The last step of which there are figures; 0 for none."""
    last = select(func.max(training_steps.c.step)).where(training_steps.c.run_id == run_id)
    step: int | None = connection.execute(last).scalar_one()
    return step or 0


def record_steps(
    connection: Connection, run_id: str, reports: Sequence[StepReport], *, starting: bool
) -> None:
    """Store figures; those of a step that is known already are added to it.

    `starting`: these are the first of a program that has just begun, so that what was stored of its first
    step and of later ones was trained in vain. A look at the held-out rows alone trains no step again.
    A step with a loss is as of now, by which a reader sees that it was trained again.
    """
    if starting:
        kept = reports[0].step if "loss" not in reports[0].figures else reports[0].step - 1
        connection.execute(
            delete(training_steps).where(training_steps.c.run_id == run_id, training_steps.c.step > kept)
        )
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    for report in reports:
        row = {"run_id": run_id, "step": report.step, "at": report.at, **report.figures}
        key = [training_steps.c.run_id, training_steps.c.step]
        made = insert(training_steps).values(row)
        if report.figures:
            changed = {**report.figures, **({"at": report.at} if "loss" in report.figures else {})}
            connection.execute(made.on_conflict_do_update(index_elements=key, set_=changed))
        else:
            connection.execute(made.on_conflict_do_nothing(index_elements=key))


def add_note(connection: Connection, run_id: str, text: str, now: datetime) -> None:
    """Tell people something about a run, in words of ours."""
    last = connection.execute(
        select(func.max(training_notes.c.seq)).where(training_notes.c.run_id == run_id)
    ).scalar_one()
    put(connection, training_notes, {"run_id": run_id, "seq": (last or 0) + 1, "at": now, "text": text})
