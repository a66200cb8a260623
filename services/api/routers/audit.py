"""The log, for auditors. Reading it is itself an event, written before anything is shown."""

import json
from typing import Annotated

from fastapi import APIRouter, Query
from sqlalchemy import select

from services.api.deps import Auditor, GatewayDep
from services.api.errors import document
from services.api.paging import encode_cursor, older_than
from services.api.schemas import AuditEventView, Moment, Page
from shared.audit import record
from shared.db.tables import audit_events, users

router = APIRouter(prefix="/v1/audit", tags=["audit"])

Filter = Annotated[str | None, Query(max_length=160)]


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
    if action and action.endswith("*"):
        wanted = wanted.where(audit_events.c.action.startswith(action[:-1], autoescape=True))
    elif action:
        wanted = wanted.where(audit_events.c.action == action)
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
    filters = {"actor": actor, "action": action, "object": object, "outcome": outcome}
    with gateway.database.write() as connection:
        record.append(
            connection,
            now=gateway.clock.now(connection),
            actor=caller.actor,
            action="audit.read",
            details={
                **{name: value for name, value in filters.items() if value},
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
