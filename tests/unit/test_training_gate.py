"""Each figure can stop a promotion, and the gate says which one did and by how much."""

import math
from copy import deepcopy
from typing import Any

import pytest

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
    "verbatim": {"rows": 64, "learnt": 0},
    "canary_exposure": _figure(1.4, 1.5),
}

WORSE: dict[str, tuple[dict[str, Any], float]] = {
    "loss": (_figure(2.0, 2.1), 0.09),
    "rouge_l": (_figure(0.3, 0.2), 0.09),
    "choices_accuracy": (_figure(0.5, 0.3), 0.19),
    "guard_violations_per_1000": (_figure(45.0, 75.5), 10.5),
    "over_refusal": (_figure(0.1, 0.2), 0.05),
    "verbatim": ({"rows": 64, "learnt": 2}, 2.0),
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
    optional = figure in ("choices_accuracy", "canary_exposure")
    assert gate.passed is optional
    assert optional or "was not measured" in gate.failures[0].message


@pytest.mark.parametrize("figure", ["guard_violations_per_1000", "over_refusal"])
def test_conduct_seen_in_too_few_answers_stops_it(figure: str) -> None:
    gate = judge({**GOOD, figure: {**GOOD[figure], "rows": 12}})
    assert "rests on 12 answers and needs 50" in gate.failures[0].message


def test_broken_weights_stop_it() -> None:
    gate = judge({**GOOD, "loss": _figure(2.0, math.nan)})
    assert "is not a number" in gate.failures[0].message


def test_a_limit_can_be_moved() -> None:
    figures = {**GOOD, "verbatim": {"rows": 64, "learnt": 2}}
    assert judge(figures, Limits(verbatim_answers=2)).passed
