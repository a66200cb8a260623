"""Builds what callers see from rows. It changes nothing."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection, and_, bindparam, func, or_, select

from services.api import schemas
from services.api.state import Gateway
from shared.conversations import Message, Sentence, join
from shared.db.tables import conversations, feedback, jobs, messages, verdicts
from shared.guard.verdict import Action, Severity, Side
from shared.jobs.lifecycle import Kind, Lane, State
from shared.jobs.records import Job
from shared.prompts import DISCLAIMER
from shared.training.states import BASE

# made once: building a statement costs more than sending it
_KEPT_OF = (
    select(messages.c.id, conversations.c.guard_state)
    .select_from(conversations)
    .outerjoin(messages, messages.c.job_id == bindparam("of_job"))
    .where(conversations.c.id == bindparam("of_conversation"))
)
_VERDICTS_OF = (
    select(verdicts)
    .where(verdicts.c.job_id.in_(bindparam("of_jobs", expanding=True)), verdicts.c.shadow.is_(False))
    .order_by(verdicts.c.created_at)
)


def placed_job_view(connection: Connection, gateway: Gateway, job: Job) -> schemas.JobView:
    """A job, with its place in the queue."""
    return job_view(gateway, job, position=_position(connection, job) if job.state is State.QUEUED else None)


def error_view(gateway: Gateway, job: Job) -> schemas.ErrorView | None:
    """Why a job failed; of an answer with where help is found, for the question may wait for its check."""
    if job.error is None:
        return None
    detail = job.error_detail or ""
    if job.kind is Kind.INFER:
        detail = f"{detail} {gateway.help_line}".lstrip()
    return schemas.ErrorView(code=job.error, detail=detail)


def job_view(gateway: Gateway, job: Job, *, position: int | None = None) -> schemas.JobView:
    """A job; its place in the queue is not looked up."""
    links = {
        "self": f"/v1/jobs/{job.id}",
        "events": f"/v1/jobs/{job.id}/events",
        "cancel": f"/v1/jobs/{job.id}/cancel",
    }
    if job.conversation_id is not None:
        links["conversation"] = f"/v1/conversations/{job.conversation_id}"
    return schemas.JobView(
        id=job.id,
        kind=job.kind,
        lane=job.lane,
        state=job.state,
        conversation_id=job.conversation_id,
        question_id=job.question_id,
        created_at=job.created_at,
        started_at=job.started_at,
        first_sentence_at=job.first_sentence_at,
        finished_at=job.finished_at,
        attempt=job.attempt,
        max_attempts=job.max_attempts,
        cancel_requested=job.cancel_requested_at is not None,
        error=error_view(gateway, job),
        model_id=job.model_id,
        adapter_sha256=_adapter(job),
        prompt_tokens=job.prompt_tokens,
        completion_tokens=job.completion_tokens,
        position=position,
        links=links,
    )


def answer_view(connection: Connection, gateway: Gateway, job: Job) -> schemas.AnswerView:
    """The answer of a job that succeeded."""
    assert job.conversation_id is not None
    sentences = gateway.conversations.read_sentences(connection, job.conversation_id, job.id)
    kept = connection.execute(_KEPT_OF, {"of_job": job.id, "of_conversation": job.conversation_id}).one()
    return schemas.AnswerView(
        answer=join(sentences),
        guard=guard_views(connection, [job.id])[job.id],
        disclaimer=DISCLAIMER,
        model=schemas.ModelView(
            id=job.model_id,
            revision=job.model_revision,
            adapter_sha256=_adapter(job),
            prompt_version=job.prompt_version,
            policy_version=job.policy_version,
        ),
        timings=schemas.Timings(
            queued_ms=_ms(job.created_at, job.started_at),
            first_sentence_ms=_ms(job.created_at, job.first_sentence_at),
            total_ms=_ms(job.created_at, job.finished_at),
        ),
        usage=schemas.Usage(prompt_tokens=job.prompt_tokens, completion_tokens=job.completion_tokens),
        job_id=job.id,
        conversation_id=job.conversation_id,
        message_id=kept.id,
        guard_state=kept.guard_state,
    )


def guard_views(connection: Connection, job_ids: Sequence[str]) -> dict[str, schemas.GuardView]:
    """What the guard did in each job: its gravest verdict, and how many sentences it replaced."""
    found = {
        job_id: schemas.GuardView(action="allow", category=None, severity="none", sentences_replaced=0)
        for job_id in job_ids
    }
    rows = connection.execute(_VERDICTS_OF, {"of_jobs": list(job_ids)})
    for row in rows:
        if row.action == Action.ESCALATE:
            continue  # for reviewers; to its reader nothing was done
        view = found[row.job_id]
        if Severity(row.severity).rank >= Severity(view.severity).rank:
            view.action, view.category, view.severity = row.action, row.category, row.severity
        if row.side == Side.ANSWER and row.action == Action.REPLACE:
            view.sentences_replaced += 1
    return found


def sentence_view(sentence: Sentence) -> schemas.SentenceView:
    """A released sentence."""
    flagged = sentence.action is Action.ESCALATE  # which is for reviewers
    return schemas.SentenceView(
        seq=sentence.seq,
        text=sentence.text,
        action=Action.ALLOW if flagged else sentence.action,
        category=None if flagged else sentence.category,
    )


def conversation_view(
    connection: Connection, gateway: Gateway, conversation_id: str, user_id: str
) -> schemas.ConversationView:
    """A conversation that the caller was found to own."""
    row = connection.execute(select(conversations).where(conversations.c.id == conversation_id)).one()
    # the one under way, though a question of somebody in need was answered at once beside it; else the newest
    told = connection.execute(
        select(jobs.c.id)
        .where(jobs.c.conversation_id == conversation_id)
        .order_by(jobs.c.finished_at.is_(None).desc(), jobs.c.created_at.desc(), jobs.c.id.desc())
        .limit(1)
    ).scalar_one_or_none()
    job = gateway.jobs.get(connection, told) if told is not None else None
    released: list[Sentence] = []
    if job is not None and job.finished_at is None:
        released = gateway.conversations.read_sentences(connection, conversation_id, job.id)
    key = gateway.conversations.key(connection, conversation_id)
    said = gateway.conversations.read_messages(connection, conversation_id, key=key)
    if job is not None and job.finished_at is None:  # what is being written is shown in their place
        said = [message for message in said if message.parent_id != job.question_id]
    return schemas.ConversationView(
        id=row.id,
        title=key.decrypt(row.title_ciphertext, place=f"title:{row.id}"),
        created_at=row.created_at,
        updated_at=row.updated_at,
        guard_state=row.guard_state,
        messages=_message_views(connection, said, user_id),
        job=placed_job_view(connection, gateway, job) if job is not None else None,
        released=[sentence_view(sentence) for sentence in released],
    )


def _message_views(connection: Connection, said: list[Message], user_id: str) -> list[schemas.MessageView]:
    guards = guard_views(connection, [m.job_id for m in said if m.job_id is not None])
    rated = connection.execute(
        select(feedback.c.message_id, feedback.c.rating).where(
            feedback.c.user_id == user_id, feedback.c.message_id.in_([message.id for message in said])
        )
    )
    ratings = {row.message_id: row.rating for row in rated}
    return [
        schemas.MessageView(
            id=message.id,
            seq=message.seq,
            role=message.role,
            text=message.text,
            created_at=message.created_at,
            job_id=message.job_id,
            given=message.given,
            images=[schemas.ImageView.model_validate(each) for each in message.pictures],
            parent_id=message.parent_id,
            guard=guards.get(message.job_id) if message.job_id is not None else None,
            feedback=ratings.get(message.id),
        )
        for message in said
    ]


def _position(connection: Connection, job: Job) -> int:
    """How many queued jobs go first, by lane and age; fairness between persons may change it."""
    before = or_(
        jobs.c.created_at < job.created_at, and_(jobs.c.created_at == job.created_at, jobs.c.id < job.id)
    )
    if job.lane is Lane.BATCH:
        before = or_(jobs.c.lane == Lane.INTERACTIVE, before)
    else:
        before = and_(jobs.c.lane == Lane.INTERACTIVE, before)
    ahead = connection.execute(
        select(func.count()).where(jobs.c.kind == job.kind, jobs.c.state == State.QUEUED, before)
    ).scalar_one()
    return int(ahead) + 1


def _adapter(job: Job) -> str | None:
    return None if job.adapter_sha256 == BASE else job.adapter_sha256


def _ms(start: datetime, end: datetime | None) -> float | None:
    return None if end is None else round((end - start).total_seconds() * 1000, 1)
