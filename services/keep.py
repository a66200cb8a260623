"""Keeps one process running: `python -m services.keep COMMAND…`. It does not know what the command does.

`medichat up` puts it in front of each process, because honcho stops all of them when one ends.
"""

import logging
import signal
import subprocess
import sys
import threading
import time

from shared.logs import configure_logging

log = logging.getLogger(__name__)

#: A process that ends sooner than this after its start cannot run here at all.
_TOO_SOON_S = 5.0


def keep(command: list[str]) -> int:
    """Run `command` again whenever it ends, until SIGTERM or SIGINT, which it gets too.

    Returns its last exit status; one that does not even start is given up at once.
    """
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    while True:
        begun = time.monotonic()
        process = subprocess.Popen(command)
        while process.poll() is None:
            if stopping.wait(0.2):
                process.send_signal(signal.SIGTERM)
                return process.wait()
        if time.monotonic() - begun < _TOO_SOON_S and process.returncode > 0:
            return process.returncode
        log.warning("a process ended with status %d and is started again", process.returncode)


if __name__ == "__main__":
    configure_logging("keep")
    sys.exit(keep(sys.argv[1:]))
