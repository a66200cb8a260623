"""Removes the checkpoints of runs that have their adapter, or ended without one long ago. It moves no job."""

from datetime import timedelta

from sqlalchemy import or_, select

from services.worker_train.mirror import Checkpoints
from services.worker_train.work import Tools
from shared.db.tables import jobs
from shared.db.tables_training import training_runs
from shared.jobs.lifecycle import State

#: So long a failed run can go on from its last checkpoint.
KEPT = timedelta(days=30)


def remove_old_checkpoints(tools: Tools) -> None:
    """Remove them from this host and from the storage. Raises OSError."""
    folder = tools.settings.state_dir.absolute() / "runs"
    here = {path.parent.name for path in folder.glob("*/checkpoints")}
    stored = {path.split("/")[1] for path in tools.storage.list("runs")}
    with tools.database.read() as connection:
        old = tools.jobs.clock.now(connection) - KEPT
        found = connection.execute(
            select(training_runs.c.id)
            .join(jobs, jobs.c.id == training_runs.c.job_id)
            .where(
                training_runs.c.id.in_(here | stored),
                or_(
                    jobs.c.state
                    == State.SUCCEEDED,  # its worker died before it tidied up, or is another host
                    jobs.c.state.in_([State.FAILED, State.CANCELLED]) & (jobs.c.finished_at < old),
                ),
            )
        ).scalars()
        ids = list(found)
    for run_id in ids:
        place = folder / run_id / "checkpoints"
        Checkpoints(tools.storage, tools.envelope, run_id, place, epoch=0).delete()
