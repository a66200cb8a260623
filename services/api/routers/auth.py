"""Log-in for programs: OAuth2 password form, refresh, logout."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from fastapi.security import OAuth2PasswordRequestForm
from pydantic import BaseModel, Field
from sqlalchemy import Connection

from services.api import credentials
from services.api.deps import Access, GatewayDep, Public
from services.api.errors import document
from services.api.schemas import Body
from shared.auth import sessions
from shared.auth.accounts import Account
from shared.auth.sessions import Principal, TokenPair

router = APIRouter(prefix="/v1/auth", tags=["log-in"])

_NO_KEYS = "An API key is not a log-in; revoke it with DELETE /v1/api-keys/{id}."


class Tokens(BaseModel):
    """What to send as `Authorization: Bearer …`, and what to renew it with."""

    access_token: str
    refresh_token: str
    token_type: str = "bearer"  # noqa: S105 - the name of the scheme
    expires_in: int


class RefreshBody(Body):
    """The newest refresh token of a log-in."""

    refresh_token: str = Field(max_length=200)


def address_of(request: Request) -> str:
    """The client's address, as uvicorn knows it."""
    return request.client.host if request.client else "unknown"


@router.post("/token", dependencies=[Public], responses=document(401, 413, 422, 429, 503))
def log_in(
    form: Annotated[OAuth2PasswordRequestForm, Depends()], request: Request, gateway: GatewayDep
) -> Tokens:
    """Log in with name and password (OAuth2 password form)."""

    def start(connection: Connection, account: Account, now: datetime) -> TokenPair:
        key = gateway.settings.secret("token_key")
        return sessions.start_token_session(connection, account, key=key, now=now)

    return _tokens(credentials.log_in(gateway, address_of(request), form.username, form.password, start))


@router.post("/refresh", dependencies=[Public], responses=document(401, 413, 422, 429, 503))
def refresh(body: RefreshBody, request: Request, gateway: GatewayDep) -> Tokens:
    """Trade a refresh token for new tokens. Using one twice ends the log-in: somebody has a copy."""
    return _tokens(credentials.refresh(gateway, address_of(request), body.refresh_token))


@router.post("/logout", status_code=204, responses=document(401, 403))
def log_out(
    caller: Annotated[Principal, Depends(Access(None, no_keys=_NO_KEYS))], gateway: GatewayDep
) -> Response:
    """End this log-in at once, with all its tokens."""
    with gateway.database.write() as connection:
        sessions.end(
            connection,
            caller.session_id,
            actor=caller.actor,
            now=gateway.clock.now(connection),
            reason="logout",
        )
    return Response(status_code=204)


def _tokens(pair: TokenPair) -> Tokens:
    return Tokens(
        access_token=pair.access_token, refresh_token=pair.refresh_token, expires_in=pair.expires_in
    )
