"""Measures the guard on labelled sentences: what it catches, what it stops wrongly, how long it takes.

It knows rows of `category, label (danger|safe), context, text`; it does not know how the guard decides.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import machine, options, save
from shared.guard import Guard, load_guard

#: Rows in the project's own words; the rules were written with them at hand, so they flatter.
OWN_ROWS = Path(__file__).parent / "guard_rows.jsonl"
#: About as many rows are measured by a quick run.
QUICK_ROWS = 60


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def interval(hits: int, total: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson, 1927)."""
    if not total:
        return 0.0, 1.0
    z, share = 1.96, hits / total
    centre = share + z * z / (2 * total)
    margin = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return (centre - margin) / (1 + z * z / total), (centre + margin) / (1 + z * z / total)


def measure(guard: Guard, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Recall, precision and false-positive rate over all rows and per category, and times per sentence."""
    counts: Counter[tuple[str, str, bool]] = Counter()
    times_us: list[float] = []
    for row in rows:
        started = time.perf_counter()
        verdict = guard.judge_answer(row["text"], row["context"])
        times_us.append((time.perf_counter() - started) * 1e6)
        counts[row["category"], row["label"], not verdict.allowed] += 1
    categories = sorted({row["category"] for row in rows})
    cuts = statistics.quantiles(times_us, n=100)
    return {
        "n": len(rows),
        **_rates(counts, categories),
        "per_category": {name: _rates(counts, [name]) for name in categories},
        "us_per_sentence": {"p50": round(cuts[49], 1), "p99": round(cuts[98], 1)},
        "ms_per_row": round(statistics.fmean(times_us) / 1e3, 4),
        "policy_version": guard.policy_version,
    }


def _rates(counts: Counter[tuple[str, str, bool]], categories: Iterable[str]) -> dict[str, Any]:
    names = list(categories)

    def total(label: str, stopped: bool) -> int:
        return sum(counts[name, label, stopped] for name in names)

    caught, missed = total("danger", True), total("danger", False)
    wrong, passed = total("safe", True), total("safe", False)
    return {
        "dangers": caught + missed,
        "safe": wrong + passed,
        "recall": round(caught / max(caught + missed, 1), 4),
        "recall_interval": [round(end, 3) for end in interval(caught, caught + missed)],
        "precision": round(caught / max(caught + wrong, 1), 4),
        "false_positive_rate": round(wrong / max(wrong + passed, 1), 4),
        "false_positive_interval": [round(end, 3) for end in interval(wrong, wrong + passed)],
    }


def show(result: dict[str, Any]) -> None:
    """Print the result for a person."""
    print(f"{'':24}{'dangers':>8}{'recall':>8}{'95 %':>16}{'safe':>6}{'false':>8}{'95 %':>16}")
    for name, rates in [("all", result), *result["per_category"].items()]:
        recall, false = rates["recall_interval"], rates["false_positive_interval"]
        print(
            f"{name:24}{rates['dangers']:>8}{rates['recall']:>8.3f}{recall[0]:>9.3f}–{recall[1]:.3f} "
            f"{rates['safe']:>6}{rates['false_positive_rate']:>8.3f}{false[0]:>9.3f}–{false[1]:.3f}"
        )
    times = result["us_per_sentence"]
    print(f"µs per sentence: p50 {times['p50']}, p99 {times['p99']}; policy {result['policy_version']}")


def main() -> None:
    """Measure the packaged guard on one file."""
    parser = options("What the guard's rules catch, what they stop wrongly, and how long they take.")
    parser.add_argument(
        "--dev", type=Path, default=OWN_ROWS, help="JSON Lines: category, label (danger|safe), context, text"
    )
    chosen = parser.parse_args()
    rows = read_rows(chosen.dev)
    if chosen.quick:
        rows = rows[:: max(len(rows) // QUICK_ROWS, 1)]
    guard = load_guard()
    measure(guard, rows)
    result = {"rows": chosen.dev.name, **machine(), **measure(guard, rows)}
    save("guard", result, quick=chosen.quick)
    show(result)
    if chosen.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
