"""Holds what lies outside of the log against what its events say: texts, sentences, verdicts.

It reads no text. An erasure leaves these rows as they are and takes their key; so a key that is gone needs an
event which says so.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, select

from shared.audit.binding import digest_sentences, digest_text
from shared.db.tables import audit_events, data_keys, messages, released_sentences, verdicts

#: The event that says that a conversation was erased.
ERASED = "conversation.erased"
_ROLES = {"question": "user", "answer": "assistant"}
_VERDICT = ("action", "category", "source", "policy_version")


@dataclass(frozen=True)
class Said:
    """What one event says of a row."""

    entry: int
    event: str
    details: dict[str, Any]
    #: The first part of its action, such as `question`.
    kind: str


#: Notes what is wrong with an entry: (what, entry, event).
Note = Callable[[str, int, str], None]


class Outside:
    """Gathers what events say, and checks it some thousand events at a time, so that memory stays flat."""

    def __init__(self, connection: Connection, note: Note) -> None:
        self._connection, self._note = connection, note
        self._messages: dict[str, Said] = {}
        self._jobs: dict[str, Said] = {}
        self._verdicts: dict[str, Said] = {}

    def gather(self, entry: int, event: str, record: dict[str, Any]) -> None:
        """Remember what a sealed event says of rows."""
        details = record["details"]
        said = Said(entry, event, details, record["action"].partition(".")[0])
        if details.get("ciphertext_sha256") and details.get("message"):
            self._messages[details["message"]] = said
        if details.get("sentences_sha256"):
            self._jobs[str(record["object"]).removeprefix("job:")] = said
        if details.get("verdict") and said.kind == "guard":
            self._verdicts[details["verdict"]] = said

    def check(self) -> None:
        """Hold the rows against what was gathered since the last time."""
        if self._messages:
            self._check_messages()
        if self._jobs:
            self._check_sentences()
        if self._verdicts:
            self._check_verdicts()

    def _check_messages(self) -> None:
        left, self._messages = self._messages, {}
        keyless: dict[str, list[Said]] = defaultdict(list)
        for row in self._connection.execute(
            select(
                messages.c.id,
                messages.c.conversation_id,
                messages.c.role,
                messages.c.ciphertext,
                data_keys.c.wrapped_key.is_(None).label("keyless"),
            )
            .join(data_keys, data_keys.c.key_id == messages.c.key_id)
            .where(messages.c.id.in_(left))
        ):
            said = left.pop(row.id)
            if digest_text(row.ciphertext) != said.details["ciphertext_sha256"]:
                self._note(f"the text of message {row.id} was changed", said.entry, said.event)
            elif (row.conversation_id, row.role) != (said.details["conversation"], _ROLES.get(said.kind)):
                self._note(f"the message {row.id} was put elsewhere", said.entry, said.event)
            elif row.keyless:
                keyless[row.conversation_id].append(said)
        for message, said in left.items():
            self._note(f"the message {message} was deleted", said.entry, said.event)
        self._check_erased(keyless)

    def _check_erased(self, keyless: dict[str, list[Said]]) -> None:
        told = self._told_erased(keyless) if keyless else set()
        for conversation, all_said in keyless.items():
            if conversation not in told:
                what = f"the key of conversation {conversation} is gone, and no event says that it was erased"
                for said in all_said:
                    self._note(what, said.entry, said.event)

    def _told_erased(self, conversations: Collection[str]) -> set[str]:
        objects = [f"conversation:{each}" for each in conversations]
        found = self._connection.execute(
            select(audit_events.c.object).where(
                audit_events.c.action == ERASED, audit_events.c.object.in_(objects)
            )
        )
        return {each.removeprefix("conversation:") for each in found.scalars()}

    def _check_sentences(self) -> None:
        left, self._jobs = self._jobs, {}
        found: dict[str, list[Any]] = defaultdict(list)
        for row in self._connection.execute(
            select(released_sentences)
            .where(released_sentences.c.job_id.in_(left))
            .order_by(released_sentences.c.job_id, released_sentences.c.seq)
        ):
            found[row.job_id].append(row)
        for job, said in left.items():
            if digest_sentences(found[job]) != said.details["sentences_sha256"]:
                self._note(f"the sentences of the answer of job {job} were changed", said.entry, said.event)

    def _check_verdicts(self) -> None:
        left, self._verdicts = self._verdicts, {}
        for row in self._connection.execute(
            select(verdicts.c.id, *(verdicts.c[name] for name in _VERDICT)).where(verdicts.c.id.in_(left))
        ):
            said = left.pop(row.id)
            for name in _VERDICT:
                if name in said.details and said.details[name] != getattr(row, name):
                    self._note(f"the {name} of verdict {row.id} was changed", said.entry, said.event)
        for verdict, said in left.items():
            self._note(f"the verdict {verdict} was deleted", said.entry, said.event)
