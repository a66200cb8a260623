"""Runs every process of MediChat on this machine. It knows their commands from the Procfile only.

`Stack` is what the smoke test, the test suite and the benchmarks start; foreground.py gives the same commands
and environment to honcho.
"""

import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import httpx

from shared.settings import Settings, settings_from

ROOT = Path(__file__).resolve().parent.parent
PROCFILE = ROOT / "Procfile"
#: What a stack of its own takes from the settings around it: which model, and on what it runs. Nothing that
#: would lead it to the database or the Redis of an installation in use.
INHERITED = {f"MEDICHAT_{name}" for name in ("MODEL", "MODEL_PATH", "DEVICE", "DTYPE", "QUANTISE")}
#: How long a start with the demo model and with another may take, in seconds.
_SMALL_START_S, _LARGE_START_S = 120.0, 3600.0


class StartFailed(Exception):
    """A process of MediChat did not start; its log says why."""


def procfile_commands() -> dict[str, str]:
    """The shell command of each process, by name, in the order of the Procfile."""
    lines = PROCFILE.read_text().splitlines()
    pairs = (line.split(":", 1) for line in lines if line.strip() and not line.startswith("#"))
    return {name.strip(): command.strip() for name, command in pairs}


def local_environment(
    settings: Settings,
    extra: Mapping[str, str] | None = None,
    *,
    around: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """The environment in which the Procfile's commands run, made from the one around (this process's)."""
    around = os.environ if around is None else around
    state_dir = settings.state_dir.absolute()
    environment = {
        **around,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{around.get('PATH', '')}",
        "PYTHONUNBUFFERED": "1",
        "MEDICHAT_STATE_DIR": str(state_dir),
        "MEDICHAT_REDIS_PORT": str(urlsplit(settings.redis_url).port or 6379),
        "MEDICHAT_API_PORT": str(settings.api_port),
        "MEDICHAT_UI_PORT": str(settings.ui_port),
    }
    return environment | dict(extra or {})


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 on which nothing listens at this moment."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def port_in_use(host: str, port: int) -> bool:
    """Whether something listens there already. Raises OSError when nothing may listen there."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return True
    return False


@contextmanager
def undisturbed() -> Iterator[None]:
    """Put off the signals that end a command, so that none comes between a process's start and its record."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals come to the main thread only
        return
    came: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, lambda number, _: came.append(number)) for number in numbers}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    for missed in came:
        signal.raise_signal(missed)


