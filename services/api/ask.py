"""Accepts questions: screens them, stores them, submits their jobs. It does not wait for answers.

Everything that belongs to a question is one transaction, which questions that arrive at the same
moment share; the bell rings after the commit.
"""

import json
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, select
from sqlalchemy.exc import IntegrityError

from services.api.metrics import GUARDED
from services.api.owned import log_foreign
from services.api.state import Gateway
from shared.answers import record_end, respond
from shared.audit import record
from shared.auth.sessions import Principal
from shared.conversations import Given, Kept
from shared.db.rows import Into, Rows
from shared.db.tables import conversations, jobs, messages
from shared.errors import (
    AnswersStopped,
    Conflict,
    ConversationBusy,
    InvalidInput,
    LimitReached,
    MediChatError,
    NotFound,
)
from shared.guard import Guard
from shared.guard.verdict import Action, Verdict
from shared.ids import new_id
from shared.jobs.lifecycle import Kind
from shared.jobs.payload import seal_stops
from shared.jobs.records import Job, NewJob
from shared.jobs.store import active
from shared.pictures import PreparedPicture
from shared.privacy.envelope import DataKey
from shared.training.adapters import check_released, check_usable, files_hash
from shared.training.states import BASE

#: A second answer to the same question is drawn with some chance, or it would be the same answer.
REGENERATE_TEMPERATURE = 0.7


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a person asks."""

    query: str
    conversation_id: str | None = None
    max_new_tokens: int | None = None
    temperature: float | None = None
    #: SHA-256 of the adapter that shall answer, or BASE; None for the active one.
    adapter: str | None = None
    top_p: float | None = None
    #: For the drawing of tokens; None for one that is made up.
    seed: int | None = None
    #: Texts before which the answer ends.
    stop: tuple[str, ...] = ()
    #: What was said before, of a conversation that begins with this question.
    given: tuple[Given, ...] = ()
    pictures: tuple[PreparedPicture, ...] = ()

    def as_asked(self) -> str:
        """The same for the same question, also of a release that knew less of what can be asked."""
        asked = asdict(self)
        for each in (asked, *asked["given"]):
            each["pictures"] = [picture["sent_sha256"] for picture in each["pictures"]]
            if not each["pictures"]:
                del each["pictures"]
        for name in ("top_p", "seed", "stop", "given"):
            if not asked[name] and asked[name] != 0:
                del asked[name]
        return json.dumps(asked, sort_keys=True)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A question as it came in: who asks, and the name under which they may ask it again."""

    caller: Principal
    question: Question
    idempotency_key: str | None = None


@dataclass(frozen=True)
class Stored:
    """A question's job, and whether it was made now."""

    job: Job
    verdict: Verdict
    #: What screened it.
    guard: Guard
    made: bool = True

    @property
    def settled(self) -> bool:
        """Whether the guard answers at once; whatever else it has to say waits for all of its layers."""
        return self.verdict.names_help


def accept(gateway: Gateway, group: list[Asked]) -> list[Job | Exception]:
    """Store these questions and submit their jobs; for each its job, or why it was refused.

    Refusals are InvalidInput, NotFound, ConversationBusy, LimitReached, AnswersStopped or
    IdempotencyMismatch; nothing of such a question is stored. The same Idempotency-Key with the same question
    gives the same job. Raises IntegrityError, and stores nothing, when two of the group exclude each other:
    accept each alone then.
    """
    try:
        outcomes = _store(gateway, group)
    except IntegrityError:
        if len(group) > 1:
            raise
        # somebody took the Idempotency-Key or the conversation meanwhile: look again
        outcomes = _store(gateway, group)
    for outcome in outcomes:
        if isinstance(outcome, Stored) and outcome.made:
            announce(gateway, outcome)
    gateway.bell.give_way()
    return [outcome.job if isinstance(outcome, Stored) else outcome for outcome in outcomes]


