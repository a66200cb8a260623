"""`medichat up` as an operator runs it: starts, stops, a process that dies, a machine that will not do."""

import errno
import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil
import pytest

from services import cli, foreground, local, setup
from services.local import free_ports, read_logins
from shared.settings import Settings
from tests.support import ROOT, wait_until

MEDICHAT = Path(sys.executable).with_name("medichat")
#: Runs a command as the one in front in the terminal that it is given.
IN_A_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


class Up:
    """A running `medichat up` and what it printed."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder = folder
        self.log = folder / "up.log"
        self.api_url = f"http://127.0.0.1:{environment['MEDICHAT_API_PORT']}"
        self.log.touch()
        self._terminal, end = pty.openpty()
        self._closing, self._close = os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-c", IN_A_TERMINAL, str(MEDICHAT), "up"],
            cwd=ROOT,
            # the worker chooses its threads, as where a person starts it
            env={name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
            | dict(environment),
            stdin=end,
            stdout=end,
            stderr=end,
            start_new_session=True,
        )
        os.close(end)
        threading.Thread(target=self._copy, daemon=True).start()

    def _copy(self) -> None:
        """Keep what the terminal shows, until everything in it is gone or `hang_up` closes it."""
        with self.log.open("ab") as log, suppress(OSError):
            while self._closing not in select.select([self._terminal, self._closing], [], [])[0]:
                log.write(os.read(self._terminal, 65536))
                log.flush()
        os.close(self._terminal)

    def hang_up(self) -> None:
        """What a closed terminal does: it is gone, and the process in front is told."""
        os.close(self._close)

    def terminate(self) -> None:
        """What `kill` does."""
        self.process.terminate()

    def kill(self) -> None:
        """What `kill -9` does: it can do nothing more."""
        self.process.kill()

    def printed(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_ready(self) -> None:
        wait_until(
            lambda: "MediChat is ready" in self.printed() or self.process.poll() is not None,
            90,
            self.log.name,
        )
        assert "MediChat is ready" in self.printed(), self.printed()

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def interrupt(self) -> int:
        """What Ctrl-C in a terminal does: SIGINT to the whole group in the foreground."""
        os.killpg(self.process.pid, signal.SIGINT)
        return self.process.wait(timeout=40)


@contextmanager
def up(folder: Path, environment: Mapping[str, str]) -> Iterator[Up]:
    running = Up(folder, environment)
    try:
        running.wait_ready()
        yield running
    finally:
        if running.process.poll() is None:
            running.interrupt()


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An empty folder for the state, and free ports."""
    redis, api, ui = free_ports(3)
    return {
        "MEDICHAT_STATE_DIR": str(tmp_path_factory.mktemp("state")),
        "MEDICHAT_REDIS_URL": f"redis://127.0.0.1:{redis}/0",
        "MEDICHAT_API_PORT": str(api),
        "MEDICHAT_UI_PORT": str(ui),
    }


def log_in(running: Up, environment: Mapping[str, str]) -> httpx.Client:
    """A client of the first user, logged in as the README's curl does."""
    name, password = read_logins(Path(environment["MEDICHAT_STATE_DIR"]))["user"]
    client = httpx.Client(base_url=running.api_url, timeout=60)
    form = {"username": name, "password": password}
    token = client.post("/v1/auth/token", data=form).json()["access_token"]
    client.headers["Authorization"] = f"Bearer {token}"
    version = client.get("/v1/me").json()["consent"]["version"]
    client.post("/v1/me/consent", json={"version": version})
    return client


def ask(client: httpx.Client) -> httpx.Response:
    return client.post("/predict", json={"query": "What are the symptoms of asthma?"})


