"""What is written when a job ends, whoever ends it, and the guard's own answers. It moves no job."""

import logging
from datetime import datetime

from sqlalchemy import Connection

from shared.audit import record
from shared.audit.binding import bind_verdict
from shared.conversations import Conversations, StoredVerdict
from shared.guard import Guard, Responses
from shared.guard.verdict import Action, Category, Verdict
from shared.jobs.lifecycle import Kind, State
from shared.jobs.records import Job
from shared.privacy.envelope import CannotDecrypt, DataKey

log = logging.getLogger(__name__)

_ACTIONS = {
    State.SUCCEEDED: "answer.given",
    State.FAILED: "answer.failed",
    State.CANCELLED: "answer.cancelled",
}


def record_end(
    connection: Connection,
    conversations: Conversations,
    job: Job,
    *,
    actor: record.Actor,
    now: datetime,
    key: DataKey | None = None,
) -> str | None:
    """Log the end, and keep an answer's sentences as a message, in the transaction that ended the job.

    Returns the message's id; None when nothing was kept. A job that has not ended is left alone. A text
    that can no longer be opened keeps no job from ending: then the event says `unreadable`.
    """
    if job.state not in _ACTIONS:
        return None
    if job.kind is not Kind.INFER:
        _record_work(connection, job, actor=actor, now=now)
        return None
    kept, unreadable = None, {}
    try:
        kept = conversations.keep_answer(connection, job, now, key=key)
    except CannotDecrypt as error:
        log.error("the answer of job %s cannot be opened: %s", job.id, type(error).__name__)
        unreadable = {"unreadable": True}
    record.append(
        connection,
        now=now,
        actor=actor,
        action=_ACTIONS[job.state],
        object=f"job:{job.id}",
        outcome=record.Outcome.FAILED if job.state is State.FAILED else record.Outcome.DONE,
        reason=job.error,
        details={
            "conversation": job.conversation_id,
            "question": job.question_id,
            "message": kept and kept.message_id,
            "seq": kept and kept.seq,
            "ciphertext_sha256": kept and kept.ciphertext_sha256,
            "commitment": kept and kept.commitment,
            "sentences_sha256": kept and kept.sentences_sha256,
            "model": job.model_id,
            "model_revision": job.model_revision,
            "adapter": job.adapter_sha256,
            "prompt_version": job.prompt_version,
            "policy_version": job.policy_version,
            "completion_tokens": job.completion_tokens,
            "attempt": job.attempt,
            **unreadable,
        },
    )
    return None if kept is None else kept.message_id


def respond(
    connection: Connection,
    conversations: Conversations,
    job: Job,
    *,
    guard: Guard,
    verdict: Verdict,
    question: str,
    locale: str,
    actor: record.Actor,
    now: datetime,
) -> None:
    """Answer in the guard's own words: help for a person in need, a refusal of a harmful request.

    In the transaction that ends the job, before `record_end`. A crisis or an emergency is kept with the
    conversation, and what it is told later begins with where help is found.
    """
    assert job.conversation_id is not None
    key, state = conversations.key_and_state(connection, job.conversation_id)
    stored = StoredVerdict(verdict=verdict, policy_version=guard.policy_version, text=question)
    verdict_id = conversations.store_verdict(connection, job_id=job.id, stored=stored, now=now)
    conversations.release(
        connection,
        key,
        job_id=job.id,
        seq=1,
        epoch=job.epoch,
        text=_said(guard.responses(locale), verdict.category, state),
        suppressed=None,
        verdict_id=verdict_id,
        action=verdict.action,
        now=now,
    )
    if verdict.action is Action.CRISIS:
        assert verdict.category is not None
        conversations.note_need(connection, job.conversation_id, verdict.category)
    record.append(
        connection,
        now=now,
        actor=actor,
        action=f"guard.{verdict.category or verdict.source}",
        object=f"job:{job.id}",
        details=bind_verdict(verdict_id, verdict, guard.policy_version),
    )


def _said(responses: Responses, category: Category | None, state: Category | None) -> str:
    """The answer to a question of this category in a conversation of this state."""
    said = responses.for_question(category)
    if state is None or category in (state, Category.CRISIS):  # then it says as much itself
        return said
    return f"{responses.still(state)}\n\n{said}"


def _record_work(connection: Connection, job: Job, *, actor: record.Actor, now: datetime) -> None:
    """Log the end of work on datasets and adapters; which of them is in the event of its start."""
    record.append(
        connection,
        now=now,
        actor=actor,
        action=f"{job.kind}.{job.state}",
        object=f"job:{job.id}",
        outcome=record.Outcome.FAILED if job.state is State.FAILED else record.Outcome.DONE,
        reason=job.error,
        details={"attempt": job.attempt},
    )
