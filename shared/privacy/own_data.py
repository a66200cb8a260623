"""Reads what is kept about one person, page by page, for the person. It does not know how it is shown.

What is left out on purpose is said in the last section, `LEFT_OUT`.
"""

import base64
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, case, literal, or_, select

from shared.audit import record
from shared.conversations import given_in
from shared.db import Database
from shared.db.tables import (
    api_keys,
    audit_events,
    conversations,
    data_keys,
    feedback,
    jobs,
    messages,
    released_sentences,
    sessions,
    users,
    verdicts,
)
from shared.db.tables_review import saved_views
from shared.db.tables_training import comparisons
from shared.errors import NotFound
from shared.guard.verdict import Side
from shared.kept_pictures import read_picture, refs_in
from shared.privacy.envelope import CannotDecrypt, DataKey, Envelope
from shared.privacy.own_traces import OwnTraces

#: Rows that are read at once.
PAGE = 100

#: A value of an export: what JSON knows, a moment, or an iterator that gives the items of a list one by one.
Value = Any

_JOB = ("id", "kind", "state", "conversation_id", "model_id", "adapter_sha256", "prompt_tokens",
        "completion_tokens", "error", "created_at", "started_at", "finished_at")  # fmt: skip
_SESSION = ("sid", "kind", "created_at", "last_seen_at", "expires_at", "revoked_at")
_KEY = ("id", "name", "scopes", "created_at", "expires_at", "last_used_at", "revoked_at")
_COMPARISON = ("id", "job_left", "job_right", "blind", "vote", "created_at", "voted_at")
_VERDICT = ("side", "action", "category", "severity", "created_at")


#: What a person does not get, and why; a section of the export, for people to read.
LEFT_OUT = {
    "what_the_guard_kept_back": "sentences that were replaced before you saw them: they may do harm",
    "what_others_wrote": "notes and corrected answers of reviewers, and whatever else others wrote; only the "
    "reason for which somebody might read a conversation unmasked is told",
    "who_others_are": "their role is told, and not their name",
    "secrets": "your password's hash, log-in tokens and API keys, and the keys that texts are sealed with",
    "what_must_be_kept": "whether something is kept for a case; ask your admin",
    "what_was_erased": "nobody can read it any more; that it was there is told",
}


