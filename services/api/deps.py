"""What a route may ask for in its signature: the gateway, and who is calling. It answers nothing.

Every route declares who may call it, by one of `Asker`, `AnyUser`, `Admin`, `Auditor` in its
signature or `Public` among its dependencies; a test walks all routes for it.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import OAuth2PasswordBearer

from services.api.state import Gateway
from shared.audit import record
from shared.auth import sessions
from shared.auth.roles import Role, Scope
from shared.auth.sessions import Principal
from shared.errors import ConsentRequired, LimitReached, NotAllowed, NotAuthenticated

_bearer = OAuth2PasswordBearer(tokenUrl="v1/auth/token", auto_error=False)


async def get_gateway(request: Request) -> Gateway:
    """The gateway that this application opened at its start."""
    gateway: Gateway = request.app.state.gateway
    return gateway


GatewayDep = Annotated[Gateway, Depends(get_gateway)]


def authenticate(gateway: Gateway, bearer: str | None) -> Principal:
    """Who is calling. Raises NotAuthenticated."""
    if not bearer:
        raise NotAuthenticated("Send a bearer token: log in with POST /v1/auth/token.")
    with gateway.database.read() as connection:
        now = gateway.clock.now(connection)
        principal = sessions.resolve(
            connection,
            bearer,
            key=gateway.settings.secret("token_key"),
            idle=timedelta(minutes=gateway.settings.session_idle_minutes),
            now=now,
        )
    if principal.note_due:
        with gateway.database.write() as connection:
            sessions.note_use(connection, principal, now)
    return principal


@dataclass(frozen=True)
class Access:
    """A dependency that lets only some callers through."""

    role: Role | None
    scope: Scope | None
    consent: bool = False

    def __call__(self, gateway: GatewayDep, bearer: Annotated[str | None, Depends(_bearer)]) -> Principal:
        """Raises NotAuthenticated, NotAllowed (and logs it), ConsentRequired or LimitReached."""
        caller = authenticate(gateway, bearer)
        if (self.role is not None and caller.role is not self.role) or (
            self.scope is not None and self.scope not in caller.scopes
        ):
            with gateway.database.write() as connection:
                record.append(
                    connection,
                    now=gateway.clock.now(connection),
                    actor=caller.actor,
                    action="access.denied",
                    outcome=record.Outcome.DENIED,
                    reason=f"needs role {self.role} and scope {self.scope}",
                )
            raise NotAllowed
        if self.consent and not caller.consented:
            raise ConsentRequired
        wait_s = gateway.limiter.allow(f"user:{caller.user_id}", gateway.settings.requests_per_minute)
        if wait_s is not None:
            raise LimitReached("Too many requests in one minute; wait and try again.", retry_after_s=wait_s)
        return caller


async def everyone() -> None:
    """Lets everyone through, logged in or not."""


Asker = Annotated[Principal, Depends(Access(Role.USER, Scope.ASK, consent=True))]
AnyUser = Annotated[Principal, Depends(Access(None, None))]
Admin = Annotated[Principal, Depends(Access(Role.ADMIN, Scope.ADMIN))]
Auditor = Annotated[Principal, Depends(Access(Role.AUDITOR, Scope.AUDIT))]
Public = Depends(everyone)
