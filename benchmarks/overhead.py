"""What the whole path adds to one short answer: from the request to its answer, less what the engine takes.

One person asks, one question at a time, with `POST /predict` as it comes: the request waits for its
answer. Each question is put to the stack and to the engine in process in turn. Measured with every layer
of the guard, and with its rules alone.
"""

import json
import statistics
import tempfile
from contextlib import closing
from pathlib import Path

from benchmarks import models, report
from benchmarks.systems import QUESTIONS, EngineInProcess, WholeStack

NEW_TOKENS = 24


def measure_overhead(requests: int, *, rules_alone: bool = True) -> dict[str, dict[str, float]]:
    """Milliseconds with the whole guard (`overhead_ms`), and without its classifier (`overhead_rules_ms`)."""
    with (
        tempfile.TemporaryDirectory() as state,
        closing(WholeStack(models.DEMO, "demo", "float32", NEW_TOKENS, Path(state))) as stack,
        closing(EngineInProcess(models.DEMO, "demo", "float32", NEW_TOKENS)) as engine,
    ):
        for system in (stack, engine):
            system.wait_ready()
        whole = _added(stack, engine, requests)
        if not rules_alone:
            return {"overhead_ms": whole}
        stack.use_rules_alone()
        return {"overhead_ms": whole, "overhead_rules_ms": _added(stack, engine, requests)}


def _added(stack: WholeStack, engine: EngineInProcess, requests: int) -> dict[str, float]:
    questions = [QUESTIONS[i % len(QUESTIONS)] for i in range(requests)]
    for question in questions[:4]:  # warm up
        stack.ask_and_wait(question), engine.ask(question)
    added = [1000 * (stack.ask_and_wait(q).total_s - engine.ask(q).total_s) for q in questions]
    return {"p50": round(statistics.median(added), 1), "p95": round(report.percentile(added, 0.95), 1)}


def main() -> None:
    """Measure, print, keep."""
    flags = report.options(__doc__ or "").parse_args()
    result = {**report.machine(), **measure_overhead(20 if flags.quick else 200)}
    report.save("overhead", result, quick=flags.quick)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
