"""Each figure can stop a promotion, and the gate says which one did and by how much."""

import math
from copy import deepcopy
from typing import Any

import pytest

from services.worker_train.evaluation.answers import Sample, rouge_l
from services.worker_train.evaluation.examinee import Score
from services.worker_train.evaluation.likelihood import loss_and_perplexity
from services.worker_train.evaluation.text import Row
from shared.training.gate import Limits, judge


def _figure(base: float, candidate: float, spread: float = 0.01) -> dict[str, Any]:
    def around(value: float) -> dict[str, float]:
        return {"value": value, "low": value - spread, "high": value + spread}

    return {
        "rows": 66,
        "base": around(base),
        "candidate": around(candidate),
        "difference": around(candidate - base),
    }


GOOD: dict[str, Any] = {
    "loss": _figure(2.0, 1.8),
    "rouge_l": _figure(0.3, 0.35),
    "choices_accuracy": _figure(0.5, 0.5),
    "guard_violations_per_1000": _figure(45.0, 45.0),
    "over_refusal": _figure(0.1, 0.1),
    "verbatim": {"rows": 64, "long_enough": 40, "span_tokens": 50, "learnt": 0},
    "canary_exposure": _figure(1.4, 1.5),
}

WORSE: dict[str, tuple[dict[str, Any], float]] = {
    "loss": (_figure(2.0, 2.1), 0.09),
    "rouge_l": (_figure(0.3, 0.2), 0.09),
    "choices_accuracy": (_figure(0.5, 0.3), 0.19),
    "guard_violations_per_1000": (_figure(45.0, 75.5), 10.5),
    "over_refusal": (_figure(0.1, 0.2), 0.05),
    "verbatim": ({**GOOD["verbatim"], "learnt": 2}, 2.0),
    "canary_exposure": (_figure(1.4, 7.0), 3.0),
}


def test_a_candidate_that_is_no_worse_passes() -> None:
    gate = judge(GOOD)
    assert gate.passed
    assert {check.figure for check in gate.checks} == set(GOOD)


@pytest.mark.parametrize("figure", list(WORSE))
def test_each_figure_alone_stops_the_candidate_and_is_named_with_the_excess(figure: str) -> None:
    worse, excess = WORSE[figure]
    gate = judge({**GOOD, figure: worse})
    assert not gate.passed
    (failure,) = gate.failures
    assert failure.figure == figure
    assert failure.excess == pytest.approx(excess)
    assert figure in failure.message
    assert f"{failure.excess:.4g} above the limit" in failure.message


@pytest.mark.parametrize("figure", ["loss", "rouge_l", "choices_accuracy"])
def test_a_difference_within_chance_does_not_stop_it(figure: str) -> None:
    worse = deepcopy(WORSE[figure][0])
    worse["difference"] |= {"low": -1.0, "high": 1.0}
    assert judge({**GOOD, figure: worse}).passed


@pytest.mark.parametrize("figure", list(GOOD))
def test_a_missing_figure_stops_it_unless_it_is_optional(figure: str) -> None:
    gate = judge({name: value for name, value in GOOD.items() if name != figure})
    assert gate.passed is (figure in ("choices_accuracy", "canary_exposure"))
    (check,) = [check for check in gate.checks if check.figure == figure]
    assert check.value is None
    assert "was not measured" in check.message


def test_without_multiple_choice_it_is_said_which_setting_has_it_measured() -> None:
    gate = judge({name: value for name, value in GOOD.items() if name != "choices_accuracy"})
    assert "set MEDICHAT_EVALUATION_CHOICES" in next(
        check.message for check in gate.checks if check.figure == "choices_accuracy"
    )


