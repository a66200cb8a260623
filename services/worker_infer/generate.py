"""Answers one claimed job: prompt → engine → guard → released sentences → message.

It knows neither Celery nor HTTP. Everything it writes is fenced by the claim: a worker that lost
its lease releases nothing more.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from services.worker_infer.adapters import ActiveAdapter
from services.worker_infer.engines.base import (
    AdapterSource,
    Engine,
    FinishReason,
    GenerationRequest,
    Sampling,
)
from services.worker_infer.engines.errors import (
    AdapterUnavailable,
    EngineCrashed,
    EngineUnavailable,
    OutOfMemory,
    RequestTooLong,
)
from services.worker_infer.shadow import ShadowJudge
from services.worker_infer.text import ChatText, Turn
from shared.answers import record_end, respond
from shared.audit import record
from shared.audit.binding import bind_verdict
from shared.conversations import Conversations, StoredVerdict
from shared.db import Database, is_away
from shared.errors import AdapterRefused, AnswersStopped, LeaseLost, PromptTooLong
from shared.guard.gate import QUESTION_FAILURE, QUESTION_TIME_BUDGET_S, Release
from shared.guard.verdict import Action, Category, Verdict
from shared.jobs.leases import Hold, LeaseKeeper
from shared.jobs.lifecycle import EventKind, Kind
from shared.jobs.persist import persist
from shared.jobs.records import Job
from shared.jobs.store import JobStore, Renewal
from shared.logs import where
from shared.policies.live import LiveGuard
from shared.privacy.envelope import DataKey
from shared.privacy.phi import without_names
from shared.prompts import prompt_version
from shared.queue import Bell
from shared.settings import Settings
from shared.training.adapters import hold_unrecalled
from shared.training.states import BASE

log = logging.getLogger(__name__)
T = TypeVar("T")


#: Who has waited for longer is told that the answer begins. Others would see it flash by, and telling them
#: takes time of processors that their own answer needs.
_NEWS_AFTER = timedelta(seconds=0.5)


@dataclass(frozen=True, kw_only=True)
class Model:
    """What answers, and how it is named in the rows."""

    #: In the catalogue; adapters belong to one of these.
    name: str
    model_id: str
    revision: str
    #: How the weights are held: `float32`, `bfloat16` or `nf4`.
    dtype: str
    engine: Engine
    source: AdapterSource
    text: ChatText
    context_tokens: int
    #: Where it lies; see `shared.memory`.
    memory: str = ""


@dataclass(frozen=True, kw_only=True)
class Question:
    """What the answer is written from."""

    turns: list[Turn]
    text: str
    #: What an earlier attempt released; the answer goes on from there.
    released: str
    released_count: int
    #: What the guard found earlier in the conversation.
    state: Category | None
    #: Whether the guard ended the answer in an earlier attempt.
    ended_by_guard: bool
    #: Whether one of the released sentences is shown only with a referral.
    referral_due: bool
    #: The job's deadline on this process's monotonic clock.
    deadline: float | None
    key: DataKey
    #: SHA-256 of the adapter that answers; None for the base model alone.
    adapter: str | None


@dataclass(frozen=True, kw_only=True)
class _Prompt:
    """What the model reads."""

    token_ids: list[int]
    #: How many tokens it may write.
    wanted: int
    #: Whether something that names a person was left out.
    hidden: bool


class Answerer:
    """Answers jobs, one per call of `answer_next`; safe to share between threads."""

    def __init__(
        self,
        *,
        settings: Settings,
        worker_id: str,
        model: Model,
        database: Database,
        jobs: JobStore,
        conversations: Conversations,
        guards: LiveGuard,
        shadow: ShadowJudge,
        bell: Bell,
        keeper: LeaseKeeper,
        active: ActiveAdapter,
    ) -> None:
        self._settings = settings
        self._worker_id = worker_id
        self._model = model
        self._database = database
        self._jobs = jobs
        self._conversations = conversations
        self._guards = guards
        self._shadow = shadow
        self._bell = bell
        self._keeper = keeper
        self._active = active
        self._prompt_version = prompt_version(settings.system_prompt)
        self._actor = record.Actor(record.SYSTEM, worker_id)
        #: Whether a ring found the engine unwell.
        self._refused = False
        #: By the name of their request, those under way.
        self._attempts: dict[str, _Attempt] = {}
        guards.when_stopped(self._stop_all)

    def answer_next(self) -> bool:
        """Claim the best queued job and bring it to an end, or back to the queue.

        Returns whether to look for another: false when none is queued, or this worker cannot take one.
        """
        if not self._model.engine.health().ok:
            self._refused = True  # the jobs are for workers that are well
            return False
        with self._database.write() as connection:
            job = self._jobs.claim(connection, Kind.INFER, self._worker_id)
        if job is None:
            return False
        if _waited(job) > _NEWS_AFTER:
            self._bell.news(job.id)
        request_id = f"{job.id}:{job.epoch}"
        with self._keeper.holding(job.claim, lambda: self._model.engine.cancel(request_id)) as hold:
            attempt = self._attempts[request_id] = _Attempt(self, job, hold, request_id)
            try:
                attempt.run()
            except LeaseLost:
                log.warning("job %s belongs to another worker now; this attempt wrote nothing more", job.id)
            except Exception as error:  # a bug must not leave a job running for ever
                log.error("job %s failed in %s", job.id, where(error))
                attempt.retry(
                    "internal", "Something went wrong inside MediChat; tell your admin the job's id."
                )
            finally:
                del self._attempts[request_id]
        self._bell.news(job.id)
        return not attempt.handed_back

    def ring_when_well(self) -> None:
        """Wake a worker for what this one left in the queue, once its engine is well again."""
        if self._refused and self._model.engine.health().ok:
            self._refused = False
            self._bell.work(Kind.INFER, "")

    def _stop_all(self) -> None:
        """An admin stopped all answers: end those under way. One that begins now looks for itself."""
        for attempt in list(self._attempts.values()):
            attempt.stop()


def _waited(job: Job) -> timedelta:
    """How long a claimed job was in the queue, its earlier attempts included."""
    return (job.started_at or job.created_at) - job.created_at if job.epoch == 1 else timedelta.max


class _Attempt:
    """One attempt at one job."""

    def __init__(self, answerer: Answerer, job: Job, hold: Hold, request_id: str) -> None:
        self._a = answerer
        self._job = job
        self._hold = hold
        self._request_id = request_id
        #: The conversation's, once it was read.
        self._key: DataKey | None = None
        #: That answers; None for the base model alone.
        self._adapter: str | None = None
        #: What judges this answer, to its end.
        self._standing = answerer._guards.now
        #: What is shown of the answer so far.
        self._shown = ""
        #: Whether an admin stopped all answers.
        self._stopped = False
        #: Whether the job went back to the queue because the engine takes no more.
        self.handed_back = False
        self._seq = 0
        #: Tokens of the answer: those that an earlier attempt released, and all of this one.
        self._completion_tokens = 0
        #: What writes this answer and from how much: columns that go along with the first write.
        self._notes: dict[str, Any] = {}

    def stop(self) -> None:
        """Release nothing more and end; called from another thread."""
        self._stopped = True
        self._a._model.engine.cancel(self._request_id)

    def run(self) -> None:
        """Generate, guard, release, finish; an adapter that must not answer (any more) ends it."""
        try:
            self._answer()
        except AdapterRefused as error:
            self._fail(error.code, error.detail)

    def _answer(self) -> None:
        """Raises AdapterRefused."""
        guards = self._a._guards
        if guards.now.stopped and guards.refresh().stopped:  # this worker may not have heard yet
            self._stopped = True
            self._fail(AnswersStopped.code, AnswersStopped.unfinished)
            return
        question = self._persist(self._load, read_only=True)
        self._adapter = question.adapter
        self._key = question.key
        self._seq, self._shown = question.released_count, question.released
        if question.ended_by_guard:
            self._succeed("guard", [])
            return
        prompt, too_long = None, ""
        try:
            prompt = self._prompt(question)
        except PromptTooLong as error:
            too_long = str(error)
        # before the engine begins: beside it, two thousandths of a second become six on a small machine
        found = self._screened(question)
        # whoever is in danger is told so however much they wrote; that a text is too long to be answered says
        # more than that it was too long to be checked in time
        if found is not None and not (too_long and found is QUESTION_FAILURE):
            self._respond(question, found)
            return
        if prompt is None:
            self._fail(PromptTooLong.code, too_long)
            return
        try:
            finish, last = self._generate(question, prompt)
        except RequestTooLong as error:
            self._fail(PromptTooLong.code, str(error))
        except AdapterUnavailable as error:
            end = self.retry if error.may_pass else self._fail
            end("adapter-unavailable", str(error))
        except OutOfMemory as error:
            self._fail("out-of-memory", str(error))
        except EngineCrashed:
            self.retry("engine-crashed", "The model stopped unexpectedly, several times; ask again later.")
        except EngineUnavailable:
            self._drain()
        else:
            self._end(finish, last)

    def _load(self, connection: Connection) -> Question:
        job, a = self._job, self._a
        assert job.conversation_id is not None
        key, state = a._conversations.key_and_state(connection, job.conversation_id)
        said = a._conversations.read_messages(connection, job.conversation_id, key=key)
        place = next(place for place, message in enumerate(said) if message.id == job.question_id)
        released = (
            a._conversations.read_sentences(connection, job.conversation_id, job.id, key=key)
            if job.epoch > 1  # else nobody has worked on it
            else []
        )
        return Question(
            turns=[Turn(role=message.role, text=message.text) for message in said[:place]],
            text=said[place].text,
            released="".join(sentence.text for sentence in released),
            released_count=len(released),
            state=state,
            ended_by_guard=any(not sentence.action.shows for sentence in released),
            referral_due=any(sentence.action is Action.APPEND for sentence in released),
            deadline=self._deadline(a._jobs.clock.now(connection)),
            key=key,
            adapter=a._active.choose(connection, job),
        )

    def _prompt(self, question: Question) -> _Prompt:
        """What the model shall read. Raises PromptTooLong."""
        a, job = self._a, self._job
        self._completion_tokens = a._model.text.count(question.released)
        # nobody should have to shorten a question for a length that they did not ask for
        usual = min(a._settings.max_new_tokens, a._model.context_tokens // 2)
        most = int(job.sampling.get("max_new_tokens") or usual)
        wanted = max(1, most - self._completion_tokens)
        turns, asked, hidden = question.turns, question.text, False
        if self._standing.guard.hides_identifiers:
            asked, hidden = without_names(asked)
            turns = [Turn(role=turn.role, text=without_names(turn.text)[0]) for turn in turns]
        token_ids = a._model.text.prompt(
            system=a._settings.system_prompt,
            turns=turns,
            question=asked,
            released=question.released,
            budget_tokens=a._model.context_tokens - wanted,
        )
        return _Prompt(token_ids=token_ids, wanted=wanted, hidden=hidden)

    def _generate(self, question: Question, prompt: _Prompt) -> tuple[FinishReason | None, list[Release]]:
        """Stream the answer through the gate.

        Returns why it ended (None: the gate ended it), and the last sentences: they are stored with the end.
        """
        a, job = self._a, self._job
        self._notes = {
            "model_id": a._model.model_id,
            "model_revision": a._model.revision,
            "adapter_sha256": question.adapter or BASE,
            "prompt_version": a._prompt_version,
            "policy_version": self._standing.guard.policy_version,
            "prompt_tokens": len(prompt.token_ids),
        }
        gate = self._standing.guard.gate(
            job.audience,
            question.released,
            question=question.text,
            state=question.state,
            locale=a._settings.locale,
            referral_due=question.referral_due,
            hidden=prompt.hidden,
        )
        detokeniser = a._model.text.detokeniser()
        request = GenerationRequest(
            request_id=self._request_id,
            prompt_token_ids=prompt.token_ids,
            max_new_tokens=prompt.wanted,
            sampling=Sampling(
                temperature=float(job.sampling.get("temperature") or 0.0),
                top_p=float(job.sampling.get("top_p") or 1.0),
                seed=job.seed,
            ),
            deadline=question.deadline,
            adapter=question.adapter,
            # whatever ended its other attempts, the last one shall not end for what another request does
            alone=1 < job.attempt == job.max_attempts,
        )
        with a._model.engine.submit(request) as stream:
            if self._hold.stop is not None or self._stopped:  # before the engine knew the request
                return FinishReason.CANCELLED, []
            for token_ids in stream:
                self._completion_tokens += len(token_ids)
                releases = gate.feed(detokeniser.feed(token_ids))
                if self._stopped:
                    return FinishReason.CANCELLED, []
                if gate.stopped:
                    return None, releases
                self._release(releases)
        if stream.finish_reason in (FinishReason.STOP, FinishReason.LENGTH):
            return stream.finish_reason, gate.feed(detokeniser.close()) + gate.close()
        return stream.finish_reason, []

    def _screened(self, question: Question) -> Verdict | None:
        """What all layers of the guard have against the question; None when it may be answered.

        The gateway asked only those that need no network.
        """
        if question.released_count:
            return None  # an earlier attempt asked, before it released anything
        started = time.monotonic()
        try:
            verdict = self._standing.guard.screen_question(question.text, self._job.audience)
        except Exception as error:  # whatever a layer may raise, the question has not been checked
            log.error("the question of job %s could not be checked: %s", self._job.id, where(error))
            return QUESTION_FAILURE
        taken = time.monotonic() - started
        if taken > QUESTION_TIME_BUDGET_S:
            log.error("the check of the question of job %s took %.1f s", self._job.id, taken)
            return QUESTION_FAILURE
        if verdict.allowed:
            return None
        if not verdict.answered_at_once:
            log.error("the question of job %s got a verdict that is none on questions", self._job.id)
            return QUESTION_FAILURE
        return verdict

    def _deadline(self, now: datetime) -> float | None:
        if self._job.deadline_at is None:
            return None
        return time.monotonic() + (self._job.deadline_at - now).total_seconds()

    # -- writing, always fenced

    def _release(self, releases: list[Release]) -> None:
        """Commit the sentences, then say so: never the other way round."""
        if not releases:
            return

        def write(connection: Connection) -> None:
            now = self._a._jobs.hold(connection, self._job.claim, **self._columns(connection, releases))
            self._write_sentences(connection, releases, now)

        self._persist(write)
        self._released(releases)
        self._a._bell.news(self._job.id, self._seq)

    def _released(self, releases: list[Release]) -> None:
        """Count what is shown now, and let the shadow policy look at it."""
        shadow = self._standing.shadow
        if shadow is not None:
            self._a._shadow.look(shadow, self._job, releases, self._seq + 1, self._shown)
        self._seq += len(releases)
        self._shown += "".join(release.text for release in releases)

    def _columns(self, connection: Connection, releases: list[Release]) -> dict[str, Any]:
        """What the job's row learns when these sentences are stored."""
        values = dict(self._notes)
        if releases and self._seq == 0 and self._job.first_sentence_at is None:
            values["first_sentence_at"] = self._a._jobs.clock.now(connection)
        return values

    def _write_sentences(self, connection: Connection, releases: list[Release], now: datetime) -> None:
        """The caller has fenced the transaction. Raises AdapterRecalled: nothing of it is shown any more."""
        if not releases:
            return
        if self._adapter is not None:
            hold_unrecalled(connection, self._adapter)
        a, job, key = self._a, self._job, self._key
        assert key is not None
        for seq, release in enumerate(releases, start=self._seq + 1):
            verdict_id = None
            if release.verdict.action is not Action.ALLOW:
                verdict_id = self._write_verdict(connection, release, now)
            a._conversations.release(
                connection,
                key,
                job_id=job.id,
                seq=seq,
                epoch=job.epoch,
                text=release.text,
                suppressed=release.suppressed,
                verdict_id=verdict_id,
                action=release.verdict.action,
                now=now,
            )

    def _write_verdict(self, connection: Connection, release: Release, now: datetime) -> str:
        a, job, verdict = self._a, self._job, release.verdict
        stored = StoredVerdict(
            verdict=verdict,
            policy_version=self._standing.guard.policy_version,
            text=release.suppressed or release.text,
        )
        verdict_id = a._conversations.store_verdict(connection, job_id=job.id, stored=stored, now=now)
        record.append(
            connection,
            now=now,
            actor=a._actor,
            action="guard.flagged" if verdict.action is Action.ESCALATE else "guard.stepped_in",
            object=f"job:{job.id}",
            details=bind_verdict(verdict_id, verdict, self._standing.guard.policy_version),
        )
        return verdict_id

    # -- the end of the attempt

    def _end(self, finish: FinishReason | None, last: list[Release]) -> None:
        if self._hold.stop is Renewal.LOST:
            raise LeaseLost
        if self._stopped:
            self._fail(AnswersStopped.code, AnswersStopped.unfinished)
        elif finish in (None, FinishReason.STOP, FinishReason.LENGTH):
            self._succeed("guard" if finish is None else finish.value, last)
        elif finish is FinishReason.DRAINED:
            self._drain()
        elif finish is FinishReason.DEADLINE:
            self._fail("deadline", "No answer was ready in time; ask again when the system is less busy.")
        else:
            self._finish(
                EventKind.CANCELLED, [], finish_reason="cancelled", completion_tokens=self._completion_tokens
            )

    def _respond(self, question: Question, verdict: Verdict) -> None:
        """End with the guard's own answer."""
        a, guard = self._a, self._standing.guard

        def move(connection: Connection) -> Job:
            now = a._jobs.clock.now(connection)
            job = a._jobs.finish(
                connection,
                self._job.claim,
                EventKind.SUCCEEDED,
                finish_reason="guard",
                adapter_sha256=None,  # it wrote nothing of this, whoever named it
                first_sentence_at=now,
                policy_version=guard.policy_version,
            )
            respond(
                connection,
                a._conversations,
                job,
                guard=guard,
                verdict=verdict,
                question=question.text,
                locale=a._settings.locale,
                actor=a._actor,
                now=now,
            )
            return job

        self._transition(move)

    def _succeed(self, finish_reason: str, last: list[Release]) -> None:
        self._finish(
            EventKind.SUCCEEDED,
            last,
            finish_reason=finish_reason,
            completion_tokens=self._completion_tokens,
        )

    def _fail(self, error: str, detail: str) -> None:
        self._finish(EventKind.FAILED, [], error=error, error_detail=detail)

    def _finish(self, kind: EventKind, last: list[Release], **values: Any) -> None:
        def move(connection: Connection) -> Job:
            columns = {**self._columns(connection, last), **values}
            job = self._a._jobs.finish(connection, self._job.claim, kind, **columns)
            self._write_sentences(connection, last, self._a._jobs.clock.now(connection))
            return job

        self._transition(move)
        self._released(last)

    def retry(self, error: str, detail: str) -> None:
        """Give this attempt up; the job is tried again, or fails if this was its last."""
        claim = self._job.claim
        try:
            job = self._transition(lambda c: self._a._jobs.retry(c, claim, error=error, error_detail=detail))
        except LeaseLost:
            return
        except DBAPIError as error_now:
            if not is_away(error_now):
                raise
            return  # the lease will run out, and the reconciler decides
        log.warning("job %s: attempt %d ended in %s, now %s", job.id, job.attempt, error, job.state)

    def _drain(self) -> None:
        self.handed_back = True
        job = self._transition(lambda connection: self._a._jobs.drain(connection, self._job.claim))
        log.info("job %s went back to the queue", job.id)
        self._a._bell.work(job.kind, job.id)

    def _transition(self, move: Callable[[Connection], Job]) -> Job:
        def write(connection: Connection) -> Job:
            a = self._a
            job = move(connection)
            now = a._jobs.clock.now(connection)
            record_end(connection, a._conversations, job, actor=a._actor, now=now, key=self._key)
            return job

        return self._persist(write)

    def _persist(self, work: Callable[[Connection], T], *, read_only: bool = False) -> T:
        patience_s = self._a._settings.lease_s
        return persist(self._a._database, self._hold, work, patience_s=patience_s, read_only=read_only)
