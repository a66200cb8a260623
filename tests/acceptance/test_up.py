"""`medichat up` as an operator runs it: starts, stops, a process that dies, a machine that will not do."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from services import cli, local
from services.local import free_ports, read_logins
from tests.support import ROOT, wait_until

MEDICHAT = Path(sys.executable).with_name("medichat")


class Up:
    """A running `medichat up` and what it printed."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder = folder
        self.log = folder / "up.log"
        self.api_url = f"http://127.0.0.1:{environment['MEDICHAT_API_PORT']}"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [str(MEDICHAT), "up"],
                cwd=ROOT,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

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


def ask(running: Up, environment: Mapping[str, str]) -> httpx.Response:
    """Log in as the first user and ask, as the README's curl does."""
    name, password = read_logins(Path(environment["MEDICHAT_STATE_DIR"]))["user"]
    with httpx.Client(base_url=running.api_url, timeout=60) as client:
        form = {"username": name, "password": password}
        token = client.post("/v1/auth/token", data=form).json()["access_token"]
        client.headers["Authorization"] = f"Bearer {token}"
        version = client.get("/v1/me").json()["consent"]["version"]
        client.post("/v1/me/consent", json={"version": version})
        return client.post("/predict", json={"query": "What are the symptoms of asthma?"})


def test_first_start_answer_death_of_a_worker_stop_and_second_start(
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
        first = ask(running, environment)
        assert first.status_code == 200
        assert "wheez" in first.json()["answer"]

        worker = next(
            child
            for child in running.children()
            if child.cmdline()[-2:] == ["-m", "services.worker_infer"]
            and "keep" not in " ".join(child.cmdline())
        )
        worker.kill()
        assert ask(running, environment).status_code == 200

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
            assert len(client.get("/v1/conversations").json()["items"]) == 2


@pytest.mark.parametrize("setting", ["MEDICHAT_API_PORT", "MEDICHAT_UI_PORT", "MEDICHAT_REDIS_URL"])
def test_a_port_in_use_is_one_clear_line(environment: dict[str, str], setting: str) -> None:
    port = int(re.findall(r"\d{4,5}", environment[setting])[-1])
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", port))
        taken.listen()
        done = subprocess.run(
            [str(MEDICHAT), "up"],
            cwd=ROOT,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert str(port) in line
    assert setting in line


def test_a_full_disk_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MEDICHAT_STATE_DIR", str(tmp_path))
    monkeypatch.setattr(local, "free_disk_bytes", lambda _path: 1_000_000)
    assert cli.main(["up"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "MB are free" in line
    assert list(tmp_path.iterdir()) == []


def test_an_old_python_is_one_clear_line(tmp_path: Path) -> None:
    script = (ROOT / "deploy" / "bootstrap.py").read_text()
    program = (
        f"import sys; sys.version_info = (3, 9, 2); sys.argv = ['bootstrap.py', 'api']; exec({script!r})"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "Python 3.11" in line


def test_smoke_asks_through_every_process_and_says_how_it_went() -> None:
    done = subprocess.run([str(MEDICHAT), "smoke"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    figures = json.loads(line)
    assert figures["ok"] is True
    assert {"ready_s", "first_sentence_ms", "answer_ms", "tokens_per_s"} <= set(figures)


def test_a_master_key_that_is_gone_is_not_replaced_by_another(tmp_path: Path) -> None:
    environment = {**os.environ, "MEDICHAT_STATE_DIR": str(tmp_path)}
    command = [str(MEDICHAT), "init"]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    (tmp_path / "secrets" / "medichat_master_key").unlink()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "put it back" in done.stderr
