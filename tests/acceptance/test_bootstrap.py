"""The install, with a package index that is not there: what it makes, what it mends, how it stops."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT

BOOTSTRAP = [sys.executable, str(ROOT / "deploy" / "bootstrap.py"), "api"]
PYTHON = Path(".venv") / "bin" / "python"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with what the install reads."""
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'empty'\nversion = '1'\n")
    (tmp_path / "constraints.txt").touch()
    return tmp_path


def without_pip(project: Path) -> None:
    """What an install leaves behind that was stopped while it made the folder."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", ".venv"], cwd=project, check=True)


def of_an_old_python(project: Path) -> None:
    """A folder whose Python is not new enough."""
    (project / PYTHON).parent.mkdir(parents=True)
    (project / PYTHON).write_text("#!/bin/sh\nexit 1\n")
    (project / PYTHON).chmod(0o755)


@pytest.mark.parametrize("spoil", [without_pip, of_an_old_python])
def test_a_folder_that_nothing_can_be_installed_into_is_made_anew(project: Path, spoil) -> None:  # type: ignore[no-untyped-def]
    spoil(project)
    environment = {**os.environ, "PIP_NO_INDEX": "1"}
    done = subprocess.run(
        BOOTSTRAP, cwd=project, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "medichat: cannot install torch; is there a network?"
    subprocess.run([project / PYTHON, "-m", "pip", "--version"], check=True, capture_output=True)


def test_ctrl_c_stops_the_install_in_one_line(project: Path) -> None:
    with socket.socket() as index:
        index.bind(("127.0.0.1", 0))
        index.listen()
        index.settimeout(60)
        url = f"http://127.0.0.1:{index.getsockname()[1]}/"
        process = subprocess.Popen(
            BOOTSTRAP,
            cwd=project,
            env={**os.environ, "PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": url},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        connection, _ = index.accept()  # pip asks, and is never answered
        with connection:
            os.killpg(process.pid, signal.SIGINT)
            _, told = process.communicate(timeout=30)
    assert process.returncode == 130
    assert told == "medichat: stopped; run it again to go on\n"
