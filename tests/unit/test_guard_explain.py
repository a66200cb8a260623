"""What a guard makes of one text, and how long its verdict takes; scores are given."""

import pytest

from shared.guard import Audience, Guard, packaged_policy
from shared.guard.explain import Explanation, explain
from shared.guard.verdict import Side
from tests.unit.test_guard_layers import PLAIN, Scores, guard


class Slow(Scores):
    """A scorer that takes a second each time it is asked, by the clock that it holds."""

    now = 0.0

    def _over(self, labels: object) -> dict[str, float]:
        self.now += 1
        return super()._over(labels)  # type: ignore[arg-type]


def told(judge: Guard, side: Side = Side.ANSWER, text: str = PLAIN) -> Explanation:
    return explain(judge, side, text, context="", audience=Audience.PATIENT, locale="intl")


@pytest.mark.parametrize("side", Side)
def test_the_time_is_that_of_the_verdict_and_not_of_each_layer_by_itself(side: Side) -> None:
    scorer = Slow()
    found = explain(
        guard(scorer),
        side,
        PLAIN,
        context="",
        audience=Audience.PATIENT,
        locale="intl",
        clock=lambda: scorer.now,
    )
    assert found.ms == 1000
    assert scorer.now > 1, "the layer was asked by itself, too"


@pytest.mark.parametrize(("score", "doubted"), [(0.29, False), (0.31, True), (0.79, True), (0.81, False)])
def test_what_the_classifier_doubts_is_told_though_no_model_is_asked(score: float, doubted: bool) -> None:
    assert told(guard(Scores(dosing=score))).doubted is doubted


def test_a_policy_without_a_judge_leaves_nothing_to_it() -> None:
    policy = dict(packaged_policy())
    text = policy["policy.yaml"]
    policy["policy.yaml"] = text[: text.index("judge:\n")] + text[text.index("audiences:\n") :]
    assert not told(Guard(policy, Scores(dosing=0.5))).doubted


def test_no_question_is_left_to_the_judge() -> None:
    assert not told(guard(Scores(refuse=0.5)), Side.QUESTION).doubted
