"""The rules of an adapter's life: what may follow what, and who answered before."""

import pytest

from shared.training.comparisons import Total, count_votes
from shared.training.states import AdapterStatus, DeploymentKind, before_now, may_become

PROMOTE, BACK, RECALL = DeploymentKind.PROMOTE, DeploymentKind.ROLL_BACK, DeploymentKind.RECALL


def test_a_candidate_becomes_active_only_through_approval() -> None:
    assert may_become(AdapterStatus.CANDIDATE, AdapterStatus.APPROVED)
    assert may_become(AdapterStatus.APPROVED, AdapterStatus.ACTIVE)
    assert not may_become(AdapterStatus.CANDIDATE, AdapterStatus.ACTIVE)
    assert may_become(AdapterStatus.ARCHIVED, AdapterStatus.ACTIVE)


def test_nothing_becomes_a_candidate_again() -> None:
    assert not any(may_become(status, AdapterStatus.CANDIDATE) for status in AdapterStatus)


def test_a_recalled_adapter_stays_recalled() -> None:
    assert not any(may_become(AdapterStatus.RECALLED, status) for status in AdapterStatus)
    assert all(
        may_become(s, AdapterStatus.RECALLED) for s in AdapterStatus if s is not AdapterStatus.RECALLED
    )


@pytest.mark.parametrize(
    ("history", "unfit", "before"),
    [
        ([(PROMOTE, "a")], (), None),
        ([(PROMOTE, "a"), (PROMOTE, "b")], (), "a"),
        ([(PROMOTE, "a"), (PROMOTE, "b"), (PROMOTE, "c"), (BACK, "b")], (), "a"),
        ([(PROMOTE, "a"), (PROMOTE, "b"), (BACK, "a"), (BACK, None), (PROMOTE, "c")], (), None),
        ([(PROMOTE, "a"), (PROMOTE, "b"), (PROMOTE, "a")], (), "b"),
        ([(PROMOTE, "a"), (PROMOTE, "b"), (PROMOTE, "c")], ("b",), "a"),
        ([(PROMOTE, "a"), (PROMOTE, "b"), (PROMOTE, "c")], ("a", "b"), None),
        ([(PROMOTE, "a"), (PROMOTE, "b"), (PROMOTE, "c"), (RECALL, "b")], ("c",), "a"),
        ([(PROMOTE, "a"), (PROMOTE, "b"), (PROMOTE, "a"), (PROMOTE, "c")], ("a",), "b"),
        ([], (), None),
    ],
)
def test_who_answered_before(
    history: list[tuple[DeploymentKind, str | None]], unfit: tuple[str, ...], before: str | None
) -> None:
    assert before_now(history, unfit) == before


def test_votes_are_counted_by_pair_whichever_side_each_was_on() -> None:
    votes = [("b", "a", "left", 2), ("a", "b", "left", 1), ("a", "b", "tie", 3), (None, "a", "right", 1)]
    assert count_votes(votes) == [
        Total(first=None, second="a", first_wins=0, second_wins=1, ties=0),
        Total(first="a", second="b", first_wins=1, second_wins=2, ties=3),
    ]
