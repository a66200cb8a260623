"""Keeps one process running: `python -m services.keep [--of PID] COMMAND…`. It does not know what it does.

`medichat up` puts it in front of each process, because honcho stops all of them when one ends; and says with
`--of` whose they are, so that they do not outlive it when it is killed and can stop nothing any more.
"""

import argparse
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import psutil  # type: ignore[import-untyped]

from shared.logs import configure_logging

log = logging.getLogger(__name__)

#: A process that ran for this long is started again at once.
_LONG_S = 60.0
_LONGEST_PAUSE_S = 60.0


def keep(command: list[str], wanted: Callable[[], bool] = lambda: True) -> int:
    """Run `command` again whenever it ends, until SIGTERM, SIGINT or nobody wants it: then it gets SIGTERM.

    Returns its last exit status. One that ends with `os.EX_CONFIG` says that its configuration must be
    changed before it can run, so it is given up at once; any other may do better after a pause.
    """
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    pause_s = 0.0
    while True:
        begun = time.monotonic()
        process = subprocess.Popen(command)
        while process.poll() is None:
            if stopping.wait(0.2) or not wanted():
                process.send_signal(signal.SIGTERM)
                return process.wait()
        if process.returncode == os.EX_CONFIG:
            return process.returncode
        pause_s = next_pause_s(pause_s, time.monotonic() - begun)
        log.warning(
            "a process ended with status %d and is started again in %.0f s", process.returncode, pause_s
        )
        if stopping.wait(pause_s) or not wanted():
            return 0


def next_pause_s(pause_s: float, ran_s: float) -> float:
    """How long to wait before the next start: longer each time, unless the process had run for long."""
    return 0.0 if ran_s >= _LONG_S else min(max(1.0, 2 * pause_s), _LONGEST_PAUSE_S)


def lives(pid: int) -> Callable[[], bool]:
    """Tells whether the process that has this number now still runs; not one that gets the number later."""
    try:
        process = psutil.Process(pid)
    except psutil.NoSuchProcess:
        return lambda: False

    def runs() -> bool:
        with suppress(psutil.NoSuchProcess):
            return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
        return False

    return runs


def main() -> int:
    """Keep the command that the arguments name; returns its last exit status."""
    parser = argparse.ArgumentParser(description="Keep one process running.")
    parser.add_argument("--of", type=int, metavar="PID", help="end with this process")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    chosen = parser.parse_args()
    return keep(chosen.command, lives(chosen.of)) if chosen.of else keep(chosen.command)


if __name__ == "__main__":
    configure_logging("keep")
    sys.exit(main())
