"""A logged conversation as a reviewer reads it: every turn, what wrote it, and the guard's verdicts in place.

It asks nobody whether they may read it, and writes no event: whoever shows a transcript does both before.
What a shadow policy said is no part of it, for nobody was shown anything because of it.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, bindparam, select

from shared.conversations import Conversations, given_in
from shared.db.tables import conversations as talks
from shared.db.tables import jobs, messages, released_sentences, verdicts
from shared.errors import NotFound
from shared.guard.verdict import Action, Audience, Severity, Side
from shared.jobs.lifecycle import State
from shared.kept_pictures import refs_in
from shared.privacy.envelope import CannotDecrypt, DataKey, KeyDestroyed
from shared.training.states import adapter_of_answer
from shared.transcripts.records import Judged, Origin, ShownSentence, Transcript, Turn

_TALK = select(talks).where(talks.c.id == bindparam("of"))
_MESSAGES = select(messages).where(messages.c.conversation_id == bindparam("of")).order_by(messages.c.seq)
_JOBS = select(jobs).where(jobs.c.conversation_id == bindparam("of")).order_by(jobs.c.created_at)
_SENTENCES = (
    select(released_sentences)
    .join(jobs, jobs.c.id == released_sentences.c.job_id)
    .where(jobs.c.conversation_id == bindparam("of"))
    .order_by(released_sentences.c.job_id, released_sentences.c.seq)
)
_VERDICTS = (
    select(verdicts)
    .join(jobs, jobs.c.id == verdicts.c.job_id)
    .where(jobs.c.conversation_id == bindparam("of"), verdicts.c.shadow.is_(False))
    .order_by(verdicts.c.created_at, verdicts.c.id)
)


def read_transcript(
    connection: Connection, conversations: Conversations, conversation_id: str, *, mask: bool
) -> Transcript:
    """The conversation. With `mask`, what identifies a person is replaced by its type in every text.

    Masking takes some 7 ms for each thousand characters, so call it in a read transaction.
    Raises NotFound; CannotDecrypt when the key itself cannot be opened (but not when it was destroyed).
    """
    of = {"of": conversation_id}
    talk = connection.execute(_TALK, of).one_or_none()
    if talk is None:
        raise NotFound("There is no conversation under this id; check the id.")
    try:
        key = conversations.key(connection, conversation_id)
    except KeyDestroyed:
        key = None
    asked = connection.execute(_MESSAGES, of).all()
    turns = _turns(asked, _answers(connection, of, key), key)
    transcript = Transcript(
        conversation_id=conversation_id,
        owner_id=talk.user_id,
        title=_open(key, talk.title_ciphertext, f"title:{conversation_id}"),
        guard_state=talk.guard_state,
        created_at=talk.created_at,
        updated_at=talk.updated_at,
        hidden_at=talk.hidden_at,
        erased=key is None,
        masked=mask,
        turns=tuple(turns),
    )
    if not mask or key is None:
        return transcript
    from shared.transcripts.masked import masked  # a second to load, which only a reader of texts needs

    return masked(transcript)


@dataclass(frozen=True, kw_only=True)
class _Answer:
    """What a job left."""

    job: Row[Any]
    sentences: tuple[ShownSentence, ...]
    about_question: tuple[Judged, ...]
    about_answer: tuple[Judged, ...]

    @property
    def origin(self) -> Origin:
        job = self.job
        return Origin(
            state=State(job.state),
            error=job.error,
            error_detail=job.error_detail,
            finish_reason=job.finish_reason,
            audience=Audience(job.audience),
            model_id=job.model_id,
            model_revision=job.model_revision,
            adapter_sha256=adapter_of_answer(job.model_id, job.adapter_sha256),
            prompt_version=job.prompt_version,
            policy_version=job.policy_version,
        )


def _answers(connection: Connection, of: dict[str, str], key: DataKey | None) -> dict[str, _Answer]:
    """What each job of the conversation left, by the job's id."""
    rows = connection.execute(_VERDICTS, of).all()
    judged = {row.id: _judged(row) for row in rows}
    of_job: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        of_job[row.job_id].append(row.id)
    sentences: dict[str, list[ShownSentence]] = defaultdict(list)
    borne = set()
    for row in connection.execute(_SENTENCES, of):
        place = f"{row.job_id}:{row.seq}"
        borne.add(row.verdict_id)
        sentences[row.job_id].append(
            ShownSentence(
                seq=row.seq,
                text=_open(key, row.ciphertext, f"sentence:{place}"),
                action=Action(row.action),
                verdict=judged.get(row.verdict_id),
                suppressed=_open(key, row.suppressed_ciphertext, f"suppressed:{place}"),
            )
        )
    found = {}
    for job in connection.execute(_JOBS, of):
        about = [judged[each] for each in of_job[job.id]]
        found[job.id] = _Answer(
            job=job,
            sentences=tuple(sentences[job.id]),
            about_question=tuple(each for each in about if each.side is Side.QUESTION),
            about_answer=tuple(each for each in about if each.side is Side.ANSWER and each.id not in borne),
        )
    return found


