"""Measures the finding of identifiers: `python -m benchmarks.phi FILE.jsonl… [--errors] [--json]`.

Rows are `{"query": text, "phi": [{"identifier_type", "value"}]}`. An identifier counts as found only when no
letter or digit of it is left outside the findings; titles such as "Dr." may stay.
"""

import argparse
import json
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

from shared.privacy.phi import find

_MAY_STAY = re.compile(
    r"\b(?:Dr|Mr|Mrs|Ms|Miss|Prof|in|at|of|the|patient|ID|email)\b\.?|[^\w]", re.IGNORECASE
)


def measure(rows: list[dict[str, object]], *, errors: bool = False) -> dict[str, Any]:
    """Recall over identifiers, share of rows without any that are touched, time per row."""
    found, total, touched, clean, seconds = Counter[str](), Counter[str](), 0, 0, 0.0
    for row in rows:
        text, phi = str(row["query"]), row["phi"]
        assert isinstance(phi, list)
        begun = time.perf_counter()
        findings = find(text)
        seconds += time.perf_counter() - begun
        if not phi:
            clean += 1
            touched += bool(findings)
            if errors and findings:
                print("touched:", [text[each.start : each.end] for each in findings], "in:", text)
        covered = bytearray(len(text))
        for each in findings:
            covered[each.start : each.end] = b"\x01" * (each.end - each.start)
        for item in phi:
            kind, value = item["identifier_type"], item["value"]
            total[kind] += 1
            if _is_covered(text, value, covered):
                found[kind] += 1
            elif errors:
                print(f"left ({kind}):", value, "in:", text)
    count = sum(total.values())
    return {
        "n": len(rows),
        "recall": sum(found.values()) / count if count else None,
        "clean_touched": touched / clean if clean else None,
        "false_positive_rate": touched / clean if clean else None,
        "per_category": {kind: {"n": total[kind], "recall": found[kind] / total[kind]} for kind in total},
        "ms_per_row": 1000 * seconds / max(len(rows), 1),
    }


def _is_covered(text: str, value: str, covered: bytearray) -> bool:
    start = text.find(value)
    if start < 0:
        return True  # the row's own label is not in its text
    left = "".join(c if not covered[start + i] else " " for i, c in enumerate(value))
    return not _MAY_STAY.sub("", left).strip()


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--errors", action="store_true", help="print what was missed and what was touched")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="the first 100 rows")
    options = parser.parse_args()
    rows = [json.loads(line) for path in options.files for line in path.open() if line.strip()]
    find("warm up: Dr. Example")
    result = measure(rows[:100] if options.quick else rows, errors=options.errors)
    if options.json:
        print(json.dumps(result))
    else:
        show(result)


def show(result: dict[str, Any]) -> None:
    """Print the result for a person."""
    print(
        f"{result['n']} rows: recall {result['recall']:.3f}, clean rows touched "
        f"{result['clean_touched']:.3f}, {result['ms_per_row']:.2f} ms a row"
    )
    for kind, one in sorted(result["per_category"].items()):
        print(f"  {kind:32} n {one['n']:4}  recall {one['recall']:.3f}")


if __name__ == "__main__":
    main()
