"""A process that checks pages of the log beside the one that verifies it: `python -m shared.audit.helper`.

It reads JSON lines from its standard input: first `{"database": URL}`, then `[start, end]` of each page. For
each it prints one JSON line with what it found. It ends with its input, and so with who started it; it reads
the database by itself, and is handed nothing but these lines.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from queue import SimpleQueue
from typing import IO, Any

from sqlalchemy import Connection

from shared.audit.pages import PAGE, Page, Pages, bounds
from shared.audit.reading import by_index
from shared.db.engine import Database, connect

#: Pages that it is asked for at once, so that it never waits; and those that may lie ready before their turn.
AHEAD, MOST_READY = 2, 16


class Helper:
    """The process, as who started it sees it."""

    def __init__(self, database: Database) -> None:
        """Raises ChildProcessError if it cannot be started."""
        try:
            self._process = subprocess.Popen(
                # -P: nothing is imported from the folder that one happens to be in
                [sys.executable, "-P", "-m", "shared.audit.helper"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                process_group=0,  # Ctrl-C is for who started it
            )
        except OSError as error:
            raise ChildProcessError(f"No process could be started to help ({error.strerror}).") from error
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to: IO[bytes] = self._process.stdin
        self._lines: SimpleQueue[bytes] = SimpleQueue()
        # a pipe holds less than one answer: it must be emptied for the process to go on
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
        self._reader.start()
        self.asked = 0
        self._send({"database": database.reader.url.render_as_string(hide_password=False)})

    def ask(self, start: int, end: int) -> None:
        """Have it check the entries from `start` up to `end`. Raises ChildProcessError if it ended."""
        self._send([start, end])
        self.asked += 1

    @property
    def ready(self) -> bool:
        """Whether an answer is there already."""
        return not self._lines.empty()

    def answer(self) -> Page:
        """The next page that it was asked for, in order. Raises ChildProcessError if it ended."""
        line = self._lines.get()
        if not line.endswith(b"\n"):  # it was killed, and perhaps in the middle of a line
            raise _ended()
        self.asked -= 1
        return _page_of(json.loads(line))

    def end(self, *, at_once: bool) -> None:
        """End it, and wait for that."""
        if at_once:
            self._process.kill()
        with suppress(OSError):  # it may have ended
            self._to.close()
        self._process.wait()
        self._reader.join()

    def _send(self, what: Any) -> None:
        try:
            self._to.write(json.dumps(what).encode() + b"\n")
            self._to.flush()
        except OSError as error:
            raise _ended() from error

    def _read(self, lines: IO[bytes]) -> None:
        with lines:
            for line in lines:
                self._lines.put(line)
        self._lines.put(b"")


@contextmanager
def helping(database: Database) -> Iterator[Helper]:
    """A helper for as long as the block lasts. Raises ChildProcessError if it cannot be started."""
    helper = Helper(database)
    try:
        yield helper
    except BaseException:
        helper.end(at_once=True)
        raise
    helper.end(at_once=False)


def checked(connection: Connection, helper: Helper | None, size: int = PAGE) -> Iterator[Page]:
    """All pages of the log in their order, some checked by the helper and some here.

    Args:
        size: the entries of a page.
    """
    here, still = Pages(connection), bounds(connection, size)
    if helper is None:
        for start, end in still:
            yield here.check(start, end)
        return
    ready: deque[Page | None] = deque()  # None: the helper has it
    while True:
        while helper.asked < AHEAD and (more := next(still, None)):
            helper.ask(*more)
            ready.append(None)
        if not ready:
            return
        page = ready[0]
        if page is not None:
            ready.popleft()
            yield page
        elif helper.ready or len(ready) >= MOST_READY or not (more := next(still, None)):
            ready.popleft()
            yield helper.answer()
        else:
            ready.append(here.check(*more))


def _ended() -> ChildProcessError:
    return ChildProcessError("The process that helped to verify the log ended before the log did.")


def _line_of(page: Page) -> str:
    return json.dumps({**asdict(page), "leaves": [leaf.hex() for leaf in page.leaves]})


def _page_of(told: dict[str, Any]) -> Page:
    return Page(**{**told, "leaves": [bytes.fromhex(leaf) for leaf in told["leaves"]]})


def main() -> None:
    """Check the pages that standard input names."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # nobody is left who wants to know
    database = connect(json.loads(sys.stdin.readline())["database"], pool_size=1)
    try:
        with database.read() as connection, by_index(connection):
            pages = Pages(connection)
            for line in sys.stdin:
                sys.stdout.write(_line_of(pages.check(*json.loads(line))) + "\n")
                sys.stdout.flush()
    finally:
        database.close()


if __name__ == "__main__":
    main()
