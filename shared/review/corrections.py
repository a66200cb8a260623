"""Reads corrected answers as rows to train on, with identifiers masked. It stores nothing and asks nobody.

A row is the question and what a reviewer wrote in place of the answer, in the shape that fine-tuning takes;
its `group` is a keyed hash of the person, so that no person's rows are on both sides of the split.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import Connection, exists, func, select

from shared.conversations import Conversations
from shared.db import Database
from shared.db.tables import conversations, data_keys, jobs, pictures
from shared.db.tables_review import review_items, reviews
from shared.privacy.envelope import CannotDecrypt, Envelope
from shared.review.records import corrected_place

#: Rows of one set at the most, the newest.
MOST = 5000
_GROUP_DIGITS = 32


@dataclass(frozen=True, kw_only=True)
class Correction:
    """A corrected answer, not yet opened."""

    item_id: str
    reviewer_id: str
    conversation_id: str
    #: The message of the question.
    question_id: str
    #: Who asked.
    user_id: str
    ciphertext: bytes


def find_corrections(connection: Connection) -> list[Correction]:
    """What was corrected: of each answer the correction given last, the newest `MOST`, in the order of time.

    Left out are conversations that were erased, or that their person has taken out of their history, and
    answers of which a further review is wanted: whoever gives it must not know of the first.
    """
    newest = (
        func.row_number()
        .over(partition_by=reviews.c.item_id, order_by=(reviews.c.given_at.desc(), reviews.c.reviewer_id))
        .label("place")
    )
    given = (
        select(
            *(reviews.c.item_id, reviews.c.reviewer_id, reviews.c.given_at, newest),
            reviews.c.corrected_ciphertext,
        )
        .where(reviews.c.given_at.is_not(None), reviews.c.corrected_ciphertext.is_not(None))
        .subquery()
    )
    rows = connection.execute(
        select(
            given.c.item_id,
            given.c.reviewer_id,
            review_items.c.conversation_id,
            jobs.c.question_id,
            jobs.c.user_id,
            given.c.corrected_ciphertext.label("ciphertext"),
        )
        .join(review_items, review_items.c.id == given.c.item_id)
        .join(jobs, jobs.c.id == review_items.c.job_id)
        .join(conversations, conversations.c.id == review_items.c.conversation_id)
        .join(data_keys, data_keys.c.key_id == conversations.c.key_id)
        .where(
            given.c.place == 1,
            review_items.c.closed_at.is_not(None),
            jobs.c.question_id.is_not(None),
            # without them a row would teach to describe pictures that are not there; an answer may be about
            # those of an earlier question too
            ~exists().where(pictures.c.conversation_id == review_items.c.conversation_id),
            conversations.c.hidden_at.is_(None),
            data_keys.c.wrapped_key.is_not(None),
        )
        .order_by(given.c.given_at.desc(), given.c.item_id)
        .limit(MOST)
    ).all()
    return [Correction(**row._mapping) for row in reversed(rows)]


def training_rows(
    database: Database,
    store: Conversations,
    envelope: Envelope,
    corrections: list[Correction],
    *,
    salt: str,
) -> Iterator[bytes]:
    """The lines of a JSONL file. What can no longer be opened is left out.

    `salt` belongs to this set: groups of two sets do not tell that a person is in both.
    """
    for correction in corrections:
        try:
            with database.read() as connection:
                question, corrected = _texts(connection, store, correction)
        except CannotDecrypt:
            continue
        group = envelope.fingerprint(f"review group:{salt}:{correction.user_id}")[:_GROUP_DIGITS]
        said = [{"role": "user", "content": question}, {"role": "assistant", "content": corrected}]
        yield json.dumps({"messages": said, "group": group}, ensure_ascii=False).encode() + b"\n"


def _texts(connection: Connection, store: Conversations, correction: Correction) -> tuple[str, str]:
    """The question and the corrected answer, masked as one conversation. Raises CannotDecrypt."""
    from shared.privacy.masking import mask_passages  # a second to load

    key = store.key(connection, correction.conversation_id)
    question = store.read_text(connection, correction.question_id, key=key)
    place = corrected_place(correction.item_id, correction.reviewer_id)
    corrected = key.decrypt(correction.ciphertext, place=place)
    (first,), (second,) = mask_passages([[question], [corrected]])
    return first.text, second.text
