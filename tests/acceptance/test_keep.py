"""What keeps a process running, with real processes: what is given up, what is tried again."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from services.keep import next_pause_s
from tests.support import ROOT, wait_until

KEEP = [sys.executable, "-m", "services.keep"]


def keep(*command: str, **environment: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([*KEEP, *command], cwd=ROOT, env={**os.environ, **environment})


def test_a_process_whose_configuration_is_wrong_is_given_up_at_once(tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    assert keep("sh", "-c", f"echo x >> {starts}; exit {os.EX_CONFIG}").wait(30) == os.EX_CONFIG
    assert starts.read_text() == "x\n"


def test_any_other_is_tried_again_until_it_is_stopped(tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    kept = keep("sh", "-c", f"echo x >> {starts}; exit 1")
    wait_until(lambda: starts.exists() and starts.read_text().count("x") == 2, 30)
    kept.terminate()
    assert kept.wait(10) in (0, 1)


def test_a_process_ends_with_the_one_whose_it_is(tmp_path: Path) -> None:
    """As when `medichat up` is killed hard: it can tell nobody."""
    starts = tmp_path / "starts"
    with subprocess.Popen(["sleep", "600"]) as owner:
        kept = keep("--of", str(owner.pid), "sh", "-c", f"echo x >> {starts}; exec sleep 600")
        wait_until(starts.exists, 30)
        assert kept.poll() is None
        owner.kill()
    assert kept.wait(10) == -signal.SIGTERM % 256
    assert starts.read_text() == "x\n"


def test_the_pauses_grow_and_begin_anew_after_a_long_run() -> None:
    pauses = [0.0]
    for _ in range(8):
        pauses.append(next_pause_s(pauses[-1], ran_s=6))
    assert pauses == [0, 1, 2, 4, 8, 16, 32, 60, 60]
    assert next_pause_s(60, ran_s=3600) == 0


@pytest.mark.parametrize(
    ("module", "settings", "named"),
    [
        ("services.worker_infer", {"MEDICHAT_MODEL": "medgamma"}, "medgemma-4b"),
        ("services.worker_infer", {"MEDICHAT_MODEL_PATH": "/nowhere"}, "MEDICHAT_MODEL_PATH"),
        ("services.worker_infer", {"MEDICHAT_DTYPE": "float16"}, "MEDICHAT_DTYPE"),
        ("services.worker_train", {}, "medichat init"),
        ("services.api", {"MEDICHAT_API_PORT": "none"}, "MEDICHAT_API_PORT"),
        ("services.api", {}, "medichat init"),
    ],
)
def test_a_process_says_that_its_configuration_is_wrong(
    module: str, settings: dict[str, str], named: str, tmp_path: Path
) -> None:
    environment = {**os.environ, "MEDICHAT_STATE_DIR": str(tmp_path), **settings}
    done = subprocess.run(
        [sys.executable, "-m", module], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == os.EX_CONFIG
    assert named in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("module", ["services.worker_infer", "services.worker_train"])
def test_the_health_check_says_in_one_line_that_the_database_is_away(module: str, tmp_path: Path) -> None:
    environment = {**os.environ, "MEDICHAT_STATE_DIR": str(tmp_path / "nowhere")}
    check = [sys.executable, "-m", module, "--health"]
    done = subprocess.run(check, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "the database cannot be asked" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_health_check_of_a_worker_loads_no_engine() -> None:
    code = "import services.worker_infer.__main__, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
