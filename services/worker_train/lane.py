"""Works jobs off, one at a time, whoever calls. It does not know what the work is."""

import threading
from collections.abc import Callable


class Lane:
    """Work that one thread at a time does; the others do not wait for it."""

    def __init__(self, take_next: Callable[[], bool]) -> None:
        """`take_next` does the next job, and returns whether to look for another."""
        self._take_next = take_next
        #: Who holds it works.
        self._lock = threading.Lock()
        #: Somebody asked since it was last looked for work.
        self._asked = threading.Event()

    def work_off(self) -> None:
        """There may be work: do all that there is, or leave it to who is at it already."""
        self._asked.set()
        # asked again once the lock is free: who found it taken after the last look left work behind
        while self._asked.is_set() and self._lock.acquire(blocking=False):
            try:
                self._asked.clear()
                while self._take_next():
                    continue
            finally:
                self._lock.release()
