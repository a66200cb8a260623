"""Removes the weights that runs leave which will not go on, or failed long ago, and copies of adapters that
programs left which were killed. It moves no job.
"""

import logging
import shutil
import threading
from datetime import timedelta

from sqlalchemy import or_, select
from sqlalchemy.exc import DBAPIError

from services.worker_train.copies import remove_abandoned_copies
from services.worker_train.mirror import Checkpoints
from services.worker_train.work import Tools
from shared.db.tables import jobs
from shared.db.tables_training import datasets, training_runs
from shared.jobs.lifecycle import State
from shared.logs import where
from shared.storage import StorageAway
from shared.training.states import GONE

#: So long a failed run can go on from its last checkpoint, while its dataset is there.
KEPT = timedelta(days=30)
#: A run may be cancelled, or lose its dataset, while no worker has it in hand: hence from time to time.
EVERY_S = 3600.0
#: So long the end of a worker waits for a round under way; whatever it leaves, the next start removes.
_PATIENCE_S = 5.0
log = logging.getLogger(__name__)


class Sweep:
    """Removes them at the start, every hour and whenever it is woken, in a thread of its own: a storage that
    is away holds nobody up.
    """

    def __init__(self, tools: Tools, every_s: float = EVERY_S) -> None:
        self._tools, self._every_s = tools, every_s
        self._closing, self._due = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="sweep", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def wake(self) -> None:
        """Begin a round now, or as soon as the one under way has ended."""
        self._due.set()

    def close(self) -> None:
        """Begin no further round, and wait a moment for the one under way."""
        self._closing.set()
        self._due.set()
        if self._thread.is_alive():
            self._thread.join(_PATIENCE_S)

    def _run(self) -> None:
        while not self._closing.is_set():
            self._due.clear()
            try:
                remove_leftovers(self._tools)
            except (OSError, DBAPIError) as error:
                log.warning("weights that runs left could not be looked for: %s", where(error))
            except Exception as error:  # must outlive a bug in one round
                log.error("unexpected while weights were removed: %s", where(error))
            self._due.wait(self._every_s)


def remove_leftovers(tools: Tools) -> None:
    """Remove their checkpoints, here and in the storage, and the adapters that they or a killed program left
    here; what fails is said, and left for the next time. Raises OSError and DBAPIError where it cannot be
    found out which they are.
    """
    remove_abandoned_copies(tools.settings.state_dir)
    folder = tools.settings.state_dir.absolute() / "runs"
    here = {path.parent.name for part in ("checkpoints", "output") for path in folder.glob(f"*/{part}")}
    try:
        stored = {path.split("/")[1] for path in tools.storage.list("runs")}
    except StorageAway as error:  # what lies here goes all the same
        log.warning("weights in the storage could not be looked for: %s", where(error))
        stored = set()
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
        shutil.rmtree(folder / run_id / "output", ignore_errors=True)
        try:
            Checkpoints(tools.storage, tools.envelope, run_id, place, epoch=0).delete()
        except OSError as error:
            log.warning("checkpoints of run %s could not be removed: %s", run_id, where(error))