class Stack:
    """The processes of one installation in one folder, each with its own log file there."""

    def __init__(
        self,
        state_dir: Path,
        *,
        without: Iterable[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """`without` names processes not to start; `environment` adds MEDICHAT_… settings.

        Of the settings around, only those in `INHERITED` count.
        """
        self.state_dir = state_dir
        redis_port, api_port, ui_port = free_ports(3)
        self.environment_extra = {
            "MEDICHAT_REDIS_URL": f"redis://127.0.0.1:{redis_port}/0",
            "MEDICHAT_API_PORT": str(api_port),
            "MEDICHAT_UI_PORT": str(ui_port),
            **(environment or {}),
        }
        around = {
            name: value
            for name, value in os.environ.items()
            if name in INHERITED or not name.startswith("MEDICHAT_")
        }
        self.settings = settings_from(
            around | self.environment_extra | {"MEDICHAT_STATE_DIR": str(state_dir.absolute())}
        )
        self.environment = local_environment(self.settings, self.environment_extra, around=around)
        self.commands = {k: v for k, v in procfile_commands().items() if k not in set(without)}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.logins: dict[str, tuple[str, str]] = {}

    @property
    def api_url(self) -> str:
        """Where the gateway answers."""
        return self.settings.api_url

    @property
    def ui_url(self) -> str:
        """Where the dashboard answers."""
        return self.settings.ui_url

    def log_path(self, name: str) -> Path:
        """Where a process writes its log."""
        return self.state_dir / "logs" / f"{name}.log"

    def start(self) -> Self:
        """Prepare the folder, start every process and wait until all of them serve.

        A model other than the small one of the project may have to be fetched, and takes long to load.

        Raises StartFailed with the end of the log of the process that did not.
        """
        self.prepare()
        for name in self.commands:
            self.start_process(name)
        self.wait_ready(_SMALL_START_S if self.settings.model == "demo" else _LARGE_START_S)
        return self

    def prepare(self) -> None:
        """Make secrets, tables and first log-ins (in `self.logins`: role → name, password)."""
        (self.state_dir / "logs").mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            [sys.executable, "-m", "services.cli", "init"],
            env=self.environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise StartFailed(done.stderr.strip() or done.stdout.strip())
        self.logins = read_logins(self.state_dir)

    def start_process(
        self, name: str, environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start one process in a process group of its own."""
        with self.log_path(name).open("ab") as log, undisturbed():
            process = subprocess.Popen(
                self.commands[name],
                shell=True,
                cwd=ROOT,
                env={**self.environment, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            self.processes[name] = process
        return process

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal to every process of the group."""
        os.killpg(self.processes[name].pid, number)

    def kill(self, name: str) -> None:
        """`kill -9` a process and wait until it is gone."""
        self.signal(name, signal.SIGKILL)
        self.processes.pop(name).wait()

    def wait_ready(self, timeout_s: float = _SMALL_START_S) -> None:
        """Wait until the gateway, the dashboard and the workers are there."""
        deadline = time.monotonic() + timeout_s
        if "redis" in self.processes:
            self._wait(deadline, "redis", lambda: port_in_use("127.0.0.1", self._redis_port))
        if "api" in self.processes:
            self._wait(deadline, "api", lambda: answers(f"{self.api_url}/readyz"))
        if "ui" in self.processes:
            self._wait(deadline, "ui", lambda: answers(f"{self.ui_url}/_stcore/health"))
        if "worker_infer" in self.processes:
            self._wait(deadline, "worker_infer", lambda: workers_alive(self.api_url) > 0)
        if "worker_train" in self.processes:
            self._wait(deadline, "worker_train", lambda: workers_alive(self.api_url, "trainers") > 0)

    @property
    def _redis_port(self) -> int:
        return int(self.environment["MEDICHAT_REDIS_PORT"])

    def _wait(self, deadline: float, name: str, ready: Callable[[], bool]) -> None:
        process = self.processes[name]
        while not ready():
            if process.poll() is not None or time.monotonic() > deadline:
                raise StartFailed(f"{name} did not start:\n{self.log_tail(name)}")
            try:
                process.wait(timeout=0.05)
            except subprocess.TimeoutExpired:
                continue

    def log_tail(self, name: str, lines: int = 20) -> str:
        """The last lines of a process's log."""
        path = self.log_path(name)
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else ""

    def stop(self) -> None:
        """Ask every process to end, the last started first; kill what has not after some seconds."""
        for name in reversed(self.processes):
            _signal_group(self.processes[name], signal.SIGCONT)
            _signal_group(self.processes[name], signal.SIGTERM)
        deadline = time.monotonic() + 15
        for process in self.processes.values():
            try:
                process.wait(timeout=max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                _signal_group(process, signal.SIGKILL)
                process.wait()
        self.processes.clear()

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def read_logins(state_dir: Path) -> dict[str, tuple[str, str]]:
    """The first log-ins from their file, as role → (name, password)."""
    from services.setup import LOGINS_FILE

    logins = {}
    for line in (state_dir / LOGINS_FILE).read_text().splitlines()[1:]:
        role, _, name, _, password = line.split()
        logins[role] = (name, password)
    return logins


def free_disk_bytes(path: Path) -> int:
    """Free space on the disk that holds `path`, or would hold it."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return


def workers_alive(api_url: str, kind: str = "workers") -> int:
    """How many workers (or `trainers`) say that they live, as the gateway knows it."""
    try:
        return int(_http().get(f"{api_url}/readyz").json().get(kind, 0))
    except (httpx.HTTPError, ValueError):
        return 0


def answers(url: str) -> bool:
    """Whether what is there serves."""
    try:
        return _http().get(url).status_code == 200
    except httpx.HTTPError:
        return False


@cache
def _http() -> httpx.Client:
    """One for all looks: making one reads the certificates of all authorities, 22 ms of a processor."""
    return httpx.Client(timeout=2, transport=httpx.HTTPTransport())  # past any proxy of the environment
