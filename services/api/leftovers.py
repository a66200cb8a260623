"""Removes files of datasets that nobody else removes. It knows no run, and no dataset that was erased.

They are what came of an upload whose gateway died, or could not remove it when it broke off, and what a check
wrote whose worker died in its last attempt, or that was cancelled while no worker had it in hand.
"""

import logging
from datetime import datetime, timedelta

from services.api.state import Gateway
from shared.logs import where
from shared.storage import Storage, StorageAway
from shared.training.datasets import DatasetStore

log = logging.getLogger(__name__)


class Leftovers:
    """What maintenance does about them; the storage may fail, and then the next round does it."""

    def __init__(self, gateway: Gateway, storage: Storage | None = None) -> None:
        """`storage`: that of the settings, unless it is given; asked in haste, lest it hold up a round."""
        self._gateway = gateway
        storage = storage or Storage(gateway.settings.storage_url, patient=False)
        self._datasets = DatasetStore(gateway.envelope, storage, gateway.jobs)
        #: When it was tidied up after a check at first; a dataset that is checked again has another job.
        self._tidied: dict[str, datetime] = {}
        #: The checks that were tidied up after once more: a worker that was cut off may still have written.
        self._settled: set[str] = set()
        #: The datasets whose files could not be removed, which was said.
        self._stuck: set[str] = set()

    def round(self, now: datetime) -> None:
        """Forget uploads that were given up, and tidy up after checks that died."""
        self._forget(now)
        self._tidy(now)

    def _forget(self, now: datetime) -> None:
        """Files go first: as long as they cannot, the row stays and says which they are."""
        with self._gateway.database.read() as connection:
            silent = self._datasets.silent(connection, now)
        for dataset_id in silent:
            if not self._is_silent(dataset_id):  # it came after all, while others were seen to
                continue
            try:
                self._datasets.delete_files(dataset_id)
            except StorageAway as error:
                self._say_stuck(dataset_id, error)
                return  # to ask for each would hold up the round
            except OSError as error:
                self._say_stuck(dataset_id, error)
                continue
            self._stuck.discard(dataset_id)
            with self._gateway.database.write() as connection:
                gone = self._datasets.abandon(connection, dataset_id)
            if gone:
                log.warning("dataset %s was forgotten: nothing more of its upload came", dataset_id)

    def _is_silent(self, dataset_id: str) -> bool:
        with self._gateway.database.read() as connection:
            now = self._gateway.clock.now(connection)
            return dataset_id in self._datasets.silent(connection, now)

    def _tidy(self, now: datetime) -> None:
        with self._gateway.database.read() as connection:
            dead = self._datasets.dead_checks(connection)
        self._tidied = {job_id: at for job_id, at in self._tidied.items() if job_id in dead}
        self._settled &= dead.keys()
        late = now - timedelta(seconds=2 * self._gateway.settings.lease_s)
        for job_id in dead.keys() - self._settled:
            if self._tidied.get(job_id, late) > late:
                continue
            try:
                with self._gateway.database.read() as connection:
                    self._datasets.tidy(connection, dead[job_id])
            except StorageAway as error:
                self._say_stuck(dead[job_id], error)
                return
            except OSError as error:
                self._say_stuck(dead[job_id], error)
                continue
            self._stuck.discard(dead[job_id])
            if job_id in self._tidied:
                self._settled.add(job_id)
            self._tidied.setdefault(job_id, now)

    def _say_stuck(self, dataset_id: str, error: OSError) -> None:
        """Once until it goes: a round comes every few seconds."""
        if dataset_id in self._stuck:
            return
        self._stuck.add(dataset_id)
        log.warning(
            "files of dataset %s could not be removed: %s; it is tried again and again: see that the gateway "
            "may delete in MEDICHAT_STORAGE_URL",
            dataset_id,
            where(error),
        )