class OwnData:
    """What is kept about one person; each list is read while it is gone through, and no earlier."""

    def __init__(self, database: Database, envelope: Envelope, user_id: str) -> None:
        self._database, self._envelope, self._user_id = database, envelope, user_id
        self._traces = OwnTraces(database, envelope, user_id, self._pages)

    def sections(self) -> Iterator[tuple[str, Value]]:
        """Name and value of each part, in order; anew at each call."""
        mine = self._user_id
        yield "account", self._account()
        yield "consents", self._consents()
        yield "conversations", self._conversations()
        yield "jobs", self._plain(jobs, _JOB, jobs.c.user_id == mine, jobs.c.id)
        yield "api_keys", self._plain(api_keys, _KEY, api_keys.c.user_id == mine, api_keys.c.id)
        yield "log_ins", self._plain(sessions, _SESSION, sessions.c.user_id == mine, sessions.c.sid)
        yield "saved_views", self._saved_views()
        yield (
            "comparisons",
            self._plain(comparisons, _COMPARISON, comparisons.c.user_id == mine, comparisons.c.id),
        )
        yield "reviews_by_you", self._traces.reviews_given()
        yield "unmasked_readings_by_you", self._traces.own_readings()
        yield "reviews_of_your_answers", self._traces.reviews_of_answers()
        yield "data_made_from_your_conversations", self._traces.data_made()
        yield "unmasked_readings_of_your_conversations", self._traces.unmasked_readings()
        yield "events_by_you", self._events(audit_events.c.actor == mine, own=True)
        yield "events_about_you", self._events(self._about(), own=False)
        yield "left_out", LEFT_OUT

    def _account(self) -> Mapping[str, Value]:
        with self._database.read() as connection:
            row = connection.execute(select(users).where(users.c.id == self._user_id)).one()
        names = ("id", "name", "role", "audience", "status", "created_at", "consented_at", "consent_version")
        return {name: row._mapping[name] for name in names}

    def _consents(self) -> Iterator[Mapping[str, Value]]:
        given = (audit_events.c.object == f"user:{self._user_id}") & (
            audit_events.c.action == "consent.given"
        )
        for row in self._pages(select(audit_events).where(given), audit_events.c.id):
            details = json.loads(row.canonical_bytes)["details"]
            yield {"version": details.get("version"), "at": row.occurred_at}

    def _conversations(self) -> Iterator[Mapping[str, Value]]:
        wanted = (
            select(conversations, data_keys.c.wrapped_key, data_keys.c.master_key_version)
            .join(data_keys, data_keys.c.key_id == conversations.c.key_id)
            .where(conversations.c.user_id == self._user_id)
        )
        for row in self._pages(wanted, conversations.c.id):
            known = {
                "id": row.id,
                "created_at": row.created_at,
                "updated_at": row.updated_at,
                "hidden_at": row.hidden_at,
            }
            try:
                key = self._envelope.unwrap(row.key_id, row.wrapped_key, row.master_key_version)
                title = key.decrypt(row.title_ciphertext, place=f"title:{row.id}")
            except CannotDecrypt:
                yield {**known, "erased": True}
                continue
            yield {
                "title": title,
                **known,
                "guard_state": row.guard_state,
                "messages": self._messages(row.id, key),
                "unfinished_answers": self._unfinished(row.id, key),
            }

    def _messages(self, conversation_id: str, key: DataKey) -> Iterator[Mapping[str, Value]]:
        wanted = select(messages).where(messages.c.conversation_id == conversation_id)
        for page in self._by_page(wanted, messages.c.id):
            with self._database.read() as connection:
                judged = _verdicts(connection, page)
                rated = _ratings(connection, page, self._user_id)
            for row in page:
                yield {
                    "id": row.id,
                    "role": row.role,
                    "text": _text(key, row.ciphertext, f"message:{row.id}"),
                    "created_at": row.created_at,
                    "given": given_in(row.parts),
                    "images": self._images(row, key),
                    "replaced_at": row.hidden_at,
                    "verdicts": judged.get(row.id, []),
                    "feedback": _rating(key, rated.get(row.id)),
                }

    def _images(self, row: Row[Any], key: DataKey) -> Iterator[Mapping[str, Value]]:
        """The pictures of a message, each as a PNG in base64; one is in memory at a time."""
        for each in refs_in(row.parts):
            png = None
            with suppress(CannotDecrypt, NotFound), self._database.read() as connection:
                png = read_picture(connection, each.id, conversation_id=row.conversation_id, key=key)
            encoded = None if png is None else base64.b64encode(png).decode()
            yield {"id": each.id, "width": each.width, "height": each.height, "png": encoded}

    def _unfinished(self, conversation_id: str, key: DataKey) -> Iterator[Mapping[str, Value]]:
        """What was shown of answers that became no message."""
        kept = select(messages.c.job_id).where(messages.c.job_id == jobs.c.id).exists()
        shown = select(released_sentences.c.seq).where(released_sentences.c.job_id == jobs.c.id).exists()
        wanted = select(jobs.c.id, jobs.c.created_at).where(
            jobs.c.conversation_id == conversation_id, shown, ~kept
        )
        for job in self._pages(wanted, jobs.c.id):
            sentences = select(
                released_sentences.c.job_id, released_sentences.c.seq, released_sentences.c.ciphertext
            ).where(released_sentences.c.job_id == job.id)
            text = "".join(
                _text(key, row.ciphertext, f"sentence:{row.job_id}:{row.seq}") or ""
                for row in self._pages(sentences, released_sentences.c.seq)
            )
            yield {"job_id": job.id, "text": text.strip(), "created_at": job.created_at}

    def _saved_views(self) -> Iterator[Mapping[str, Value]]:
        wanted = (
            select(saved_views, data_keys.c.wrapped_key, data_keys.c.master_key_version)
            .join(data_keys, data_keys.c.key_id == saved_views.c.key_id)
            .where(saved_views.c.user_id == self._user_id)
        )
        for row in self._pages(wanted, saved_views.c.id):
            with suppress(CannotDecrypt):
                key = self._envelope.unwrap(row.key_id, row.wrapped_key, row.master_key_version)
                view = json.loads(key.decrypt(row.view_ciphertext, place=f"view:{row.id}"))
                yield {"view": view, "created_at": row.created_at}

    def _about(self) -> ColumnElement[bool]:
        """Events of others about the person, their conversations and their answers."""
        own = (
            (literal("conversation:") + conversations.c.id, conversations.c.user_id),
            (literal("job:") + jobs.c.id, jobs.c.user_id),
            (literal("session:") + sessions.c.sid, sessions.c.user_id),
        )
        named = [select(object).where(user_id == self._user_id) for object, user_id in own]
        about = or_(
            audit_events.c.object == f"user:{self._user_id}",
            *(audit_events.c.object.in_(each) for each in (*named, *self._traces.objects())),
        )
        return about & (audit_events.c.actor != self._user_id)

    def _events(self, where: ColumnElement[bool], *, own: bool) -> Iterator[Mapping[str, Value]]:
        by = case((audit_events.c.actor.in_((record.SYSTEM, record.OPERATOR)), audit_events.c.actor))
        wanted = (
            select(audit_events, users.c.role, by.label("by"))
            .outerjoin(users, users.c.id == audit_events.c.actor)
            .where(where)
        )
        for row in self._pages(wanted, audit_events.c.id):
            event = {
                "at": row.occurred_at,
                "action": row.action,
                "object": row.object,
                "outcome": row.outcome,
            }
            if own:
                yield {**event, "details": json.loads(row.canonical_bytes)["details"]}
            else:
                yield {**event, "by": row.by or row.role or "somebody without an account"}

    def _plain(
        self, table: Any, names: tuple[str, ...], where: ColumnElement[bool], id: Any
    ) -> Iterator[Mapping[str, Value]]:
        for row in self._pages(select(*(table.c[name] for name in names)).where(where), id):
            yield dict(row._mapping)

    def _pages(self, wanted: Select[Any], id: Any) -> Iterator[Row[Any]]:
        for page in self._by_page(wanted, id):
            yield from page

    def _by_page(self, wanted: Select[Any], id: Any) -> Iterator[list[Row[Any]]]:
        """Pages in the order of this column, by which ids are ordered in time."""
        after = None
        while True:
            further = wanted if after is None else wanted.where(id > after)
            with self._database.read() as connection:
                page = list(connection.execute(further.order_by(id).limit(PAGE)).all())
            if page:
                yield page
            if len(page) < PAGE:
                return
            after = page[-1]._mapping[id.name]


