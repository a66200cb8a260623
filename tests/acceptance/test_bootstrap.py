"""The install, with a package index that is not there: what it makes, what it mends, how it stops."""

import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from tests.support import ROOT

SCRIPT = ROOT / "deploy" / "bootstrap.py"
BOOTSTRAP = [sys.executable, str(SCRIPT), "api"]
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


@pytest.mark.parametrize("ends", ["0", "1"])
def test_going_back_a_version_and_forward_again_installs_each_time(project: Path, ends: str) -> None:
    """Also where the install of the other version did not come to its end."""
    (project / PYTHON).parent.mkdir(parents=True)
    (project / PYTHON).write_text(
        '#!/bin/sh\n[ "$2" = pip ] || exit 0\necho "$@" >> installs\nexit ${PIP_ENDS:-0}\n'
    )
    (project / PYTHON).chmod(0o755)

    def installs(torch: str, extras: str, ends: str = "0") -> bool:
        (project / "constraints.txt").write_text(f"torch=={torch}\n")
        (project / "installs").write_text("")
        command = [sys.executable, str(SCRIPT), extras]
        done = subprocess.run(
            command, cwd=project, env={**os.environ, "PIP_ENDS": ends}, capture_output=True, check=False
        )
        assert done.returncode == int(ends)
        return (project / "installs").read_text() != ""

    assert installs("2.1", "api")
    assert installs("2.1", "api,dev")
    assert not installs("2.1", "api")
    assert installs("2.2", "api", ends)
    assert installs("2.1", "api,dev")
    assert not installs("2.1", "dev")
    assert installs("2.2", "api")


