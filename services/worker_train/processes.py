"""Runs the program as several processes under `accelerate launch`: one a GPU, or on a CPU over gloo.

`--multi_gpu` says how they are started, not on what: by torch's launcher, on a free port. With `--cpu`
accelerate starts a single process and leaves the others to MPI. A launcher turns every exit status into 1, so
each process leaves its own in a file, and the gravest is that of all. This module knows nothing of what they
train.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from services.worker_train import child
from services.worker_train.child import Exit

_ENDINGS = "MEDICHAT_TRAIN_ENDINGS"
#: Whose word counts when they ended differently: when one stops, the launcher drains the others.
_GRAVEST_FIRST = (Exit.REFUSED, Exit.AWAY, Exit.OUT_OF_MEMORY, Exit.WAIT, Exit.DRAINED, Exit.DONE)


@dataclass(frozen=True)
class Ending:
    """How a process ended: its status, and unless it is done a stable code and what to do."""

    status: Exit
    code: str = ""
    detail: str = ""


def is_launched() -> bool:
    """Whether this process is one of several.

    Raises RuntimeError when a launcher started it as a single one: starting a launcher again would never end.
    """
    if "LOCAL_RANK" in os.environ:
        return True
    if _ENDINGS in os.environ:
        raise RuntimeError("the launcher did not start several processes")
    return False


def is_first() -> bool:
    """Whether this process speaks for all: it is alone, or the first of several."""
    return os.environ.get("RANK", "0") == "0"


def leave_ending(ending: Ending) -> bool:
    """Tell the process that launched this one how it ended; false when none did."""
    if _ENDINGS not in os.environ:
        return False
    folder, rank = Path(os.environ[_ENDINGS]), os.environ["RANK"]
    unfinished = folder / f"{rank}.part"
    unfinished.write_text(json.dumps(asdict(ending)), encoding="utf-8")
    unfinished.rename(folder / f"{rank}.json")
    return True


def tell(ending: Ending) -> Exit:
    """Tell the supervisor why it ended, unless it is done; returns the exit status."""
    if ending.code:
        child.emit("stopped", code=ending.code, detail=ending.detail)
    return ending.status


def obey(device: str) -> None:
    """With `cpu` (MEDICHAT_DEVICE), hide every GPU from this process and those that it starts: what trains
    would take one by itself. To be called before torch looks for any.
    """
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def count_devices() -> int:
    """How many processes can train side by side: one a GPU, or without any one a processor."""
    import torch  # here, because whoever launches others needs no more of what computes

    return torch.cuda.device_count() or os.cpu_count() or 1


def launch(count: int, arguments: Sequence[str]) -> Ending | int:
    """Run `services.worker_train.finetune` as `count` processes and wait; returns how they ended, or the
    launcher's exit status when one of them crashed.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(sys.executable, "-m", *_launcher(count)),
            *("-m", "services.worker_train.finetune", *arguments),
        ]
        # standard input is passed on: its end ends each of them
        process = subprocess.Popen(command, env={**os.environ, _ENDINGS: folder})
        signal.signal(signal.SIGTERM, lambda *_: process.send_signal(signal.SIGTERM))
        returned = process.wait()
        told = [json.loads(path.read_text(encoding="utf-8")) for path in Path(folder).glob("*.json")]
    ending = gravest([Ending(Exit(each["status"]), each["code"], each["detail"]) for each in told], count)
    return ending or returned or 1


def gravest(told: Sequence[Ending], count: int) -> Ending | None:
    """What the endings of `count` processes come to; None when one crashed, which leaves none, and no other
    says why.
    """
    worst = min(told, key=lambda ending: _GRAVEST_FIRST.index(ending.status), default=None)
    if worst is not None and worst.status in (Exit.DRAINED, Exit.DONE) and len(told) < count:
        return None
    return worst


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
