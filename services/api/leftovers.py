"""Removes files of datasets that nobody else removes. It knows no run, and no dataset that was erased.

They are what came of an upload whose gateway died, and what a check wrote whose worker died in its last
attempt, or that was cancelled while no worker had it in hand.
"""

import logging
from datetime import datetime

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
        #: The checks that were tidied up after; a dataset that is checked again has another job.
        self._tidied: set[str] = set()

    def round(self, now: datetime) -> None:
        """Forget uploads that were given up, and tidy up after checks that died."""
        self._forget(now)
        self._tidy()

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
                log.warning("files of dataset %s could not be removed: %s", dataset_id, where(error))
                return  # to ask for each would hold up the round
            except OSError as error:
                log.warning("files of dataset %s could not be removed: %s", dataset_id, where(error))
                continue
            with self._gateway.database.write() as connection:
                gone = self._datasets.abandon(connection, dataset_id)
            if gone:
                log.warning("dataset %s was forgotten: nothing more of its upload came", dataset_id)

    def _is_silent(self, dataset_id: str) -> bool:
        with self._gateway.database.read() as connection:
            now = self._gateway.clock.now(connection)
            return dataset_id in self._datasets.silent(connection, now)

    def _tidy(self) -> None:
        with self._gateway.database.read() as connection:
            dead = self._datasets.dead_checks(connection)
        self._tidied &= dead.keys()
        for job_id in dead.keys() - self._tidied:
            try:
                with self._gateway.database.read() as connection:
                    self._datasets.tidy(connection, dead[job_id])
            except StorageAway as error:
                log.warning("files of dataset %s could not be removed: %s", dead[job_id], where(error))
                return
            except OSError as error:
                log.warning("files of dataset %s could not be removed: %s", dead[job_id], where(error))
                continue
            self._tidied.add(job_id)
