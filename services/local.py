"""Runs every process of MediChat on this machine. It knows their commands from the Procfile only.

`Stack` is what the smoke test, the test suite and the benchmarks start; `medichat up` gives the
same commands and environment to honcho.
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
from contextlib import contextmanager, suppress
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
#: How often a start that takes long says what it waits for, in seconds.
STILL_S = 60.0
#: How long processes may take to end: a training has a minute for its checkpoint.
_STOP_S = 75.0
#: Ctrl-C counts as another when it comes so long after what the first did was told, in seconds.
_AGAIN_S = 1.0
#: honcho kills what has not ended 5 s after the first process did; there is no option for it.
_HONCHO = f"from honcho import command, manager; manager.KILL_WAIT = {_STOP_S}; command.main()"


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
        with _undisturbed():
            process = subprocess.Popen(command, env=environment, cwd=ROOT, start_new_session=True)
        threading.Thread(target=watch, args=(process,), daemon=True).start()
        return process.wait()
    except KeyboardInterrupt:
        if process is not None:
            _stop_honcho(process, on_stop)
        return 0


@contextmanager
def _undisturbed() -> Iterator[None]:
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


def _stop_honcho(process: "subprocess.Popen[bytes]", on_stop: Callable[[], None]) -> None:
    """Ask every command that honcho starts to end, those too that it is only about to start; wait for all.

    Another Ctrl-C kills them. honcho itself is not asked: when the terminal is gone it fails to say so there,
    and stops nothing.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    on_stop()
    hurry, told = threading.Event(), time.monotonic()

    def again(*_: object) -> None:
        if time.monotonic() - told > _AGAIN_S:
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
        with self.log_path(name).open("ab") as log, _undisturbed():
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
            self._wait(deadline, "api", lambda: _answers(f"{self.api_url}/readyz"))
        if "ui" in self.processes:
            self._wait(deadline, "ui", lambda: _answers(f"{self.ui_url}/_stcore/health"))
        if "worker_infer" in self.processes:
            self._wait(deadline, "worker_infer", lambda: _workers(self.api_url) > 0)
        if "worker_train" in self.processes:
            self._wait(deadline, "worker_train", lambda: _workers(self.api_url, "trainers") > 0)

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


def wait_serving(
    settings: Settings, process: "subprocess.Popen[bytes]", *, on_wait: Callable[[str], None]
) -> bool:
    """Wait until gateway, dashboard and a worker serve; False when `process` ends before that.

    A model may take long to be fetched and loaded: `on_wait` is told every `STILL_S` seconds what is missing.
    """
    told = time.monotonic()
    while process.poll() is None:
        if not _answers(f"{settings.ui_url}/_stcore/health"):
            missing = "the dashboard"
        elif not _answers(f"{settings.api_url}/healthz"):
            missing = f"the gateway ({settings.api_url})"
        elif _workers(settings.api_url) == 0:
            missing = f"a worker, which loads {settings.model}; a large model is fetched first"
        else:
            return True
        if time.monotonic() - told > STILL_S:
            told = time.monotonic()
            on_wait(missing)
        time.sleep(0.2)
    return False


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


def _workers(api_url: str, kind: str = "workers") -> int:
    """How many workers (or `trainers`) say that they live, as the gateway knows it."""
    try:
        return int(_http().get(f"{api_url}/readyz").json().get(kind, 0))
    except (httpx.HTTPError, ValueError):
        return 0


def _answers(url: str) -> bool:
    try:
        return _http().get(url).status_code == 200
    except httpx.HTTPError:
        return False


@cache
def _http() -> httpx.Client:
    """One for all looks: making one reads the certificates of all authorities, 22 ms of a processor."""
    return httpx.Client(timeout=2, transport=httpx.HTTPTransport())  # past any proxy of the environment
