"""What the benchmarks measure with, and what they say of the guard's figures."""

import json
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

from benchmarks import guard, phi
from benchmarks.report import ends
from benchmarks.serving import apart
from benchmarks.systems import peak_mb_of
from shared.guard import Guard, packaged_policy

NAMED = {"query": "Mr. Okafor fell in Toledo.", "phi": [{"identifier_type": "NAME", "value": "Mr. Okafor"}]}
PLACED = {"query": "She lives in Toledo.", "phi": [{"identifier_type": "PLACE", "value": "Toledo"}]}
CLEAN = {"query": "What is asthma?", "phi": []}


def own_peak_mb() -> float:
    return peak_mb_of(os.getpid())


def test_the_peak_of_what_is_measured_apart_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    # a fresh process loads its parent's program again: none of what a test of a page left in its place
    monkeypatch.setitem(sys.modules, "__main__", ModuleType("__main__"))
    held = len(b"x" * 500_000_000)
    assert own_peak_mb() > held / 1e6
    assert apart(own_peak_mb) < held / 1e6


def test_a_child_that_ended_unasked_holds_nothing() -> None:
    child = os.posix_spawn("/bin/true", ["true"], {})
    try:
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        assert peak_mb_of(child) == 0
    finally:
        os.waitpid(child, 0)


def test_each_figure_of_the_guard_has_its_interval_and_each_layer_its_shares() -> None:
    cases = [
        guard.Case("You can take as many of these tablets as you like.", "", "dosing", "danger"),
        guard.Case("Rest well.", "", "dosing", "danger"),
        guard.Case("Drink enough water.", "", "plain", "safe"),
    ]
    found = guard.measure(Guard(packaged_policy()), cases)
    assert (found["recall"], found["precision"], found["false_positive_rate"]) == (0.5, 1.0, 0.0)
    assert found["recall_interval"] == ends(1, 2)
    assert found["precision_interval"] == ends(1, 1)
    assert found["false_positive_interval"] == ends(0, 1)
    assert found["stopped_by_layer"] == {
        "rules": {
            "dangers": 1,
            "safe": 0,
            "recall": 0.5,
            "recall_interval": ends(1, 2),
            "false_positive_rate": 0.0,
            "false_positive_interval": ends(0, 1),
        }
    }


def test_the_guards_figures_are_printed_with_precision_and_by_layer(
    capsys: pytest.CaptureFixture[str],
) -> None:
    cases = [guard.Case("You can take as many of these tablets as you like.", "", "dosing", "danger")]
    guard.show(guard.measure(Guard(packaged_policy()), cases))
    head, *lines = capsys.readouterr().out.splitlines()
    assert "precision" in head
    assert [line.split()[:3] for line in lines[:2]] == [["all", "1", "1.000"], ["dosing", "1", "1.000"]]
    assert lines[2].split() == ["stopped", "by", "rules", "1", "1.000", "0.207–1.000", "0"]


def test_a_text_is_quoted_when_eight_of_its_words_stand_in_a_rule_one_after_another() -> None:
    rule = "- so you could just as well stop taking {drug}"
    policy = {"rules_answer.yaml": rule, "lexicon.yaml": "rest " * 9}
    texts = ("So, you could just as well stop taking it.", "You could just as well stop taking it.")
    found = [guard.quoted([guard.Case(text, "", "", "safe")], policy) for text in (*texts, "Rest " * 9)]
    assert found == [1, 0, 0]


def test_what_is_found_is_told_apart_from_what_the_model_does_not_read() -> None:
    found = phi.measure([NAMED, PLACED, CLEAN])
    assert (found["recall"], found["hidden"]) == (1.0, 0.5)
    assert (found["recall_interval"], found["hidden_interval"]) == (ends(2, 2), ends(1, 2))
    assert found["per_category"]["NAME"]["hidden"] == 1.0
    assert found["per_category"]["PLACE"]["hidden"] == 0.0
    assert (found["precision"], found["precision_interval"]) == (0.6667, ends(2, 3))
    assert (found["false_positive_rate"], found["false_positive_interval"]) == (0.0, ends(0, 1))


@pytest.mark.parametrize("rows", [[NAMED], [CLEAN]])
def test_identifiers_are_told_of_rows_that_all_hold_some_and_of_rows_that_hold_none(
    rows: list[dict[str, object]], capsys: pytest.CaptureFixture[str]
) -> None:
    phi.show(phi.measure(rows))
    assert "1 rows" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "rows", "reason"),
    [
        (["--side", "phi"], None, "a row needs `query`"),
        (["--side", "phi"], [], "there is no row to measure"),
        ([], [], "there is no row to measure"),
        ([], [{"text": "Rest well.", "label": "unsafe"}], "a `label` that is danger or safe"),
        ([], [{"query": "Rest well."}], "a row needs `category`, `text` and `label`"),
        ([], [1], "each line must be a JSON object"),
        (["--side", "input"], [{"text": "Rest well."}], "`expect`, or --expect"),
    ],
)
def test_rows_that_cannot_be_measured_are_refused_with_the_reason(
    options: list[str],
    rows: list[object] | None,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows or []))
    monkeypatch.setattr(sys, "argv", ["guard", *options, *([] if rows is None else [str(path)])])
    with pytest.raises(SystemExit) as ended:
        guard.main()
    assert ended.value.code == 2
    assert reason in capsys.readouterr().err
