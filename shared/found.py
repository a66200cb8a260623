"""Says what is known of conversations without reading them. It does not know why they were chosen."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, and_, func, select

from shared.db.tables import conversations, feedback, jobs, messages, users, verdicts
from shared.db.tables_review import review_items, reviews
from shared.guard.verdict import Action, Severity

#: Gravest last.
_GRAVITY = (Action.ALLOW, Action.ESCALATE, Action.APPEND, Action.REPLACE, Action.REFUSE, Action.CRISIS)


@dataclass(frozen=True, kw_only=True)
class Found:
    """A conversation that was found, and what is known of it without reading it."""

    id: str
    user_id: str
    user_name: str
    created_at: datetime
    updated_at: datetime
    message_count: int
    hidden: bool
    #: The gravest that the guard did.
    action: str = Action.ALLOW
    category: str | None = None
    severity: str = Severity.NONE
    thumbs_down: int = 0
    reviewed: bool = False
    adapters: list[str] = field(default_factory=list)
    models: list[str] = field(default_factory=list)


def describe(connection: Connection, ids: Sequence[str]) -> list[Found]:
    """What is known of these conversations, in this order."""
    if not ids:
        return []
    rows = connection.execute(
        select(conversations, users.c.name)
        .join(users, users.c.id == conversations.c.user_id)
        .where(conversations.c.id.in_(ids))
    )
    known = {row.id: row for row in rows}
    worst, answered = _worst(connection, ids), _answered(connection, ids)
    disliked = connection.execute(
        select(messages.c.conversation_id, func.count().label("number"))
        .join(feedback, feedback.c.message_id == messages.c.id)
        .where(messages.c.conversation_id.in_(ids), feedback.c.rating == "down")
        .group_by(messages.c.conversation_id)
    )
    down = {row.conversation_id: row.number for row in disliked}
    seen = set(
        connection.execute(
            select(review_items.c.conversation_id)
            .join(reviews, and_(reviews.c.item_id == review_items.c.id, reviews.c.given_at.is_not(None)))
            .where(review_items.c.conversation_id.in_(ids))
        ).scalars()
    )
    return [
        Found(
            id=row.id,
            user_id=row.user_id,
            user_name=row.name,
            created_at=row.created_at,
            updated_at=row.updated_at,
            message_count=row.message_count,
            hidden=row.hidden_at is not None,
            thumbs_down=down.get(row.id, 0),
            reviewed=row.id in seen,
            adapters=sorted({adapter for adapter, _ in answered[row.id] if adapter}),
            models=sorted({model for _, model in answered[row.id] if model}),
            **worst.get(row.id, {}),
        )
        for row in (known[conversation_id] for conversation_id in ids if conversation_id in known)
    ]


def _worst(connection: Connection, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The gravest verdict of each conversation that has one."""
    rows = connection.execute(
        select(jobs.c.conversation_id, verdicts.c.action, verdicts.c.category, verdicts.c.severity)
        .join(verdicts, verdicts.c.job_id == jobs.c.id)
        .where(jobs.c.conversation_id.in_(ids), verdicts.c.shadow.is_(False))
    )

    def gravity(row: Any) -> tuple[int, int]:
        return Severity(row.severity).rank, _GRAVITY.index(Action(row.action))

    found: dict[str, dict[str, Any]] = {}
    for row in sorted(rows, key=gravity):
        found[row.conversation_id] = {
            "action": row.action,
            "category": row.category,
            "severity": row.severity,
        }
    return found


def _answered(connection: Connection, ids: Sequence[str]) -> dict[str, set[tuple[str | None, str | None]]]:
    """Which adapters and models answered in each conversation."""
    rows = connection.execute(
        select(jobs.c.conversation_id, jobs.c.adapter_sha256, jobs.c.model_id)
        .where(jobs.c.conversation_id.in_(ids))
        .distinct()
    )
    found: defaultdict[str, set[tuple[str | None, str | None]]] = defaultdict(set)
    for row in rows:
        found[row.conversation_id].add((row.adapter_sha256, row.model_id))
    return found
