"""Stores conversations: their messages and what was released of an answer. It does not ask who reads them.

Every text goes through the envelope here, so no caller ever handles a ciphertext.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from sqlalchemy import Connection, bindparam, func, select, update

from shared.audit.binding import digest_given, digest_sentences, digest_text
from shared.db.rows import Into, Rows, put
from shared.db.tables import conversations, data_keys, messages, released_sentences, verdicts
from shared.errors import NotFound
from shared.guard.verdict import Action, Category, Verdict
from shared.ids import new_id
from shared.jobs.lifecycle import State
from shared.jobs.records import Job
from shared.kept_pictures import PictureRef, Sealed, read_picture, refs_in
from shared.privacy.envelope import DataKey, Envelope, KeyDestroyed
from shared.privacy.keys import create_data_key

if TYPE_CHECKING:
    from shared.pictures import PreparedPicture  # what opens pictures is loaded by who opens some

#: The retention class of a conversation that was erased: its rows stay for the log's sake, without a text.
ERASED = "erased"

# made once: building a statement costs more than sending it
_KEY_OF = (
    select(
        data_keys.c.key_id,
        data_keys.c.wrapped_key,
        data_keys.c.master_key_version,
        conversations.c.guard_state,
    )
    .join(conversations, conversations.c.key_id == data_keys.c.key_id)
    .where(conversations.c.id == bindparam("conversation_id"))
)
_NEXT_NUMBER = (
    update(conversations)
    .where(
        conversations.c.id == bindparam("conversation_id"),
        conversations.c.retention_class != ERASED,  # else a key read just before would seal one more text
    )
    .values(message_count=conversations.c.message_count + 1, updated_at=bindparam("now"))
    .returning(conversations.c.message_count)
)
_asked = messages.alias("asked")
_SAID = (
    select(messages)
    .outerjoin(_asked, _asked.c.id == messages.c.parent_id)
    .where(messages.c.conversation_id == bindparam("conversation_id"), messages.c.hidden_at.is_(None))
    .order_by(func.coalesce(_asked.c.seq, messages.c.seq), messages.c.seq)
)
_RELEASED = (
    select(
        released_sentences.c.seq,
        released_sentences.c.ciphertext,
        released_sentences.c.suppressed_ciphertext,
        released_sentences.c.verdict_id,
        released_sentences.c.action,
        verdicts.c.category,
    )
    .outerjoin(verdicts, verdicts.c.id == released_sentences.c.verdict_id)
    .where(released_sentences.c.job_id == bindparam("of_job"), released_sentences.c.seq > bindparam("after"))
    .order_by(released_sentences.c.seq)
)
_REVIEWED = (
    select(
        released_sentences.c.seq,
        released_sentences.c.ciphertext,
        released_sentences.c.suppressed_ciphertext,
        released_sentences.c.action,
        verdicts.c.category,
        verdicts.c.layer,
        verdicts.c.source,
    )
    .outerjoin(verdicts, verdicts.c.id == released_sentences.c.verdict_id)
    .where(released_sentences.c.job_id == bindparam("of_job"))
    .order_by(released_sentences.c.seq)
)

MessageRole = Literal["user", "assistant"]
#: Whose words a program says that something was.
Speaker = Literal["system", "user", "assistant"]
TITLE_CHARS = 80


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A message that was stored, and what the log says of its text."""

    conversation_id: str
    message_id: str
    #: Its number in the conversation, from 1.
    seq: int
    #: SHA-256 of the ciphertext, and the salted commitment to the text (`DataKey.commitment`); in hex.
    ciphertext_sha256: str
    commitment: str
    #: Of an answer, what binds the log to its sentences (`digest_sentences`).
    sentences_sha256: str | None = None
    #: Of a question that came with what was said before, what binds the log to that (`digest_given`).
    given_sha256: str | None = None
    #: Of a question that came with pictures, what binds the log to them (`digest_pictures`).
    pictures_sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class Given:
    """Something said before a question, as a program tells that asks it: nobody saw MediChat write it."""

    side: Speaker
    text: str
    pictures: tuple[PreparedPicture, ...] = ()

    @property
    def role(self) -> MessageRole:
        """As whose it is stored: the system's words are those of whoever asks."""
        return "assistant" if self.side == "assistant" else "user"


@dataclass(frozen=True, kw_only=True)
class Message:
    """One message in the clear."""

    id: str
    seq: int
    parent_id: str | None
    role: MessageRole
    text: str
    job_id: str | None
    #: Whose words it was, where a program sent it with a question as said before.
    given: Speaker | None
    #: Those that came with it.
    pictures: tuple[PictureRef, ...] = ()
    created_at: datetime