def test_first_start_answer_death_of_a_worker_stop_and_second_start_until_the_terminal_closes(
    environment: dict[str, str], tmp_path: Path
) -> None:
    """One story, because each chapter needs the one before."""
    state = Path(environment["MEDICHAT_STATE_DIR"])
    with up(tmp_path, environment) as running:
        printed = running.printed()
        logins = read_logins(state)
        assert set(logins) == {"user", "admin", "auditor"}
        for name, password in logins.values():
            assert re.search(rf"{name}\s+password: {re.escape(password)}", printed)
        assert (state / "first-logins.txt").stat().st_mode & 0o777 == 0o600
        client = log_in(running, environment)
        first = ask(client)
        assert first.status_code == 200
        assert "wheez" in first.json()["answer"]
        assert " INFO worker_infer presidio-analyzer" not in running.printed(), "libraries speak when asked"

        worker = next(
            child
            for child in running.children()
            if child.cmdline()[-2:] == ["-m", "services.worker_infer"]
            and "keep" not in " ".join(child.cmdline())
        )
        worker.kill()
        assert ask(client).status_code == 200

        redis = next(child for child in running.children() if child.name().startswith("valkey-server"))
        redis.kill()
        assert ask(client).status_code == 200

        ports = dict(zip(("MEDICHAT_API_PORT", "MEDICHAT_UI_PORT"), map(str, free_ports(2)), strict=True))
        elsewhere = {"MEDICHAT_REDIS_URL": f"redis://127.0.0.1:{free_ports(1)[0]}/0"}
        again = run_medichat("up", **{**environment, **ports, **elsewhere})
        assert again.returncode == 1
        assert again.stderr.startswith(f"medichat: MediChat runs in {state} already; stop it, or set")

        client.close()

        processes = running.children()
        assert len(processes) >= 4
        assert running.interrupt() == 0
        _, alive = psutil.wait_procs(processes, timeout=5)
        assert not alive
        assert "Traceback" not in running.printed()

    second_folder = tmp_path / "second"
    second_folder.mkdir()
    with up(second_folder, environment) as running:
        assert "password:" not in running.printed()
        assert read_logins(state) == logins
        name, password = logins["user"]
        with httpx.Client(base_url=running.api_url) as client:
            form = {"username": name, "password": password}
            token = client.post("/v1/auth/token", data=form).json()["access_token"]
            client.headers["Authorization"] = f"Bearer {token}"
            assert len(client.get("/v1/conversations").json()["items"]) == 3
        check_the_end(running, Up.hang_up)


