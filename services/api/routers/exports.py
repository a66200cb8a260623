"""Exports of the log and of what a search finds, for auditors: first logged, then streamed."""

from collections.abc import Iterator
from itertools import chain
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from fastapi.responses import StreamingResponse

from services.api.deps import Access, GatewayDep
from services.api.errors import document
from services.api.events import told_events
from services.api.exporting import export
from services.api.found import filters_of, told_conversations
from services.api.schemas_finding import EventFilters, ExportBody, WordFilters
from shared.audit import record
from shared.auth.roles import Role, Scope
from shared.auth.sessions import Principal
from shared.privacy.search import wanted_of

router = APIRouter(prefix="/v1/audit/export", tags=["audit"])

_KINDS = {
    "csv": "text/csv; charset=utf-8",
    "jsonl": "application/x-ndjson",
    "fhir": "application/fhir+ndjson",
}
_FILES = {"csv": "csv", "jsonl": "jsonl", "fhir": "ndjson"}
_ANSWER: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The file; it is whole when the last chunk has come.",
        "content": {kind.partition(";")[0]: {"schema": {"type": "string"}} for kind in _KINDS.values()},
    }
}

#: An auditor who has typed the password lately.
Exporter = Annotated[Principal, Depends(Access(Role.AUDITOR, frozenset({Scope.AUDIT}), password=True))]


@router.post(
    "",
    response_class=StreamingResponse,
    responses={**_ANSWER, **document(401, 403, 410, 413, 422, 429)},
)
def export_log(body: ExportBody, caller: Exporter, gateway: GatewayDep) -> StreamingResponse:
    """Events, or a list of conversations without their texts: the newest 100,000 that match, as a file.

    Asks for the password, if it was not typed lately. Cells of the CSV that a spreadsheet would take for
    formulas begin with an apostrophe.
    """
    conversations = filters_of(body.conversations or WordFilters())
    if conversations.words is not None:
        wanted_of(conversations.words)  # refused before it is logged
    with gateway.database.write() as connection:
        now = gateway.clock.now(connection)
        told = (
            told_events(connection, gateway, body.events or EventFilters())
            if body.what == "events"
            else told_conversations(gateway.envelope, conversations)
        )
        record.append(
            connection,
            now=now,
            actor=caller.actor,
            action="log.exported",
            details={"what": body.what, "format": body.format, **told},
        )
    parts = export(gateway, body)
    begun: Iterator[str] = chain([next(parts, "")], parts)  # what fails at once is a problem, no half a file
    name = f"medichat-{body.what}-{now:%Y-%m-%d}.{_FILES[body.format]}"
    return StreamingResponse(
        begun,
        media_type=_KINDS[body.format],
        headers={"Content-Disposition": f'attachment; filename="{name}"'},
    )
