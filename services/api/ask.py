"""Accepts a question: screens it, stores it, submits its job. It does not wait for the answer.

Everything that belongs to a question is one transaction; the bell rings after the commit.
"""

import json
import secrets
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, select, update
from sqlalchemy.exc import IntegrityError

from services.api.metrics import GUARDED
from services.api.state import Gateway
from shared.answers import record_end
from shared.audit import record
from shared.auth.sessions import Principal
from shared.conversations import StoredVerdict
from shared.db.tables import conversations, jobs, messages
from shared.errors import Conflict, ConversationBusy, InvalidInput, LimitReached, NotFound
from shared.guard.verdict import Action, Verdict
from shared.ids import new_id
from shared.jobs.lifecycle import Kind
from shared.jobs.records import Job, NewJob
from shared.jobs.store import active

#: A second answer to the same question is drawn with some chance, or it would be the same answer.
REGENERATE_TEMPERATURE = 0.7


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a person asks."""

    query: str
    conversation_id: str | None = None
    max_new_tokens: int | None = None
    temperature: float | None = None


def ask(
    gateway: Gateway, caller: Principal, question: Question, *, idempotency_key: str | None = None
) -> Job:
    """Store the question and submit its job.

    The same `idempotency_key` with the same question gives the same job. Raises InvalidInput, NotFound,
    ConversationBusy, LimitReached or IdempotencyMismatch; nothing is stored then.
    """
    _check_size(gateway, question)
    request_hmac = gateway.envelope.fingerprint(json.dumps(asdict(question), sort_keys=True))
    for last_try in (False, True):
        try:
            with gateway.database.write() as connection:
                job, made = _accept(gateway, connection, caller, question, idempotency_key, request_hmac)
            break
        except IntegrityError:
            # somebody took the Idempotency-Key or the conversation meanwhile: look again
            if last_try:
                raise
    if made:
        _ring(gateway, job)
    return job


def regenerate(gateway: Gateway, caller: Principal, conversation_id: str) -> Job:
    """Answer the conversation's last question again; the former answer is hidden.

    Raises NotFound, Conflict (nothing to answer), ConversationBusy or LimitReached.
    """
    try:
        with gateway.database.write() as connection:
            now = gateway.clock.now(connection)
            _check_quota(gateway, connection, caller)
            load_owned(connection, conversation_id, caller.user_id)
            _check_free(connection, conversation_id)
            said = gateway.conversations.read_messages(connection, conversation_id)
            asked = next((message for message in reversed(said) if message.role == "user"), None)
            if asked is None:
                raise Conflict("There is no question in this conversation yet.")
            before = connection.execute(
                select(jobs.c.id, jobs.c.sampling)
                .where(jobs.c.question_id == asked.id)
                .order_by(jobs.c.created_at.desc())
                .limit(1)
            ).one_or_none()
            gateway.conversations.hide_answers(connection, asked.id, now)
            sampling = dict(before.sampling) if before is not None else {}
            sampling["temperature"] = sampling.get("temperature") or REGENERATE_TEMPERATURE
            job = _submit(
                gateway,
                connection,
                caller,
                conversation_id=conversation_id,
                question_id=asked.id,
                text=asked.text,
                verdict=gateway.guard.screen_question(asked.text, caller.audience),
                sampling=sampling,
                parent_job_id=before.id if before is not None else None,
                now=now,
            )
    except IntegrityError as error:
        raise ConversationBusy from error
    _ring(gateway, job)
    return job


def cancel(gateway: Gateway, caller: Principal, job: Job) -> Job:
    """Stop a job; what was released stays."""
    with gateway.database.write() as connection:
        now = gateway.clock.now(connection)
        after = gateway.jobs.cancel(connection, job.id)
        if after.event_seq != job.event_seq:
            record.append(
                connection, now=now, actor=caller.actor, action="job.cancel_asked", object=f"job:{job.id}"
            )
            record_end(connection, gateway.conversations, after, actor=caller.actor, now=now)
    gateway.bell.cancel(job.id)
    gateway.bell.news(job.id)
    return after


def load_owned(connection: Connection, conversation_id: str, user_id: str) -> None:
    """Raises NotFound unless the conversation is this person's and not hidden."""
    found = connection.execute(
        select(conversations.c.id).where(
            conversations.c.id == conversation_id,
            conversations.c.user_id == user_id,
            conversations.c.hidden_at.is_(None),
        )
    ).one_or_none()
    if found is None:
        raise NotFound("There is no conversation of yours under this id.")


def _check_size(gateway: Gateway, question: Question) -> None:
    settings = gateway.settings
    if len(question.query) > settings.max_query_chars:
        raise InvalidInput(f"A question may have at most {settings.max_query_chars} characters; shorten it.")
    if (question.max_new_tokens or 1) > settings.max_new_tokens:
        raise InvalidInput(f"max_new_tokens may be at most {settings.max_new_tokens}.")