def _text(key: DataKey, sealed: bytes, place: str) -> str | None:
    """The text; None for one that cannot be opened."""
    try:
        return key.decrypt(sealed, place=place)
    except CannotDecrypt:
        return None


def _verdicts(connection: Connection, page: list[Row[Any]]) -> dict[str, list[dict[str, Value]]]:
    """What the guard said of these messages, by message; what it said only in the shadow is left out."""
    ids = [row.id for row in page]
    answers = {row.job_id: row.id for row in page if row.job_id is not None}
    found: dict[str, list[dict[str, Value]]] = {}
    rows = connection.execute(
        select(verdicts, jobs.c.question_id)
        .join(jobs, jobs.c.id == verdicts.c.job_id)
        .where(
            verdicts.c.shadow.is_(False),
            or_(jobs.c.question_id.in_(ids), verdicts.c.job_id.in_(list(answers))),
        )
        .order_by(verdicts.c.created_at, verdicts.c.id)
    )
    for row in rows:
        message_id = row.question_id if row.side == Side.QUESTION else answers.get(row.job_id)
        if message_id is not None and message_id in ids:
            found.setdefault(message_id, []).append({name: row._mapping[name] for name in _VERDICT})
    return found


def _ratings(connection: Connection, page: list[Row[Any]], user_id: str) -> dict[str, Row[Any]]:
    ids = [row.id for row in page]
    rows = connection.execute(
        select(feedback).where(feedback.c.user_id == user_id, feedback.c.message_id.in_(ids))
    )
    return {row.message_id: row for row in rows}


def _rating(key: DataKey, row: Row[Any] | None) -> dict[str, Value] | None:
    if row is None:
        return None
    place = f"feedback:{row.message_id}:{row.user_id}"
    comment = None if row.comment_ciphertext is None else _text(key, row.comment_ciphertext, place)
    return {"rating": row.rating, "comment": comment, "at": row.updated_at}


def as_json(value: Value) -> Value:
    """What `json` asks for a value that it does not know: a moment in UTC, as ISO 8601."""
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"an export holds a {type(value).__name__}")