def _store(gateway: Gateway, group: list[Asked]) -> list[Stored | Exception]:
    # always in the same order, so that two gateways cannot each wait for a conversation of the other's
    order = sorted(range(len(group)), key=lambda index: group[index].question.conversation_id or "")
    outcomes: list[Stored | Exception] = [NotFound()] * len(group)
    guard = gateway.guard  # once: the policy that a row names is the one that screened its question
    # before the transaction: nobody else should wait for a lock meanwhile
    verdicts = [
        guard.screen_at_once(asked.question.query[: gateway.settings.max_query_chars], asked.caller.audience)
        for asked in group
    ]
    with gateway.database.write() as connection:
        desk = _Desk(gateway, connection, guard)
        for index in order:
            try:
                outcomes[index] = desk.take(group[index], verdicts[index])
            except MediChatError as error:
                outcomes[index] = error
        desk.rows.store(connection)
        for asked, outcome in zip(group, outcomes, strict=True):
            if isinstance(outcome, Stored) and outcome.made and outcome.settled:
                answer_at_once(gateway, connection, outcome, asked.question.query, desk.now)
    return outcomes


class _Desk:
    """Takes questions within one transaction; their rows wait in `rows`.

    A question is refused before anything is written for it, so a refusal needs no rollback.
    """

    def __init__(self, gateway: Gateway, connection: Connection, guard: Guard) -> None:
        self.rows = Rows()
        self.now = gateway.clock.now(connection)
        self._gateway = gateway
        self._guard = guard
        self._connection = connection
        #: Queued jobs by person: those in the database, and those taken here.
        self._queued: dict[str, int] = {}

    def take(self, asked: Asked, verdict: Verdict) -> Stored:
        """Check a question and prepare its rows. Raises a MediChatError to refuse it."""
        gateway, connection, caller, question = self._gateway, self._connection, asked.caller, asked.question
        request_hmac = None
        if asked.idempotency_key is not None:
            request_hmac = gateway.envelope.fingerprint(question.as_asked())
            repeat = gateway.jobs.find_repeat(connection, caller.user_id, asked.idempotency_key, request_hmac)
            if repeat is not None:
                return Stored(repeat, verdict, self._guard, made=False)
        check_question(gateway, connection, question)  # not before: an adapter may be recalled since
        check_not_stopped(gateway, verdict)
        in_need = verdict.action is Action.CRISIS  # then no limit and no answer under way stands in between
        if not in_need:
            self._check_quota(caller)
        kept, key = self._keep_question(caller, question, check_free=not in_need)
        job = submit(
            gateway,
            self.rows,
            caller,
            conversation_id=kept.conversation_id,
            question_id=kept.message_id,
            kept=kept,
            verdict=verdict,
            guard=self._guard,
            sampling=_sampling(question),
            stop=question.stop,
            key=key,
            seed=question.seed,
            idempotency_key=asked.idempotency_key,
            request_hmac=request_hmac,
            adapter=question.adapter,
            now=self.now,
        )
        return Stored(job, verdict, self._guard)

    def _keep_question(
        self, caller: Principal, question: Question, *, check_free: bool
    ) -> tuple[Kept, DataKey]:
        talk = self._gateway.conversations
        if question.conversation_id is None:
            return talk.create(
                self.rows,
                user_id=caller.user_id,
                question=question.query,
                now=self.now,
                given=question.given,
                pictures=question.pictures,
            )
        try:
            load_owned(self._connection, question.conversation_id, caller.user_id)
        except NotFound:
            # written here: this transaction is committed, whatever becomes of the question
            log_foreign(
                self._connection,
                caller,
                "conversation",
                question.conversation_id,
                now=self.now,
                details={"act": "question.asked"},
            )
            raise
        if check_free:
            _check_free(self._connection, question.conversation_id)
        key = talk.key(self._connection, question.conversation_id)
        kept = talk.add_message(
            self._connection,
            key,
            conversation_id=question.conversation_id,
            role="user",
            text=question.query,
            now=self.now,
            pictures=question.pictures,
            into=self.rows,
        )
        return kept, key

    def _check_quota(self, caller: Principal) -> None:
        queued = self._queued.get(caller.user_id)
        if queued is None:
            queued = _count_queued(self._gateway, self._connection, caller)
        _check_quota(self._gateway, queued)
        self._queued[caller.user_id] = queued + 1


