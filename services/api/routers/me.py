"""What a person may know and change of their own account."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel, Field

from services.api import credentials
from services.api.deps import Access, AnyUser, GatewayDep
from services.api.errors import document
from services.api.schemas import Body
from shared.auth import accounts
from shared.auth.consent import CONSENT_TEXT, CONSENT_VERSION
from shared.auth.roles import Role
from shared.auth.sessions import Principal
from shared.auth.set_passwords import count_used, password_set_for
from shared.errors import InvalidInput
from shared.privacy.grants import count_unacknowledged

router = APIRouter(prefix="/v1/me", tags=["account"])

_NO_KEY_CONSENTS = "The disclaimer is accepted by a person who is logged in, not by an API key."
_NO_KEY_PROOFS = "A password is typed by a person who is logged in, not sent with an API key."
_NO_KEY_CHANGES = "A password can be changed by a person who is logged in, not by an API key."


class ConsentView(BaseModel):
    """What is to be accepted before the first question."""

    version: str
    text: str


class SessionView(BaseModel):
    """How the caller is logged in."""

    kind: str
    expires_at: datetime | None


class MeView(BaseModel):
    """The caller."""

    id: str
    name: str
    role: str
    audience: str
    consented: bool
    consent: ConsentView
    session: SessionView
    #: The model that answers, by its catalogue name.
    model: str
    #: Whether an admin has stopped all answers for now.
    answers_stopped: bool
    #: How many characters a question may have.
    max_query_chars: int
    #: How many pictures may come with a question; 0 where the model sees none.
    max_images: int
    #: For auditors: emergency accesses of admins that no auditor has acknowledged; 0 for all others.
    break_glass_waiting: int
    #: For auditors: accounts that were logged in to with a password that another set; 0 for all others.
    set_passwords_used: int
    #: The role of who set the caller's password, or `operator`, and when; null once the caller changed it.
    password_set_by: str | None
    password_set_at: datetime | None


class ConsentBody(Body):
    """The version of the text that was shown."""

    version: str = Field(max_length=32, examples=[CONSENT_VERSION])


class PasswordBody(Body):
    """The password now, and the one from now on."""

    current: str = Field(max_length=500)
    new: str = Field(max_length=500)


class ReauthenticateBody(Body):
    """One's own password."""

    password: str = Field(max_length=500)


@router.get("", responses=document(401, 429))
def me(caller: AnyUser, gateway: GatewayDep) -> MeView:
    """Who is calling."""
    auditor = caller.role is Role.AUDITOR
    with gateway.database.read() as connection:
        waiting = count_unacknowledged(connection) if auditor else 0
        used = count_used(connection) if auditor else 0
        password = password_set_for(connection, caller.user_id)
    return MeView(
        id=caller.user_id,
        name=caller.name,
        role=caller.role,
        audience=caller.audience,
        consented=caller.consented,
        consent=ConsentView(version=CONSENT_VERSION, text=CONSENT_TEXT),
        session=SessionView(kind=caller.kind, expires_at=caller.expires_at),
        model=gateway.settings.model,
        answers_stopped=gateway.guards.now.stopped,
        max_query_chars=gateway.settings.max_query_chars,
        max_images=gateway.pictures.most,
        break_glass_waiting=waiting,
        set_passwords_used=used,
        password_set_by=password.set_by_role if password else None,
        password_set_at=password.set_at if password else None,
    )


@router.post("/consent", responses=document(401, 403, 413, 422, 429))
def consent(
    body: ConsentBody,
    caller: Annotated[Principal, Depends(Access(None, no_keys=_NO_KEY_CONSENTS))],
    gateway: GatewayDep,
) -> ConsentView:
    """Accept the disclaimer; recorded once."""
    if body.version != CONSENT_VERSION:
        raise InvalidInput("This is not the current version of the text; read GET /v1/me again.")
    with gateway.database.write() as connection:
        now = gateway.clock.now(connection)
        accounts.record_consent(connection, caller.user_id, actor=caller.actor, now=now)
    return ConsentView(version=CONSENT_VERSION, text=CONSENT_TEXT)


@router.post("/password", status_code=204, responses=document(401, 403, 413, 422, 429))
def change_password(
    body: PasswordBody,
    caller: Annotated[Principal, Depends(Access(None, no_keys=_NO_KEY_CHANGES))],
    gateway: GatewayDep,
) -> Response:
    """Change one's own password; every log-in of the account ends."""
    credentials.change_password(gateway, caller, body.current, body.new)
    return Response(status_code=204)


@router.post("/reauthenticate", status_code=204, responses=document(401, 403, 413, 422, 429))
def reauthenticate(
    body: ReauthenticateBody,
    caller: Annotated[Principal, Depends(Access(None, no_keys=_NO_KEY_PROOFS))],
    gateway: GatewayDep,
) -> Response:
    """Type one's password again: what exports, erases or reveals asks for it."""
    credentials.reauthenticate(gateway, caller, body.password)
    return Response(status_code=204)
