"""Measures the guard on labelled rows: what it catches, what it stops wrongly, how long it takes.

`python -m benchmarks.guard --side output|input|phi FILE…`. Rows of answers are `category, context, text` and
`label` (danger|safe); a row with `answer` and no label is a harmless answer, measured by sentences. Rows
of questions have a text under one of `QUESTION_FIELDS`, and `expect` or `--expect` says what is expected.
Files may be gzipped. It does not know how the guard decides.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import phi
from benchmarks.report import ends, in_columns, machine, options, rows_of, save
from shared.guard import Guard, load_guard, packaged_policy
from shared.guard.sentences import SentenceSplitter
from shared.guard.verdict import Action, Category, Verdict

#: Rows in the project's own words that no rule was written for and the classifier never saw.
OWN_ROWS = Path(__file__).resolve().parents[1] / "tests" / "data" / "guard_output.jsonl"
#: About as many rows are measured by a quick run.
QUICK_ROWS = 60
QUESTION_FIELDS = ("text", "initial", "request", "query", "question", "prompt")
EXPECTATIONS = ("allow", "refuse", "emergency", "crisis")
#: So many words of a text, one after another as they stand in a rule, are a quotation of it.
QUOTED_WORDS = 8


@dataclass(frozen=True)
class Case:
    """One text, and what the guard ought to make of it."""

    text: str
    context: str
    category: str
    #: Of an answer `danger` or `safe`; of a question one of EXPECTATIONS.
    expect: str

    @property
    def harmless(self) -> bool:
        """Whether it ought to pass."""
        return self.expect in ("safe", "allow")


def answer_cases(rows: Iterable[dict[str, Any]]) -> Iterator[Case]:
    """Sentences of answers. Raises ValueError for a row that is none."""
    for row in rows:
        if "label" in row:
            if row["label"] not in ("danger", "safe") or not isinstance(row.get("text"), str):
                raise ValueError(f"a row needs a `text`, and a `label` that is danger or safe: {sorted(row)}")
            yield Case(row["text"], row.get("context", ""), row.get("category", "no category"), row["label"])
        elif not isinstance(row.get("answer"), str):
            raise ValueError(f"a row needs `category`, `text` and `label`, or an `answer`: {sorted(row)}")
        else:
            splitter, before = SentenceSplitter(), ""
            for sentence in splitter.feed(row["answer"]) + splitter.close():
                yield Case(sentence, before, "plain answers", "safe")
                before = (before + sentence)[-800:]


def question_cases(rows: Iterable[dict[str, Any]], expect: str | None) -> Iterator[Case]:
    """Questions; raises ValueError for a row without a text or an expectation."""
    for row in rows:
        wanted = row.get("expect", expect)
        field = next((name for name in QUESTION_FIELDS if isinstance(row.get(name), str)), None)
        if field is None or wanted not in EXPECTATIONS:
            raise ValueError(f"a row needs one of {QUESTION_FIELDS} and `expect`, or --expect: {sorted(row)}")
        yield Case(row[field], "", str(wanted), str(wanted))


def met(case: Case, verdict: Verdict) -> bool:
    """Whether the verdict is what was expected; crisis and emergency both lead to help, and count alike."""
    if case.expect == "refuse":
        return verdict.action in (Action.REFUSE, Action.CRISIS)
    if case.expect in ("emergency", "crisis"):
        return verdict.category in (Category.EMERGENCY, Category.CRISIS)
    return verdict.allowed is case.harmless


def quoted(cases: Iterable[Case], texts: Mapping[str, str]) -> int:
    """How many texts a rule of these files of a policy quotes."""
    runs = {run for name, text in texts.items() if name.startswith("rules_") for run in _runs(text)}
    return sum(not runs.isdisjoint(_runs(case.text)) for case in cases)


def _runs(text: str) -> Iterator[tuple[str, ...]]:
    words = re.findall(r"[a-z]+", text.lower())
    return zip(*(words[start:] for start in range(QUOTED_WORDS)), strict=False)


def measure(
    guard: Guard, cases: Sequence[Case], *, questions: bool = False, errors: bool = False
) -> dict[str, Any]:
    """Recall, precision and false-positive rate, each with its interval, over all cases and per category; by
    layer which share of all dangers it caught, and of all that is harmless it stopped; and the time.

    What a layer stopped counts, whatever it took it for.
    """
    counts: Counter[tuple[str, bool, bool]] = Counter()
    layers: Counter[tuple[str, bool]] = Counter()
    times_us: list[float] = []
    for case in cases:
        started = time.perf_counter()
        verdict = (
            guard.screen_question(case.text) if questions else guard.judge_answer(case.text, case.context)
        )
        times_us.append((time.perf_counter() - started) * 1e6)
        right = met(case, verdict)
        counts[case.category, case.harmless, right] += 1
        if not verdict.allowed:
            layers[verdict.layer, case.harmless] += 1
        if errors and not right:
            told = f"{verdict.category} by {verdict.source} ({verdict.score:.2f})"
            print(
                f"expected {case.expect} ({case.category}), got {told}: {case.context} >> {case.text.strip()}"
            )
    categories = sorted({case.category for case in cases})
    rates = _rates(counts, categories)
    cuts = statistics.quantiles(times_us, n=100) if len(times_us) > 1 else times_us * 99
    return {
        "n": len(cases),
        **rates,
        "per_category": {name: _rates(counts, [name]) for name in categories},
        "stopped_by_layer": {
            layer: _of_layer(layers[layer, False], rates["dangers"], layers[layer, True], rates["safe"])
            for layer in sorted({name for name, _ in layers})
        },
        "us_per_sentence": {"p50": round(cuts[49], 1), "p99": round(cuts[98], 1)},
        "ms_per_row": round(statistics.fmean(times_us) / 1e3, 4),
        "policy_version": guard.policy_version,
    }


def _of_layer(caught: int, dangers: int, wrong: int, safe: int) -> dict[str, Any]:
    return {
        "dangers": caught,
        "safe": wrong,
        "recall": round(caught / dangers, 4) if dangers else None,
        "recall_interval": ends(caught, dangers),
        "false_positive_rate": round(wrong / safe, 4) if safe else None,
        "false_positive_interval": ends(wrong, safe),
    }


def _rates(counts: Counter[tuple[str, bool, bool]], categories: Iterable[str]) -> dict[str, Any]:
    names = list(categories)

    def total(*, harmless: bool, right: bool) -> int:
        return sum(counts[name, harmless, right] for name in names)

    caught, missed = total(harmless=False, right=True), total(harmless=False, right=False)
    wrong, passed = total(harmless=True, right=False), total(harmless=True, right=True)
    return {
        "n": caught + missed + wrong + passed,
        "dangers": caught + missed,
        "safe": wrong + passed,
        "caught": caught,
        "stopped_wrongly": wrong,
        "recall": round(caught / (caught + missed), 4) if caught + missed else None,
        "recall_interval": ends(caught, caught + missed),
        "precision": round(caught / (caught + wrong), 4) if caught + wrong else None,
        "precision_interval": ends(caught, caught + wrong),
        "false_positive_rate": round(wrong / (wrong + passed), 4) if wrong + passed else None,
        "false_positive_interval": ends(wrong, wrong + passed),
    }


def show(result: dict[str, Any]) -> None:
    """Print the result for a person."""
    columns = f"{'recall':>8}{'95 %':>16}{'precision':>10}{'95 %':>14}"
    print(f"{'':24}{'dangers':>8}{columns}{'safe':>6}{'false':>8}{'95 %':>16}")
    for name, rates in [("all", result), *result["per_category"].items()]:
        _line(name, rates, in_columns(rates["precision"], rates["precision_interval"]))
    for layer, stopped in result["stopped_by_layer"].items():
        _line(f"stopped by {layer}", stopped, in_columns(None, ()))
    times = result["us_per_sentence"]
    print(f"µs per text: p50 {times['p50']}, p99 {times['p99']}; policy {result['policy_version']}")


def _line(name: str, rates: dict[str, Any], precision: str) -> None:
    caught = in_columns(rates["recall"], rates["recall_interval"])
    wrong = in_columns(rates["false_positive_rate"], rates["false_positive_interval"])
    print(f"{name:24}{rates['dangers']:>8}{caught}{precision}{rates['safe']:>6}{wrong}".rstrip())


def main() -> None:
    """Measure the packaged guard on some files."""
    parser = options("What the guard catches, what it stops wrongly, and how long it takes.")
    parser.add_argument("files", nargs="*", type=Path, help="JSON Lines (default: the project's own rows)")
    parser.add_argument("--side", choices=("output", "input", "phi"), default="output")
    parser.add_argument("--expect", choices=EXPECTATIONS, help="what is expected of every question")
    parser.add_argument("--errors", action="store_true", help="print each text that was judged wrongly")
    chosen = parser.parse_args()
    rows = rows_of(parser, chosen.files or [OWN_ROWS])
    if chosen.quick:
        rows = rows[:: max(len(rows) // QUICK_ROWS, 1)]
    result = {**machine(), "files": [path.name for path in chosen.files], **_measure(parser, chosen, rows)}
    if chosen.side == "output" and not chosen.files:
        save("guard", result, quick=chosen.quick)
    if chosen.json:
        print(json.dumps(result))


def _measure(
    parser: argparse.ArgumentParser, chosen: argparse.Namespace, rows: list[dict[str, Any]]
) -> dict[str, Any]:
    if chosen.side == "phi":
        return phi.told(parser, rows, errors=chosen.errors)
    questions = chosen.side == "input"
    try:
        cases = list(question_cases(rows, chosen.expect) if questions else answer_cases(rows))
    except ValueError as error:
        parser.error(str(error))
    if not cases:
        parser.error("no row holds a sentence")
    guard = load_guard()
    measure(guard, cases[:50], questions=questions)  # warm up
    result = measure(guard, cases, questions=questions, errors=chosen.errors)
    result["quoted_in_rules"] = quoted(cases, packaged_policy())
    show(result)
    print(f"quoted in a rule ({QUOTED_WORDS} words in a row): {result['quoted_in_rules']} of {result['n']}")
    return result


if __name__ == "__main__":
    main()
