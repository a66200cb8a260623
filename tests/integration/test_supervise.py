"""A program under supervision: its events, its ways to end, and that nothing of it stays."""

import json
import subprocess
import sys
from pathlib import Path

import psutil

from services.worker_train.supervise import Program
from tests.support import wait_until

#: A helper in a session of its own, as launchers of several processes have them; it holds standard output.
HELPER = (
    "import subprocess, sys\n"
    "sleep = [sys.executable, '-c', 'import time; time.sleep(600)']\n"
    "helper = subprocess.Popen(sleep, start_new_session=True)\n"
    'print(\'{"event": "helper", "pid": %d}\' % helper.pid, flush=True)\n'
)


def start(tmp_path: Path, code: str) -> Program:
    return Program([sys.executable, "-c", code], log_path=tmp_path / "log.txt")


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_events_that_come_together_are_handed_over_together(tmp_path: Path) -> None:
    code = 'for n in range(500): print(\'{"event": "step", "step": %d}\' % n)'
    with start(tmp_path, code) as program:
        batches = list(program.batches())
    assert [event.fields["step"] for batch in batches for event in batch] == list(range(500))
    assert len(batches) < 5
    assert program.wait() == 0


def test_lines_that_are_no_events_are_passed_over(tmp_path: Path) -> None:
    code = "print('Loading…'); print('[1]'); print('{\"event\": \"done\"}'); raise SystemExit(78)"
    with start(tmp_path, code) as program:
        events = [event.name for batch in program.batches() for event in batch]
    assert (events, program.wait()) == (["done"], 78)


def test_what_it_says_on_standard_error_is_in_its_log(tmp_path: Path) -> None:
    with start(tmp_path, "import sys; print('a word', file=sys.stderr)") as program:
        assert list(program.batches()) == []
    assert (tmp_path / "log.txt").read_text() == "a word\n"


def test_killing_it_ends_helpers_in_sessions_of_their_own(tmp_path: Path) -> None:
    with start(tmp_path, HELPER + "import time; time.sleep(600)") as program:
        batches = program.batches()
        pid = int(next(batches)[0].fields["pid"])
        program.kill()
        assert list(batches) == []
    assert program.wait() == -9
    wait_until(lambda: not alive(pid), 5, "for the helper to be gone")


def test_an_error_of_its_supervisor_ends_it(tmp_path: Path) -> None:
    try:
        with start(tmp_path, "import time; time.sleep(600)") as program:
            raise KeyError
    except KeyError:
        assert program.wait() == -9


def test_a_program_that_finds_nobody_listening_ends_with_all_its_helpers() -> None:
    code = (
        "import subprocess, sys\n"
        "from services.worker_train.child import emit, follow_parent\n"
        "follow_parent()\n"
        "helper = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "emit('helper', pid=helper.pid)\n"
        "while True: emit('step')\n"
    )
    # its standard input stays open, so that only what it says can tell it
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdin, process.stdout:
        pid = int(json.loads(process.stdout.readline())["pid"])
        process.stdout.close()
        assert process.wait(timeout=30) == -9
        wait_until(lambda: not alive(pid), 5, "for the helper to be gone")
