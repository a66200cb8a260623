"""What others read from the results of the benchmarks. Nothing is measured here."""

import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar, Self

import pytest

from benchmarks import gateway, overhead, report, searching, serving, training, training_curve
from benchmarks.systems import Answer

FIGURES = training.figures(
    answers=9, held_out=3, tokens=100, seconds=2.0, eval_loss=3.0, peak_mb=4.0, dtype="float32"
)


class Fast:
    """A system that answers at once, whatever it is made with, unless it or another still starts."""

    starting: ClassVar[list[Self]] = []

    def __init__(self, *made_with: Any) -> None:
        """Of that it only needs how long an answer is."""
        self._new_tokens = int(made_with[3])
        self.starting.append(self)

    def wait_ready(self) -> None:
        self.starting.remove(self)

    def ask(self, question: str) -> Answer:
        assert not self.starting, "asked while a system starts: its figures are of both"
        return Answer(tokens=self._new_tokens, first_sentence_s=0.1, total_s=0.2)

    ask_and_wait = ask

    def use_rules_alone(self) -> None:
        """It has no guard."""

    def peak_mb(self) -> float:
        return 1.0

    def close(self) -> None:
        """It holds nothing."""


def told_by(
    main: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *named: str,
) -> dict[str, Any]:
    """What a benchmark prints for programs."""
    monkeypatch.setattr(sys, "argv", ["benchmark", *named, "--quick", "--json"])
    main()
    told: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return told


def kept(name: str) -> dict[str, Any]:
    """What the last full run left."""
    found: dict[str, Any] = json.loads((report.RESULTS / f"{name}.json").read_text())
    return found


def check_serving(result: dict[str, Any]) -> None:
    for row in result["rows"]:
        assert row["system"] in ("naive", "engine", "stack")
        figures = ("tokens_per_s", "first_sentence_ms_p50", "first_sentence_ms_p95")
        assert all(isinstance(row[name], float) for name in figures)
        assert all(isinstance(row[name], int) for name in ("concurrency", "adapters"))
    assert {row["concurrency"] for row in result["rows"]} >= {1, 16}
    assert all(isinstance(result["overhead_ms"][name], float) for name in ("p50", "p95"))


def check_gateway(result: dict[str, Any]) -> None:
    for dialect in ("sqlite", "postgresql"):
        assert all(isinstance(result[dialect][name], float) for name in ("accepted_per_s", "bare_per_s"))


def check_training(result: dict[str, Any]) -> None:
    for system in ("baseline", "ours"):
        figures = ("supervised_tokens_per_s", "eval_loss", "peak_mb")
        assert all(isinstance(result[system][name], float) for name in figures)


def test_serving_tells_rows_of_each_system_and_what_the_path_adds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module, names in (
        (serving, ("Naive", "EngineInProcess", "WholeStack", "Bare")),
        (overhead, ("EngineInProcess", "WholeStack")),
    ):
        for name in names:
            monkeypatch.setattr(module, name, Fast)
    monkeypatch.setattr(serving.models, "layers_of_gemma_270m", lambda folder, _: folder)
    monkeypatch.setattr(serving, "apart", lambda function, *args, **options: function(*args, **options))
    check_serving(told_by(serving.main, monkeypatch, capsys))


def test_gateway_tells_accepted_questions_of_both_by_database(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gateway, "measure", lambda *_, **__: gateway.compared([2.0, 3.0], [4.0, 5.0]))
    monkeypatch.setattr(gateway, "postgresql", lambda: nullcontext("postgresql+psycopg://"))
    check_gateway(told_by(gateway.main, monkeypatch, capsys))


def test_training_tells_figures_of_the_baseline_and_of_ours(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(training, "_in_a_process", lambda *_: FIGURES)
    monkeypatch.setattr(training.training_gpu, "measure", lambda **_: "not measured")
    check_training(told_by(training.main, monkeypatch, capsys))


def test_searching_tells_each_kind_of_search_and_how_many_conversations_a_quick_run_made(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(searching, "measure_each", lambda _, number: {"rare": number / 1000})
    told = told_by(searching.main, monkeypatch, capsys, "sqlite:///medichat.db")
    assert (told["conversations"], told["search_ms"]) == (5_000, {"rare": 5.0})


def test_a_quick_curve_of_training_tells_the_loss_held_out_and_leaves_what_docs_show(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"question": "What is {each}?", "answer": "Rest."}}\n' for each in range(99)))
    events = [{"step": 0, "eval_loss": 3.0}, {"step": 1, "loss": 2.5}, {"step": 3, "eval_loss": 2.0}]
    monkeypatch.setattr(training_curve, "learn", lambda *_: (events, "A card."))
    monkeypatch.setattr(training_curve, "DOCS", tmp_path / "docs")
    told = told_by(training_curve.main, monkeypatch, capsys, str(rows))
    assert told["rows"] == training.QUICK_ROWS
    assert told["held_out"] == [events[0], events[2]]
    assert not training_curve.DOCS.exists()


def test_a_comparison_of_trainings_is_kept_whatever_becomes_of_the_gpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def lost(**_: Any) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setattr(training, "_in_a_process", lambda *_: FIGURES)
    monkeypatch.setattr(training.training_gpu, "measure", lost)
    monkeypatch.setattr(sys, "argv", ["benchmark"])
    with pytest.raises(RuntimeError, match="device-side assert"):
        training.main()
    check_training(kept("training"))


def test_the_figures_of_a_gpu_are_kept_apart_and_those_of_none_are_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["benchmark", "--gpu"])
    for found in ({"card": "NVIDIA H200"}, "not measured: there is no GPU"):
        monkeypatch.setattr(training.training_gpu, "measure", lambda found=found, **_: found)
        training.main()
    assert kept("training_gpu")["gpu"] == {"card": "NVIDIA H200"}
    assert not (tmp_path / "training.json").exists()


@pytest.mark.parametrize(
    ("name", "check"),
    [("serving", check_serving), ("gateway", check_gateway), ("training", check_training)],
)
def test_the_results_that_were_kept_say_the_same(name: str, check: Callable[[dict[str, Any]], None]) -> None:
    check(kept(name))
