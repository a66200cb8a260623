"""Measures the finding of identifiers: `python -m benchmarks.phi FILE.jsonl… [--errors] [--json]`.

Rows are `{"query": text, "phi": [{"identifier_type", "value"}]}`. An identifier counts as found only when no
letter or digit of it is left outside the findings; titles such as "Dr." may stay. It counts as hidden when
likewise none is left in what the model reads, where places, dates and ages stay (shared/privacy/phi.py).
"""

import argparse
import json
import re
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.report import ends, in_columns, options, rows_of
from shared.privacy.phi import Finding, find, pointing

_MAY_STAY = re.compile(
    r"\b(?:Dr|Mr|Mrs|Ms|Miss|Prof|in|at|of|the|patient|ID|email)\b\.?|[^\w]", re.IGNORECASE
)


def measure(rows: list[dict[str, Any]], *, errors: bool = False) -> dict[str, Any]:
    """Recall over identifiers, found and hidden; share of the findings that are of labelled identifiers
    (precision); share of rows without any that are touched; each with its interval; and the time per row.

    Raises ValueError for a row that is of another shape.
    """
    found, hidden, total = Counter[str](), Counter[str](), Counter[str]()
    touched, clean, right, findings_count, seconds = 0, 0, 0, 0, 0.0
    for row in rows:
        text, phi = _read(row)
        begun = time.perf_counter()
        findings = find(text)
        seconds += time.perf_counter() - begun
        if not phi:
            clean += 1
            touched += bool(findings)
            if errors and findings:
                print("touched:", [text[each.start : each.end] for each in findings], "in:", text)
        findings_count += len(findings)
        right += sum(_is_labelled(each, text, phi) for each in findings)
        covered, masked = _covered(text, findings), _covered(text, pointing(findings))
        for kind, value in phi:
            total[kind] += 1
            hidden[kind] += _is_covered(text, value, masked)
            if _is_covered(text, value, covered):
                found[kind] += 1
            elif errors:
                print(f"left ({kind}):", value, "in:", text)
    rate = _share(touched, clean)
    return {
        "n": len(rows),
        "identifiers": total.total(),
        **_recalls(found.total(), hidden.total(), total.total()),
        "precision": _share(right, findings_count),
        "precision_interval": ends(right, findings_count),
        "clean_touched": rate,
        "false_positive_rate": rate,
        "false_positive_interval": ends(touched, clean),
        "per_category": {
            kind: {"n": total[kind], **_recalls(found[kind], hidden[kind], total[kind])} for kind in total
        },
        "ms_per_row": 1000 * seconds / max(len(rows), 1),
    }


def _share(hits: int, total: int) -> float | None:
    return round(hits / total, 4) if total else None


def _recalls(found: int, hidden: int, total: int) -> dict[str, Any]:
    return {
        "recall": _share(found, total),
        "recall_interval": ends(found, total),
        "hidden": _share(hidden, total),
        "hidden_interval": ends(hidden, total),
    }


def _read(row: dict[str, Any]) -> tuple[str, list[tuple[str, str]]]:
    """A row's text, and type and value of each identifier in it."""
    try:
        text, phi = row["query"], [(item["identifier_type"], item["value"]) for item in row["phi"]]
    except (KeyError, TypeError):
        phi, text = [], None
    if not isinstance(text, str) or not all(isinstance(part, str) for item in phi for part in item):
        raise ValueError(f"a row needs `query`, and `phi` with `identifier_type` and `value`: {sorted(row)}")
    return text, phi


def _covered(text: str, findings: Iterable[Finding]) -> bytearray:
    covered = bytearray(len(text))
    for each in findings:
        covered[each.start : each.end] = b"\x01" * (each.end - each.start)
    return covered


def _is_covered(text: str, value: str, covered: bytearray) -> bool:
    start = text.find(value)
    if start < 0:
        return True  # the row's own label is not in its text
    left = "".join(c if not covered[start + i] else " " for i, c in enumerate(value))
    return not _MAY_STAY.sub("", left).strip()


def _is_labelled(finding: Finding, text: str, phi: Iterable[tuple[str, str]]) -> bool:
    """Whether it overlaps any place where an identifier of the row stands."""
    return any(
        place.start() < finding.end and finding.start < place.end()
        for _, value in phi
        if value
        for place in re.finditer(re.escape(value), text)
    )


def main() -> None:
    """Print the figures."""
    parser = options("How many identifiers are found, and how many the model does not read.")
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--errors", action="store_true", help="print what was missed and what was touched")
    chosen = parser.parse_args()
    rows = rows_of(parser, chosen.files)
    result = told(parser, rows[:100] if chosen.quick else rows, errors=chosen.errors)
    if chosen.json:
        print(json.dumps(result))


def told(parser: argparse.ArgumentParser, rows: list[dict[str, Any]], *, errors: bool) -> dict[str, Any]:
    """Measure and print; ends the program with a message when a row is of another shape."""
    find("warm up: Dr. Example")
    try:
        result = measure(rows, errors=errors)
    except ValueError as error:
        parser.error(str(error))
    show(result)
    return result


def show(result: dict[str, Any]) -> None:
    """Print the result for a person."""
    columns = f"{'found':>8}{'95 %':>16}{'hidden from the model':>23}{'95 %':>16}"
    print(f"{'':34}{'n':>6}{columns}")
    everything = result | {"n": result["identifiers"]}
    for kind, one in [("all", everything), *sorted(result["per_category"].items())]:
        recall = in_columns(one["recall"], one["recall_interval"])
        hidden = in_columns(one["hidden"], one["hidden_interval"])
        print(f"{kind:34}{one['n']:>6}{recall}{'':15}{hidden}".rstrip())
    for name, key, ends_key in (
        ("findings that are labelled", "precision", "precision_interval"),
        ("clean rows touched", "false_positive_rate", "false_positive_interval"),
    ):
        print(f"{name:40}{in_columns(result[key], result[ends_key])}".rstrip())
    print(f"{result['n']} rows, {result['ms_per_row']:.2f} ms a row")


if __name__ == "__main__":
    main()
