"""Hands answers to reviewers: never are more people at an item, or done with it, than are wanted.

Whoever takes an item locks its row and counts again before holding it, so that of two who look at the same
moment one goes on to the next. It reads no text: it opens a conversation's key only to see that it can be.
Every function runs in the caller's transaction.
"""

import logging
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, and_, case, func, or_, select, update

from shared.db.rows import put
from shared.db.tables import conversations, data_keys
from shared.db.tables_review import review_items, reviews
from shared.errors import NotFound
from shared.privacy.envelope import Envelope
from shared.review.records import Item
from shared.review.rules import HOLD

log = logging.getLogger(__name__)

#: Items that a search for the next one tries before it looks again.
_TRIES = 50
#: Items that cannot be opened after which a search ends: each is looked at while others wait to write.
_MOST_SHUT = 1_000
_mine = reviews.alias("mine")
_given_back = and_(_mine.c.item_id.is_not(None), _mine.c.taken_at.is_(None))


def take_next(
    connection: Connection, envelope: Envelope, reviewer_id: str, now: datetime
) -> tuple[Item, bool] | None:
    """The item that this person is at, else the best that they can take, and whether it was just taken.

    What they gave back is offered last, the one given back first before the others. An item whose
    conversation's key cannot be opened is passed over, one that they are at as well. None: there is nothing.
    """
    for own in connection.execute(_own(reviewer_id, now)).all():
        if _opens(envelope, own):
            return Item.from_row(own), False
    for item_id in _in_line(connection, envelope, reviewer_id, now):
        item = find(connection, item_id, skip_locked=True)
        if item is not None and hold(connection, item, reviewer_id, now):
            return Item.from_row(item), True
    return None


def _in_line(connection: Connection, envelope: Envelope, reviewer_id: str, now: datetime) -> Iterator[str]:
    """The ids of what this person could take, the best first; after many that cannot be opened it ends."""
    # what no master key at hand opens comes last: there may be thousands of a version that was lost
    lost = case((data_keys.c.master_key_version.in_(envelope.versions), 0), else_=1)
    line, shut = (lost, review_items.c.priority, review_items.c.created_at, review_items.c.id), 0
    for which, order in ((~_given_back, line), (_given_back, (_mine.c.changed_at, *line))):
        tried: set[str] = set()
        takable = _open_for(reviewer_id, now).where(which).order_by(*order).limit(_TRIES)
        while candidates := connection.execute(takable.where(review_items.c.id.not_in(tried))).all():
            for candidate in candidates:
                tried.add(candidate.id)
                if _opens(envelope, candidate):
                    yield candidate.id
                    continue
                if not shut:
                    told = "conversation %s waits for review and is passed over: its key cannot be opened"
                    log.error(told, candidate.conversation_id)
                shut += 1
                if shut == _MOST_SHUT:
                    return


def hold(connection: Connection, item: Row[Any], reviewer_id: str, now: datetime) -> bool:
    """Have this person hold an item whose row is locked; false when it is closed, or others have it."""
    if item.closed_at is not None or _others(connection, item.id, reviewer_id, now) >= item.wanted:
        return False
    if review_of(connection, item.id, reviewer_id) is not None:
        write(connection, item.id, reviewer_id, taken_at=now)
        return True
    key_id = select(conversations.c.key_id).where(conversations.c.id == item.conversation_id)
    row = {
        "item_id": item.id,
        "reviewer_id": reviewer_id,
        "taken_at": now,
        "changed_at": now,
        "key_id": connection.execute(key_id).scalar_one(),
    }
    put(connection, reviews, row)
    return True


def release(connection: Connection, item_id: str, reviewer_id: str, now: datetime) -> bool:
    """Give an item back unreviewed; what was written of it is kept, for this person only.

    Returns whether it was held. Raises NotFound.
    """
    require(connection, item_id)
    released = connection.execute(
        update(reviews)
        .where(of(item_id, reviewer_id), reviews.c.given_at.is_(None), reviews.c.taken_at.is_not(None))
        .values(taken_at=None, changed_at=now)
    )
    return released.rowcount == 1


def waiting(connection: Connection, reviewer_id: str, now: datetime) -> dict[str, int]:
    """How many items this person could take, by reason."""
    found = _open_for(reviewer_id, now).with_only_columns(review_items.c.reason, func.count())
    return {row[0]: row[1] for row in connection.execute(found.group_by(review_items.c.reason))}


def held_by_others(connection: Connection, reviewer_id: str, now: datetime) -> int:
    """How many open items others are at just now."""
    found = (
        select(func.count(func.distinct(reviews.c.item_id)))
        .join(review_items, review_items.c.id == reviews.c.item_id)
        .where(
            review_items.c.closed_at.is_(None),
            reviews.c.reviewer_id != reviewer_id,
            reviews.c.given_at.is_(None),
            reviews.c.taken_at > now - HOLD,
        )
    )
    return int(connection.execute(found).scalar_one())


