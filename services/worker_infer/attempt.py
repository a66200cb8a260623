"""One attempt at one claimed job: question → prompt → engine → guard → sentences that may be shown.

It writes nothing itself (`answer_rows` does), and knows neither Celery nor HTTP.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection

from services.worker_infer.answer_rows import AnswerRows
from services.worker_infer.engines.base import FinishReason, GenerationRequest, Sampling
from services.worker_infer.engines.errors import (
    AdapterUnavailable,
    EngineCrashed,
    EngineUnavailable,
    OutOfMemory,
    RequestTooLong,
)
from services.worker_infer.pixels import NoPictures, PictureUnreadable
from services.worker_infer.stops import Stops
from services.worker_infer.text import Turn
from services.worker_infer.tools import Tools
from shared.errors import AdapterRefused, AnswersStopped, LeaseLost, NotFound, PromptTooLong
from shared.guard.gate import QUESTION_FAILURE, QUESTION_TIME_BUDGET_S, Release
from shared.guard.verdict import Action, Audience, Category, Verdict
from shared.jobs.leases import Hold
from shared.jobs.payload import read_stops
from shared.jobs.records import Job
from shared.jobs.store import Renewal
from shared.kept_pictures import PictureRef
from shared.logs import where
from shared.privacy.envelope import CannotDecrypt, DataKey
from shared.privacy.phi import without_names
from shared.prompts import prompt_version
from shared.training.adapters import find
from shared.training.states import BASE

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Question:
    """What the answer is written from."""

    turns: list[Turn]
    text: str
    #: Those that came with it, and with each of the turns.
    pictures: tuple[PictureRef, ...]
    earlier_pictures: tuple[tuple[PictureRef, ...], ...]
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
    #: Why the adapter that should answer must not.
    refused: AdapterRefused | None
    #: What a program told with the question, which the guard reads now: its instructions, and what the person
    #: said before, the newest first.
    system: str
    given: tuple[str, ...]
    #: Texts before which the answer ends.
    stops: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Prompt:
    """What the model reads."""

    token_ids: list[int]
    #: How many tokens it may write.
    wanted: int
    #: Whether something that names a person was left out.
    hidden: bool
    #: The pictures that are in it, in order.
    pictures: tuple[PictureRef, ...]


class Attempt:
    """One attempt at one job. Another thread may stop it."""

    def __init__(self, tools: Tools, job: Job, hold: Hold, request_id: str) -> None:
        """`request_id` is the attempt's name in the engine."""
        self._tools = tools
        self._job = job
        self._hold = hold
        self._request_id = request_id
        #: What judges this answer, to its end.
        self._standing = tools.guards.now
        self.rows = AnswerRows(tools, job, hold, self._standing)
        #: Whether an admin stopped all answers.
        self._stopped = False

    def stop(self) -> None:
        """Release nothing more and end; called from another thread."""
        self._stopped = True
        self._tools.model.engine.cancel(self._request_id)

    def run(self) -> None:
        """Generate, guard, release, finish; an adapter that must not answer (any more) ends it."""
        try:
            self._answer()
        except AdapterRefused as error:
            self.rows.fail(error.code, error.detail)

    def _answer(self) -> None:
        """Raises AdapterRefused."""
        guards, rows = self._tools.guards, self.rows
        if guards.now.stopped and guards.refresh().stopped:  # this worker may not have heard yet
            self._stopped = True
            rows.fail(AnswersStopped.code, AnswersStopped.unfinished)
            return
        question = rows.persist(self._load, read_only=True)
        rows.go_on(
            key=question.key,
            adapter=question.adapter,
            shown=question.released,
            sentences=question.released_count,
        )
        if question.ended_by_guard:
            rows.succeed("guard", [])
            return
        prompt, refusal = None, None
        try:
            prompt = self._prompt(question)
        except (PromptTooLong, NoPictures) as error:
            refusal = error
        # before the engine begins: beside it, two thousandths of a second become six on a small machine
        question, found = self._screened(question)
        # whoever is in danger is told so however much they wrote; that a text is too long to be answered says
        # more than that it was too long to be checked in time
        if found is not None and not (refusal and found is QUESTION_FAILURE):
            rows.respond(question.text, found)
        elif refusal is not None:
            rows.fail(refusal.code, refusal.detail)
        elif question.refused is not None:
            raise question.refused
        elif prompt is not None:
            self._write(question, prompt)

    def _write(self, question: Question, prompt: _Prompt) -> None:
        """Let the engine write the answer, and end as that ended."""
        rows = self.rows
        try:
            finish, last = self._generate(question, prompt)
        except RequestTooLong as error:
            rows.fail(PromptTooLong.code, str(error))
        except PictureUnreadable as error:
            rows.fail(error.code, error.detail)
        except AdapterUnavailable as error:
            end = rows.retry if error.may_pass else rows.fail
            end("adapter-unavailable", str(error))
        except OutOfMemory as error:
            rows.fail("out-of-memory", str(error))
        except EngineCrashed:
            rows.retry("engine-crashed", "The model stopped unexpectedly, several times; ask again later.")
        except EngineUnavailable:
            rows.drain()
        else:
            self._end(finish, last)

    def _load(self, connection: Connection) -> Question:
        job, tools = self._job, self._tools
        assert job.conversation_id is not None
        key, state = tools.conversations.key_and_state(connection, job.conversation_id)
        said = tools.conversations.read_messages(connection, job.conversation_id, key=key)
        place = next(place for place, message in enumerate(said) if message.id == job.question_id)
        released = (
            tools.conversations.read_sentences(connection, job.conversation_id, job.id, key=key)
            if job.epoch > 1  # else nobody has worked on it
            else []
        )
        before = [each for each in said[:place] if each.given != "system"]
        adapter, refused = self._adapter(connection)
        stops: tuple[str, ...] = ()
        if job.sampling.get("stops"):
            stops = read_stops(connection, job.id, key=key)
        return Question(
            turns=[Turn(role=each.role, text=each.text, pictures=len(each.pictures)) for each in before],
            text=said[place].text,
            pictures=said[place].pictures,
            earlier_pictures=tuple(each.pictures for each in before),
            released="".join(sentence.text for sentence in released),
            released_count=len(released),
            state=state,
            ended_by_guard=any(not sentence.action.shows for sentence in released),
            referral_due=any(sentence.action is Action.APPEND for sentence in released),
            deadline=self._deadline(tools.jobs.clock.now(connection)),
            key=key,
            adapter=adapter,
            refused=refused,
            system="\n\n".join(each.text for each in said[:place] if each.given == "system"),
            given=tuple(each.text for each in reversed(said[:place]) if each.given == "user"),
            stops=stops,
        )

    def _adapter(self, connection: Connection) -> tuple[str | None, AdapterRefused | None]:
        """The adapter that answers, or why none does; None twice: the base model alone."""
        try:
            adapter = self._tools.active.choose(connection, self._job)
        except AdapterRefused as error:
            return None, error
        if adapter is not None and find(connection, adapter).files_sha256 is None:
            # the engine may hold files of it that nothing vouches for
            log.error("job %s: adapter %s must be verified again", self._job.id, adapter)
            return None, AdapterRefused("The adapter that should answer cannot be used now; tell your admin.")
        return adapter, None

    def _prompt(self, question: Question) -> _Prompt:
        """What the model shall read. Raises PromptTooLong, NoPictures."""
        settings, model, job = self._tools.settings, self._tools.model, self._job
        if question.pictures and model.pictures is None:
            raise NoPictures
        written = self.rows.completion_tokens = model.text.count(question.released)
        # nobody should have to shorten a question for a length that they did not ask for
        usual = min(settings.max_new_tokens, model.context_tokens // 2)
        most = int(job.sampling.get("max_new_tokens") or usual)
        wanted = max(1, most - written)
        turns, asked, hidden, instructed = question.turns, question.text, False, question.system
        if self._standing.guard.hides_identifiers:
            asked, hidden = without_names(asked)
            instructed = without_names(instructed)[0]
            turns = [replace(turn, text=without_names(turn.text)[0]) for turn in turns]
        prompt = model.text.prompt(
            system=f"{settings.system_prompt}\n\n{instructed}".strip(),
            turns=turns,
            question=asked,
            released=question.released,
            budget_tokens=model.context_tokens - wanted,
            pictures=len(question.pictures),
        )
        shown = [picture for place in prompt.kept for picture in question.earlier_pictures[place]]
        return _Prompt(
            token_ids=prompt.token_ids,
            wanted=wanted,
            hidden=hidden,
            pictures=(*shown, *question.pictures),
        )

    def _generate(self, question: Question, prompt: _Prompt) -> tuple[FinishReason | None, list[Release]]:
        """Stream the answer through the gate.

        Returns why it ended (None: the gate ended it), and the last sentences: they are stored with the end.
        """
        model, rows = self._tools.model, self.rows
        rows.notes = self._notes(question, prompt)
        gate = self._standing.guard.gate(
            self._job.audience,
            question.released,
            question=question.text,
            state=question.state,
            locale=self._tools.settings.locale,
            referral_due=question.referral_due,
            hidden=prompt.hidden,
        )
        detokeniser = model.text.detokeniser()
        stops = Stops(question.stops, question.released)
        with model.engine.submit(self._request(question, prompt)) as stream:
            if self._hold.stop is not None or self._stopped:  # before the engine knew the request
                return FinishReason.CANCELLED, []
            for token_ids in stream:
                rows.completion_tokens += len(token_ids)
                releases = gate.feed(stops.feed(detokeniser.feed(token_ids)))
                if self._stopped:
                    return FinishReason.CANCELLED, []
                if gate.stopped:
                    return None, releases
                rows.release(releases)
                if stops.judgeable:
                    return FinishReason.STOP, gate.close(stops.cut)
        if stream.finish_reason in (FinishReason.STOP, FinishReason.LENGTH):
            releases = gate.feed(stops.feed(detokeniser.close()) + stops.close())
            finish = FinishReason.STOP if stops.cut else stream.finish_reason
            return finish, releases + gate.close(stops.cut)
        return stream.finish_reason, []

    def _notes(self, question: Question, prompt: _Prompt) -> dict[str, Any]:
        """What writes the answer and from how much, as the job's row names it."""
        return {
            "model_id": self._tools.model.model_id,
            "model_revision": self._tools.model.revision,
            "adapter_sha256": question.adapter or BASE,
            "prompt_version": prompt_version(self._tools.settings.system_prompt),
            "policy_version": self._standing.guard.policy_version,
            "prompt_tokens": len(prompt.token_ids),
        }

    def _pixels(self, question: Question, prompt: _Prompt) -> "NDArray[np.float32] | None":
        """What the model sees; None without pictures. Raises PictureUnreadable."""
        reader, conversation_id = self._tools.model.pictures, self._job.conversation_id
        if reader is None or not prompt.pictures:
            return None
        assert conversation_id is not None

        def read(connection: Connection) -> list[bytes]:
            return [
                self._tools.conversations.read_picture(
                    connection, picture.id, conversation_id=conversation_id, key=question.key
                )
                for picture in prompt.pictures
            ]

        try:
            files = self.rows.persist(read, read_only=True)
        except (NotFound, CannotDecrypt) as error:
            raise PictureUnreadable from error
        return reader.read(files)

    def _request(self, question: Question, prompt: _Prompt) -> GenerationRequest:
        """Raises PictureUnreadable."""
        job = self._job
        return GenerationRequest(
            request_id=self._request_id,
            prompt_token_ids=prompt.token_ids,
            max_new_tokens=prompt.wanted,
            pixel_values=self._pixels(question, prompt),
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

    def _screened(self, question: Question) -> tuple[Question, Verdict | None]:
        """The question in the state that what was said before shows, and what all layers of the guard have
        against it: None when it may be answered. The gateway asked only those that need no network.
        """
        if question.released_count:
            return question, None  # an earlier attempt asked, before it released anything
        found = self._against(question.text)
        question, unread = self._read_before(question)
        if found is not None and found.action is Action.CRISIS:
            return question, found
        return question, unread or found

    def _against(self, text: str) -> Verdict | None:
        verdict = self._judged(text, self._standing.guard.screen_question)
        if verdict.allowed:
            return None
        if not verdict.answered_at_once:
            log.error("the question of job %s got a verdict that is none on questions", self._job.id)
            return QUESTION_FAILURE
        return verdict

    def _read_before(self, question: Question) -> tuple[Question, Verdict | None]:
        """Have the guard read what a program told with its question, each message by itself.

        That the person was in need holds as in a conversation that goes on; harm that they asked for before
        is no reason not to answer now. A program's instructions tell of no person, but may ask for harm.
        """
        guard = self._standing.guard
        worst, unread = self._worst(question.given)
        if worst is not None and question.state not in (worst.category, Category.CRISIS):
            self.rows.note_need(worst)
            question = replace(question, state=worst.category)
        if unread:
            return question, QUESTION_FAILURE
        if question.system:
            instructed = self._judged(question.system, guard.screen_instructions)
            if not instructed.allowed:
                return question, replace(instructed, span=None)
        return question, None

    def _worst(self, given: Sequence[str]) -> tuple[Verdict | None, bool]:
        """In what need the person was by their messages, the newest first, and whether one could not be read.

        All layers read as much as a question may hold, within a question's time; the rules what is older.
        """
        guard, worst, unread = self._standing.guard, None, False
        left, until = self._tools.settings.max_query_chars, time.monotonic() + QUESTION_TIME_BUDGET_S
        for text in given:
            if self._stopped or self._hold.stop is not None:
                break
            left -= len(text)
            whole = left >= 0 and time.monotonic() < until
            verdict = self._judged(text, guard.screen_question if whole else guard.screen_at_once)
            unread = unread or verdict is QUESTION_FAILURE
            if verdict.action is Action.CRISIS and (worst is None or verdict.category is Category.CRISIS):
                worst = verdict
            if verdict.category is Category.CRISIS:
                break
        return worst, unread

    def _judged(self, text: str, screen: Callable[[str, Audience], Verdict]) -> Verdict:
        """What the guard says of something that was asked or told; QUESTION_FAILURE where it could not."""
        started = time.monotonic()
        try:
            verdict = screen(text, self._job.audience)
        except Exception as error:  # whatever a layer may raise, the question has not been checked
            log.error("the question of job %s could not be checked: %s", self._job.id, where(error))
            return QUESTION_FAILURE
        taken = time.monotonic() - started
        if taken > QUESTION_TIME_BUDGET_S:
            log.error("the check of the question of job %s took %.1f s", self._job.id, taken)
            return QUESTION_FAILURE
        return verdict

    def _deadline(self, now: datetime) -> float | None:
        if self._job.deadline_at is None:
            return None
        return time.monotonic() + (self._job.deadline_at - now).total_seconds()

    def _end(self, finish: FinishReason | None, last: list[Release]) -> None:
        if self._hold.stop is Renewal.LOST:
            raise LeaseLost
        if self._stopped:
            self.rows.fail(AnswersStopped.code, AnswersStopped.unfinished)
        elif finish in (None, FinishReason.STOP, FinishReason.LENGTH):
            self.rows.succeed("guard" if finish is None else finish.value, last)
        elif finish is FinishReason.DRAINED:
            self.rows.drain()
        elif finish is FinishReason.DEADLINE:
            self.rows.fail("deadline", "No answer was ready in time; ask again when the system is less busy.")
        else:
            self.rows.cancelled()
