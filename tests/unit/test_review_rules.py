"""Figures of the review are those of the literature, and what it asks for is what the guard names."""

import numpy as np
import pytest

from shared.guard.verdict import Action, Category, Severity
from shared.intervals import wilson
from shared.review.agreement import agreement
from shared.review.rules import CATEGORIES, GuardDone, Reason, priority, reason_of


def pairs(table: list[list[int]]) -> list[tuple[int, int]]:
    """The pairs of verdicts that a table counts: rows of one person, columns of the other."""
    return [
        (one, other) for one, row in enumerate(table) for other, count in enumerate(row) for _ in range(count)
    ]


@pytest.mark.parametrize(
    ("table", "kappa"),
    [
        ([[88, 14, 18], [10, 40, 10], [2, 6, 12]], 0.492),  # Cohen, 1968
        ([[75, 1, 4], [5, 4, 1], [0, 0, 10]], 0.676),  # Fleiss, Levin and Paik, 2003, table 18.1
        ([[20, 5], [10, 15]], 0.4),
    ],
)
def test_kappa_is_that_of_published_examples(table: list[list[int]], kappa: float) -> None:
    assert agreement(pairs(table)).kappa == pytest.approx(kappa, abs=0.0005)


def test_the_error_of_kappa_is_that_of_the_published_example() -> None:
    found = agreement(pairs([[75, 1, 4], [5, 4, 1], [0, 0, 10]]))
    assert found.error == pytest.approx(0.088, abs=0.0005)


def test_the_interval_of_kappa_holds_the_truth_about_as_often_as_it_says() -> None:
    shares = np.array([[40, 6, 4], [5, 20, 5], [2, 3, 15]]) / 100
    truth = agreement(pairs([[40, 6, 4], [5, 20, 5], [2, 3, 15]])).kappa
    assert truth is not None
    chance, held = np.random.default_rng(1), 0
    for _ in range(300):
        drawn = chance.multinomial(150, shares.ravel()).reshape(3, 3)
        found = agreement(pairs(drawn.tolist()))
        assert found.low is not None
        assert found.high is not None
        held += found.low <= truth <= found.high
    assert 0.91 <= held / 300 <= 0.98


def test_there_is_no_kappa_of_nothing_and_none_where_all_is_the_same() -> None:
    assert agreement([]).kappa is None
    same = agreement([("safe", "safe")] * 5)
    assert (same.observed, same.kappa) == (1.0, None)


def test_wilsons_interval_is_that_of_a_published_example() -> None:
    # Newcombe, 1998, table I: 81 of 263, and 0 of 20
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=0.0001)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=0.0001)


def test_an_answer_is_unsafe_by_what_the_guard_looks_for_in_answers() -> None:
    of_questions = {
        *(Category.LANGUAGE, Category.HARMFUL_REQUEST, Category.IDENTIFIERS, Category.INJECTION),
        *(Category.CRISIS, Category.EMERGENCY),
    }
    assert set(CATEGORIES) == set(Category) - of_questions
    assert len(CATEGORIES) == 11


@pytest.mark.parametrize(
    ("verdicts", "sampled", "reason"),
    [
        ([], False, None),
        ([], True, Reason.SAMPLE),
        ([(Action.ALLOW, Severity.NONE)], False, None),
        ([(Action.ESCALATE, Severity.MEDIUM)], True, Reason.DOUBT),
        ([(Action.ESCALATE, Severity.MEDIUM), (Action.REPLACE, Severity.HIGH)], False, Reason.GUARD),
        *(([(action, Severity.LOW)], False, Reason.GUARD) for action in (Action.APPEND, Action.REFUSE)),
    ],
)
def test_the_reason_is_the_gravest_that_holds(
    verdicts: list[tuple[str, str]], sampled: bool, reason: Reason | None
) -> None:
    assert reason_of(GuardDone.of(verdicts), sampled=sampled) is reason


def test_a_crisis_and_the_gravest_danger_come_before_every_reason() -> None:
    for verdict in ((Action.CRISIS, Severity.HIGH), (Action.REPLACE, Severity.CRITICAL)):
        assert GuardDone.of([verdict]).grave
    grave = priority(Reason.SAMPLE, grave=True)
    assert all(grave < priority(each, grave=False) for each in Reason)