def done(connection: Connection) -> int:
    """How many items were reviewed as often as is wanted, or as was possible before an erasure."""
    reviewed = select(reviews.c.item_id).where(
        reviews.c.item_id == review_items.c.id, reviews.c.given_at.is_not(None)
    )
    found = select(func.count()).where(review_items.c.closed_at.is_not(None), reviewed.exists())
    return int(connection.execute(found).scalar_one())


def newest_of(connection: Connection, reviewer_id: str, limit: int) -> Sequence[Row[Any]]:
    """One person's reviews and drafts with the `reason` of each, the one changed last first."""
    found = (
        select(reviews, review_items.c.reason)
        .join(review_items, review_items.c.id == reviews.c.item_id)
        .where(
            reviews.c.reviewer_id == reviewer_id,
            or_(reviews.c.given_at.is_not(None), reviews.c.taken_at.is_not(None)),
        )
        .order_by(reviews.c.changed_at.desc(), reviews.c.item_id.desc())
    )
    return connection.execute(found.limit(limit)).all()


def is_held(review: Row[Any], now: datetime) -> bool:
    """Whether the person of this review is at it."""
    taken_at: datetime | None = review.taken_at
    return review.given_at is None and taken_at is not None and taken_at > now - HOLD


def find(connection: Connection, item_id: str, *, skip_locked: bool = False) -> Row[Any] | None:
    """The item, which nobody else changes until the transaction ends; None where there is none.

    `skip_locked`: None as well when somebody changes it at this moment.
    """
    return connection.execute(
        select(review_items).where(review_items.c.id == item_id).with_for_update(skip_locked=skip_locked)
    ).one_or_none()


def require(connection: Connection, item_id: str) -> Row[Any]:
    """As `find`. Raises NotFound."""
    item = find(connection, item_id)
    if item is None:
        raise NotFound("There is no such item in the queue.")
    return item


def of(item_id: str, reviewer_id: str) -> ColumnElement[bool]:
    """One person's review of an item."""
    return and_(reviews.c.item_id == item_id, reviews.c.reviewer_id == reviewer_id)


def review_of(connection: Connection, item_id: str, reviewer_id: str) -> Row[Any] | None:
    """The row of one person's review, if they ever took the item."""
    return connection.execute(select(reviews).where(of(item_id, reviewer_id))).one_or_none()


def write(connection: Connection, item_id: str, reviewer_id: str, **values: Any) -> None:
    """Change one person's review."""
    connection.execute(update(reviews).where(of(item_id, reviewer_id)).values(**values))


def given(connection: Connection, item_id: str) -> int:
    """How many reviews of an item were given."""
    found = select(func.count()).where(reviews.c.item_id == item_id, reviews.c.given_at.is_not(None))
    return int(connection.execute(found).scalar_one())


def _others(connection: Connection, item_id: str, reviewer_id: str, now: datetime) -> int:
    """How many others hold an item or have reviewed it."""
    found = select(func.count()).where(
        reviews.c.item_id == item_id, reviews.c.reviewer_id != reviewer_id, _active(now)
    )
    return int(connection.execute(found).scalar_one())


def _active(now: datetime) -> ColumnElement[bool]:
    """Reviews that were given, or that somebody is at."""
    return or_(reviews.c.given_at.is_not(None), reviews.c.taken_at > now - HOLD)


def _opens(envelope: Envelope, item: Row[Any]) -> bool:
    """Whether the key of an item of `_readable` can be opened."""
    return envelope.opens(item.key_id, item.wrapped_key, item.master_key_version)


def _readable() -> Select[Any]:
    """The items that are not closed and whose conversation was not erased, with its wrapped key."""
    key = (data_keys.c.key_id, data_keys.c.wrapped_key, data_keys.c.master_key_version)
    return (
        select(review_items, *key)
        .select_from(review_items)
        .join(conversations, conversations.c.id == review_items.c.conversation_id)
        .join(data_keys, data_keys.c.key_id == conversations.c.key_id)
        .where(review_items.c.closed_at.is_(None), data_keys.c.wrapped_key.is_not(None))
    )


def _own(reviewer_id: str, now: datetime) -> Select[Any]:
    """The items that this person is at; the one taken last comes first."""
    mine = and_(_mine.c.item_id == review_items.c.id, _mine.c.reviewer_id == reviewer_id)
    held = _readable().join(_mine, mine).where(_mine.c.given_at.is_(None), _mine.c.taken_at > now - HOLD)
    return held.order_by(_mine.c.taken_at.desc())


def _open_for(reviewer_id: str, now: datetime) -> Select[Any]:
    """The open items that this person has not reviewed, and that not as many others have as are wanted."""
    mine = and_(_mine.c.item_id == review_items.c.id, _mine.c.reviewer_id == reviewer_id)
    others = (
        select(func.count())
        .where(reviews.c.item_id == review_items.c.id, reviews.c.reviewer_id != reviewer_id, _active(now))
        .correlate(review_items)
        .scalar_subquery()
    )
    open_ = _readable().outerjoin(_mine, mine)
    return open_.where(_mine.c.given_at.is_(None), others < review_items.c.wanted)
