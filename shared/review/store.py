"""Keeps what reviewers say of answers, sealed under the conversation's key. It does not choose the answers.

    waiting ──take──> held ──give──> given
       ^                │ ^            │
       └──release, 30 minutes of rest  └── take back, within a day, before another gave theirs

Every method runs in the caller's transaction.
"""

import os
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, select, update

from shared.audit.binding import SALT_BYTES, bind_review
from shared.conversations import Conversations
from shared.db.tables import jobs, messages
from shared.db.tables_review import review_items, reviews
from shared.errors import Conflict, NotFound
from shared.jobs.lifecycle import Kind
from shared.review import taking
from shared.review.filling import Filling, guard_done, join
from shared.review.records import Item, Review, seal
from shared.review.rules import TAKE_BACK, GuardDone, Reason, ReviewVerdict, check_given


class ReviewStore:
    """The reviews in the database; safe to share between threads."""

    def __init__(self, conversations: Conversations, filling: Filling) -> None:
        self._conversations = conversations
        self._filling = filling

    # -- items

    def ask_for(self, connection: Connection, job_id: str, now: datetime) -> Item:
        """Put an answer into the queue by hand; one that was reviewed is reviewed by one more person.

        Raises NotFound when there is no such answer, and KeyDestroyed.
        """
        answer = connection.execute(
            select(messages.c.conversation_id)
            .join(jobs, jobs.c.id == messages.c.job_id)
            .where(messages.c.job_id == job_id, jobs.c.kind == Kind.INFER)
        ).one_or_none()
        if answer is None:
            raise NotFound("There is no answer of this job.")
        self._conversations.key(connection, answer.conversation_id)
        row = self._filling.row(connection, job_id, answer.conversation_id, Reason.ASKED)
        assert row is not None
        join(connection, row, now)
        of_job = review_items.c.job_id == job_id
        known = connection.execute(select(review_items).where(of_job).with_for_update()).one()
        more: dict[str, Any] = {}
        if known.closed_at is not None:
            more = {"wanted": taking.given(connection, known.id) + 1, "closed_at": None}
        first = min(row["priority"], known.priority)
        connection.execute(
            update(review_items).where(of_job).values(reason=Reason.ASKED, priority=first, **more)
        )
        return self.item(connection, known.id)

    def item(self, connection: Connection, item_id: str) -> Item:
        """One item. Raises NotFound."""
        row = connection.execute(select(review_items).where(review_items.c.id == item_id)).one_or_none()
        if row is None:
            raise NotFound("There is no such item in the queue.")
        return Item.from_row(row)

    def guard_done(self, connection: Connection, item: Item) -> GuardDone:
        """What the guard did to the answer."""
        return guard_done(connection, [item.job_id]).get(item.job_id, GuardDone())

    # -- reviews

    def reviews_of(
        self, connection: Connection, item: Item, reviewer_id: str
    ) -> tuple[Review | None, list[Review]]:
        """This person's review, and what others gave: nothing of that before this person has given theirs.

        Raises KeyDestroyed.
        """
        key = self._conversations.key(connection, item.conversation_id)
        rows = connection.execute(select(reviews).where(reviews.c.item_id == item.id)).all()
        own = next((row for row in rows if row.reviewer_id == reviewer_id), None)
        if own is None:
            return None, []
        mine = Review.from_row(own, key)
        if mine.given_at is None:
            return mine, []
        others = [row for row in rows if row.reviewer_id != reviewer_id and row.given_at is not None]
        return mine, [Review.from_row(row, key) for row in others]

    def save(
        self, connection: Connection, item_id: str, reviewer_id: str, changes: dict[str, Any], now: datetime
    ) -> tuple[Review, bool]:
        """Change fields of the draft; holds the item from now on.

        `changes` are fields of `Draft`; those that are left out stay as they are. Returns also whether that
        changed anything: the draft, or that the item was not held.
        Raises NotFound, KeyDestroyed, and Conflict when the review was given or others have the item.
        """
        item = taking.require(connection, item_id)
        key = self._conversations.key(connection, item.conversation_id)
        before = taking.review_of(connection, item_id, reviewer_id)
        was_held = before is not None and taking.is_held(before, now)
        row = self._held(connection, item, reviewer_id, now)
        former = Review.from_row(row, key)
        draft = replace(former.draft, **changes)
        if former.draft == draft:
            return former, not was_held
        sealed = seal(draft, key, item_id, reviewer_id)
        taking.write(connection, item_id, reviewer_id, changed_at=now, **sealed)
        return Review.from_row(_written(connection, item_id, reviewer_id), key), True

    def give(
        self, connection: Connection, item_id: str, reviewer_id: str, now: datetime
    ) -> tuple[Review, dict[str, str] | None]:
        """Give the draft as a review, and what binds the log to it; None when it was given already.

        Raises NotFound, KeyDestroyed, InvalidInput when something is missing, and Conflict.
        """
        item = taking.require(connection, item_id)
        key = self._conversations.key(connection, item.conversation_id)
        mine = taking.review_of(connection, item_id, reviewer_id)
        if mine is not None and mine.given_at is not None:
            return Review.from_row(mine, key), None
        draft = Review.from_row(self._held(connection, item, reviewer_id, now), key).draft
        stepped_in = self.guard_done(connection, Item.from_row(item)).stepped_in
        check_given(draft.verdict, draft.category, draft.guard_right, stepped_in=stepped_in)
        taking.write(
            connection,
            item_id,
            reviewer_id,
            category=draft.category if draft.verdict is ReviewVerdict.UNSAFE else None,
            guard_right=draft.guard_right if stepped_in else None,
            salt=os.urandom(SALT_BYTES),
            changed_at=now,
            given_at=now,
        )
        if taking.given(connection, item_id) >= item.wanted:
            _close(connection, item_id, now)
        written = _written(connection, item_id, reviewer_id)
        return Review.from_row(written, key), bind_review(written)

    def take_back(self, connection: Connection, item_id: str, reviewer_id: str, now: datetime) -> Review:
        """Make a given review a draft again, which is held.

        Raises NotFound, KeyDestroyed, and Conflict after a day, or once another has given theirs: who may
        have seen what another says changes nothing, so that agreement is of verdicts given blind.
        """
        item = taking.require(connection, item_id)
        key = self._conversations.key(connection, item.conversation_id)
        mine = taking.review_of(connection, item_id, reviewer_id)
        if mine is None or mine.given_at is None:
            raise Conflict("You have given no review of this answer; there is nothing to take back.")
        if mine.given_at <= now - TAKE_BACK:
            raise Conflict("A review can be taken back for a day; ask for another one of this answer.")
        if taking.given(connection, item_id) > 1:
            raise Conflict(
                "Another person has given their review of this answer, which you may have seen, so yours "
                "stays as it is; if it is wrong, ask for a review by one more person."
            )
        taking.write(connection, item_id, reviewer_id, given_at=None, salt=None, taken_at=now, changed_at=now)
        _close(connection, item_id, None)
        return Review.from_row(_written(connection, item_id, reviewer_id), key)

    def _held(self, connection: Connection, item: Row[Any], reviewer_id: str, now: datetime) -> Row[Any]:
        """This person's review of an item that they hold from now on. Raises Conflict."""
        mine = taking.review_of(connection, item.id, reviewer_id)
        if mine is not None and mine.given_at is not None:
            raise Conflict("You have given this review; take it back to change it.")
        if not taking.hold(connection, item, reviewer_id, now):
            raise Conflict("Others review this answer, or have done so; take the next one.")
        return _written(connection, item.id, reviewer_id)


def _written(connection: Connection, item_id: str, reviewer_id: str) -> Row[Any]:
    return connection.execute(select(reviews).where(taking.of(item_id, reviewer_id))).one()


def _close(connection: Connection, item_id: str, at: datetime | None) -> None:
    connection.execute(update(review_items).where(review_items.c.id == item_id).values(closed_at=at))
