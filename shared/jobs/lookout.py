"""Takes up the jobs that nobody rings for. It does not know what the work is.

The bell may be away, frozen or just back: whatever the reason, a job that waited for long while a worker
had a place free was not heard of. So each worker looks, and asks no Redis for it.
"""

import logging
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from sqlalchemy.exc import SQLAlchemyError

from shared.db import Database
from shared.jobs.lifecycle import Kind
from shared.jobs.store import JobStore
from shared.logs import where

log = logging.getLogger(__name__)


class Lookout:
    """Looks for such jobs every `JobRules.redispatch_s`, in a thread of its own."""

    def __init__(
        self,
        database: Database,
        jobs: JobStore,
        kinds: Iterable[Kind],
        work_off: Callable[[], None],
        *,
        places: int,
    ) -> None:
        """`work_off` works on jobs of these kinds, one after the other, until it finds none."""
        self._database, self._jobs = database, jobs
        self._kinds, self._work_off, self._most = tuple(kinds), work_off, places
        #: Whoever works holds one of them, rung for or not.
        self.places = threading.BoundedSemaphore(places)
        self._pool = ThreadPoolExecutor(places, thread_name_prefix="overlooked")
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lookout", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def close(self) -> None:
        """Look no more, and wait for the work under way: tell it to end before."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()
        self._pool.shutdown()

    def look(self) -> None:
        """Begin with what was overlooked, as far as places are free. Raises SQLAlchemyError."""
        with self._database.read() as connection:
            overlooked = self._jobs.count_overlooked(connection, self._kinds, self._most)
        for _ in range(overlooked):
            if not self.places.acquire(blocking=False):
                return  # whoever works takes the next one when there is time
            self._pool.submit(self._work)

    def _work(self) -> None:
        try:
            self._work_off()
        except Exception as error:  # nobody else would hear of it
            log.error("what was overlooked could not be worked on: %s", where(error))
        finally:
            self.places.release()

    def _run(self) -> None:
        while not self._closing.wait(self._jobs.rules.redispatch_s):
            try:
                self.look()
            except SQLAlchemyError as error:
                log.warning("cannot look for jobs (%s)", type(error).__name__)
            except Exception as error:  # must outlive a bug in one look
                log.error("unexpected while looking for jobs: %s", where(error))
