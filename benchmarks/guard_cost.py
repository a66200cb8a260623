"""What the guard costs: tokens a second of the whole stack with it, against one whose worker lets all pass.

On the layers of gemma-3-270m with random weights, where computing dominates as it does in production. Both
stacks are up and take turns, so that a machine that grows slower does so for both.
"""

import json
import sys
import tempfile
from contextlib import ExitStack, closing
from pathlib import Path

from benchmarks import models, report
from benchmarks.driving import Run, drive
from benchmarks.systems import WholeStack

NEW_TOKENS = 64
_TURNS = ("on", "off", "off", "on")


def measure(levels: list[int], turns: int) -> list[dict[str, float]]:
    """For each number of concurrent users the tokens a second with the guard and without, and their ratio."""
    found = []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as opened:
        model = models.layers_of_gemma_270m(Path(folder) / "model", models.DEMO)
        workers = {"on": None, "off": f"{sys.executable} -m benchmarks.unguarded_worker"}
        stacks = {
            name: opened.enter_context(
                closing(
                    WholeStack(model, "gemma-1b", "float32", NEW_TOKENS, Path(folder) / name, worker=worker)
                )
            )
            for name, worker in workers.items()
        }
        for stack in stacks.values():
            stack.wait_ready()
        for name, stack in stacks.items():
            drive(Run(name, 1), stack.ask, 1)  # warm up
        for level in levels:
            runs = {name: Run(name, level) for name in stacks}
            for name in _TURNS * turns:
                drive(runs[name], stacks[name].ask, max(level, 4))
            speed = {name: float(run.row()["tokens_per_s"]) for name, run in runs.items()}
            found.append({"concurrency": level, **speed, "ratio": round(speed["on"] / speed["off"], 3)})
            print(json.dumps(found[-1]), file=sys.stderr, flush=True)
    return found


def main() -> None:
    """Measure, print, keep."""
    flags = report.options(__doc__ or "").parse_args()
    levels, turns = ([4], 1) if flags.quick else ([1, 4, 16], 2)
    result = {**report.machine(), "rows": measure(levels, turns)}
    report.save("guard_cost", result, quick=flags.quick)
    print(json.dumps(result) if flags.json else json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