@dataclass(frozen=True, kw_only=True)
class Sentence:
    """One released sentence in the clear."""

    seq: int
    text: str
    action: Action
    #: The guard's category, when it stepped in.
    category: str | None


@dataclass(frozen=True, kw_only=True)
class Reviewed(Sentence):
    """A released sentence with all that is known of it; for reviewers only."""

    #: What the guard replaced by it.
    suppressed: str | None
    #: The layer that decided; None where the guard did nothing.
    layer: str | None
    #: The rule or model that decided; likewise.
    source: str | None


@dataclass(frozen=True, kw_only=True)
class StoredVerdict:
    """What a verdict needs beside itself to be stored."""

    verdict: Verdict
    policy_version: str
    #: The judged text; stored as a keyed hash of the span only.
    text: str
    #: The number of the released sentence that a shadow policy judged; None for a verdict that counted.
    shadow_of: int | None = None


class Conversations:
    """The conversations in the database; safe to share between threads."""

    def __init__(self, envelope: Envelope) -> None:
        self._envelope = envelope

    def create(
        self,
        into: Into,
        *,
        user_id: str,
        question: str,
        now: datetime,
        given: Sequence[Given] = (),
        pictures: Sequence[PreparedPicture] = (),
    ) -> tuple[Kept, DataKey]:
        """Start a conversation with its first question, which gives the title, and a data key of its own;
        before the question stands what was `given` with it.
        """
        conversation_id = new_id()
        key = create_data_key(into, self._envelope, scope="conversation", owner_id=conversation_id, now=now)
        row = {
            "id": conversation_id,
            "user_id": user_id,
            "key_id": key.key_id,
            "title_ciphertext": key.encrypt(shorten(question), place=f"title:{conversation_id}"),
            "created_at": now,
            "updated_at": now,
            "message_count": len(given) + 1,
        }
        put(into, conversations, row)
        before: list[tuple[object, ...]] = []
        asked: str | None = None
        for seq, said in enumerate(given, start=1):
            answered = asked if said.role == "assistant" else None
            stored = self._insert_message(
                into,
                key,
                conversation_id=conversation_id,
                seq=seq,
                role=said.role,
                text=said.text,
                now=now,
                parent_id=answered,
                given=said.side,
                pictures=said.pictures,
            )
            shown = () if stored.pictures_sha256 is None else (stored.pictures_sha256,)
            before.append((seq, said.role, said.side, stored.ciphertext_sha256, answered, None, *shown))
            asked = stored.message_id if said.side == "user" else None
        kept = self._insert_message(
            into,
            key,
            conversation_id=conversation_id,
            seq=len(given) + 1,
            role="user",
            text=question,
            now=now,
            pictures=pictures,
        )
        return replace(kept, given_sha256=digest_given(before) if before else None), key

    def key(self, connection: Connection, conversation_id: str) -> DataKey:
        """The conversation's data key. Raises NotFound or KeyDestroyed."""
        return self.key_and_state(connection, conversation_id)[0]

    def key_and_state(self, connection: Connection, conversation_id: str) -> tuple[DataKey, Category | None]:
        """The conversation's data key, and `crisis` or `emergency` when one of its questions was one.

        Raises NotFound or KeyDestroyed.
        """
        row = connection.execute(_KEY_OF, {"conversation_id": conversation_id}).one_or_none()
        if row is None:
            raise NotFound
        key = self._envelope.unwrap(row.key_id, row.wrapped_key, row.master_key_version)
        return key, None if row.guard_state == "none" else Category(row.guard_state)

    def note_need(self, connection: Connection, conversation_id: str, category: Category) -> None:
        """Keep that the person is in a crisis or an emergency; later answers begin with where help is found.

        A crisis outweighs an emergency, and neither is taken back by what is asked later.
        """
        lesser = conversations.c.guard_state != Category.CRISIS.value
        connection.execute(
            update(conversations)
            .where(conversations.c.id == conversation_id, lesser)
            .values(guard_state=str(category))
        )

    def rename(self, connection: Connection, conversation_id: str, title: str, now: datetime) -> None:
        """Give the conversation another title."""
        key = self.key(connection, conversation_id)
        sealed = key.encrypt(shorten(title), place=f"title:{conversation_id}")
        connection.execute(
            update(conversations)
            .where(conversations.c.id == conversation_id)
            .values(title_ciphertext=sealed, updated_at=now)
        )

    def add_message(
        self,
        connection: Connection,
        key: DataKey,
        *,
        conversation_id: str,
        role: MessageRole,
        text: str,
        now: datetime,
        parent_id: str | None = None,
        job_id: str | None = None,
        pictures: Sequence[PreparedPicture] = (),
        into: Rows | None = None,
    ) -> Kept:
        """Append a message, or keep its row in `into`. Raises KeyDestroyed when the conversation was erased.

        Numbers are gapless: the conversation's row is locked.
        """
        numbered = connection.execute(_NEXT_NUMBER, {"conversation_id": conversation_id, "now": now})
        seq = numbered.scalar_one_or_none()
        if seq is None:
            raise KeyDestroyed
        return self._insert_message(
            connection if into is None else into,
            key,
            conversation_id=conversation_id,
            seq=seq,
            role=role,
            text=text,
            now=now,
            parent_id=parent_id,
            job_id=job_id,
            pictures=pictures,
        )

    def _insert_message(
        self,
        into: Into,
        key: DataKey,
        *,
        conversation_id: str,
        seq: int,
        role: MessageRole,
        text: str,
        now: datetime,
        parent_id: str | None = None,
        job_id: str | None = None,
        given: Speaker | None = None,
        pictures: Sequence[PreparedPicture] = (),
    ) -> Kept:
        message_id = new_id()
        place = f"message:{message_id}"
        sealed = key.encrypt(text, place=place)
        shown = Sealed(key, pictures, conversation_id=conversation_id, message_id=message_id, now=now)
        words = {"type": "text"} if given is None else {"type": "text", "given": given}
        row = {
            "id": message_id,
            "conversation_id": conversation_id,
            "seq": seq,
            "parent_id": parent_id,
            "role": role,
            "parts": [words, *shown.parts],
            "ciphertext": sealed,
            "key_id": key.key_id,
            "job_id": job_id,
            "created_at": now,
        }
        put(into, messages, row)
        shown.put(into)
        return Kept(
            conversation_id=conversation_id,
            message_id=message_id,
            seq=seq,
            ciphertext_sha256=digest_text(sealed),
            commitment=key.commitment(text, place=place),
            pictures_sha256=shown.sha256,
        )

    def read_messages(
        self, connection: Connection, conversation_id: str, *, key: DataKey | None = None
    ) -> list[Message]:
        """The messages that are not hidden: each question, oldest first, with its answer right after it.

        A person in need may ask while an answer is written; that answer is then stored after this question.
        `key` is the conversation's, if it is at hand.
        """
        key = key or self.key(connection, conversation_id)
        rows = connection.execute(_SAID, {"conversation_id": conversation_id})
        return [
            Message(
                id=row.id,
                seq=row.seq,
                parent_id=row.parent_id,
                role=row.role,
                text=key.decrypt(row.ciphertext, place=f"message:{row.id}"),
                job_id=row.job_id,
                given=given_in(row.parts),
                pictures=refs_in(row.parts),
                created_at=row.created_at,
            )
            for row in rows
        ]

    def read_text(self, connection: Connection, message_id: str, *, key: DataKey) -> str:
        """The text of one message, hidden or not."""
        sealed = connection.execute(
            select(messages.c.ciphertext).where(messages.c.id == message_id)
        ).scalar_one()
        return key.decrypt(sealed, place=f"message:{message_id}")

    def read_picture(
        self, connection: Connection, picture_id: str, *, conversation_id: str, key: DataKey
    ) -> bytes:
        """The PNG of a picture of this conversation. Raises NotFound, CannotDecrypt."""
        return read_picture(connection, picture_id, conversation_id=conversation_id, key=key)

    def _has_answer(self, connection: Connection, question_id: str) -> bool:
        shown = select(messages.c.id).where(
            messages.c.parent_id == question_id, messages.c.hidden_at.is_(None)
        )
        return connection.execute(shown).first() is not None

    def hide_answers(self, connection: Connection, question_id: str, now: datetime) -> None:
        """Hide the answers given so far to a question, because another one was written."""
        connection.execute(
            update(messages)
            .where(messages.c.parent_id == question_id, messages.c.hidden_at.is_(None))
            .values(hidden_at=now)
        )

    # -- released sentences

    def release(
        self,
        connection: Connection,
        key: DataKey,
        *,
        job_id: str,
        seq: int,
        epoch: int,
        text: str,
        suppressed: str | None,
        verdict_id: str | None,
        action: Action,
        now: datetime,
    ) -> None:
        """Store one released sentence; the caller has fenced the transaction (`JobStore.hold`)."""
        place = f"{job_id}:{seq}"
        row = {
            "job_id": job_id,
            "seq": seq,
            "epoch": epoch,
            "action": action,
            "ciphertext": key.encrypt(text, place=f"sentence:{place}"),
            "suppressed_ciphertext": (
                None if suppressed is None else key.encrypt(suppressed, place=f"suppressed:{place}")
            ),
            "key_id": key.key_id,
            "verdict_id": verdict_id,
            "created_at": now,
        }
        put(connection, released_sentences, row)

    def read_sentences(
        self,
        connection: Connection,
        conversation_id: str,
        job_id: str,
        *,
        after: int = 0,
        key: DataKey | None = None,
    ) -> list[Sentence]:
        """The sentences released after number `after`, in order, without what they replaced.

        `key` is the conversation's, where the caller has it already.
        """
        rows = connection.execute(_RELEASED, {"of_job": job_id, "after": after}).all()
        if not rows:
            return []
        return _open_sentences(rows, job_id, key or self.key(connection, conversation_id))

    def read_reviewed(self, connection: Connection, job_id: str, *, key: DataKey) -> list[Reviewed]:
        """The released sentences of a job, in order, with what they replaced; for reviewers only."""
        rows = connection.execute(_REVIEWED, {"of_job": job_id})
        return [
            Reviewed(
                seq=row.seq,
                text=key.decrypt(row.ciphertext, place=f"sentence:{job_id}:{row.seq}"),
                action=Action(row.action),
                category=row.category,
                suppressed=None
                if row.suppressed_ciphertext is None
                else key.decrypt(row.suppressed_ciphertext, place=f"suppressed:{job_id}:{row.seq}"),
                layer=row.layer,
                source=row.source,
            )
            for row in rows
        ]

    def store_verdict(
        self, connection: Connection, *, job_id: str, stored: StoredVerdict, now: datetime
    ) -> str:
        """Store a verdict; of the judged text only a keyed hash of the span is kept. Returns its id."""
        verdict, verdict_id = stored.verdict, new_id()
        start, end = verdict.span or (0, len(stored.text))
        row = {
            "id": verdict_id,
            "job_id": job_id,
            "side": verdict.side,
            "action": verdict.action,
            "severity": verdict.severity,
            "category": verdict.category,
            "layer": verdict.layer,
            "source": verdict.source,
            "score": verdict.score,
            "policy_version": stored.policy_version,
            "span_hmac": self._envelope.fingerprint(stored.text[start:end]),
            "shadow": stored.shadow_of is not None,
            "sentence_seq": stored.shadow_of,
            "created_at": now,
        }
        put(connection, verdicts, row)
        return verdict_id

    def keep_answer(
        self, connection: Connection, job: Job, now: datetime, *, key: DataKey | None = None
    ) -> Kept | None:
        """Make what was released for an ended job a message; None when nothing was kept.

        It takes the place of the former answers to its question, unless it failed: then those stay, and it
        is found among the released sentences only. `key` is the conversation's, if it is at hand.
        """
        if job.conversation_id is None:
            return None
        key = key or self.key(connection, job.conversation_id)
        rows = connection.execute(_RELEASED, {"of_job": job.id, "after": 0}).all()
        if not rows:
            return None
        sentences = _open_sentences(rows, job.id, key)
        if job.parent_job_id is not None and job.question_id is not None:
            if job.state is State.FAILED and self._has_answer(connection, job.question_id):
                return None
            self.hide_answers(connection, job.question_id, now)
        kept = self.add_message(
            connection,
            key,
            conversation_id=job.conversation_id,
            role="assistant",
            text=join(sentences),
            now=now,
            parent_id=job.question_id,
            job_id=job.id,
        )
        bound = (
            (row.seq, row.action, row.ciphertext, row.suppressed_ciphertext, row.verdict_id) for row in rows
        )
        return replace(kept, sentences_sha256=digest_sentences(bound))


def _open_sentences(rows: Sequence[Any], job_id: str, key: DataKey) -> list[Sentence]:
    return [
        Sentence(
            seq=row.seq,
            text=key.decrypt(row.ciphertext, place=f"sentence:{job_id}:{row.seq}"),
            action=Action(row.action),
            category=row.category,
        )
        for row in rows
    ]


def given_in(parts: Sequence[dict[str, Any]]) -> Speaker | None:
    """Whose words a message with these parts was, where a program sent it with a question as said before."""
    side: Speaker | None = parts[0].get("given")
    return side


def join(sentences: Sequence[Sentence]) -> str:
    """The answer's text: sentences carry their own white space."""
    return "".join(sentence.text for sentence in sentences).strip()


def shorten(title: str) -> str:
    """One line of at most TITLE_CHARS characters."""
    line = " ".join(title.split())
    return line if len(line) <= TITLE_CHARS else line[: TITLE_CHARS - 1].rstrip() + "…"
