"""Finds conversations for auditors, by what is known of them and by words. It shows no text, logs nothing.

Newest first, by the conversations' ids, which are in the order of their beginnings; so is each word's part of
the index, so that a search walks it from its end and stops when a page is full.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, func, select

from shared.db import Database
from shared.db.tables import conversations, data_keys, messages
from shared.db.tables_privacy import search_terms
from shared.finding_filters import Filters, of_ids, of_rows
from shared.found import Found, describe
from shared.ids import first_id_at
from shared.privacy.envelope import CannotDecrypt, Envelope
from shared.privacy.search import Wanted, holds, terms_of, wanted_of
from shared.privacy.search_index import index_key, index_secret

#: Conversations that one page opens to look for a phrase.
PHRASE_LOOKS = 300
#: A word is as frequent as any other from here on: which of them is rarest is asked no further.
_COUNTED = 2_000
#: Ids are made by the hosts' clocks, which may be wrong by this much.
_CLOCKS_APART = timedelta(days=1)


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
    terms: list[bytes] = []
    if wanted is not None:
        key = index_key(connection, envelope)
        if key is None:  # nothing was ever indexed
            return []
        terms = _rarest_first(connection, terms_of(index_secret(key), wanted.words))
        if not terms:
            return []
    # a person's conversations are fewer than those of a frequent word
    walk = _walk_words if terms and filters.person is None else _walk_conversations
    statement, walked = walk(terms, filters)
    statement = statement.where(*of_ids(filters, walked))
    if filters.until is not None:  # says nothing new, but lets the index begin there
        statement = statement.where(walked < first_id_at(filters.until + _CLOCKS_APART))
    if before is not None:
        statement = statement.where(walked < before)
    return list(connection.execute(statement.order_by(walked.desc()).limit(limit)).scalars())


def _walk_words(terms: Sequence[bytes], filters: Filters) -> tuple[Select[Any], Any]:
    """Conversations that have all these words: the first's are walked, the others looked up."""
    # nothing but the index in FROM, so that no planner begins at the conversations
    first = search_terms.alias("first")
    walked = first.c.conversation_id
    readable = _readable().where(conversations.c.id == walked, *of_rows(filters))
    statement = select(walked).where(first.c.term == terms[0], readable.exists())
    return statement.where(*_having(terms[1:], walked)), walked


def _walk_conversations(terms: Sequence[bytes], filters: Filters) -> tuple[Select[Any], Any]:
    """Conversations, and whether they have all these words."""
    walked = conversations.c.id
    statement = _readable() if terms else select(walked)
    return statement.where(*of_rows(filters), *_having(terms, walked)), walked


def _readable() -> Select[Any]:
    """Conversations whose texts were not erased."""
    key = data_keys.c.key_id == conversations.c.key_id
    return select(conversations.c.id).join(data_keys, key).where(data_keys.c.wrapped_key.is_not(None))


def _having(terms: Sequence[bytes], conversation_id: Any) -> list[ColumnElement[bool]]:
    return [
        select(each.c.term).where(each.c.term == term, each.c.conversation_id == conversation_id).exists()
        for number, term in enumerate(terms)
        for each in (search_terms.alias(f"word_{number}"),)
    ]


def _rarest_first(connection: Connection, terms: Sequence[bytes]) -> list[bytes]:
    """The terms, the one of the fewest conversations first; none when one of them occurs nowhere."""
    counts = []
    for term in terms:
        some = select(search_terms.c.term).where(search_terms.c.term == term).limit(_COUNTED).subquery()
        counts.append(connection.execute(select(func.count()).select_from(some)).scalar_one())
    if not all(counts):
        return []
    return [term for _, term in sorted(zip(counts, terms, strict=True))]


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