def check_the_end(running: Up, end: Callable[[Up], None]) -> None:
    """Whatever ends it ends every process."""
    processes = running.children()
    assert len(processes) >= 4
    end(running)
    running.process.wait(timeout=40)
    _, alive = psutil.wait_procs(processes, timeout=0 if end is not Up.kill else 30)
    assert not [each for each in alive if each.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize("end", [Up.terminate, Up.kill])
def test_whatever_ends_it_ends_every_process(
    environment: dict[str, str], tmp_path: Path, end: Callable[[Up], None]
) -> None:
    with up(tmp_path, environment) as running:
        check_the_end(running, end)


#: Runs the commands of a Procfile as `medichat up` does. `--at-once`: Ctrl-C comes before any has started.
RUNS = """
import signal, subprocess, sys
from pathlib import Path
from services import cli, foreground
from shared.settings import Settings

class Interrupted(subprocess.Popen):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        signal.raise_signal(signal.SIGINT)

if sys.argv[2:]:
    subprocess.Popen = Interrupted
foreground.PROCFILE = Path(sys.argv[1])
with cli._ended_like_by_ctrl_c():
    ended = foreground.run_honcho(
        Settings(state_dir=foreground.PROCFILE.parent),
        on_ready=lambda: None,
        on_wait=lambda _: None,
        on_stop=lambda: Path(sys.argv[1]).with_name("told").touch(),
    )
sys.exit(ended)
"""
#: Says that it is there; at SIGTERM says so, and ends after so many seconds.
SLOW = """
import signal, sys, time
from pathlib import Path

def stop(*_):
    Path(sys.argv[1], "asked").touch()
    time.sleep(float(sys.argv[2]))
    Path(sys.argv[1], "saved").touch()
    sys.exit(0)

signal.signal(signal.SIGTERM, stop)
Path(sys.argv[1], "there").touch()
signal.pause()
"""


@pytest.fixture
def clinic(tmp_path: Path) -> Path:
    """A folder with a blank in its name, and in the name of its Python."""
    folder = tmp_path / "my clinic"
    folder.mkdir()
    (folder / ".venv").symlink_to(Path(sys.executable).parent.parent)
    (folder / "slow.py").write_text(SLOW)
    return folder


@contextmanager
def run_procfile(clinic: Path, *options: str, slow_s: float) -> Iterator[subprocess.Popen[str]]:
    """A command that ends at once when asked, and one that takes its time."""
    procfile = clinic / "Procfile"
    slow = f'"{clinic / "slow.py"}" "{clinic}" {slow_s}'
    procfile.write_text(f"quick: exec $KEEP sleep 600\nslow: exec $KEEP python {slow}\n")
    running = subprocess.Popen(
        [str(clinic / ".venv" / "bin" / "python"), "-c", RUNS, str(procfile), *options],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # what honcho would take for its own, and for that of the commands
        env={**os.environ, "PORT": "tcp://nowhere"},
    )
    with running:
        yield running
        running.kill()


def ended(running: subprocess.Popen[str], clinic: Path, within_s: float) -> bool:
    """Whether it ended well, and so did all that it started."""
    running.communicate(timeout=within_s)
    named = [each.info["cmdline"] or [] for each in psutil.process_iter(["cmdline"])]
    return running.returncode == 0 and not any(str(clinic) in " ".join(line) for line in named)


def test_ctrl_c_waits_for_what_a_process_must_save(clinic: Path) -> None:
    with run_procfile(clinic, slow_s=7) as running:
        wait_until((clinic / "there").exists, 30, "for its processes")
        os.killpg(running.pid, signal.SIGINT)
        assert ended(running, clinic, within_s=40)
        assert (clinic / "saved").exists()


def test_another_ctrl_c_waits_for_nothing(clinic: Path) -> None:
    with run_procfile(clinic, slow_s=600) as running:
        wait_until((clinic / "there").exists, 30, "for its processes")
        os.killpg(running.pid, signal.SIGINT)
        wait_until((clinic / "asked").exists, 30, "for the first to be passed on")
        # who could read by then what another does
        told = (clinic / "told").stat().st_mtime
        wait_until(lambda: time.time() - told > foreground._AGAIN_S + 0.5, 30, "for a moment")
        os.killpg(running.pid, signal.SIGINT)
        assert ended(running, clinic, within_s=15)
        assert not (clinic / "saved").exists()


def test_a_ctrl_c_that_is_held_is_one(clinic: Path) -> None:
    with run_procfile(clinic, slow_s=2) as running:
        wait_until((clinic / "there").exists, 30, "for its processes")

        def saved() -> bool:
            os.killpg(running.pid, signal.SIGINT)
            return (clinic / "saved").exists() or running.poll() is not None

        wait_until(saved, 30, "for it to end")
        assert ended(running, clinic, within_s=15)
        assert (clinic / "saved").exists()


def test_ctrl_c_before_anything_has_started_ends_what_is_about_to(clinic: Path) -> None:
    with run_procfile(clinic, "--at-once", slow_s=0) as running:
        assert ended(running, clinic, within_s=15)


def run_medichat(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(MEDICHAT), *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"MEDICHAT_UI_PORT": "8000", "MEDICHAT_API_PORT": "8000"}, "the gateway and the dashboard"),
        ({"MEDICHAT_API_HOST": "192.0.2.1"}, "192.0.2.1"),  # no address of this machine
        ({"MEDICHAT_PUBLIC_API_URL": "http://ward.example:8000"}, "MEDICHAT_PUBLIC_UI_URL to one host"),
        ({"MEDICHAT_MODEL": "medgamma"}, "medgemma-4b"),
        ({"MEDICHAT_MODEL_PATH": "/nowhere"}, "MEDICHAT_MODEL_PATH"),
    ],
)
def test_what_cannot_work_is_one_clear_line_before_anything_starts(
    environment: dict[str, str], settings: dict[str, str], named: str
) -> None:
    done = run_medichat("up", **{**environment, **settings})
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert named in line
    assert "in use" not in line


@pytest.mark.parametrize("setting", ["MEDICHAT_API_PORT", "MEDICHAT_UI_PORT", "MEDICHAT_REDIS_URL"])
def test_a_port_in_use_is_one_clear_line(environment: dict[str, str], setting: str) -> None:
    port = int(re.findall(r"\d{4,5}", environment[setting])[-1])
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", port))
        taken.listen()
        done = run_medichat("up", **environment)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert str(port) in line
    assert setting in line


def test_a_start_that_takes_long_says_what_it_waits_for_until_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foreground, "STILL_S", 0.0)
    api, ui = free_ports(2)
    settings = Settings(state_dir=tmp_path, api_port=api, ui_port=ui)
    told: list[str] = []

    def wait(missing: str) -> None:
        told.append(missing)
        process.kill()

    process = subprocess.Popen(["sleep", "600"])
    assert not foreground.wait_serving(settings, process, on_wait=wait)
    assert told[0] == "the dashboard"


