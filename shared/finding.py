"""Finds conversations for auditors, by what is known of them and by words. It shows no text, logs nothing.

Newest first, by the conversations' ids, which are in the order of their beginnings; so is each word's part of
the index, so that a search walks it from its end and stops when a page is full.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, func, select

from shared.db import Database
from shared.db.tables import conversations, data_keys, feedback, jobs, messages, users, verdicts
from shared.db.tables_privacy import search_terms
from shared.db.tables_review import review_items, reviews
from shared.found import Found, describe
from shared.guard.verdict import Action
from shared.privacy.envelope import CannotDecrypt, Envelope
from shared.privacy.search import Wanted, holds, terms_of, wanted_of
from shared.privacy.search_index import index_key, index_secret

#: Conversations that one page opens to look for a phrase.
PHRASE_LOOKS = 300
#: A word is as frequent as any other from here on: which of them is rarest is asked no further.
_COUNTED = 2_000


@dataclass(frozen=True, kw_only=True)
class Filters:
    """What conversations are looked for; what is None does not matter."""

    #: An account's id or name.
    person: str | None = None
    #: Written in at this moment or later, and begun before that one.
    since: datetime | None = None
    until: datetime | None = None
    #: SHA-256 of an adapter that answered in it, or `base`.
    adapter: str | None = None
    #: The base model that answered in it.
    model: str | None = None
    #: What the guard did in it, and why.
    action: str | None = None
    category: str | None = None
    #: Whether the guard stepped in or doubted.
    flagged: bool | None = None
    #: Whether an answer was found bad by its reader.
    thumbs_down: bool | None = None
    #: Whether an answer was reviewed.
    reviewed: bool | None = None
    #: Words, all of which occur in it; "phrases" within one message.
    words: str | None = None


@dataclass(frozen=True, kw_only=True)
class FoundPage:
    """A part of what was found."""

    items: list[Found]
    #: What was looked at last: the next part begins after it. None at the end.
    last: tuple[datetime, str] | None
    #: Whether the search for a phrase stopped at its bound, so that there may be more than the page shows.
    stopped: bool


def find(
    database: Database, envelope: Envelope, filters: Filters, *, before: str | None, limit: int
) -> FoundPage:
    """At most `limit` conversations with ids before `before`.

    A phrase is looked for in at most `PHRASE_LOOKS` conversations that have its words; ask on from `last`.
    Raises InvalidInput for words that cannot be searched for, CannotDecrypt when the index's key is lost.
    """
    wanted = wanted_of(filters.words) if filters.words is not None else None
    phrases = wanted.phrases if wanted else ()
    with database.read() as connection:
        looks = PHRASE_LOOKS if phrases else limit
        ids = _candidates(connection, envelope, filters, wanted, before=before, limit=looks + 1)
        looked = 0
        chosen: list[str] = []
        for conversation_id in ids[:looks]:
            if len(chosen) == limit:
                break
            looked += 1
            if not phrases or _says(connection, envelope, conversation_id, phrases):
                chosen.append(conversation_id)
        items = describe(connection, chosen)
        last = None
        if looked < len(ids):
            last = connection.execute(
                select(conversations.c.created_at, conversations.c.id).where(
                    conversations.c.id == ids[looked - 1]
                )
            ).one()
    return FoundPage(
        items=items,
        last=None if last is None else (last.created_at, last.id),
        stopped=last is not None and len(chosen) < limit,
    )


def _candidates(
    connection: Connection,
    envelope: Envelope,
    filters: Filters,
    wanted: Wanted | None,
    *,
    before: str | None,
    limit: int,
) -> list[str]:
    """Ids of conversations that match but for phrases, newest first."""
    if wanted is None:
        statement = select(conversations.c.id).where(*_conditions(filters))
        walked: Any = conversations.c.id
    else:
        key = index_key(connection, envelope)
        if key is None:  # nothing was ever indexed
            return []
        terms = _rarest_first(connection, terms_of(index_secret(key), wanted.words))
        if not terms:
            return []
        statement, walked = _walk(terms, filters)
    if before is not None:
        statement = statement.where(walked < before)
    return list(connection.execute(statement.order_by(walked.desc()).limit(limit)).scalars())


def _walk(terms: Sequence[bytes], filters: Filters) -> tuple[Select[Any], Any]:
    """Conversations that have all these words: the first's are walked, the others looked up."""
    # nothing but the index in FROM, so that no planner begins at the conversations
    first = search_terms.alias("first")
    statement = select(first.c.conversation_id).where(first.c.term == terms[0])
    for number, term in enumerate(terms[1:]):
        other = search_terms.alias(f"other_{number}")
        same = other.c.conversation_id == first.c.conversation_id
        statement = statement.where(select(other.c.term).where(other.c.term == term, same).exists())
    readable = (
        select(conversations.c.id)
        .join(data_keys, data_keys.c.key_id == conversations.c.key_id)
        .where(
            conversations.c.id == first.c.conversation_id,
            data_keys.c.wrapped_key.is_not(None),
            *_conditions(filters),
        )
    )
    return statement.where(readable.exists()), first.c.conversation_id


