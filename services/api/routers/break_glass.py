"""Emergency access: an admin reads one conversation for a while, and auditors are told.

Each act and each look is an event, committed before anything is read. The reason is sealed with the
conversation, and never in the log.
"""

import logging
from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from sqlalchemy import ColumnElement, Connection

from services.api import metrics
from services.api.access import NO_KEYS, access_view, access_views, mask_reasons, transcript_of
from services.api.deps import Access, AdminOrAuditor, Auditor, GatewayDep, log_denial
from services.api.errors import document
from services.api.owned import log_refused
from services.api.paging import encode_cursor, older_than
from services.api.picture_response import PICTURES, ImageId, PictureResponse, picture_of
from services.api.schemas import Page
from services.api.schemas_transcripts import AccessView, BreakGlassBody, TranscriptView
from services.api.state import Gateway
from shared.audit import record
from shared.auth.roles import Role, Scope
from shared.auth.sessions import Principal
from shared.db.tables_privacy import access_grants
from shared.errors import NotAllowed, NotFound
from shared.kept_pictures import find_picture
from shared.privacy.access_kinds import AccessKind
from shared.privacy.grants import (
    UNKNOWN,
    AccessGrant,
    acknowledge_grant,
    end_grant,
    find_grant,
    newest_grants,
    open_grant,
)

log = logging.getLogger(__name__)

router = APIRouter(prefix="/v1/break-glass", tags=["emergency access"])

GrantId = Annotated[str, Path(max_length=36)]
AdminWithPassword = Annotated[Principal, Depends(Access(Role.ADMIN, frozenset({Scope.ADMIN}), password=True))]
AdminInPerson = Annotated[Principal, Depends(Access(Role.ADMIN, frozenset({Scope.ADMIN}), no_keys=NO_KEYS))]
_OVER = "This emergency access is over; open another with POST /v1/break-glass, and say why."


@router.post("", status_code=201, responses=document(401, 403, 404, 409, 410, 413, 422, 429))
def break_glass(body: BreakGlassBody, caller: AdminWithPassword, gateway: GatewayDep) -> AccessView:
    """Be let into one conversation for some minutes. Every auditor is told until one of them has seen it."""
    with gateway.database.write() as connection:
        now = gateway.clock.now(connection)
        grant = open_grant(
            connection,
            gateway.conversations,
            kind=AccessKind.BREAK_GLASS,
            user_id=caller.user_id,
            conversation_id=body.conversation_id,
            reason=body.reason,
            life=timedelta(minutes=body.minutes),
            now=now,
        )
        _record(connection, gateway, caller, "opened", grant, minutes=body.minutes, reason_given=True)
    metrics.BREAK_GLASS.inc()
    log.warning(
        "emergency access %s: admin %s may read conversation %s for %d minutes",
        grant.id,
        caller.user_id,
        grant.conversation_id,
        body.minutes,
    )
    return access_view(grant, now)


@router.get("", responses=document(401, 403, 422, 429))
def list_accesses(
    caller: AdminOrAuditor,
    gateway: GatewayDep,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    cursor: Annotated[str | None, Query(max_length=200)] = None,
) -> Page[AccessView]:
    """Emergency accesses, the newest first: an admin's own; for auditors all, with their reasons masked."""
    auditor = caller.role is Role.AUDITOR
    wanted: list[ColumnElement[bool]] = [] if auditor else [access_grants.c.user_id == caller.user_id]
    if cursor is not None:
        wanted.append(older_than(access_grants.c.granted_at, access_grants.c.id, cursor))
    with gateway.database.write() as connection:
        now = gateway.clock.now(connection)
        record.append(
            connection, now=now, actor=caller.actor, action="break_glass.listed", details={"limit": limit}
        )
    with gateway.database.read() as connection:
        grants = newest_grants(connection, AccessKind.BREAK_GLASS, *wanted, limit=limit + 1)
        items = access_views(connection, gateway, grants[:limit], now, reasons=auditor)
    mask_reasons(items)
    more = encode_cursor(items[-1].granted_at, items[-1].id) if len(grants) > limit else None
    return Page[AccessView](items=items, next_cursor=more)