def test_a_full_disk_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MEDICHAT_STATE_DIR", str(tmp_path))
    monkeypatch.setattr(local, "free_disk_bytes", lambda _path: 1_000_000)
    assert cli.main(["up"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "MB are free" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("setting", ["MEDICHAT_DATABASE_URL", "MEDICHAT_STORAGE_URL"])
def test_another_disk_that_is_full_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], setting: str
) -> None:
    full = tmp_path / "full"
    prefix = "sqlite:///" if setting == "MEDICHAT_DATABASE_URL" else ""
    monkeypatch.setenv("MEDICHAT_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv(setting, f"{prefix}{full / 'place'}")
    monkeypatch.setattr(local, "free_disk_bytes", lambda path: 10**6 if path.is_relative_to(full) else 10**10)
    assert cli.main(["up"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"set {setting} to another disk" in line


def test_a_disk_that_is_full_while_a_secret_is_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=re.escape(str(tmp_path / "secret"))):
        setup.write_private(tmp_path / "secret", "text")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("version", [(3, 9, 2), (3, 10, 1), (3, 15, 0)])
def test_a_python_that_does_not_serve_is_one_clear_line(
    tmp_path: Path, version: tuple[int, int, int]
) -> None:
    script = (ROOT / "deploy" / "bootstrap.py").read_text()
    program = (
        f"import sys; sys.version_info = {version}; sys.argv = ['bootstrap.py', 'api']; exec({script!r})"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PATH": str(tmp_path)},  # else another Python there may serve
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "Python 3.11, 3.12, 3.13 or 3.14" in line
    assert f"this is 3.{version[1]}" in line
    assert "make up PYTHON=python3.13" in line


def processes_in(folder: Path) -> list[psutil.Process]:
    """Those whose temporary folder it is, or that work in it: Redis hides what its environment was."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("TMPDIR") == str(folder) or Path(process.cwd()).is_relative_to(folder):
                found.append(process)
    return found


def test_smoke_asks_through_every_process_says_how_it_went_and_leaves_nothing(tmp_path: Path) -> None:
    """The operator's own settings lead it nowhere: to no database or Redis in use."""
    elsewhere, temporary = tmp_path / "in-use", tmp_path / "tmp"
    elsewhere.mkdir()
    temporary.mkdir()
    done = run_medichat(
        "smoke",
        TMPDIR=str(temporary),
        MEDICHAT_DATABASE_URL=f"sqlite:///{elsewhere / 'in-use.db'}",
        MEDICHAT_REDIS_URL="redis://127.0.0.1:1/0",
        MEDICHAT_SECRETS_DIR=str(elsewhere),
        MEDICHAT_REQUESTS_PER_MINUTE="1",
    )
    assert not psutil.wait_procs(processes_in(temporary), timeout=5)[1]
    assert list(temporary.glob("medichat-*")) == []
    assert list(elsewhere.iterdir()) == []
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    figures = json.loads(line)
    assert figures["ok"] is True
    assert {"ready_s", "first_sentence_ms", "answer_ms", "tokens_per_s"} <= set(figures)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_command_says_so_in_one_line_and_leaves_nothing(
    tmp_path: Path, number: signal.Signals
) -> None:
    process = subprocess.Popen(
        [str(MEDICHAT), "smoke"],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_until(lambda: list(tmp_path.rglob("logs/api.log")), 60, "for its processes")
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    out, err = process.communicate(timeout=40)
    assert (process.returncode, out, err) == (130, "", "medichat: stopped\n")
    assert not psutil.wait_procs(children, timeout=5)[1]
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_finds_a_command_that_has_hardly_begun() -> None:
    """Nothing heavy is imported before `main` can say how it ended."""
    program = (
        "import sys, services.cli; print(sorted({'pydantic', 'sqlalchemy', 'httpx'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_a_master_key_that_is_gone_is_not_replaced_by_another(tmp_path: Path) -> None:
    environment = {**os.environ, "MEDICHAT_STATE_DIR": str(tmp_path)}
    command = [str(MEDICHAT), "init"]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    (tmp_path / "secrets" / "medichat_master_key").unlink()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "put it back" in done.stderr
