"""Prints how an adapter measured against its base: its gate, figures and answers. It asks no gateway."""

from collections.abc import Iterator
from typing import Any

from services.cli_client import Json

#: Lists of samples: the name, and what they are.
_SAMPLES = (
    ("best", "best answers, by likeness to the reference"),
    ("worst", "worst answers, by likeness to the reference"),
    ("stopped", "answers that the guard stopped"),
    ("declined", "plain questions declined that the base answers"),
)
_SAID = ("question", "reference", "base", "candidate", "category", "answer")


def print_gate(gate: Json) -> None:
    """Which figures passed, and by how much others did not."""
    for check in gate["checks"]:
        passed = "passed" if check["value"] is not None else "none  "
        print(f"{passed if check['passed'] else 'FAILED'}  {check['message']}")


def print_figures(figures: Json) -> None:
    """Base and adapter beside each other, each with its 95 % interval."""
    rows = list(_rows(figures))
    if not rows:
        return
    widest = max(len(name) for name, *_ in rows)
    print(f"\n{'':{widest}}  {'base (95 %)':28}  adapter (95 %)")
    for name, base, candidate in rows:
        print(f"{name:{widest}}  {base:28}  {candidate}")


def print_samples(seen: Json) -> None:
    """The answers behind the figures."""
    if seen["samples_withheld"]:
        print("The questions are of people's conversations, so they are not shown to admins.")
    elif seen["samples_erased"]:
        print("The answers were erased with the dataset; the figures stay.")
    else:
        for name, title in _SAMPLES:
            samples = seen["samples"].get(name, [])
            print(f"== {title}: {len(samples)}")
            for sample in samples:
                for part in _SAID:
                    if sample.get(part):
                        print(f"{part}: {sample[part]}")
                print()


def _rows(figures: Json) -> Iterator[tuple[str, str, str]]:
    for name, figure in figures.items():
        if not isinstance(figure, dict):
            continue
        base, candidate = figure.get("base"), figure.get("candidate")
        if isinstance(base, dict) and isinstance(candidate, dict):
            yield name.replace("_", " "), _interval(base), _interval(candidate)


def _interval(side: dict[str, Any]) -> str:
    value, low, high = (side.get(each) for each in ("value", "low", "high"))
    if value is None:
        return "not measured"
    return f"{value:.4g}" if low is None or high is None else f"{value:.4g} ({low:.4g} to {high:.4g})"