def test_what_is_installed_is_compiled_but_for_what_cannot_be(project: Path) -> None:
    without_pip(project)
    (packages,) = (project / ".venv" / "lib").glob("python*/site-packages")
    (packages / "pip.py").write_text("import sys; assert __name__ == 'pip' or '--no-compile' in sys.argv")
    (packages / "module.py").touch()
    (packages / "template.py").write_text("{{ name }} = (")
    done = subprocess.run(BOOTSTRAP, cwd=project, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    compiled = {each.name.split(".")[0] for each in (packages / "__pycache__").iterdir()}
    assert compiled - {"pip"} == {"module"}


def moved(first: Path, second: Path) -> None:
    first.rename(second)


def copied(first: Path, second: Path) -> None:
    shutil.copytree(first, second, symlinks=True)


def copied_with_a_link_to_what_is_installed(first: Path, second: Path) -> None:
    shutil.copytree(first, second, ignore=shutil.ignore_patterns(".venv"))
    (second / ".venv").symlink_to(first / ".venv")


def reached_by_another_path(first: Path, second: Path) -> None:
    second.symlink_to(first)


@pytest.mark.parametrize(
    ("carry", "anew"),
    [
        (moved, True),
        (copied, True),
        (copied_with_a_link_to_what_is_installed, False),
        (reached_by_another_path, False),
    ],
)
def test_a_project_that_was_carried_elsewhere_is_installed_anew_unless_all_of_it_is_where_it_was(
    project: Path, carry: Callable[[Path, Path], None], anew: bool
) -> None:
    first, second = project / "first project", project / "second"
    first.mkdir()
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(project / name, first)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", ".venv"], cwd=first, check=True)
    (first / PYTHON).unlink()
    (first / PYTHON).write_text("#!/bin/sh\nexit 0\n")
    (first / PYTHON).chmod(0o755)
    subprocess.run(BOOTSTRAP, cwd=first, check=True, capture_output=True)
    carry(first, second)
    maker = project / "maker"
    maker.write_text("#!/bin/sh\nexit 1\n")
    maker.chmod(0o755)
    program = (
        f"import sys; sys.executable = {str(maker)!r}; sys.argv = ['', 'api']; exec({SCRIPT.read_text()!r})"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=second, capture_output=True, text=True, check=False
    )
    assert ("cannot make .venv" in done.stderr) == anew
    assert done.returncode == int(anew)
    assert done.stdout == ""


@pytest.mark.parametrize("version", [(3, 10, 1), (3, 15, 0)])
def test_where_python3_does_not_serve_another_on_the_path_does(
    project: Path, tmp_path_factory: pytest.TempPathFactory, version: tuple[int, int, int]
) -> None:
    programs = tmp_path_factory.mktemp("programs")
    for name, line in (("python3.12", "exit 127"), ("python3.11", f'exec {sys.executable} "$@"')):
        (programs / name).write_text(f"#!/bin/sh\n{line}\n")
        (programs / name).chmod(0o755)
    program = (
        f"import sys; sys.version_info = {version}; sys.argv = ['', 'api']; exec({SCRIPT.read_text()!r})"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=project,
        env={**os.environ, "PATH": str(programs), "PIP_NO_INDEX": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr.splitlines()[-1] == "medichat: cannot install torch; is there a network?"
    subprocess.run([project / PYTHON, "-m", "pip", "--version"], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("there", "said"), [(0, "the install needs up to 8 GB"), (7_500_000_000, "Installing")]
)
def test_an_install_that_was_stopped_goes_on_in_the_room_that_it_left(
    project: Path, there: int, said: str
) -> None:
    (project / PYTHON).parent.mkdir(parents=True)
    (project / PYTHON).write_text("#!/bin/sh\nexit 0\n")
    (project / PYTHON).chmod(0o755)
    with (project / ".venv" / "installed-before").open("wb") as file:
        file.truncate(there)  # a hole: it takes no room
    program = (
        "import shutil, sys, types; shutil.disk_usage = lambda _: types.SimpleNamespace(free=1e9); "
        f"sys.argv = ['', 'api']; exec({SCRIPT.read_text()!r})"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=project, capture_output=True, text=True, check=False
    )
    assert said in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("disk", "unpacking", "said"),
    [
        (999_000_000, 9_000_000_000, "the install needs 1 GB, but only 999 MB are free on the disk of .venv"),
        (
            9_000_000_000,
            999_000_000,
            "only 999 MB are free of the 1 GB that it needs; free some, or set TMPDIR",
        ),
        (1_000_000_000, 1_000_000_000, None),
    ],
)
def test_a_later_install_without_room_on_its_disk_or_where_pip_unpacks_is_one_line_before_it_begins(
    project: Path, disk: int, unpacking: int, said: str | None
) -> None:
    (project / PYTHON).parent.mkdir(parents=True)
    (project / PYTHON).write_text("#!/bin/sh\nexit 0\n")
    (project / PYTHON).chmod(0o755)
    (project / ".venv" / "installed").write_text("another-version\napi\n")
    (project / "unpacked").mkdir()
    program = (
        "import shutil, sys, types; shutil.disk_usage = lambda path: types.SimpleNamespace("
        f"free={unpacking} if path.endswith('unpacked') else {disk}); "
        f"sys.argv = ['', 'api']; exec({SCRIPT.read_text()!r})"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=project,
        env={**os.environ, "TMPDIR": str(project / "unpacked")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == (said is not None)
    assert ("Installing" in done.stdout) == (said is None)
    assert (said or "") in done.stderr
    assert len(done.stderr.splitlines()) == (said is not None)


def test_where_all_is_installed_anew_room_for_all_of_it_is_asked(project: Path) -> None:
    (project / ".venv").mkdir()
    (project / ".venv" / "installed").write_text("another-version\napi\n")  # its Python is gone
    program = (
        "import shutil, sys, types; shutil.disk_usage = lambda _: types.SimpleNamespace(free=2e9); "
        f"sys.argv = ['', 'api']; exec({SCRIPT.read_text()!r})"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=project, capture_output=True, text=True, check=False
    )
    assert done.stderr.startswith("medichat: the install needs up to 8 GB, but only 2.0 GB are free")
    assert (project / ".venv" / "installed").exists(), "nothing was removed"


def test_where_nothing_temporary_can_be_written_the_install_says_so_in_one_line(project: Path) -> None:
    program = (
        "import shutil, sys, tempfile, types; shutil.disk_usage = lambda _: types.SimpleNamespace(free=9e9); "
        "tempfile._candidate_tempdir_list = lambda: ['/nowhere']; "
        f"sys.argv = ['', 'api']; exec({SCRIPT.read_text()!r})"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=project, capture_output=True, text=True, check=False
    )
    (line,) = done.stderr.splitlines()
    assert "set TMPDIR" in line


def test_the_pythons_that_serve_are_those_that_the_project_asks_for() -> None:
    asked = SpecifierSet(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"])
    found = {(3, minor) for minor in range(30) if asked.contains(f"3.{minor}.5")}
    assert found == set(runpy.run_path(str(SCRIPT))["SERVING"])


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
