"""Writes what a benchmark found: JSON and, where it draws one, a plot. It measures nothing."""

import argparse
import gzip
import json
import os
import platform
import statistics
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from shared.intervals import wilson

RESULTS = Path(__file__).parent / "results"


def options(description: str) -> argparse.ArgumentParser:
    """The flags that every benchmark has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", action="store_true", help="print one JSON object last")
    parser.add_argument("--quick", action="store_true", help="end within about a minute, less precise")
    return parser


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "cores": os.cpu_count(),
        "processor": _processor(),
        "python": platform.python_version(),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def save(name: str, result: dict[str, Any], *, quick: bool) -> None:
    """Keep the result of a full run as `results/NAME.json`; a quick run is not kept."""
    if not quick:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON Lines file, gzipped or not. Raises ValueError for a line that is no object."""
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    rows = [json.loads(line) for line in text.split("\n") if line.strip()]  # a text may hold U+2028
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path.name}: each line must be a JSON object")
    return rows


def rows_of(parser: argparse.ArgumentParser, files: Sequence[Path]) -> list[dict[str, Any]]:
    """The rows of some files; ends the program with a message when they cannot be read, or hold none."""
    try:
        rows = [row for path in files for row in read_rows(path)]
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if not rows:
        parser.error("there is no row to measure")
    return rows


def ends(hits: int, total: int) -> list[float]:
    """The 95 % interval of a share as it is kept."""
    return [round(end, 3) for end in wilson(hits, total)]


def in_columns(share: float | None, interval_: Sequence[float]) -> str:
    """A share and its interval in 24 columns; blank for a share of nothing."""
    return " " * 24 if share is None else f"{share:>8.3f}{interval_[0]:>9.3f}–{interval_[1]:.3f} "


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` (0 to 1) of the values lie, interpolated."""
    if len(values) == 1:
        return values[0]
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return cuts[min(98, max(0, round(share * 100) - 1))]
