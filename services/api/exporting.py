"""Reads what an export holds, a part at a time: memory stays flat however long it is. It logs nothing."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from itertools import islice
from typing import Any

from sqlalchemy import Connection, select

from services.api.events import event_views, select_events
from services.api.found import filters_of
from services.api.paging import before
from services.api.schemas import AuditEventView
from services.api.schemas_finding import EventFilters, ExportBody, WordFilters
from services.api.state import Gateway
from shared.audit.export import csv_lines, json_lines
from shared.audit.fhir import audit_event
from shared.db.tables import audit_events, jobs
from shared.finding import find
from shared.found import Found

#: Rows of one export; whoever needs more exports by months.
MOST_ROWS = 100_000
_PART = 500

Rows = Iterator[Mapping[str, Any]]


def export(gateway: Gateway, body: ExportBody) -> Iterator[str]:
    """What was asked for, newest first, as text in parts of many lines."""
    if body.what == "conversations":
        rows = _conversations(gateway, body.conversations or WordFilters())
        columns = [each.name for each in fields(Found)]
    else:
        rows = _events(gateway, body.events or EventFilters(), fhir=body.format == "fhir")
        columns = list(AuditEventView.model_fields)
    rows = islice(rows, MOST_ROWS)
    lines = csv_lines(columns, rows) if body.format == "csv" else json_lines(rows)
    while part := "".join(islice(lines, _PART)):
        yield part


def _conversations(gateway: Gateway, wanted: WordFilters) -> Rows:
    filters, last = filters_of(wanted), None
    while True:
        page = find(gateway.database, gateway.envelope, filters, before=last and last[1], limit=_PART)
        yield from (asdict(each) for each in page.items)
        last = page.last
        if last is None:
            return


def _events(gateway: Gateway, filters: EventFilters, *, fhir: bool) -> Rows:
    wanted = select_events(filters).limit(_PART)
    while True:
        with gateway.database.read() as connection:
            views = event_views(connection.execute(wanted))
            askers = _askers(connection, views) if fhir else {}
        for view in views:
            event = view.model_dump()
            yield (
                audit_event(
                    event,
                    asked_by=askers.get(view.object or ""),
                    observer=gateway.settings.public_api_url,
                )
                if fhir
                else event
            )
        if len(views) < _PART:
            return
        last = views[-1]
        wanted = select_events(filters).limit(_PART)
        wanted = wanted.where(
            before(audit_events.c.occurred_at, audit_events.c.id, last.occurred_at, last.id)
        )


def _askers(connection: Connection, views: list[AuditEventView]) -> dict[str, str]:
    """Whose job each `job:<id>` is that these events are about."""
    objects = [view.object or "" for view in views]
    ids = {each.removeprefix("job:") for each in objects if each.startswith("job:")}
    rows = connection.execute(select(jobs.c.id, jobs.c.user_id).where(jobs.c.id.in_(ids)))
    return {f"job:{row.id}": row.user_id for row in rows}
