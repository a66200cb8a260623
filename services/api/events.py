"""Finds events of the log by what an auditor asks for. It shows nothing, and logs nothing."""

import json
import re
from collections.abc import Iterable
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, select

from services.api.schemas import AuditEventView
from services.api.schemas_finding import EventFilters
from services.api.state import Gateway
from services.api.telling import told
from shared.audit import record
from shared.db.tables import audit_events, users
from shared.ids import is_id

#: Actors that are nobody's account.
_NOBODYS = (record.SYSTEM, record.OPERATOR, "anonymous")
#: `<kind>:<id>`; an adapter's id is the SHA-256 of its files.
_KIND = re.compile(r"[a-z_]+")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def select_events(filters: EventFilters) -> Select[Any]:
    """The events that match, newest first, each with its actor's name."""
    wanted = select(audit_events, users.c.name).outerjoin(users, users.c.id == audit_events.c.actor)
    if filters.actor:
        wanted = wanted.where(
            (audit_events.c.actor == filters.actor) | (users.c.name == filters.actor.lower())
        )
    if filters.action:
        wanted = wanted.where(_named(filters.action))
    for column, value in (
        (audit_events.c.object, filters.object),
        (audit_events.c.outcome, filters.outcome),
    ):
        if value:
            wanted = wanted.where(column == value)
    if filters.since:
        wanted = wanted.where(audit_events.c.occurred_at >= filters.since)
    if filters.until:
        wanted = wanted.where(audit_events.c.occurred_at < filters.until)
    return wanted.order_by(audit_events.c.occurred_at.desc(), audit_events.c.id.desc())


def event_views(rows: Iterable[Row[Any]]) -> list[AuditEventView]:
    """Rows of `select_events` as they are shown."""
    return [
        AuditEventView(
            id=row.id,
            occurred_at=row.occurred_at,
            actor=row.actor,
            actor_name=row.name,
            session_id=row.session_id,
            action=row.action,
            object=row.object,
            outcome=row.outcome,
            reason=row.reason,
            details=_details(row.canonical_bytes),
        )
        for row in rows
    ]


def _details(sealed: bytes) -> dict[str, Any]:
    """The rest of what an event says; of one that MediChat did not write there may be nothing to read."""
    try:
        details: dict[str, Any] = dict(json.loads(sealed)["details"])
    except (ValueError, KeyError, TypeError):
        return {"unreadable": True}
    return details


def told_events(connection: Connection, gateway: Gateway, filters: EventFilters) -> dict[str, Any]:
    """The filters as the log may keep them."""
    kind, _, id = (filters.object or "").partition(":")
    actor, action = filters.actor, filters.action
    return {
        **told(
            gateway.envelope,
            {
                "actor": (actor, actor in _NOBODYS or is_id(actor or "")),
                "action": (action, bool(action) and _is_logged(connection, action or "")),
                "object": (
                    filters.object,
                    bool(_KIND.fullmatch(kind)) and (is_id(id) or bool(_SHA256.fullmatch(id))),
                ),
                "outcome": (filters.outcome, True),
            },
        ),
        "since": filters.since.isoformat() if filters.since else None,
        "until": filters.until.isoformat() if filters.until else None,
    }


def _named(action: str) -> ColumnElement[bool]:
    """Events of this action, or of those that begin as it does."""
    if action.endswith("*"):
        return audit_events.c.action.startswith(action[:-1], autoescape=True)
    return audit_events.c.action == action


def _is_logged(connection: Connection, action: str) -> bool:
    """Whether the log has such an event: what it says already is nothing that was only typed."""
    return connection.execute(select(audit_events.c.id).where(_named(action)).limit(1)).first() is not None
