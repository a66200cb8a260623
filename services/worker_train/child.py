"""The programs that do the work run as subprocesses; here is how one speaks to who supervises it.

Events go out as JSON, a line each, on standard output, which is kept for them alone; words for people go to
standard error. Standard input is a pipe that nobody writes to: its end means that the supervisor died.
"""

import json
import os
import signal
import sys
import threading
from enum import IntEnum
from typing import Any, NoReturn

from shared.errors import MediChatError

_lock = threading.Lock()
_follows = threading.Event()
#: Serving is never starved: where both share the processors, answers come first.
_NICER = 10
#: The environment variable in which a training program is told the last step of its curve that is known: from
#: there on it tells again, in the event `history`, what its checkpoint knows.
KNOWN_STEP = "KNOWN_STEP"


class Exit(IntEnum):
    """How a program ended, as its exit status; anything else is a crash, which is worth another attempt."""

    DONE = 0
    AWAY = 69  #: what it needs cannot be reached: worth another attempt; the `stopped` event says why
    OUT_OF_MEMORY = 71  #: try again with a smaller batch
    DRAINED = 75  #: told to stop (SIGTERM); a checkpoint is saved
    WAIT = 77  #: there is no room beside what serves; try again later
    REFUSED = 78  #: will never work as it is; the `stopped` event says why and what to do


class Refused(MediChatError):
    """The work cannot be done as it is; the message says what to change."""

    status = Exit.REFUSED

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = code


class Away(Refused):
    """What the work needs cannot be reached, which may pass; the message says what to do when it does not."""

    status = Exit.AWAY


def emit(event: str, **fields: Any) -> None:
    """Tell the supervisor. `fields` are JSON; no person's words among them."""
    line = json.dumps({"event": event, **fields}, allow_nan=False)
    with _lock:
        try:
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
        except BrokenPipeError:
            if not _follows.is_set():
                raise
            _end_all()  # the supervisor is gone: this thread may be the first to see it


def stop(status: Exit, code: str, detail: str) -> NoReturn:
    """End the program for a known reason: `code` is stable, `detail` says what to do."""
    emit("stopped", code=code, detail=detail)
    sys.exit(status)


def follow_parent() -> None:
    """Serve the supervisor: give way to the answers of this machine, and end at once when it is gone.

    Nobody would hear of what it does then. With it end the helpers that it started, if it leads their
    process group.
    """
    os.nice(_NICER)
    _follows.set()

    def wait() -> None:
        while os.read(0, 1024):
            continue
        _end_all()

    threading.Thread(target=wait, name="follow-parent", daemon=True).start()


def is_supervised() -> bool:
    """Whether a worker started this program, and not a person."""
    return _follows.is_set()


def _end_all() -> NoReturn:
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)