@router.post("/{grant_id}/end", responses=document(401, 403, 404, 409, 422, 429))
def end_access(
    grant_id: GrantId, request: Request, caller: AdminOrAuditor, gateway: GatewayDep
) -> AccessView:
    """End an emergency access before its time: one's own, or as an auditor anybody's."""
    _find(gateway, request, caller, grant_id)
    with gateway.database.write() as connection:
        now = gateway.clock.now(connection)
        grant = end_grant(connection, find_grant(connection, grant_id), now)
        _record(connection, gateway, caller, "ended", grant)
    return access_view(grant, now)


@router.post("/{grant_id}/acknowledge", responses=document(401, 403, 404, 409, 422, 429))
def acknowledge_access(grant_id: GrantId, caller: Auditor, gateway: GatewayDep) -> AccessView:
    """Say that an auditor has seen this emergency access; the notice to all auditors goes."""
    with gateway.database.write() as connection:
        now = gateway.clock.now(connection)
        grant = find_grant(connection, grant_id, AccessKind.BREAK_GLASS)
        grant = acknowledge_grant(connection, grant, caller.user_id, now)
        _record(connection, gateway, caller, "acknowledged", grant)
    return access_view(grant, now)


@router.get("/{grant_id}/conversation", responses=document(401, 403, 404, 410, 422, 429))
def read_conversation(
    grant_id: GrantId, request: Request, caller: AdminInPerson, gateway: GatewayDep
) -> TranscriptView:
    """The conversation unmasked, while the caller's emergency access to it is open. Each look is logged."""
    conversation_id = _look(gateway, request, caller, grant_id)
    return TranscriptView.model_validate(transcript_of(gateway, conversation_id, mask=False))


@router.get("/{grant_id}/images/{image_id}", response_class=PictureResponse, responses=PICTURES)
def read_image(
    grant_id: GrantId, image_id: ImageId, request: Request, caller: AdminInPerson, gateway: GatewayDep
) -> Response:
    """A picture of the conversation, while the caller's emergency access is open. Each look is logged."""
    conversation_id = _look(gateway, request, caller, grant_id, image_id=image_id)
    return picture_of(gateway, conversation_id, image_id)


def _look(
    gateway: Gateway, request: Request, caller: Principal, grant_id: str, *, image_id: str | None = None
) -> str:
    """Log that the caller reads, and return the conversation's id.

    Raises NotFound, and NotAllowed (which is logged) when the access is over.
    """
    _find(gateway, request, caller, grant_id)
    with gateway.database.write() as connection:
        grant = find_grant(connection, grant_id)
        is_open = grant.is_open(gateway.clock.now(connection))
        if is_open:
            details = {}
            if image_id is not None:
                find_picture(connection, grant.conversation_id, image_id)
                details["image"] = image_id
            _record(connection, gateway, caller, "read", grant, **details)
    if not is_open:
        of = f"conversation:{grant.conversation_id}"
        log_denial(gateway, request, caller, "the emergency access is over", of)
        raise NotAllowed(_OVER)
    return grant.conversation_id


def _find(gateway: Gateway, request: Request, caller: Principal, grant_id: str) -> None:
    """Raises NotFound for an emergency access that the caller may not know of (and logs another admin's)."""
    try:
        with gateway.database.read() as connection:
            grant = find_grant(connection, grant_id, AccessKind.BREAK_GLASS)
        if caller.role is Role.AUDITOR or grant.user_id == caller.user_id:
            return
    except NotFound:
        pass
    log_refused(gateway, request, caller, "access_grant", grant_id)
    raise NotFound(UNKNOWN)


def _record(
    connection: Connection,
    gateway: Gateway,
    caller: Principal,
    act: str,
    grant: AccessGrant,
    **details: int | str,
) -> None:
    record.append(
        connection,
        now=gateway.clock.now(connection),
        actor=caller.actor,
        action=f"break_glass.{act}",
        object=f"conversation:{grant.conversation_id}",
        details={"grant": grant.id, **details},
    )
