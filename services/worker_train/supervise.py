"""Runs one program as a subprocess and leaves nothing of it behind. It knows no job and no database.

The program leads a process group of its own. Its standard input is a pipe that nobody writes to: when this
process dies, by whatever signal, the pipe ends and the program and its helpers end themselves (child.py).
"""

import contextlib
import json
import logging
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

import psutil  # type: ignore[import-untyped]

from shared.memory import control_group

log = logging.getLogger(__name__)

#: Events that come within this time of the first are handed over together, in seconds.
_TOGETHER_S = 0.2


@dataclass(frozen=True)
class ProgramEvent:
    """One line of a program's standard output."""

    name: str
    fields: Mapping[str, Any]
    #: When it came, on this process's monotonic clock.
    received: float


class Program:
    """A running program; use it as a context, which ends it."""

    def __init__(
        self, command: Sequence[str], *, log_path: Path, environment: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        """Start it with this process's environment and what is added to it.

        What it says on standard error goes to `log_path`, which only the owner may read.
        """
        self._killed_before = _killed_for_memory()
        with open(log_path, "ab", opener=_private) as log_file:
            self._process = subprocess.Popen(
                command,
                # threads that wait must not spin: on a CPU they would take it from the answers
                env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE", **environment},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log_file,
                start_new_session=True,
            )
        self._events: queue.SimpleQueue[ProgramEvent | None] = queue.SimpleQueue()
        self._stopping, self._reaping = threading.Lock(), threading.Lock()
        self._kill_at: threading.Timer | None = None
        self._threads = [
            threading.Thread(target=target, name=f"program-{target.__name__}", daemon=True)
            for target in (self._read, self._reap)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def pid(self) -> int:
        """The id of the process, and of its group."""
        return self._process.pid

    def batches(self) -> Iterator[list[ProgramEvent]]:
        """The program's events, those that come together in one list, until it has ended."""
        while (event := self._events.get()) is not None:
            batch, until = [event], time.monotonic() + _TOGETHER_S
            with contextlib.suppress(queue.Empty):
                while (more := self._events.get(timeout=max(0.0, until - time.monotonic()))) is not None:
                    batch.append(more)
                self._events.put(None)  # the end, for the loop around
            yield batch

    def wait(self) -> int:
        """The exit status, once it has ended; negative for the signal that killed it."""
        for thread in self._threads:
            thread.join()
        return self._process.returncode

    def lacked_memory(self) -> bool:
        """Whether the kernel killed something for want of memory while it ran: itself, or of several
        processes one, whose launcher then ends with a status of its own.
        """
        return _killed_for_memory() > self._killed_before

    def stop(self, grace_s: float) -> None:
        """Ask it to end, and kill it after `grace_s`. Returns at once; may be called from any thread."""
        with self._stopping:
            if self._kill_at is not None:
                self._kill_at.cancel()
            self._signal_group(signal.SIGTERM)
            self._kill_at = threading.Timer(grace_s, self.kill)
            self._kill_at.daemon = True
            self._kill_at.start()

    def kill(self) -> None:
        """End it and everything that it started, now."""
        for helper in self._helpers():
            with contextlib.suppress(psutil.NoSuchProcess):
                helper.kill()
        self._signal_group(signal.SIGKILL)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.kill()
        self.wait()
        if self._kill_at is not None:
            self._kill_at.cancel()

    def _read(self) -> None:
        """Take every event at once, so that the program never waits for the database."""
        assert self._process.stdout is not None
        try:
            with self._process.stdout as lines:
                for line in lines:
                    event = _parse(line)
                    if event is not None:
                        self._events.put(event)
        finally:
            self._events.put(None)

    def _reap(self) -> None:
        """When the program has ended, end what it left behind; its id is not free before that."""
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        self._signal_group(signal.SIGKILL)
        assert self._process.stdin is not None
        self._process.stdin.close()  # helpers in groups of their own end by themselves
        with self._reaping:
            self._process.wait()

    def _signal_group(self, number: signal.Signals) -> None:
        with self._reaping, contextlib.suppress(ProcessLookupError):
            if self._process.returncode is None:  # else the id may be somebody else's by now
                os.killpg(self.pid, number)

    def _helpers(self) -> list[psutil.Process]:
        """What it started, also in groups of their own, as launchers of several processes do."""
        try:
            return list(psutil.Process(self.pid).children(recursive=True))
        except psutil.NoSuchProcess:
            return []


def _parse(line: bytes) -> ProgramEvent | None:
    """An event; None for a line that is not one, such as what a library prints."""
    try:
        fields = json.loads(line)
        return ProgramEvent(str(fields.pop("event")), fields, time.monotonic())
    except (ValueError, KeyError, TypeError, AttributeError):
        log.warning("a program wrote a line that is not an event (%d bytes)", len(line))
        return None


def _killed_for_memory() -> int:
    """How many processes of this one's control group the kernel has killed for want of memory; 0 where it
    does not count them.
    """
    try:
        counts = dict(line.split() for line in memory_events().read_text(encoding="ascii").splitlines())
    except OSError:
        return 0
    return int(counts.get("oom_kill", 0))


def memory_events() -> Path:
    """Where the kernel counts them, in the second version of Linux's control groups. Raises OSError."""
    return control_group() / "memory.events"


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