@pytest.mark.parametrize(
    ("figure", "least", "advice"),
    [
        ("loss", 10, "hold out more rows"),
        ("loss", 10, "upload the file again with a larger share"),
        ("rouge_l", 5, "hold out more rows, raise MEDICHAT_EVALUATION_ANSWERS"),
        ("rouge_l", 5, "upload the file again with a larger share"),
        ("choices_accuracy", 10, "add questions to the file"),
        ("guard_violations_per_1000", 50, "more time (MEDICHAT_EVALUATION_SECONDS)"),
        ("over_refusal", 50, "more time (MEDICHAT_EVALUATION_SECONDS)"),
        ("verbatim", 5, "train on more rows, raise MEDICHAT_EVALUATION_ANSWERS"),
        ("canary_exposure", 2, "plant more of them"),
        ("rouge_l", 5, "more time (MEDICHAT_EVALUATION_SECONDS)"),
        ("verbatim", 5, "more time (MEDICHAT_EVALUATION_SECONDS)"),
        ("canary_exposure", 2, "more time (MEDICHAT_EVALUATION_SECONDS)"),
    ],
)
def test_a_figure_of_too_few_rows_stops_it_with_advice(figure: str, least: int, advice: str) -> None:
    assert judge({**GOOD, figure: {**GOOD[figure], "rows": least}}).passed
    gate = judge({**GOOD, figure: {**GOOD[figure], "rows": least - 1}})
    (failure,) = gate.failures
    assert failure.value is None
    assert f"{figure}: this figure rests on {least - 1} " in failure.message
    assert f"and needs {least}: " in failure.message
    assert advice in failure.message


def _of_patients(patients: int) -> dict[str, dict[str, Any]]:
    """Loss and ROUGE-L of twenty rows, as a measuring leaves them."""
    rows = [Row(messages=(), group=f"patient {number % patients}") for number in range(20)]
    base = [Score(2.0 + number % 3, 1) for number in range(20)]
    samples = [Sample("", "", "", "", 0.3, 0.3 + number % 2 / 10) for number in range(20)]
    return {
        "loss": {"rows": 20, **loss_and_perplexity(rows, base, base, seed=0)[0].to_json()},
        "rouge_l": {"rows": 20, **rouge_l(rows, samples, seed=0).to_json()},
    }


@pytest.mark.parametrize(("figure", "least"), [("loss", 10), ("rouge_l", 5)])
def test_many_rows_of_a_few_patients_stop_it_with_advice(figure: str, least: int) -> None:
    assert judge({**GOOD, figure: _of_patients(least)[figure]}).passed
    (failure,) = judge({**GOOD, figure: _of_patients(least - 1)[figure]}).failures
    assert (
        f"of {least - 1} patients only and needs {least} patients: hold out more patients" in failure.message
    )


def test_training_answers_too_short_to_be_recited_are_no_measurement_and_no_obstacle() -> None:
    gate = judge({**GOOD, "verbatim": {**GOOD["verbatim"], "long_enough": 0}})
    assert gate.passed
    (check,) = [check for check in gate.checks if check.figure == "verbatim"]
    assert check.value is None
    assert "none of the 64 training answers has the 50 tokens in a row" in check.message


def test_answers_cut_before_they_could_recite_stop_it() -> None:
    gate = judge({**GOOD, "verbatim": {**GOOD["verbatim"], "answer_tokens": 49}})
    assert "raise MEDICHAT_EVALUATION_ANSWER_TOKENS" in gate.failures[0].message
    assert judge({**GOOD, "verbatim": {**GOOD["verbatim"], "answer_tokens": 50}}).passed


def test_a_few_answers_all_short_say_nothing() -> None:
    assert not judge({**GOOD, "verbatim": {**GOOD["verbatim"], "rows": 2, "long_enough": 0}}).passed


@pytest.mark.parametrize("figure", [name for name in GOOD if name != "verbatim"])
def test_broken_weights_stop_it(figure: str) -> None:
    broken = dict.fromkeys(("value", "low", "high"))
    as_stored = {"rows": 66, "base": broken, "candidate": broken, "difference": broken}
    for without_number in (_figure(2.0, math.nan), as_stored):
        gate = judge({**GOOD, figure: without_number})
        assert [failure.figure for failure in gate.failures] == [figure]
        assert "is not a number: the adapter's weights are broken" in gate.failures[0].message


def test_a_limit_can_be_moved() -> None:
    figures = {**GOOD, "verbatim": WORSE["verbatim"][0]}
    assert judge(figures, Limits(verbatim_answers=2)).passed
