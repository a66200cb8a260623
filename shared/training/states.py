"""Where a dataset and an adapter are in their lives. They do no I/O."""

from collections.abc import Collection, Iterable
from enum import StrEnum


class DatasetState(StrEnum):
    """Where a dataset is."""

    RECEIVING = "receiving"  #: its bytes are coming in
    VALIDATING = "validating"  #: a worker reads it
    READY = "ready"  #: the report is there; it can be trained on
    REJECTED = "rejected"  #: it cannot be used; `error_detail` says what to do


#: What a refused dataset's error says when nothing is left of it: an admin erased it, or rows of it came from
#: a conversation that was erased.
ERASED, WITHDRAWN = "erased", "withdrawn"
GONE = (ERASED, WITHDRAWN)
#: The `source` of datasets of corrected answers, whose rows are of people's conversations.
OF_REVIEWS = "reviews"


class AdapterStatus(StrEnum):
    """Where an adapter is; it moves forward only, except that an archived one may be active again."""

    CANDIDATE = "candidate"  #: trained, not yet judged
    APPROVED = "approved"  #: its gate passed, or an admin overrode it
    ACTIVE = "active"  #: answers requests that name no adapter
    ARCHIVED = "archived"  #: was active
    RECALLED = "recalled"  #: must not answer again


class RunState(StrEnum):
    """Where a training run is: its job's state, and two that a person wants to tell apart."""

    QUEUED = "queued"  #: waits for a worker
    WAITING = "waiting"  #: waits for room beside what serves; `waiting_reason` says more
    RUNNING = "running"
    CANCELLING = "cancelling"  #: somebody stopped it, and its worker has yet to
    SUCCEEDED = "succeeded"  #: its adapter is a candidate
    FAILED = "failed"  #: `error` says what to do
    CANCELLED = "cancelled"


class DeploymentKind(StrEnum):
    """Why the answering adapter changed."""

    PROMOTE = "promote"
    ROLL_BACK = "roll_back"
    RECALL = "recall"  #: the active one was recalled, and the one before it answers


#: Names the base model where an adapter can be named; `jobs.adapter_sha256` of an answer that it gave alone.
BASE = "base"


def adapter_of_answer(model_id: str | None, adapter_sha256: str | None) -> str | None:
    """The adapter that wrote an answer whose job notes these; None for the base model alone.

    Where no model is noted none wrote it: the guard answered by itself, whatever adapter was asked for.
    """
    return None if model_id is None or adapter_sha256 == BASE else adapter_sha256


_MOVES = {
    AdapterStatus.CANDIDATE: {AdapterStatus.APPROVED, AdapterStatus.RECALLED},
    AdapterStatus.APPROVED: {AdapterStatus.ACTIVE, AdapterStatus.RECALLED},
    AdapterStatus.ACTIVE: {AdapterStatus.ARCHIVED, AdapterStatus.RECALLED},
    AdapterStatus.ARCHIVED: {AdapterStatus.ACTIVE, AdapterStatus.RECALLED},
    AdapterStatus.RECALLED: frozenset[AdapterStatus](),
}


def may_become(status: AdapterStatus, after: AdapterStatus) -> bool:
    """Whether an adapter of this status may get the other."""
    return after in _MOVES[status]


def before_now(history: Iterable[tuple[DeploymentKind, str | None]], unfit: Collection[str]) -> str | None:
    """The adapter that answered before the present one, unfit ones left out; None: the base model.

    Args:
        history: what was done to one base model and who answers since, oldest first.
        unfit: adapters that must not answer again, the present one perhaps among them.

    A roll-back takes its promotion out of the history, so a second one goes back further.
    """
    answering: list[str | None] = [None]
    for kind, adapter in history:
        if kind is DeploymentKind.PROMOTE:
            answering.append(adapter)
            continue
        while len(answering) > 1 and answering[-1] != adapter:
            answering.pop()
    now = answering.pop()
    while answering and (answering[-1] == now or answering[-1] in unfit):
        answering.pop()
    return answering[-1] if answering else None