def _turns(said: Sequence[Row[Any]], answers: dict[str, _Answer], key: DataKey | None) -> list[Turn]:
    """Each question with its answers right after it, in the order of time, kept as messages or not."""
    kept = [_message(row, answers, key) for row in said]
    stored = {turn.job_id for turn in kept}
    left = [_left(answer) for job_id, answer in answers.items() if job_id not in stored]
    asked_at = {turn.message_id: turn.seq or 0 for turn in kept}
    last = len(kept) + 1

    def place(turn: Turn) -> tuple[int, bool, datetime, int]:
        answer = turn.role == "assistant"
        asked = asked_at.get(turn.parent_id, turn.seq or last) if answer else turn.seq or last
        return asked, answer, turn.at, turn.seq or last

    return sorted([*kept, *left], key=place)


def _message(row: Row[Any], answers: dict[str, _Answer], key: DataKey | None) -> Turn:
    answer = answers.get(row.job_id) if row.role == "assistant" else None
    about = answer.about_answer if answer else tuple(_about_question(row.id, answers))
    return Turn(
        message_id=row.id,
        seq=row.seq,
        role=row.role,
        text=_open(key, row.ciphertext, f"message:{row.id}"),
        at=row.created_at,
        job_id=row.job_id,
        parent_id=row.parent_id,
        replaced=row.hidden_at is not None,
        given=given_in(row.parts),
        images=refs_in(row.parts),
        origin=answer.origin if answer else None,
        sentences=answer.sentences if answer else (),
        verdicts=about,
    )


def _about_question(message_id: str, answers: dict[str, _Answer]) -> Iterator[Judged]:
    for answer in answers.values():
        if answer.job.question_id == message_id:
            yield from answer.about_question


def _left(answer: _Answer) -> Turn:
    """The turn of a job without a message: not ended yet, or ended with nothing to keep."""
    texts = [sentence.text for sentence in answer.sentences]
    return Turn(
        message_id=None,
        seq=None,
        role="assistant",
        text=None if None in texts else "".join(text for text in texts if text).strip(),
        at=answer.job.finished_at or answer.job.created_at,
        job_id=answer.job.id,
        parent_id=answer.job.question_id,
        replaced=False,
        given=None,
        origin=answer.origin,
        sentences=answer.sentences,
        verdicts=answer.about_answer,
    )


def _judged(row: Row[Any]) -> Judged:
    return Judged(
        id=row.id,
        side=Side(row.side),
        action=Action(row.action),
        severity=Severity(row.severity),
        category=row.category,
        layer=row.layer,
        source=row.source,
        score=row.score,
        policy_version=row.policy_version,
    )


def _open(key: DataKey | None, sealed: bytes | None, place: str) -> str | None:
    """The text; None when there is none, or none that can be opened."""
    if key is None or sealed is None:
        return None
    try:
        return key.decrypt(sealed, place=place)
    except CannotDecrypt:
        return None
