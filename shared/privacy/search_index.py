"""Keeps the blind index of conversations in the database, and makes messages searchable. It searches nothing.

A message waits in `search_pending` from the transaction that stored it. The index says which conversation has
a word, not where: its rows are (keyed hash of a word, conversation).
"""

import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, delete, func, select
from sqlalchemy.dialects import postgresql, sqlite

from shared.clock import Clock
from shared.db import Database
from shared.db.tables import conversations, data_keys, messages
from shared.db.tables_privacy import search_pending, search_terms
from shared.privacy.envelope import CannotDecrypt, DataKey, Envelope
from shared.privacy.search import terms_of, words_of

log = logging.getLogger(__name__)

#: The one key of the index, by a name instead of an id: of two who make it at once, one does.
KEY_ID = "search"
#: Messages of one transaction, and transactions of one round.
_BATCH, _BATCHES = 100, 5

_WAITING = (
    select(
        search_pending.c.message_id,
        messages.c.conversation_id,
        messages.c.ciphertext,
        messages.c.key_id,
        data_keys.c.wrapped_key,
        data_keys.c.master_key_version,
    )
    .outerjoin(messages, messages.c.id == search_pending.c.message_id)
    .outerjoin(data_keys, data_keys.c.key_id == messages.c.key_id)
    .order_by(search_pending.c.message_id)
)


def index_waiting(
    database: Database, envelope: Envelope, clock: Clock, *, batch: int = _BATCH, batches: int = _BATCHES
) -> int:
    """Make the messages that wait longest searchable, `batch` × `batches` at the most.

    Returns how many left the queue. Safe beside another that does the same, and to be killed: a message
    leaves the queue in the transaction that stores its words. What was erased or cannot be read leaves it
    without.
    """
    done = 0
    for _ in range(batches):
        with database.read() as connection:
            waiting = connection.execute(_WAITING.limit(batch)).all()
        if not waiting:
            break
        key = _key(database, envelope, clock)
        found = {row.message_id: _words(envelope, row) for row in waiting}
        hashed = {message_id: terms_of(index_secret(key), words) for message_id, words in found.items()}
        with database.write() as connection:
            done += _store(connection, waiting, hashed)
        if len(waiting) < batch:
            break
    return done


def index_key(connection: Connection, envelope: Envelope) -> DataKey | None:
    """The key of the index; None while nothing was ever indexed. Raises CannotDecrypt."""
    row = connection.execute(select(data_keys).where(data_keys.c.key_id == KEY_ID)).one_or_none()
    return None if row is None else envelope.unwrap(KEY_ID, row.wrapped_key, row.master_key_version)


def index_secret(key: DataKey) -> bytes:
    """What words are hashed under: unlike the data key itself it opens no text."""
    return key.salt("search terms")


def waiting(connection: Connection) -> int:
    """How many messages cannot be found yet."""
    return int(connection.execute(select(func.count()).select_from(search_pending)).scalar_one())


def forget(connection: Connection, conversation_ids: Iterable[str]) -> dict[str, int]:
    """Take conversations out of the index; in the transaction that destroys their keys, and after it did so.

    In this order whoever indexes a message of theirs at this moment is waited for, or keeps out (`_store`).
    Returns how many rows of each table there were.
    """
    ids = list(conversation_ids)
    theirs = select(messages.c.id).where(messages.c.conversation_id.in_(ids))
    gone = {
        "search_pending": delete(search_pending).where(search_pending.c.message_id.in_(theirs)),
        "search_terms": delete(search_terms).where(search_terms.c.conversation_id.in_(ids)),
    }
    return {name: connection.execute(statement).rowcount for name, statement in gone.items()}


def make_index_key(connection: Connection, envelope: Envelope, clock: Clock) -> DataKey:
    """The key of the index, made if there is none."""
    _, wrapped, version = envelope.new_data_key(KEY_ID)
    row = {
        "key_id": KEY_ID,
        "scope": "search",
        "owner_id": KEY_ID,
        "wrapped_key": wrapped,
        "master_key_version": version,
        "created_at": clock.now(connection),
    }
    connection.execute(_inserting(connection, data_keys).values(**row).on_conflict_do_nothing())
    key = index_key(connection, envelope)
    assert key is not None
    return key


def _key(database: Database, envelope: Envelope, clock: Clock) -> DataKey:
    with database.read() as connection:
        key = index_key(connection, envelope)
    if key is not None:
        return key
    with database.write() as connection:
        return make_index_key(connection, envelope, clock)


def _words(envelope: Envelope, row: Any) -> set[str]:
    if row.conversation_id is None:  # the message is gone
        return set()
    try:
        key = envelope.unwrap(row.key_id, row.wrapped_key, row.master_key_version)
        return set(words_of(key.decrypt(row.ciphertext, place=f"message:{row.message_id}")))
    except CannotDecrypt as error:
        log.info("message %s is left out of the search: %s", row.message_id, type(error).__name__)
        return set()


def _store(connection: Connection, rows: Sequence[Any], hashed: dict[str, list[bytes]]) -> int:
    """Take messages out of the queue and store their words, but those that another took or erased meanwhile.

    Conversations, data keys and places in the queue stay locked to the end, so that whoever erases them
    waits, and finds the words that are stored here. What another has locked is left for later, instead of
    waiting in a circle: an erasure holds the conversation, which `search_terms` refers to, and wants the key.
    """
    unlocked = set(
        connection.execute(
            select(conversations.c.id)
            .where(conversations.c.id.in_({row.conversation_id for row in rows}))
            .with_for_update(read=True, key_share=True, skip_locked=True)
        ).scalars()
    )
    by_id = {row.message_id: row for row in rows if row.conversation_id in {None, *unlocked}}
    keys = connection.execute(
        select(data_keys.c.key_id, data_keys.c.wrapped_key.is_not(None).label("alive"))
        .where(data_keys.c.key_id.in_({row.key_id for row in by_id.values()}))
        .with_for_update(read=True, skip_locked=True)
    )
    alive = {row.key_id: bool(row.alive) for row in keys}
    free = [message_id for message_id, row in by_id.items() if row.key_id is None or row.key_id in alive]
    held = list(
        connection.execute(
            select(search_pending.c.message_id)
            .where(search_pending.c.message_id.in_(free))
            .with_for_update(skip_locked=True)
        ).scalars()
    )
    connection.execute(delete(search_pending).where(search_pending.c.message_id.in_(held)))
    terms: defaultdict[str, set[bytes]] = defaultdict(set)
    for message_id in held:
        if alive.get(by_id[message_id].key_id):
            terms[by_id[message_id].conversation_id].update(hashed[message_id])
    # sorted, so that two who store the same words wait for one another in one direction only
    new = sorted((term, conversation_id) for conversation_id, each in terms.items() for term in each)
    if new:
        values = [{"term": term, "conversation_id": conversation_id} for term, conversation_id in new]
        connection.execute(_inserting(connection, search_terms).on_conflict_do_nothing(), values)
    return len(held)


def _inserting(connection: Connection, table: Any) -> Any:
    make = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    return make(table)