def regenerate(gateway: Gateway, caller: Principal, conversation_id: str) -> Job:
    """Answer the conversation's last question again; the former answer goes once the new one is there.

    Raises NotFound, Conflict (nothing to answer), ConversationBusy, LimitReached or AnswersStopped.
    """
    try:
        with gateway.database.write() as connection:
            now = gateway.clock.now(connection)
            _check_quota(gateway, _count_queued(gateway, connection, caller))
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
            sampling = dict(before.sampling) if before is not None else {}
            sampling.pop("stops", None)  # they were a program's, and a person asks now
            sampling["temperature"] = sampling.get("temperature") or REGENERATE_TEMPERATURE
            guard = gateway.guard
            verdict = guard.screen_at_once(asked.text, caller.audience)
            check_not_stopped(gateway, verdict)
            job = submit(
                gateway,
                connection,
                caller,
                conversation_id=conversation_id,
                question_id=asked.id,
                verdict=verdict,
                guard=guard,
                sampling=sampling,
                parent_job_id=before.id if before is not None else None,
                now=now,
            )
            stored = Stored(job, verdict, guard)
            if stored.settled:
                answer_at_once(gateway, connection, stored, asked.text, now)
    except IntegrityError as error:
        raise ConversationBusy from error
    announce(gateway, stored)
    return job


def cancel(gateway: Gateway, actor: record.Actor, job_id: str, *, reason: str | None = None) -> Job:
    """Stop a job; what was released stays. The actor wants it: the person, or MediChat for a reason."""
    with gateway.database.write() as connection:
        now = gateway.clock.now(connection)
        stopped = gateway.jobs.cancel(connection, job_id)
        if stopped is not None:
            record.append(
                connection,
                now=now,
                actor=actor,
                action="job.cancel_asked",
                object=f"job:{job_id}",
                reason=reason,
            )
            record_end(connection, gateway.conversations, stopped, actor=actor, now=now)
        after = stopped or gateway.jobs.get(connection, job_id)
    gateway.bell.cancel(job_id)
    gateway.bell.news(job_id)
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


def check_question(
    gateway: Gateway, connection: Connection, question: Question, *, candidates: bool = False
) -> None:
    """Whether the question can be answered as it is asked; `candidates`: also by an adapter not yet promoted.

    Raises InvalidInput, or NotFound for an adapter that is not there. Who may name a candidate may verify one
    again too, and is told when that must be.
    """
    settings = gateway.settings
    if len(question.query) > settings.max_query_chars:
        raise InvalidInput(f"A question may have at most {settings.max_query_chars} characters; shorten it.")
    if (question.max_new_tokens or 1) > settings.max_new_tokens:
        raise InvalidInput(f"max_new_tokens may be at most {settings.max_new_tokens}.")
    if question.adapter not in (None, BASE):
        check = check_usable if candidates else check_released
        check(connection, str(question.adapter), settings.model)
        if candidates:
            files_hash(connection, str(question.adapter))


def check_not_stopped(gateway: Gateway, verdict: Verdict) -> None:
    """Raises AnswersStopped while an admin has all answers stopped, except for a person in need.

    It says where help is found: who is in need may have said so in words that no rule knows.
    """
    if gateway.guards.now.stopped and verdict.action is not Action.CRISIS:
        raise AnswersStopped(f"{AnswersStopped.__doc__} {gateway.help_line}")


