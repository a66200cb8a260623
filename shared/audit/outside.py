"""Holds what lies outside of the log against what its events say: texts, pictures, sentences, jobs, verdicts,
reviews.

It reads no text. An erasure leaves these rows as they are and takes their key; so a key that is gone needs an
event which says so. Rows are read as they are stored, and each claim is checked: of two that differ one is
not what the row says.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from sqlalchemy import Connection, Select, select

from shared.audit.binding import VERDICT, digest_given, digest_sentences, digest_text
from shared.audit.outside_pictures import find_digests
from shared.audit.outside_reviews import check_reviews
from shared.audit.reading import among, as_ids, fetch
from shared.db.tables import audit_events, data_keys, jobs, messages, released_sentences, verdicts
from shared.privacy.envelope import WRAPPED_BYTES

#: How the actions begin that speak of rows.
BOUND = ("question.asked", "answer.", "guard.", "review.given")
#: The event that says that a conversation was erased.
ERASED = "conversation.erased"
#: In place of what binds the log to pictures, where there are none.
_NONE = ""
#: Ids have 36 characters, hashes 64.
_LONGEST_ID = 64
_ROLES = {"question": "user", "answer": "assistant"}
#: What an answer's event says of its job: the names in the event, and the columns.
_JOB = {
    "model": "model_id",
    "model_revision": "model_revision",
    "adapter": "adapter_sha256",
    "prompt_version": "prompt_version",
    "policy_version": "policy_version",
    "completion_tokens": "completion_tokens",
    "attempt": "attempt",
    "question": "question_id",
}


class Said(NamedTuple):
    """What one event says of a row."""

    entry: int
    event: str
    #: The first part of its action, such as `question`.
    kind: str
    #: Of what was acted on: such as the job's.
    about: str
    actor: str
    details: dict[str, Any]


#: Notes what is wrong with an entry: (what, entry, event).
Note = Callable[[str, int, str], None]


class Outside:
    """Gathers what events say, and checks it some thousand events at a time, so that memory stays flat."""

    def __init__(self, connection: Connection, note: Note) -> None:
        self._connection, self._note = connection, note
        self._messages: list[Said] = []
        self._jobs: list[Said] = []
        self._verdicts: list[Said] = []
        self._reviews: list[Said] = []

    def gather(self, entry: int, event: str, record: dict[str, Any]) -> None:
        """Remember what a sealed event says of rows. Raises ValueError or KeyError where it names none."""
        details = record["details"]
        kind = record["action"].partition(".")[0]
        about = str(record["object"]).partition(":")[2]
        said = Said(entry, event, kind, about, record["actor"], details)
        if kind == "guard":
            if details.get("verdict"):
                _check_id(details["verdict"])
                self._verdicts.append(said)
        elif kind == "review":
            if details.get("commitment"):
                for name in ("item", "conversation", "commitment", "texts_commitment"):
                    _check_id(details[name])
                self._reviews.append(said)
        else:
            if kind == "answer":
                _check_id(about)
                self._jobs.append(said)
            if details.get("ciphertext_sha256") and details.get("message"):
                _check_id(details["message"])
                _check_id(details["conversation"])
                self._messages.append(said)

    def check(self) -> None:
        """Hold the rows against what was gathered since the last time."""
        if self._messages:
            self._check_messages(self._messages)
            self._check_pictures(self._messages)
            self._check_given([said for said in self._messages if said.details.get("given_sha256")])
        if self._jobs:
            self._check_jobs(self._jobs)
            self._check_sentences([said for said in self._jobs if said.details.get("sentences_sha256")])
        if self._verdicts:
            self._check_verdicts(self._verdicts)
        if self._reviews:
            check_reviews(self._connection, self._reviews, self._note, self._told_erased)
        self._messages, self._jobs, self._verdicts, self._reviews = [], [], [], []

    def _rows(self, statement: Select[Any], column: Any, ids: Iterable[str]) -> list[Any]:
        where = among(self._connection, column)
        return fetch(self._connection, statement.where(where), as_ids(self._connection, set(ids)))

    def _check_messages(self, all_said: list[Said]) -> None:
        columns, keys = messages.c, data_keys.c
        statement = select(
            columns.id,
            columns.ciphertext,
            columns.conversation_id,
            columns.role,
            columns.job_id,
            columns.seq,
            columns.parent_id,
            keys.owner_id,
            keys.wrapped_key,
        ).select_from(messages.outerjoin(data_keys, keys.key_id == columns.key_id))
        rows = self._rows(statement, columns.id, (said.details["message"] for said in all_said))
        found = {row[0]: row for row in rows}
        keyless: list[tuple[str, Said]] = []
        for said in all_said:
            message = said.details["message"]
            row = found.get(message)
            if row is None:
                self._note(f"the message {message} was deleted", said.entry, said.event)
                continue
            _, ciphertext, conversation, *_, owner, wrapped = row
            if _digest(ciphertext) != said.details["ciphertext_sha256"]:
                self._note(f"the text of message {message} was changed", said.entry, said.event)
            elif not _in_place(said, row):
                self._note(f"the message {message} was put elsewhere", said.entry, said.event)
            elif not isinstance(wrapped, bytes) or len(wrapped) != WRAPPED_BYTES:
                keyless.append((conversation, said))
            elif owner != conversation:
                self._note(f"the message {message} was given another key", said.entry, said.event)
        if keyless:
            self._check_erased(keyless)

    def _check_pictures(self, all_said: list[Said]) -> None:
        """Each message has the pictures that its event says, and shows them."""
        found = find_digests(self._connection, (said.details["message"] for said in all_said))
        for said in all_said:
            message, bound = said.details["message"], said.details.get("pictures_sha256")
            if found.get(message, _NONE) != (bound or _NONE):
                self._note(f"the pictures of message {message} were changed", said.entry, said.event)

    def _check_given(self, all_said: list[Said]) -> None:
        """What came with a question stands before it in its conversation."""
        columns = messages.c
        statement = select(
            columns.conversation_id,
            columns.id,
            columns.seq,
            columns.role,
            columns.parts,
            columns.ciphertext,
            columns.parent_id,
            columns.job_id,
        ).order_by(columns.conversation_id, columns.seq)
        conversations = (said.details["conversation"] for said in all_said)
        found: dict[str, list[Any]] = defaultdict(list)
        for conversation, *row in self._rows(statement, columns.conversation_id, conversations):
            found[conversation].append(row)
        shown = find_digests(self._connection, (row[0] for rows in found.values() for row in rows))
        for said in all_said:
            details = said.details
            try:
                rows = (row for row in found[details["conversation"]] if row[1] < details["seq"])
                before = [
                    (seq, role, _side(parts), _digest(ciphertext), parent, job)
                    + ((shown[message],) if message in shown else ())
                    for message, seq, role, parts, ciphertext, parent, job in rows
                ]
                same = digest_given(before) == details["given_sha256"]
            except (TypeError, ValueError, KeyError, IndexError, AttributeError):
                same = False
            if not same:
                what = f"what was sent with the question {details['message']} was changed"
                self._note(what, said.entry, said.event)

    def _check_erased(self, keyless: list[tuple[str, Said]]) -> None:
        told = self._told_erased({conversation for conversation, _ in keyless})
        for conversation, said in keyless:
            if conversation not in told:
                what = f"the key of conversation {conversation} is gone, and no event says that it was erased"
                self._note(what, said.entry, said.event)

    def _told_erased(self, conversations: Iterable[str]) -> set[str]:
        """Those of the conversations of which the log says that they were erased."""
        statement = select(audit_events.c.object).where(audit_events.c.action == ERASED)
        objects = (f"conversation:{each}" for each in conversations)
        found = self._rows(statement, audit_events.c.object, objects)
        return {each.removeprefix("conversation:") for (each,) in found}

    def _check_jobs(self, all_said: list[Said]) -> None:
        statement = select(jobs.c.id, *(jobs.c[name] for name in _JOB.values()))
        rows = self._rows(statement, jobs.c.id, (said.about for said in all_said))
        found = {row[0]: row[1:] for row in rows}
        for said in all_said:
            row, details = found.get(said.about), said.details
            if row is None:
                self._note(f"the job {said.about} was deleted", said.entry, said.event)
                continue
            for name, stored in zip(_JOB, row, strict=True):
                if name in details and details[name] != stored:
                    self._note(f"the {name} of job {said.about} was changed", said.entry, said.event)

    def _check_sentences(self, all_said: list[Said]) -> None:
        columns = released_sentences.c
        statement = select(
            columns.job_id,
            columns.seq,
            columns.action,
            columns.ciphertext,
            columns.suppressed_ciphertext,
            columns.verdict_id,
        ).order_by(columns.job_id, columns.seq)
        found: dict[str, list[Any]] = defaultdict(list)
        for job, *row in self._rows(statement, columns.job_id, (said.about for said in all_said)):
            found[job].append(row)
        for said in all_said:
            try:
                same = digest_sentences(found[said.about]) == said.details["sentences_sha256"]
            except (TypeError, ValueError):
                same = False
            if not same:
                what = f"the sentences of the answer of job {said.about} were changed"
                self._note(what, said.entry, said.event)

    def _check_verdicts(self, all_said: list[Said]) -> None:
        statement = select(verdicts.c.id, verdicts.c.job_id, *(verdicts.c[name] for name in VERDICT))
        rows = self._rows(statement, verdicts.c.id, (said.details["verdict"] for said in all_said))
        found = {row[0]: row[1:] for row in rows}
        for said in all_said:
            verdict, details = said.details["verdict"], said.details
            row = found.get(verdict)
            if row is None:
                self._note(f"the verdict {verdict} was deleted", said.entry, said.event)
                continue
            if row[0] != said.about:
                self._note(f"the verdict {verdict} was put elsewhere", said.entry, said.event)
            for name, stored in zip(VERDICT, row[1:], strict=True):
                if name in details and details[name] != stored:
                    self._note(f"the {name} of verdict {verdict} was changed", said.entry, said.event)


def _in_place(said: Said, row: Any) -> bool:
    """Whether a message is where its event says: its conversation, its number there, who said it to what."""
    _, _, conversation, role, job, seq, parent, _, _ = row
    details = said.details
    answers = said.kind == "answer"
    return (
        conversation == details["conversation"]
        and role == _ROLES[said.kind]
        and job == (said.about if answers else None)
        and seq == details.get("seq", seq)
        and (not answers or parent == details.get("question", parent))
    )


def _side(parts: Any) -> Any:
    """Whose words a given message was, of its parts as the driver gives them."""
    return (json.loads(parts) if isinstance(parts, str | bytes) else parts)[0].get("given")


def _check_id(value: Any) -> None:
    """An event that names a row by something else is not ours, and no database should be asked for it."""
    if (
        not isinstance(value, str)
        or len(value) > _LONGEST_ID
        or not (value.isascii() and value.isprintable())
    ):
        raise ValueError("this is no id")


def _digest(stored: Any) -> str | None:
    """What binds the log to a text; None where none is stored there."""
    return digest_text(stored) if isinstance(stored, bytes) else None