def _rarest_first(connection: Connection, terms: Sequence[bytes]) -> list[bytes]:
    """The terms, the one of the fewest conversations first; none when one of them occurs nowhere."""
    counts = []
    for term in terms:
        some = select(search_terms.c.term).where(search_terms.c.term == term).limit(_COUNTED).subquery()
        counts.append(connection.execute(select(func.count()).select_from(some)).scalar_one())
    if not all(counts):
        return []
    return [term for _, term in sorted(zip(counts, terms, strict=True))]


def _conditions(filters: Filters) -> list[ColumnElement[bool]]:
    """What must hold of a row of `conversations`."""
    mine = conversations.c
    found: list[ColumnElement[bool]] = []
    if filters.person is not None:
        called = (users.c.id == filters.person) | (users.c.name == filters.person.lower())
        found.append(mine.user_id.in_(select(users.c.id).where(called)))
    if filters.since is not None:
        found.append(mine.updated_at >= filters.since)
    if filters.until is not None:
        found.append(mine.created_at < filters.until)
    answered = select(jobs.c.id).where(jobs.c.conversation_id == mine.id)
    for column, value in ((jobs.c.adapter_sha256, filters.adapter), (jobs.c.model_id, filters.model)):
        if value is not None:
            found.append(_there(answered.where(column == value)))
    judged = select(jobs.c.conversation_id).join(verdicts, verdicts.c.job_id == jobs.c.id)
    judged = judged.where(verdicts.c.shadow.is_(False), jobs.c.conversation_id.is_not(None))
    named = [
        column == value
        for column, value in ((verdicts.c.action, filters.action), (verdicts.c.category, filters.category))
        if value is not None
    ]
    if named:
        found.append(mine.id.in_(judged.where(*named)))
    disliked = select(feedback.c.rating).join(messages, messages.c.id == feedback.c.message_id)
    seen = select(reviews.c.item_id).join(review_items, review_items.c.id == reviews.c.item_id)
    for asked, matching in (
        (filters.flagged, judged.where(verdicts.c.action != Action.ALLOW, jobs.c.conversation_id == mine.id)),
        (
            filters.thumbs_down,
            disliked.where(messages.c.conversation_id == mine.id, feedback.c.rating == "down"),
        ),
        (
            filters.reviewed,
            seen.where(review_items.c.conversation_id == mine.id, reviews.c.given_at.is_not(None)),
        ),
    ):
        if asked is not None:
            found.append(_there(matching) if asked else ~_there(matching))
    return found


def _there(matching: Select[Any]) -> ColumnElement[bool]:
    return matching.correlate(conversations).exists()


def _says(
    connection: Connection, envelope: Envelope, conversation_id: str, phrases: tuple[tuple[str, ...], ...]
) -> bool:
    """Whether each phrase stands in one of the conversation's messages; one that cannot be read has none."""
    rows = connection.execute(
        select(
            messages.c.id,
            messages.c.ciphertext,
            messages.c.key_id,
            data_keys.c.wrapped_key,
            data_keys.c.master_key_version,
        )
        .join(data_keys, data_keys.c.key_id == messages.c.key_id)
        .where(messages.c.conversation_id == conversation_id)
    ).all()
    left = set(phrases)
    try:
        for row in rows:
            key = envelope.unwrap(row.key_id, row.wrapped_key, row.master_key_version)
            text = key.decrypt(row.ciphertext, place=f"message:{row.id}")
            left -= {phrase for phrase in left if holds(text, (phrase,))}
    except CannotDecrypt:
        return False
    return not left
