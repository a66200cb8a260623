"""A program that trains nothing: it counts steps, saves checkpoints, and ends in the ways a test asks for.

What to do is in `practice.json` in the state folder, read at each start: `steps`, `pause_s` a step,
`save_every`, and for the faults `exit_at` {step: status} (each only once), `needs_batch` (a larger batch size
runs out of memory), `cuts_to` (runs with at most this batch size), `wait` (a reason), `refuse` (a detail),
`sha256` (a wrong one), `base` (another revision of the weights), `deaf` (ignores SIGTERM).
A check waits for the lock of the file `barrier` in the same folder, when there is one.
"""

import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from services.worker_train.child import KNOWN_STEP, Exit, emit, follow_parent, stop
from shared.memory import WANTED_BY_SERVING


class Practice:
    """One run of the program."""

    def __init__(self, run_file: Path, wishes: dict[str, Any]) -> None:
        self.folder = run_file.parent
        self.recipe = yaml.safe_load(run_file.read_text())
        self.wishes = wishes
        asked = self.recipe["batch_size"]
        self.batch_size = min(asked, wishes.get("cuts_to", asked))
        self.accumulation = self.recipe["accumulation"] * asked // self.batch_size
        self.told_to_stop = False

    def on_term(self, _number: int, _frame: FrameType | None) -> None:
        self.told_to_stop = True

    def last_step(self) -> int:
        found = (self.folder / "checkpoints").glob("checkpoint-*")
        return max((int(path.name.split("-")[1]) for path in found), default=0)

    def save(self, step: int) -> None:
        target = self.folder / "checkpoints" / f"checkpoint-{step}"
        partial = target.with_name(f"partial-{step}")
        (partial / "deep").mkdir(parents=True, exist_ok=True)
        (partial / "deep" / "state.json").write_text(json.dumps({"step": step}))
        partial.rename(target)
        emit("checkpoint", step=step, folder=str(target))

    def refuse_if_asked(self) -> None:
        if "refuse" in self.wishes:
            stop(Exit.REFUSED, "diverged", self.wishes["refuse"])
        if "away" in self.wishes:
            stop(Exit.AWAY, "no-model", self.wishes["away"])
        if "wait" in self.wishes:
            stop(Exit.WAIT, "no-room", self.wishes["wait"])

    def crash_if_asked(self, step: int) -> None:
        status = self.wishes.get("exit_at", {}).get(str(step))
        done = self.folder / f"crashed-{step}"
        if status is not None and not done.exists():
            done.touch()
            os._exit(status)

    def train(self) -> None:
        first, last = self.last_step() + 1, self.wishes.get("steps", 30)
        emit(
            "plan",
            total_steps=last,
            base_revision=self.wishes.get("base", "r1"),
            batch_size=self.batch_size,
            accumulation=self.accumulation,
        )
        self.tell_history(first)
        if self.batch_size > self.wishes.get("needs_batch", 1_000):
            stop(Exit.OUT_OF_MEMORY, "out-of-memory", "Too large.")
        for step in range(first, last + 1):
            time.sleep(self.wishes.get("pause_s", 0.01))  # the work
            self.crash_if_asked(step)
            emit("step", step=step, loss=1.0 / step, learning_rate=0.1)
            if step % self.wishes.get("save_every", 10) == 0:
                self.save(step)
                emit("step", step=step, eval_loss=2.0 / step)
            if self.told_to_stop:
                self.save(step)
                stop(Exit.DRAINED, "drained", "Told to stop.")

    def tell_history(self, first: int) -> None:
        known = max(1, int(os.environ[KNOWN_STEP]))
        steps = [{"step": step, "loss": 1.0 / step, "learning_rate": 0.1} for step in range(known, first)]
        if steps:
            emit("history", steps=steps)

    def deliver(self) -> None:
        output = self.folder / "output"
        output.mkdir(exist_ok=True)
        weights = json.dumps([self.recipe["seed"], self.recipe["data"]["train"]]).encode()
        (output / "adapter_model.safetensors").write_bytes(weights)
        (output / "adapter_config.json").write_text("{}")
        (output / "README.md").write_text("# A card")
        (output / "probe.json").write_text("{}")
        (output / "training_args.bin").write_bytes(b"not for others")
        emit(
            "done",
            folder=str(output),
            sha256=self.wishes.get("sha256") or hashlib.sha256(weights).hexdigest(),
            bytes=len(weights),
            metrics={"eval_loss": 0.5},
            base_revision=self.wishes.get("base", "r1"),
        )


def wait_at_the_barrier(path: Path) -> None:
    if path.exists():
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH)


def main() -> None:
    follow_parent()
    if sys.argv[1] == "--dataset":
        wait_at_the_barrier(Path(os.environ.get("MEDICHAT_STATE_DIR", "")) / "barrier")
        stop(Exit.REFUSED, "unknown-shape", "The columns mean nothing to us: name them.")
    run_file = Path(sys.argv[1])
    wishes = json.loads((run_file.parents[2] / "practice.json").read_text())
    practice = Practice(run_file, wishes)
    signal.signal(signal.SIGTERM, signal.SIG_IGN if wishes.get("deaf") else practice.on_term)
    helper = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)"], stdout=subprocess.DEVNULL
    )
    (practice.folder / "pids").write_text(f"{os.getpid()} {helper.pid}")
    (practice.folder / "wanted").write_text(os.environ[WANTED_BY_SERVING])
    (practice.folder / "nice").write_text(str(os.nice(0)))
    (practice.folder / "gpus").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "all"))
    print("a library prints what is no event", flush=True)  # noqa: T201
    emit("estimate", memory_mb=10, free_mb=100, device="cpu", seconds=9)
    practice.refuse_if_asked()
    practice.train()
    practice.deliver()


if __name__ == "__main__":
    main()
