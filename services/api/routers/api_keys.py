"""A person's own API keys."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, Field

from services.api.deps import Access, AnyUser, GatewayDep
from services.api.errors import document
from services.api.owned import log_refused
from services.api.schemas import Body, Moment, Page, PlainText
from shared.auth import api_keys
from shared.auth.api_keys import ApiKey
from shared.auth.roles import Scope
from shared.auth.sessions import Principal
from shared.errors import NotFound

router = APIRouter(prefix="/v1/api-keys", tags=["account"])

_NO_KEYS = "Keys are made and revoked by a person who is logged in, not by another key."
KeyOwner = Annotated[Principal, Depends(Access(None, no_keys=_NO_KEYS))]


class KeyView(BaseModel):
    """A key, without its secret."""

    id: str
    name: str
    hint: str
    scopes: list[Scope]
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    revoked_at: datetime | None


class NewKeyView(KeyView):
    """A new key; `key` is shown once."""

    key: str


class NewKeyBody(Body):
    """A key to make."""

    name: PlainText = Field(max_length=100, examples=["ward tablet"])
    scopes: list[Scope] = Field(min_length=1, max_length=len(Scope))
    expires_at: Moment | None = None


@router.get("", responses=document(401, 429))
def list_keys(caller: AnyUser, gateway: GatewayDep) -> Page[KeyView]:
    """One's own keys, the newest first."""
    with gateway.database.read() as connection:
        keys = api_keys.list_keys(connection, caller.user_id)
    return Page[KeyView](items=[_view(key) for key in keys], next_cursor=None)


@router.post("", status_code=201, responses=document(401, 403, 413, 422, 429))
def create_key(body: NewKeyBody, caller: KeyOwner, gateway: GatewayDep) -> NewKeyView:
    """Make a key for a program; it can do what its scopes say, and no more than its owner."""
    with gateway.database.write() as connection:
        secret, key = api_keys.create_key(
            connection,
            user_id=caller.user_id,
            role=caller.role,
            name=body.name,
            scopes=body.scopes,
            expires_at=body.expires_at,
            actor=caller.actor,
            now=gateway.clock.now(connection),
        )
    return NewKeyView(**_view(key).model_dump(), key=secret)


@router.delete("/{key_id}", status_code=204, responses=document(401, 403, 404, 429))
def revoke_key(key_id: str, request: Request, caller: KeyOwner, gateway: GatewayDep) -> Response:
    """Revoke a key at once."""
    try:
        with gateway.database.write() as connection:
            now = gateway.clock.now(connection)
            api_keys.revoke_key(connection, key_id, user_id=caller.user_id, actor=caller.actor, now=now)
    except NotFound:
        log_refused(gateway, request, caller, "api_key", key_id)
        raise
    return Response(status_code=204)


def _view(key: ApiKey) -> KeyView:
    return KeyView(**key.__dict__)
