"""The rules of a job's life: what may follow what."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.jobs.lifecycle import (
    TERMINAL,
    Event,
    EventKind,
    IllegalTransition,
    Snapshot,
    State,
    apply,
    backoff,
    fold,
)


def event(seq: int, kind: EventKind, epoch: int = 0, attempt: int = 0) -> Event:
    return Event(seq=seq, kind=kind, epoch=epoch, attempt=attempt, worker_id="w")


SUBMITTED = event(1, EventKind.SUBMITTED)
CLAIMED = event(2, EventKind.CLAIMED, 1, 1)


@pytest.mark.parametrize("end", [EventKind.SUCCEEDED, EventKind.FAILED, EventKind.CANCELLED])
def test_an_ended_job_stays_as_it_is(end: EventKind) -> None:
    ended = fold([SUBMITTED, CLAIMED, event(3, end, 1, 1)])
    assert ended.state in TERMINAL
    for kind in EventKind:
        with pytest.raises(IllegalTransition):
            apply(ended, event(4, kind, 2, 2))


def test_a_claim_must_raise_the_epoch_by_one() -> None:
    for epoch in (0, 2):
        with pytest.raises(IllegalTransition):
            fold([SUBMITTED, event(2, EventKind.CLAIMED, epoch, 1)])


def test_a_missing_event_is_noticed() -> None:
    with pytest.raises(IllegalTransition):
        fold([SUBMITTED, event(3, EventKind.CLAIMED, 1, 1)])


def test_a_job_begins_by_being_submitted() -> None:
    with pytest.raises(IllegalTransition):
        fold([CLAIMED])
    with pytest.raises(IllegalTransition):
        fold([])


@pytest.mark.parametrize(
    "kind", [EventKind.RETRIED, EventKind.LEASE_EXPIRED, EventKind.DRAINED, EventKind.POSTPONED]
)
def test_a_running_job_goes_back_to_the_queue(kind: EventKind) -> None:
    after = fold([SUBMITTED, CLAIMED, event(3, kind, 1, 1)])
    assert (after.state, after.worker_id) == (State.QUEUED, None)


@given(st.lists(st.sampled_from(EventKind), max_size=12))
def test_whatever_folds_is_a_state_and_never_leaves_an_end(kinds: list[EventKind]) -> None:
    snapshot: Snapshot | None = None
    epoch = 0
    for seq, kind in enumerate(kinds, start=1):
        try:
            after = apply(
                snapshot, event(seq if snapshot is None else snapshot.event_seq + 1, kind, epoch + 1)
            )
        except IllegalTransition:
            continue
        assert snapshot is None or snapshot.state not in TERMINAL
        snapshot, epoch = after, after.epoch


@given(st.integers(1, 50), st.floats(0, 1, exclude_max=True))
def test_the_wait_between_attempts_grows_to_a_minute_at_most(attempt: int, jitter: float) -> None:
    wait = backoff(attempt, base_s=2, jitter=jitter).total_seconds()
    assert min(2 * 2 ** (attempt - 1), 60) / 2 <= wait <= 60