def submit(
    gateway: Gateway,
    into: Into,
    caller: Principal,
    *,
    conversation_id: str,
    question_id: str,
    verdict: Verdict,
    guard: Guard,
    sampling: dict[str, Any],
    now: datetime,
    kept: Kept | None = None,
    parent_job_id: str | None = None,
    idempotency_key: str | None = None,
    request_hmac: str | None = None,
    adapter: str | None = None,
    seed: int | None = None,
    stop: Sequence[str] = (),
    key: DataKey | None = None,
) -> Job:
    """The job of a screened question and its event; settled already when the guard answers at once.

    `kept` is the question's message where it was stored just now: the log is bound to its text once. With
    texts at which the answer shall `stop`, `key` is the conversation's.
    What the first layers refuse is no exception: the worker asks all of them before its engine begins.
    """
    settings, job_id = gateway.settings, new_id()
    payload: dict[str, Any] = {}
    if stop and key is not None:
        payload = {"payload_ciphertext": seal_stops(stop, key=key, job_id=job_id), "key_id": key.key_id}
    new = NewJob(
        id=job_id,
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
        seed=secrets.randbits(31) if seed is None else seed,
        sampling=sampling,
        policy_version=guard.policy_version,
        adapter_sha256=None if verdict.names_help else adapter,
        **payload,
    )
    if verdict.names_help:
        job = gateway.jobs.submit_settled(into, new, now, finish_reason="guard")
    else:
        job = gateway.jobs.submit(into, new, now)
    record.append(
        into,
        now=now,
        actor=caller.actor,
        action="question.asked",
        object=f"job:{job.id}",
        details={
            "conversation": conversation_id,
            "message": question_id,
            "parent_job": parent_job_id,
            "adapter": adapter,
            **({} if kept is None else _bound(kept)),
            "guard_action": verdict.action,
            "guard_category": verdict.category,
            "policy_version": guard.policy_version,
        },
    )
    return job


def _sampling(question: Question) -> dict[str, Any]:
    """How the answer is drawn; what nobody named is left out, but for what every job says."""
    chosen: dict[str, Any] = {
        "max_new_tokens": question.max_new_tokens,
        "temperature": question.temperature or 0.0,
    }
    if question.top_p is not None:
        chosen["top_p"] = question.top_p
    if question.stop:
        chosen["stops"] = len(question.stop)
    return chosen


def _bound(kept: Kept) -> dict[str, Any]:
    bound = {"seq": kept.seq, "ciphertext_sha256": kept.ciphertext_sha256, "commitment": kept.commitment}
    others = {"given_sha256": kept.given_sha256, "pictures_sha256": kept.pictures_sha256}
    return {**bound, **{name: sha256 for name, sha256 in others.items() if sha256 is not None}}


def answer_at_once(
    gateway: Gateway, connection: Connection, stored: Stored, text: str, now: datetime
) -> None:
    """Say where help is found: no queue and no model in between."""
    respond(
        connection,
        gateway.conversations,
        stored.job,
        guard=stored.guard,
        verdict=stored.verdict,
        question=text,
        locale=gateway.settings.locale,
        actor=record.SYSTEM_ACTOR,
        now=now,
    )
    record_end(connection, gateway.conversations, stored.job, actor=record.SYSTEM_ACTOR, now=now)


def _count_queued(gateway: Gateway, connection: Connection, caller: Principal) -> int:
    """How many questions of this person wait; counted no further than the limit."""
    limit = gateway.settings.max_queued_jobs_per_user
    return gateway.jobs.count_queued(connection, caller.user_id, limit)


def _check_quota(gateway: Gateway, queued: int) -> None:
    limit = gateway.settings.max_queued_jobs_per_user
    if queued >= limit:
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


def announce(gateway: Gateway, stored: Stored) -> None:
    """After the commit: wake a worker, or count that none was needed."""
    if stored.settled:
        GUARDED.labels(str(stored.verdict.category)).inc()
    else:
        gateway.bell.work(stored.job.kind, stored.job.id)


def load_owned_message(connection: Connection, message_id: str, user_id: str) -> tuple[str, bool]:
    """The conversation of a message that belongs to this person, and whether it is an answer of MediChat's.

    Raises NotFound.
    """
    found = connection.execute(
        select(messages.c.conversation_id, messages.c.job_id)
        .join(conversations, conversations.c.id == messages.c.conversation_id)
        .where(
            messages.c.id == message_id,
            conversations.c.user_id == user_id,
            conversations.c.hidden_at.is_(None),
        )
    ).one_or_none()
    if found is None:
        raise NotFound("There is no message of yours under this id.")
    return str(found.conversation_id), found.job_id is not None
