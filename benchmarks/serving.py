"""Tokens a second of three systems with the same weights, prompts and lengths, in one run.

(a) naive: one FastAPI process that calls `model.generate` per request; (b) engine: our engine, called in
process; (c) stack: every real process, over HTTP, with guard, database and audit log.
"""

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from benchmarks import models, report
from benchmarks.driving import Run, drive, questions
from benchmarks.overhead import measure_overhead
from benchmarks.systems import Answer, Bare, EngineInProcess, Naive, WholeStack

T = TypeVar("T")


def apart(function: Callable[..., T], *args: Any, **options: Any) -> T:
    """What the function returns, called in a fresh process: nothing that this one held is in its peak."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args, **options).result()


def naive_against_bare(naive: Naive, bare: Bare, requests: int) -> dict[str, float]:
    """Tokens a second of both for one user: each question is put to one and then to the other."""
    answers: dict[str, list[Answer]] = {"naive": [], "bare_generate": []}
    for number, question in enumerate(questions(requests + 1)):
        pair = [("naive", naive.ask(question)), ("bare_generate", bare.ask(question))]
        for name, answer in pair if number else []:  # the first warms up
            answers[name].append(answer)
    speed = {
        name: sum(answer.tokens for answer in given) / sum(answer.total_s for answer in given)
        for name, given in answers.items()
    }
    found = {f"{name}_tokens_per_s": round(value, 1) for name, value in speed.items()}
    return {**found, "ratio": round(speed["naive"] / speed["bare_generate"], 3)}


#: The turns at each number of users: a machine that grows slower or faster meanwhile does so for all.
TURNS = ("engine", "stack", "naive", "stack", "engine")


def measure(
    folder: Path,
    model_name: str,
    *,
    dtype: str,
    new_tokens: int,
    levels: list[int],
    rounds: int,
    compared: int,
    exact: bool,
    turns: Sequence[str] = TURNS,
) -> dict[str, Any]:
    """Rows of all systems at each number of concurrent requests; all are up, and take turns.

    In a turn each user asks `rounds` times; `compared` questions are for the naive server beside `generate`.
    `exact`: every answer must have all `new_tokens`; RuntimeError when one has not.
    """
    rows = []
    with tempfile.TemporaryDirectory() as state, ExitStack() as opened:

        def open_system(system: Any) -> Any:
            opened.callback(system.close)
            return system

        # the others start while the engine loads in this process; nothing is asked before all are up
        made = (folder, model_name, dtype, new_tokens)
        naive, bare = open_system(Naive(*made)), open_system(Bare(*made))
        stack = open_system(WholeStack(*made, Path(state)))
        systems = {"naive": naive, "engine": open_system(EngineInProcess(*made)), "stack": stack}
        for system in (*systems.values(), bare):
            system.wait_ready()
        for name, system in systems.items():
            drive(Run(name, 1), system.ask, 1)  # warm up
        for level in levels:
            runs = {name: Run(name, level) for name in systems}
            for name in turns:
                drive(runs[name], systems[name].ask, max(level * rounds, 2))
            for name, run in runs.items():
                run.peak_mb = systems[name].peak_mb()
                if exact and {answer.tokens for answer in run.answers} != {new_tokens}:
                    raise RuntimeError(f"not every answer of {name} has {new_tokens} tokens: no comparison")
                rows.append(run.row())
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
            if level == 1:
                alone = naive_against_bare(naive, bare, compared)
    return {"rows": rows, "naive_against_bare": alone}


def ratios(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The comparisons that matter, from the rows."""
    speed = {(row["system"], row["concurrency"]): row["tokens_per_s"] for row in rows}
    found = {}
    for level in sorted({level for _, level in speed}):
        found[f"stack_to_engine_at_{level}"] = round(speed["stack", level] / speed["engine", level], 3)
        found[f"stack_to_naive_at_{level}"] = round(speed["stack", level] / speed["naive", level], 2)
    return found


def draw(result: dict[str, Any]) -> None:
    """A plot of tokens a second against concurrent requests."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4))
    for system in ("naive", "engine", "stack"):
        rows = [row for row in result["rows"] if row["system"] == system]
        axes.plot(
            [r["concurrency"] for r in rows], [r["tokens_per_s"] for r in rows], marker="o", label=system
        )
    axes.set(xlabel="concurrent requests", ylabel="tokens/s", title="Layers of gemma-3-270m on this CPU")
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.tight_layout()
    figure.savefig(report.RESULTS / "serving.png", dpi=110)


def main() -> None:
    """Measure, print, keep."""
    flags = report.options(__doc__ or "").parse_args()
    levels = [1, 16] if flags.quick else [1, 4, 16, 32]
    added = measure_overhead(2, rules_alone=False) if flags.quick else measure_overhead(200)
    with tempfile.TemporaryDirectory() as folder:
        big = models.layers_of_gemma_270m(Path(folder), models.DEMO)
        large = apart(
            measure,
            big,
            "gemma-1b",  # its entry asks for what it gives: a text-only Gemma 3
            dtype="float32",
            new_tokens=4 if flags.quick else 64,
            levels=levels,
            rounds=1,
            compared=2 if flags.quick else 16,
            exact=True,
            turns=TURNS[:3] if flags.quick else TURNS,
        )
    result: dict[str, Any] = {
        **report.machine(),
        "model": "18 layers x 640, random weights, float32",
        **large,
        "ratios": ratios(large["rows"]),
        **added,
    }
    if not flags.quick:
        demo = apart(
            measure,
            models.DEMO,
            "demo",
            dtype="float32",
            new_tokens=64,
            levels=levels,
            rounds=2,
            compared=32,
            exact=False,  # it ends its answers itself
        )
        result["demo"] = {**demo, "ratios": ratios(demo["rows"])}
    report.save("serving", result, quick=flags.quick)
    if not flags.quick:
        draw(result)
    print(json.dumps(result) if flags.json else json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