def _accept(
    gateway: Gateway,
    connection: Connection,
    caller: Principal,
    question: Question,
    idempotency_key: str | None,
    request_hmac: str,
) -> tuple[Job, bool]:
    """The job of this request, and whether it was made now."""
    if idempotency_key is not None:
        repeat = gateway.jobs.find_repeat(connection, caller.user_id, idempotency_key, request_hmac)
        if repeat is not None:
            return repeat, False
    now = gateway.clock.now(connection)
    verdict = gateway.guard.screen_question(question.query, caller.audience)
    in_need = verdict.action is Action.CRISIS  # then no limit and no answer under way stands in between
    if not in_need:
        _check_quota(gateway, connection, caller)
    if question.conversation_id is None:
        conversation_id, message_id = gateway.conversations.create(
            connection, user_id=caller.user_id, question=question.query, now=now
        )
    else:
        conversation_id = question.conversation_id
        load_owned(connection, conversation_id, caller.user_id)
        if not in_need:
            _check_free(connection, conversation_id)
        message_id = gateway.conversations.add_message(
            connection,
            gateway.conversations.key(connection, conversation_id),
            conversation_id=conversation_id,
            role="user",
            text=question.query,
            now=now,
        )
    sampling: dict[str, Any] = {
        "max_new_tokens": question.max_new_tokens,
        "temperature": question.temperature or 0.0,
    }
    job = _submit(
        gateway,
        connection,
        caller,
        conversation_id=conversation_id,
        question_id=message_id,
        text=question.query,
        verdict=verdict,
        sampling=sampling,
        idempotency_key=idempotency_key,
        request_hmac=request_hmac,
        now=now,
    )
    return job, True


def _submit(
    gateway: Gateway,
    connection: Connection,
    caller: Principal,
    *,
    conversation_id: str,
    question_id: str,
    text: str,
    verdict: Verdict,
    sampling: dict[str, Any],
    now: datetime,
    parent_job_id: str | None = None,
    idempotency_key: str | None = None,
    request_hmac: str | None = None,
) -> Job:
    """Insert the job of a screened question; a person in need is answered within this transaction."""
    settings = gateway.settings
    new = NewJob(
        id=new_id(),
        kind=Kind.INFER,
        user_id=caller.user_id,
        audience=caller.audience,
        conversation_id=conversation_id,
        question_id=question_id,
        parent_job_id=parent_job_id,
        max_attempts=settings.max_attempts,
        deadline_at=now + timedelta(seconds=settings.job_deadline_s),
        idempotency_key=idempotency_key,
        request_hmac=request_hmac,
        seed=secrets.randbits(31),
        sampling=sampling,
        policy_version=gateway.guard.policy_version,
    )
    in_need = verdict.action is Action.CRISIS
    if in_need:
        job = gateway.jobs.submit_settled(connection, new, finish_reason="guard")
    else:
        job = gateway.jobs.submit(connection, new)
    record.append(
        connection,
        now=now,
        actor=caller.actor,
        action="question.asked",
        object=f"job:{job.id}",
        details={
            "conversation": conversation_id,
            "message": question_id,
            "parent_job": parent_job_id,
            "text_hmac": gateway.envelope.fingerprint(text),
            "guard_action": verdict.action,
            "guard_category": verdict.category,
            "policy_version": gateway.guard.policy_version,
        },
    )
    if in_need:
        _answer_at_once(gateway, connection, job, text, verdict, now)
    return job


def _answer_at_once(
    gateway: Gateway, connection: Connection, job: Job, text: str, verdict: Verdict, now: datetime
) -> None:
    """Give a person in crisis or emergency the resources, with no queue and no model in between."""
    assert job.conversation_id is not None
    category = str(verdict.category)
    talk = gateway.conversations
    verdict_id = talk.store_verdict(
        connection,
        job_id=job.id,
        stored=StoredVerdict(verdict=verdict, policy_version=gateway.guard.policy_version, text=text),
        now=now,
    )
    talk.release(
        connection,
        talk.key(connection, job.conversation_id),
        job_id=job.id,
        seq=1,
        epoch=job.epoch,
        text=gateway.guard.responses(gateway.settings.locale).for_question(verdict.category),
        suppressed=None,
        verdict_id=verdict_id,
        action=verdict.action,
        now=now,
    )
    connection.execute(
        update(conversations).where(conversations.c.id == job.conversation_id).values(guard_state=category)
    )
    record.append(
        connection,
        now=now,
        actor=record.SYSTEM_ACTOR,
        action=f"guard.{category}",
        object=f"job:{job.id}",
        details={
            "verdict": verdict_id,
            "source": verdict.source,
            "policy_version": gateway.guard.policy_version,
        },
    )
    record_end(connection, talk, job, actor=record.SYSTEM_ACTOR, now=now)
    GUARDED.labels(category).inc()


def _check_quota(gateway: Gateway, connection: Connection, caller: Principal) -> None:
    limit = gateway.settings.max_queued_jobs_per_user
    if gateway.jobs.count_queued(connection, caller.user_id, limit) >= limit:
        raise LimitReached(
            f"{limit} of your questions are waiting already; wait for some to be answered, or cancel them.",
            retry_after_s=10,
        )


def _check_free(connection: Connection, conversation_id: str) -> None:
    busy = connection.execute(
        select(jobs.c.id).where(jobs.c.conversation_id == conversation_id, active())
    ).first()
    if busy is not None:
        raise ConversationBusy


def _ring(gateway: Gateway, job: Job) -> None:
    if job.finished_at is None:
        gateway.bell.work(job.kind, job.id)


def owned_message(connection: Connection, message_id: str, user_id: str) -> str:
    """The conversation of a message that belongs to this person. Raises NotFound."""
    found = connection.execute(
        select(messages.c.conversation_id)
        .join(conversations, conversations.c.id == messages.c.conversation_id)
        .where(
            messages.c.id == message_id,
            conversations.c.user_id == user_id,
            conversations.c.hidden_at.is_(None),
        )
    ).scalar_one_or_none()
    if found is None:
        raise NotFound("There is no message of yours under this id.")
    return str(found)
