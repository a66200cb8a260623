"""Runs every process of MediChat under honcho, in front of a terminal, until Ctrl-C; knows none of them."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

from services.local import PROCFILE, ROOT, answers, local_environment, undisturbed, workers_alive
from shared.settings import Settings

#: How often a start that takes long says what it waits for, in seconds.
STILL_S = 60.0
#: How long processes may take to end: a training has a minute for its checkpoint.
_STOP_S = 75.0
#: Ctrl-C counts as another when it comes so long after the last, in seconds: one that is held is one.
_AGAIN_S = 1.0
#: honcho kills what has not ended 5 s after the first process did; there is no option for it.
_HONCHO = f"from honcho import command, manager; manager.KILL_WAIT = {_STOP_S}; command.main()"


def run_honcho(
    settings: Settings,
    *,
    on_ready: Callable[[], None],
    on_wait: Callable[[str], None],
    on_stop: Callable[[], None],
) -> int:
    """Run every process under honcho until it ends or KeyboardInterrupt; returns the exit status.

    `on_ready` is called once all serve, `on_wait` from time to time before with what is missing, `on_stop`
    when it is interrupted.

    honcho gets a session of its own: signals of the terminal come here only, and are passed on in order.
    """
    # the PATH begins with this Python's folder, whose name may hold blanks
    environment = local_environment(settings, {"KEEP": f"python -m services.keep --of {os.getpid()}"})
    # neither a file .env nor $PORT, which honcho would take, is for these processes
    apart = ["-e", os.devnull, "-p", "5000"]
    command = [sys.executable, "-c", _HONCHO, "start", "-f", str(PROCFILE), *apart]
    process = None

    def watch(process: "subprocess.Popen[bytes]") -> None:
        if wait_serving(settings, process, on_wait=on_wait):
            on_ready()

    try:
        with undisturbed():
            process = subprocess.Popen(command, env=environment, cwd=ROOT, start_new_session=True)
        threading.Thread(target=watch, args=(process,), daemon=True).start()
        return process.wait()
    except KeyboardInterrupt:
        if process is not None:
            _stop_honcho(process, on_stop)
        return 0


def _stop_honcho(process: "subprocess.Popen[bytes]", on_stop: Callable[[], None]) -> None:
    """Ask every command that honcho starts to end, those too that it is only about to start; wait for all.

    Another Ctrl-C kills them. honcho itself is not asked: when the terminal is gone it fails to say so there,
    and stops nothing.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    on_stop()
    hurry, last = threading.Event(), time.monotonic()

    def again(*_: object) -> None:
        nonlocal last
        before, last = last, time.monotonic()
        if last - before > _AGAIN_S:
            hurry.set()

    signal.signal(signal.SIGINT, again)
    deadline = time.monotonic() + _STOP_S
    asked: set[int] = set()
    while process.poll() is None and not hurry.is_set() and time.monotonic() < deadline:
        for command in set(_commands(process.pid)) - asked:
            asked.add(command)
            with suppress(ProcessLookupError):
                os.kill(command, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.1)
    for each in [*_children(process.pid, recursive=True), process.pid] if process.poll() is None else []:
        with suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)
    process.wait()


def _commands(pid: int) -> Iterator[int]:
    """The commands of the Procfile below honcho: each has a session of its own, and stops what it started."""
    for child in _children(pid):
        with suppress(ProcessLookupError):
            if os.getsid(child) == child:
                yield child
            else:
                yield from _commands(child)


def _children(pid: int, *, recursive: bool = False) -> list[int]:
    import psutil  # type: ignore[import-untyped]

    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=recursive)]
    except psutil.NoSuchProcess:
        return []


def wait_serving(
    settings: Settings, process: "subprocess.Popen[bytes]", *, on_wait: Callable[[str], None]
) -> bool:
    """Wait until gateway, dashboard and a worker serve; False when `process` ends before that.

    A model may take long to be fetched and loaded: `on_wait` is told every `STILL_S` seconds what is missing.
    """
    told = time.monotonic()
    while process.poll() is None:
        if not answers(f"{settings.ui_url}/_stcore/health"):
            missing = "the dashboard"
        elif not answers(f"{settings.api_url}/healthz"):
            missing = f"the gateway ({settings.api_url})"
        elif workers_alive(settings.api_url) == 0:
            missing = f"a worker, which loads {settings.model}; a large model is fetched first"
        else:
            return True
        if time.monotonic() - told > STILL_S:
            told = time.monotonic()
            on_wait(missing)
        time.sleep(0.2)
    return False
