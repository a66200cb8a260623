"""Legal holds, for admins and auditors: what must be kept for a case can be erased by nobody."""

import logging
from typing import Annotated

from fastapi import APIRouter, Query

from services.api.deps import AdminOrAuditor, GatewayDep
from services.api.errors import document
from services.api.paging import encode_cursor, older_than
from services.api.schemas import Page
from services.api.schemas_privacy import HoldBody, HoldView
from services.api.state import Gateway
from shared.audit import record
from shared.db.tables_privacy import legal_holds
from shared.logs import where
from shared.privacy import holds
from shared.privacy.held import hold_of, note_holds
from shared.privacy.holds import Hold, select_holds
from shared.storage import Storage

log = logging.getLogger(__name__)

router = APIRouter(prefix="/v1/holds", tags=["privacy"])


@router.post("", status_code=201, responses=document(401, 403, 404, 409, 413, 422, 429))
def place_hold(body: HoldBody, caller: AdminOrAuditor, gateway: GatewayDep) -> HoldView:
    """Hold a person, with every conversation of theirs, or one conversation."""
    kind, _, id = body.subject.partition(":")
    with gateway.database.write() as connection:
        hold_id = holds.place(
            connection,
            kind=kind,
            id=id,
            reference=body.reference,
            actor=caller.actor,
            now=gateway.clock.now(connection),
        )
    return _settled(gateway, hold_id)


@router.get("", responses=document(401, 403, 422, 429))
def list_holds(
    caller: AdminOrAuditor,
    gateway: GatewayDep,
    active: Annotated[bool, Query(description="Leave out those that were lifted.")] = False,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    cursor: Annotated[str | None, Query(max_length=200)] = None,
) -> Page[HoldView]:
    """Holds, the newest first; reading them is itself an event."""
    wanted = select_holds()
    if active:
        wanted = wanted.where(legal_holds.c.lifted_at.is_(None))
    if cursor is not None:
        wanted = wanted.where(older_than(legal_holds.c.placed_at, legal_holds.c.id, cursor))
    wanted = wanted.order_by(legal_holds.c.placed_at.desc(), legal_holds.c.id.desc()).limit(limit + 1)
    with gateway.database.write() as connection:
        now, details = gateway.clock.now(connection), {"active": active, "limit": limit}
        record.append(connection, now=now, actor=caller.actor, action="hold.read", details=details)
    with gateway.database.read() as connection:
        found = [Hold.from_row(row) for row in connection.execute(wanted)]
    more = encode_cursor(found[limit - 1].placed_at, found[limit - 1].id) if len(found) > limit else None
    return Page[HoldView](items=[_view(hold) for hold in found[:limit]], next_cursor=more)


@router.post("/{hold_id}/lift", responses=document(401, 403, 404, 409, 429))
def lift_hold(hold_id: str, caller: AdminOrAuditor, gateway: GatewayDep) -> HoldView:
    """End a hold; what it held can be erased again, and periods of retention count again."""
    with gateway.database.write() as connection:
        holds.lift(connection, hold_id, actor=caller.actor, now=gateway.clock.now(connection))
    return _settled(gateway, hold_id)


def _settled(gateway: Gateway, hold_id: str) -> HoldView:
    """After the commit: list the hold outside of the database, for restores, and show it."""
    with gateway.database.read() as connection:
        row = connection.execute(select_holds().where(legal_holds.c.id == hold_id)).one()
        listed = hold_of(connection, hold_id)
    try:
        note_holds(Storage.of_checkpoints(gateway.settings), [listed])
    except OSError as error:  # maintenance lists it later
        log.error("a legal hold could not be listed yet, see MEDICHAT_CHECKPOINT_URL: %s", where(error))
    return _view(Hold.from_row(row))


def _view(hold: Hold) -> HoldView:
    return HoldView(**hold.__dict__)
