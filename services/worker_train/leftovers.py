"""Removes the weights that runs leave which will not go on, or failed long ago. It moves no job."""

import shutil
from datetime import timedelta

from sqlalchemy import or_, select

from services.worker_train.mirror import Checkpoints
from services.worker_train.work import Tools
from shared.db.tables import jobs
from shared.db.tables_training import datasets, training_runs
from shared.jobs.lifecycle import State
from shared.training.states import GONE

#: So long a failed run can go on from its last checkpoint, while its dataset is there.
KEPT = timedelta(days=30)


def remove_leftovers(tools: Tools) -> None:
    """Remove their checkpoints, here and in the storage, and the adapters they wrote here. Raises OSError."""
    folder = tools.settings.state_dir.absolute() / "runs"
    here = {path.parent.name for part in ("checkpoints", "output") for path in folder.glob(f"*/{part}")}
    stored = {path.split("/")[1] for path in tools.storage.list("runs")}
    with tools.database.read() as connection:
        old = tools.jobs.clock.now(connection) - KEPT
        found = connection.execute(
            select(training_runs.c.id)
            .join(jobs, jobs.c.id == training_runs.c.job_id)
            .join(datasets, datasets.c.id == training_runs.c.dataset_id)
            .where(
                training_runs.c.id.in_(here | stored),
                or_(
                    # they will not go on: their worker died before it tidied up, is another host, had none
                    # of them in hand when they were cancelled, or lost them when their dataset was erased
                    jobs.c.state.in_([State.SUCCEEDED, State.CANCELLED]),
                    (jobs.c.state == State.FAILED)
                    & ((jobs.c.finished_at < old) | datasets.c.error.in_(GONE)),
                ),
            )
        ).scalars()
        ids = list(found)
    for run_id in ids:
        place = folder / run_id / "checkpoints"
        Checkpoints(tools.storage, tools.envelope, run_id, place, epoch=0).delete()
        shutil.rmtree(folder / run_id / "output", ignore_errors=True)
