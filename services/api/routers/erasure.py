"""A person's data: exported for them, and erased for them or by an admin. Erasing cannot be undone."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from sqlalchemy import select
from starlette.responses import StreamingResponse

from services.api import erasing
from services.api.deps import Access, GatewayDep, log_denial
from services.api.errors import document
from services.api.export import FILE_NAME, zipped
from services.api.owned import log_refused
from services.api.schemas_privacy import AdapterSeenView, ErasedView, ErasePersonBody
from services.api.state import Gateway
from shared.audit import record
from shared.auth import accounts
from shared.auth.roles import Role, Scope
from shared.auth.sessions import Principal
from shared.db.tables import conversations
from shared.errors import Conflict, InvalidInput, NotFound, OnHold
from shared.privacy.own_data import OwnData

router = APIRouter(prefix="/v1", tags=["privacy"])

#: Everybody for what is their own, whatever their role is now; consent is no condition of that.
Person = Annotated[Principal, Depends(Access(None, password=True))]
Admin = Annotated[Principal, Depends(Access(Role.ADMIN, frozenset({Scope.ADMIN}), password=True))]


@router.get(
    "/me/export",
    response_class=StreamingResponse,
    responses={**document(401, 403, 429), 200: {"content": {"application/zip": {}}}},
)
def export_own_data(caller: Person, gateway: GatewayDep) -> StreamingResponse:
    """What is kept about the caller, as a zip of `data.json` and a readable `data.html`.

    Its last part, `left_out`, says what is not in it: secrets, what the guard kept from the caller, and what
    others wrote.
    """
    with gateway.database.write() as connection:
        record.append(
            connection,
            now=gateway.clock.now(connection),
            actor=caller.actor,
            action="data.exported",
            object=f"user:{caller.user_id}",
        )
    own = OwnData(gateway.database, gateway.envelope, caller.user_id)
    headers = {"Content-Disposition": f'attachment; filename="{FILE_NAME}"'}
    return StreamingResponse(zipped(own), media_type="application/zip", headers=headers)


@router.post("/me/erase", responses=document(401, 403, 409, 413, 422, 429))
def erase_oneself(body: ErasePersonBody, request: Request, caller: Person, gateway: GatewayDep) -> ErasedView:
    """Erase one's account and every conversation, for good; every log-in ends."""
    return _erase_person(gateway, request, caller, caller.user_id, body.name)


@router.post("/users/{user_id}/erase", responses=document(401, 403, 404, 409, 413, 422, 429))
def erase_user(
    user_id: str, body: ErasePersonBody, request: Request, caller: Admin, gateway: GatewayDep
) -> ErasedView:
    """Erase a person's account and every conversation, for good. What they uploaded to train on stays."""
    return _erase_person(gateway, request, caller, user_id, body.name)


@router.post("/conversations/{conversation_id}/erase", responses=document(401, 403, 404, 409, 429))
def erase_conversation(
    conversation_id: str, request: Request, caller: Person, gateway: GatewayDep
) -> ErasedView:
    """Erase one's conversation, hidden or not, for good: nobody can read it any more, auditors neither."""
    with gateway.database.read() as connection:
        found = select(conversations.c.user_id).where(conversations.c.id == conversation_id)
        owner = connection.execute(found).scalar_one_or_none()
    if owner != caller.user_id:
        log_refused(gateway, request, caller, "conversation", conversation_id)
        raise NotFound("There is no conversation of yours under this id.")
    try:
        return _view(erasing.erase_conversation(gateway, conversation_id, actor=caller.actor))
    except OnHold:
        log_denial(gateway, request, caller, "legal hold", f"conversation:{conversation_id}")
        raise


@router.post("/datasets/{dataset_id}/erase", responses=document(401, 403, 404, 409, 429))
def erase_dataset(dataset_id: str, request: Request, caller: Admin, gateway: GatewayDep) -> ErasedView:
    """Destroy a dataset's key and files, for good, and end all work on it; adapters trained on it stay."""
    try:
        return _view(erasing.erase_data(gateway, dataset_id, actor=caller.actor))
    except OnHold as error:
        log_denial(gateway, request, caller, "legal hold", f"dataset:{dataset_id}")
        raise Conflict(
            "Rows of this dataset come from a conversation that is held for a case; lift the hold first: "
            f"{', '.join(error.holds)}."
        ) from error


def _erase_person(
    gateway: Gateway, request: Request, caller: Principal, user_id: str, typed: str
) -> ErasedView:
    with gateway.database.read() as connection:
        account = accounts.get_account(connection, user_id)
    if typed.lower() != account.name:
        raise InvalidInput("This is not the name of the account; type its name to erase it.")
    try:
        return _view(erasing.erase_person(gateway, user_id, actor=caller.actor))
    except OnHold as error:
        log_denial(gateway, request, caller, "legal hold", f"user:{user_id}")
        if caller.role is not Role.ADMIN:
            raise
        raise Conflict(
            "This person, or a conversation of theirs, is held for a case; lift the hold first: "
            f"{', '.join(error.holds)}."
        ) from error
    except Conflict as error:
        log_denial(gateway, request, caller, error.detail, f"user:{user_id}")
        raise


def _view(outcome: erasing.Outcome) -> ErasedView:
    return ErasedView(
        conversations=len(outcome.conversations),
        conversations_left=outcome.conversations_left,
        keys=len(outcome.key_ids),
        datasets=outcome.datasets,
        adapters=[AdapterSeenView(**each.__dict__) for each in outcome.adapters],
    )
