"""Reads what others made of a person's conversations, and what the person wrote about those of others.

It tells who looked or judged by their role only, and nothing that another person wrote but the reason for
which a conversation was read unmasked. It does not know how it is shown.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, literal, select

from shared.db import Database
from shared.db.tables import conversations, data_keys, messages, users
from shared.db.tables_privacy import access_grants, dataset_conversations
from shared.db.tables_review import review_items, reviews
from shared.db.tables_training import adapters, datasets
from shared.privacy.envelope import CannotDecrypt, Envelope
from shared.privacy.grants import reason_place
from shared.review.records import corrected_place, note_place
from shared.training.states import GONE

#: Reads all rows of a statement by page, in the order of a column.
Pages = Callable[[Select[Any], Any], Iterator[Row[Any]]]

_GRANT = ("kind", "conversation_id", "granted_at", "expires_at", "ended_at")
_JUDGED = ("verdict", "category", "guard_right", "given_at")


class OwnTraces:
    """What others did with one person's conversations; each list is read while it is gone through."""

    def __init__(self, database: Database, envelope: Envelope, user_id: str, pages: Pages) -> None:
        self._database, self._envelope, self._user_id, self._pages = database, envelope, user_id, pages
        self._mine = select(conversations.c.id).where(conversations.c.user_id == user_id)

    def reviews_of_answers(self) -> Iterator[Mapping[str, Any]]:
        """How reviewers judged the person's answers: neither who they are, nor what they wrote."""
        given = select(*(reviews.c[name] for name in _JUDGED)).where(reviews.c.given_at.is_not(None))
        wanted = select(review_items).where(review_items.c.conversation_id.in_(self._mine))
        for item in self._pages(wanted, review_items.c.id):
            of_item = given.where(reviews.c.item_id == item.id).order_by(reviews.c.given_at)
            with self._database.read() as connection:
                judged = connection.execute(of_item).all()
            for row in judged:
                yield {"conversation_id": item.conversation_id, "job_id": item.job_id, **row._mapping}

    def data_made(self) -> Iterator[Mapping[str, Any]]:
        """The datasets with rows made from the person's conversations, and the adapters trained on them."""
        of_mine = dataset_conversations.c.conversation_id.in_(self._mine)
        having = select(dataset_conversations.c.dataset_id).where(of_mine)
        wanted = select(datasets.c.id, datasets.c.name, datasets.c.created_at, datasets.c.error)
        for row in self._pages(wanted.where(datasets.c.id.in_(having)), datasets.c.id):
            from_what = select(dataset_conversations.c.conversation_id).where(
                dataset_conversations.c.dataset_id == row.id, of_mine
            )
            trained = select(adapters.c.name, adapters.c.version, adapters.c.sha256).where(
                adapters.c.dataset_id == row.id
            )
            with self._database.read() as connection:
                sources = list(connection.execute(from_what.order_by(*from_what.selected_columns)).scalars())
                seen = connection.execute(trained.order_by(adapters.c.created_at)).all()
            yield {
                "dataset_id": row.id,
                "name": row.name,
                "created_at": row.created_at,
                "erased": row.error in GONE,
                "conversations": sources,
                "adapters": [dict(each._mapping) for each in seen],
            }

    def unmasked_readings(self) -> Iterator[Mapping[str, Any]]:
        """Who might read the person's conversations unmasked: in which role, when and why."""
        yield from self._grants(access_grants.c.conversation_id.in_(self._mine), by_role=True)

    def own_readings(self) -> Iterator[Mapping[str, Any]]:
        """Which conversations the person might read unmasked, and the reasons that they gave."""
        yield from self._grants(access_grants.c.user_id == self._user_id, by_role=False)

    def reviews_given(self) -> Iterator[Mapping[str, Any]]:
        """Reviews and drafts of the person's own, with their notes and corrected answers."""
        wanted = (
            select(reviews, data_keys.c.wrapped_key, data_keys.c.master_key_version)
            .join(data_keys, data_keys.c.key_id == reviews.c.key_id)
            .where(reviews.c.reviewer_id == self._user_id)
        )
        for row in self._pages(wanted, reviews.c.item_id):
            who = (row.item_id, row.reviewer_id)
            yield {
                "item_id": row.item_id,
                **{name: row._mapping[name] for name in ("changed_at", *_JUDGED)},
                "corrected": self._open(row, row.corrected_ciphertext, corrected_place(*who)),
                "note": self._open(row, row.note_ciphertext, note_place(*who)),
            }

    def objects(self) -> list[Select[Any]]:
        """The names that the log has for answers in the queue and messages of the person's conversations."""
        return [
            select(literal(f"{kind}:") + table.c.id).where(table.c.conversation_id.in_(self._mine))
            for kind, table in (("review", review_items), ("message", messages))
        ]

    def _grants(self, which: ColumnElement[bool], *, by_role: bool) -> Iterator[Mapping[str, Any]]:
        wanted = (
            select(access_grants, users.c.role, data_keys.c.wrapped_key, data_keys.c.master_key_version)
            .join(users, users.c.id == access_grants.c.user_id)
            .join(data_keys, data_keys.c.key_id == access_grants.c.key_id)
            .where(which)
        )
        for row in self._pages(wanted, access_grants.c.id):
            yield {
                **({"by": row.role} if by_role else {}),
                **{name: row._mapping[name] for name in _GRANT},
                "reason": self._open(row, row.reason_ciphertext, reason_place(row.id)),
            }

    def _open(self, row: Row[Any], sealed: bytes | None, place: str) -> str | None:
        """A text under the row's key; None where there is none, or it was erased with the conversation."""
        if not sealed:
            return None
        try:
            key = self._envelope.unwrap(row.key_id, row.wrapped_key, row.master_key_version)
            return key.decrypt(sealed, place=place)
        except CannotDecrypt:
            return None
