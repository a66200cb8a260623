"""The rules of a job's life. They do no I/O and do not know what the work is.

    queued ──claim──> running ──finish──> succeeded | failed | cancelled
      ^                  │
      └── retry, lease lost, drain, postponed ──┘

Cancelling a running job is a request (a flag), not a state; its worker, or the reconciler in its
place, makes it `cancelled`.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum


class State(StrEnum):
    """Where a job is."""

    QUEUED = "queued"  #: waits for a worker
    RUNNING = "running"  #: belongs to a worker, until its lease ends
    SUCCEEDED = "succeeded"  #: the answer is stored
    FAILED = "failed"  #: will not be tried again; `error` says why
    CANCELLED = "cancelled"  #: a person stopped it; what was released stays


class Kind(StrEnum):
    """What sort of work it is; each kind has a Celery queue of the same name."""

    INFER = "infer"  #: answer a question
    VERIFY = "verify"  #: load an adapter in the serving engine and compare what it computes
    VALIDATE = "validate"  #: check an uploaded dataset
    TRAIN = "train"  #: fine-tune an adapter
    EVALUATE = "evaluate"  #: measure an adapter against its base
    REPLAY = "replay"  #: judge answers again under another policy of the guard


class Lane(StrEnum):
    """Which jobs go first."""

    INTERACTIVE = "interactive"  #: a person is waiting
    BATCH = "batch"  #: nobody is waiting


class EventKind(StrEnum):
    """What happened to a job; the name of a row in `job_events`."""

    SUBMITTED = "submitted"
    CLAIMED = "claimed"
    RETRIED = "retried"  #: the attempt failed in a way that may pass
    LEASE_EXPIRED = "lease_expired"  #: the worker was silent for too long
    DRAINED = "drained"  #: the worker is shutting down; no attempt is burnt
    POSTPONED = "postponed"  #: there is no room for the work now; no attempt is burnt
    CANCEL_REQUESTED = "cancel_requested"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


TERMINAL = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED})
ACTIVE = frozenset({State.QUEUED, State.RUNNING})

_REQUEUES = frozenset({EventKind.RETRIED, EventKind.LEASE_EXPIRED, EventKind.DRAINED, EventKind.POSTPONED})
_ENDS = {
    EventKind.SUCCEEDED: State.SUCCEEDED,
    EventKind.FAILED: State.FAILED,
    EventKind.CANCELLED: State.CANCELLED,
}


@dataclass(frozen=True, kw_only=True)
class Event:
    """One step of a job's life, as stored in `job_events`."""

    seq: int
    kind: EventKind
    #: Raised by one at every claim; a worker with an older epoch is fenced off.
    epoch: int
    #: Attempts used up to and including this step.
    attempt: int
    worker_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The part of a job's row that its events determine."""

    state: State
    epoch: int
    attempt: int
    worker_id: str | None
    cancel_requested: bool
    event_seq: int


class IllegalTransition(Exception):
    """The event cannot follow the ones before it."""


def apply(snapshot: Snapshot | None, event: Event) -> Snapshot:
    """The state after one more event. Raises IllegalTransition when it cannot follow."""
    if snapshot is None:
        if event.kind is EventKind.SUBMITTED:
            return Snapshot(
                state=State.QUEUED,
                epoch=0,
                attempt=0,
                worker_id=None,
                cancel_requested=False,
                event_seq=event.seq,
            )
        raise IllegalTransition(f"{event.kind} before submitted")
    if snapshot.state in TERMINAL or event.kind is EventKind.SUBMITTED or event.seq != snapshot.event_seq + 1:
        raise IllegalTransition(f"{event.kind} after {snapshot.state}")
    after = replace(snapshot, event_seq=event.seq)
    if (
        event.kind is EventKind.CLAIMED
        and snapshot.state is State.QUEUED
        and event.epoch == snapshot.epoch + 1
    ):
        return replace(
            after, state=State.RUNNING, epoch=event.epoch, attempt=event.attempt, worker_id=event.worker_id
        )
    if event.kind is EventKind.CANCEL_REQUESTED and snapshot.state is State.RUNNING:
        return replace(after, cancel_requested=True)
    if event.kind in _REQUEUES and snapshot.state is State.RUNNING:
        return replace(after, state=State.QUEUED, attempt=event.attempt, worker_id=None)
    if event.kind in _ENDS:
        return replace(after, state=_ENDS[event.kind], worker_id=None)
    raise IllegalTransition(f"{event.kind} after {snapshot.state}")


def fold(events: Iterable[Event]) -> Snapshot:
    """Replay a job's events, oldest first. Raises IllegalTransition, also for no events at all."""
    snapshot: Snapshot | None = None
    for event in events:
        snapshot = apply(snapshot, event)
    if snapshot is None:
        raise IllegalTransition("a job without events")
    return snapshot


def backoff(attempt: int, *, base_s: float, jitter: float) -> timedelta:
    """How long to wait before the next attempt.

    Exponential with full jitter ("Exponential Backoff and Jitter", AWS Architecture Blog, 2015), at
    most a minute. `attempt` ≥ 1 is the one that failed; `jitter` is a random number in [0, 1).
    """
    ceiling = min(base_s * 2 ** (attempt - 1), 60.0)
    return timedelta(seconds=ceiling * (0.5 + jitter / 2))


def is_overdue(deadline_at: datetime | None, now: datetime) -> bool:
    """Whether a job's deadline has passed."""
    return deadline_at is not None and deadline_at <= now
