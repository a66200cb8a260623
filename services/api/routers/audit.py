"""The log, for auditors. Reading it is itself an event, written before anything is shown."""

import json
import re
from typing import Annotated

from fastapi import APIRouter, Query
from sqlalchemy import ColumnElement, Connection, select

from services.api.deps import Auditor, GatewayDep
from services.api.errors import document
from services.api.paging import encode_cursor, older_than
from services.api.schemas import AuditEventView, Moment, Page
from services.api.state import Gateway
from shared.audit import record
from shared.db.tables import audit_events, users
from shared.ids import is_id

router = APIRouter(prefix="/v1/audit", tags=["audit"])

Filter = Annotated[str | None, Query(max_length=160)]
#: Actors that are nobody's account.
_NOBODYS = (record.SYSTEM, record.OPERATOR, "anonymous")
#: `<kind>:<id>`; an adapter's id is the SHA-256 of its files.
_KIND = re.compile(r"[a-z_]+")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@router.get("/events", responses=document(401, 403, 422, 429))
def list_events(
    caller: Auditor,
    gateway: GatewayDep,
    actor: Filter = None,
    action: Filter = None,
    object: Filter = None,
    outcome: record.Outcome | None = None,
    since: Annotated[Moment | None, Query(description="With a time zone, e.g. 2026-01-31T12:00:00Z.")] = None,
    until: Moment | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    cursor: Annotated[str | None, Query(max_length=200)] = None,
) -> Page[AuditEventView]:
    """Events, newest first. `action` may end in `*`, as in `guard.*`; `actor` is an id or a name."""
    wanted = select(audit_events, users.c.name).outerjoin(users, users.c.id == audit_events.c.actor)
    if actor:
        wanted = wanted.where((audit_events.c.actor == actor) | (users.c.name == actor.lower()))
    if action:
        wanted = wanted.where(_named(action))
    for column, value in ((audit_events.c.object, object), (audit_events.c.outcome, outcome)):
        if value:
            wanted = wanted.where(column == value)
    if since:
        wanted = wanted.where(audit_events.c.occurred_at >= since)
    if until:
        wanted = wanted.where(audit_events.c.occurred_at < until)
    if cursor:
        wanted = wanted.where(older_than(audit_events.c.occurred_at, audit_events.c.id, cursor))
    wanted = wanted.order_by(audit_events.c.occurred_at.desc(), audit_events.c.id.desc()).limit(limit + 1)
    with gateway.database.write() as connection:
        record.append(
            connection,
            now=gateway.clock.now(connection),
            actor=caller.actor,
            action="audit.read",
            details={
                **_told(connection, gateway, actor=actor, action=action, object=object),
                **({"outcome": outcome} if outcome else {}),
                "since": since.isoformat() if since else None,
                "until": until.isoformat() if until else None,
                "limit": limit,
            },
        )
    with gateway.database.read() as connection:
        rows = connection.execute(wanted).all()
    items = [
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
            details=json.loads(row.canonical_bytes)["details"],
        )
        for row in rows[:limit]
    ]
    more = encode_cursor(items[-1].occurred_at, items[-1].id) if len(rows) > limit else None
    return Page[AuditEventView](items=items, next_cursor=more)


def _named(action: str) -> ColumnElement[bool]:
    """Events of this action, or of those that begin as it does."""
    if action.endswith("*"):
        return audit_events.c.action.startswith(action[:-1], autoescape=True)
    return audit_events.c.action == action


def _told(
    connection: Connection, gateway: Gateway, *, actor: str | None, action: str | None, object: str | None
) -> dict[str, str]:
    """The filters as the log may keep them: what names nobody as it is, all else as its HMAC.

    Somebody may have typed a patient's name, and nothing is ever erased from the log.
    """
    kind, _, id = (object or "").partition(":")
    filters = {
        "actor": (actor, actor in _NOBODYS or is_id(actor or "")),
        "action": (action, action is not None and _is_logged(connection, action)),
        "object": (object, bool(_KIND.fullmatch(kind)) and (is_id(id) or bool(_SHA256.fullmatch(id)))),
    }
    told = {}
    for name, (value, harmless) in filters.items():
        if value and harmless:
            told[name] = value
        elif value:
            told[f"{name}_hmac"] = gateway.envelope.fingerprint(value)
    return told


def _is_logged(connection: Connection, action: str) -> bool:
    """Whether the log has such an event: what it says already is nothing that was only typed."""
    return connection.execute(select(audit_events.c.id).where(_named(action)).limit(1)).first() is not None
