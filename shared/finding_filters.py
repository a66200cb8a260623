"""What conversations may be looked for by, and as conditions of SQL. It knows nothing of words and pages."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, select

from shared.db.tables import conversations, feedback, jobs, messages, users, verdicts
from shared.db.tables_review import review_items, reviews
from shared.guard.verdict import Action


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
    #: What a reviewer said of an answer, and by what it is unsafe; as long as more reviews of the answer are
    #: wanted it does not count, so that whoever gives them knows of none.
    review_verdict: str | None = None
    review_category: str | None = None
    #: Words, all of which occur in it; "phrases" within one message.
    words: str | None = None


def of_rows(filters: Filters) -> list[ColumnElement[bool]]:
    """What must hold of a row of `conversations`, beside `of_ids`."""
    mine = conversations.c
    found: list[ColumnElement[bool]] = []
    if filters.person is not None:
        by_id = users.c.id == filters.person  # first, for a name may look like an id
        called = select(users.c.id).where(by_id | (users.c.name == filters.person.lower()))
        found.append(mine.user_id == called.order_by(by_id.desc()).limit(1).scalar_subquery())
    if filters.since is not None:
        found.append(mine.updated_at >= filters.since)
    if filters.until is not None:
        found.append(mine.created_at < filters.until)
    return found


def of_ids(filters: Filters, id: Any) -> list[ColumnElement[bool]]:
    """What must hold of the id of a conversation, a column of any table."""
    found: list[ColumnElement[bool]] = []
    answered = select(jobs.c.id).where(jobs.c.conversation_id == id).correlate(id.table)
    for column, value in ((jobs.c.adapter_sha256, filters.adapter), (jobs.c.model_id, filters.model)):
        if value is not None:
            found.append(answered.where(column == value).exists())
    judged = _judged()
    if filters.action is not None:
        judged = judged.where(verdicts.c.action == filters.action)
    if filters.category is not None:
        judged = judged.where(verdicts.c.category == filters.category)
    if filters.action is not None or filters.category is not None:
        found.append(id.in_(judged))
    if filters.review_verdict is not None or filters.review_category is not None:
        found.append(id.in_(_said(filters)))
    for asked, those in (
        (filters.flagged, _judged().where(verdicts.c.action != Action.ALLOW)),
        (filters.thumbs_down, _disliked()),
        (filters.reviewed, _reviewed()),
    ):
        if asked is not None:  # few, so they are gathered once instead of looked for in each conversation
            found.append(id.in_(those) if asked else id.not_in(those))
    return found


def _judged() -> Select[Any]:
    """Conversations of verdicts that counted."""
    judged = select(jobs.c.conversation_id).join(verdicts, verdicts.c.job_id == jobs.c.id)
    return judged.where(verdicts.c.shadow.is_(False), jobs.c.conversation_id.is_not(None))


def _disliked() -> Select[Any]:
    """Conversations with an answer that was found bad."""
    disliked = select(messages.c.conversation_id).join(feedback, feedback.c.message_id == messages.c.id)
    return disliked.where(feedback.c.rating == "down")


def _said(filters: Filters) -> Select[Any]:
    """Conversations with an answer of which a reviewer said this."""
    said = _reviewed().where(review_items.c.closed_at.is_not(None))
    if filters.review_verdict is not None:
        said = said.where(reviews.c.verdict == filters.review_verdict)
    if filters.review_category is not None:
        said = said.where(reviews.c.category == filters.review_category)
    return said


def _reviewed() -> Select[Any]:
    """Conversations with an answer that somebody reviewed."""
    given = select(review_items.c.conversation_id).join(reviews, reviews.c.item_id == review_items.c.id)
    return given.where(reviews.c.given_at.is_not(None))
