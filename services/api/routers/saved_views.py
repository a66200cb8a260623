"""Searches that an auditor keeps. Only they see them; their names and words are stored encrypted."""

from dataclasses import asdict

from fastapi import APIRouter, Request, Response

from services.api.deps import Auditor, GatewayDep
from services.api.errors import document
from services.api.owned import log_refused
from services.api.schemas_finding import ViewBody, ViewsView, ViewView
from shared.audit import record
from shared.errors import NotFound
from shared.saved_views import list_views, remove_view, save_view

router = APIRouter(prefix="/v1/audit/views", tags=["audit"])


@router.get("", responses=document(401, 403, 429))
def get_views(caller: Auditor, gateway: GatewayDep) -> ViewsView:
    """One's own views, by name."""
    with gateway.database.read() as connection:
        views = list_views(connection, gateway.envelope, caller.user_id)
    return ViewsView(items=[ViewView(**asdict(view)) for view in views])


@router.post("", status_code=201, responses=document(401, 403, 409, 410, 413, 422, 429))
def add_view(body: ViewBody, caller: Auditor, gateway: GatewayDep) -> ViewView:
    """Keep a search under a name."""
    filters = body.filters.model_dump(mode="json", exclude_none=True)
    with gateway.database.write() as connection:
        now = gateway.clock.now(connection)
        view = save_view(
            connection, gateway.envelope, user_id=caller.user_id, name=body.name, filters=filters, now=now
        )
        record.append(connection, now=now, actor=caller.actor, action="view.saved", object=f"view:{view.id}")
    return ViewView(**asdict(view))


@router.delete("/{view_id}", status_code=204, responses=document(401, 403, 404, 422, 429))
def delete_view(view_id: str, request: Request, caller: Auditor, gateway: GatewayDep) -> Response:
    """Delete a view of one's own."""
    with gateway.database.write() as connection:
        removed = remove_view(connection, caller.user_id, view_id)
        if removed:
            record.append(
                connection,
                now=gateway.clock.now(connection),
                actor=caller.actor,
                action="view.removed",
                object=f"view:{view_id}",
            )
    if not removed:
        log_refused(gateway, request, caller, "view", view_id)
        raise NotFound("There is no view of yours under this id.")
    return Response(status_code=204)
