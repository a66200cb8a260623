"""The log, for auditors. Reading it is itself an event, written before anything is shown."""

from typing import Annotated

from fastapi import APIRouter, Query

from services.api.deps import Auditor, GatewayDep
from services.api.errors import document
from services.api.events import event_views, select_events, told_events
from services.api.paging import encode_cursor, older_than
from services.api.schemas import AuditEventView, Page
from services.api.schemas_finding import EventsQuery
from shared.audit import record
from shared.db.tables import audit_events

router = APIRouter(prefix="/v1/audit", tags=["audit"])


@router.get("/events", responses=document(401, 403, 422, 429))
def list_events(
    caller: Auditor, gateway: GatewayDep, query: Annotated[EventsQuery, Query()]
) -> Page[AuditEventView]:
    """Events, newest first. `action` may end in `*`, as in `guard.*`; `actor` is an id or a name."""
    wanted = select_events(query)
    if query.cursor:
        wanted = wanted.where(older_than(audit_events.c.occurred_at, audit_events.c.id, query.cursor))
    with gateway.database.write() as connection:
        record.append(
            connection,
            now=gateway.clock.now(connection),
            actor=caller.actor,
            action="audit.read",
            details={**told_events(connection, gateway, query), "limit": query.limit},
        )
    with gateway.database.read() as connection:
        rows = connection.execute(wanted.limit(query.limit + 1)).all()
    items = event_views(rows[: query.limit])
    more = encode_cursor(items[-1].occurred_at, items[-1].id) if len(rows) > query.limit else None
    return Page[AuditEventView](items=items, next_cursor=more)
