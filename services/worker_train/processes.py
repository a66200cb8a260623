"""Runs the program as several processes under `accelerate launch`: one a GPU, or on a CPU over gloo.

`--multi_gpu` says how they are started, not on what: by torch's launcher, on a free port. With `--cpu`
accelerate starts a single process and leaves the others to MPI. A launcher turns every exit status into 1, so
the first process leaves its own in a file. This module knows nothing of what they train.
"""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

_STATUS = "MEDICHAT_TRAIN_STATUS_FILE"


def is_launched() -> bool:
    """Whether this process is one of several.

    Raises RuntimeError when a launcher started it as a single one: starting a launcher again would never end.
    """
    if "LOCAL_RANK" in os.environ:
        return True
    if _STATUS in os.environ:
        raise RuntimeError("the launcher did not start several processes")
    return False


def is_first() -> bool:
    """Whether this process speaks for all: it is alone, or the first of several."""
    return os.environ.get("RANK", "0") == "0"


def leave_status(status: int) -> None:
    """Tell the process that started this one how it ended."""
    path = os.environ.get(_STATUS)
    if path and is_first():
        Path(path).write_text(str(status), encoding="ascii")


def launch(count: int, arguments: Sequence[str]) -> int:
    """Run `services.worker_train.finetune` as `count` processes and wait; returns the first one's exit
    status.
    """
    with tempfile.TemporaryDirectory() as folder:
        status = Path(folder) / "status"
        command = [
            *(sys.executable, "-m", *_launcher(count)),
            *("-m", "services.worker_train.finetune", *arguments),
        ]
        # standard input is passed on: its end ends each of them
        process = subprocess.Popen(command, env={**os.environ, _STATUS: str(status)})
        signal.signal(signal.SIGTERM, lambda *_: process.send_signal(signal.SIGTERM))
        returned = process.wait()
        return int(status.read_text()) if status.exists() else returned


def _launcher(count: int) -> list[str]:
    options = {
        "--num_machines": "1",
        "--num_processes": str(count),
        "--main_process_port": "0",
        "--mixed_precision": "no",
        "--dynamo_backend": "no",
    }
    return [
        "accelerate.commands.launch",
        "--multi_gpu",
        *(word for option in options.items() for word in option),
    ]
