"""What a route may ask for in its signature: the gateway, and who is calling. It answers nothing.

Every route declares who may call it, by one of `Asker`, `Reader`, `AnyUser`, `Admin`, `Auditor`,
`AdminOrAuditor` in its signature or `Public` among its dependencies; a test walks all routes for it.
"""

from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import OAuth2PasswordBearer

from services.api.identify import Caller, Knock
from services.api.patience import in_time
from services.api.state import Gateway
from services.api.together import Together
from shared.audit import record
from shared.auth.roles import Role, Scope
from shared.auth.sessions import Principal
from shared.errors import ConsentRequired, LimitReached, NotAllowed, NotAuthenticated, PasswordRequired

#: Sent by a page that looks again by itself, so that it does not keep an unused log-in alive.
WATCHING_HEADER = "X-MediChat-Poll"

_NO_KEYS = "This asks for a person's password, so it cannot be done with an API key; log in."

_bearer = OAuth2PasswordBearer(tokenUrl="v1/auth/token", auto_error=False)


async def get_gateway(request: Request) -> Gateway:
    """The gateway that this application opened at its start."""
    gateway: Gateway = request.app.state.gateway
    return gateway


GatewayDep = Annotated[Gateway, Depends(get_gateway)]


async def get_principal(request: Request, bearer: Annotated[str | None, Depends(_bearer)]) -> Principal:
    """Who is calling; looked up and counted once a request. Raises NotAuthenticated or LimitReached."""
    if not bearer:
        raise NotAuthenticated("Send a bearer token: log in with POST /v1/auth/token.")
    door: Together[Knock, Caller] = request.app.state.door
    caller = await in_time(door(Knock(bearer, watching=WATCHING_HEADER in request.headers)))
    if caller.wait_s is not None:
        raise LimitReached(
            "Too many requests in one minute; wait and try again.", retry_after_s=caller.wait_s
        )
    return caller.principal


def act_of(request: Request) -> dict[str, str]:
    """Method and route, as the log names what was asked for; the ids in the address are left out."""
    return {"method": request.method, "route": request.scope["route"].path}


def log_denial(
    gateway: Gateway, request: Request, caller: Principal, reason: str, object: str | None = None
) -> None:
    """Log that the caller was not allowed what they asked for, in a transaction of its own."""
    with gateway.database.write() as connection:
        record.append(
            connection,
            now=gateway.clock.now(connection),
            actor=caller.actor,
            action="access.denied",
            object=object,
            outcome=record.Outcome.DENIED,
            reason=reason,
            details=act_of(request),
        )


@dataclass(frozen=True)
class Access:
    """A dependency that lets only some callers through."""

    role: Role | None
    #: One of these is enough; none is needed when there are none.
    scopes: frozenset[Scope] = frozenset()
    consent: bool = False
    #: Another role, and its scope, that may call as well.
    also: tuple[Role, Scope] | None = None
    #: What an API key is told where only a person who is logged in may call; None where keys may call too.
    no_keys: str | None = None
    #: Whether the password must have been typed within `password_minutes`; keys may not call then.
    password: bool = False

    async def __call__(
        self,
        request: Request,
        gateway: GatewayDep,
        principal: Annotated[Principal, Depends(get_principal)],
    ) -> Principal:
        """Raises NotAuthenticated, LimitReached, NotAllowed (and logs it), ConsentRequired or
        PasswordRequired.
        """
        if not self._lets_in(principal):
            reason = f"needs role {self.role} and scope {' or '.join(sorted(self.scopes))}"
            await gateway.threads.in_time(partial(log_denial, gateway, request, principal, reason))
            raise NotAllowed(self._missing_scope(principal))
        no_keys = self.no_keys or (_NO_KEYS if self.password else None)
        if no_keys is not None and principal.kind == "key":
            denied = partial(log_denial, gateway, request, principal, "not for API keys")
            await gateway.threads.in_time(denied)
            raise NotAllowed(no_keys)
        if self.password and not _typed_lately(gateway, principal):
            raise PasswordRequired
        if self.consent and not principal.consented:
            raise ConsentRequired
        return principal

    def _lets_in(self, principal: Principal) -> bool:
        if self.also is not None and principal.role is self.also[0]:
            return self.also[1] in principal.scopes
        if self.role is not None and principal.role is not self.role:
            return False
        return not self.scopes or bool(self.scopes & principal.scopes)

    def _missing_scope(self, principal: Principal) -> str | None:
        """What to do about a key whose owner may call this; None when the role is what is wrong."""
        if self.also is not None and principal.role is self.also[0]:
            scopes = frozenset({self.also[1]})
        elif self.role in (None, principal.role):
            scopes = self.scopes
        else:
            return None
        wanted = " or ".join(f"`{scope}`" for scope in sorted(scopes))
        return f"This API key needs the scope {wanted}; make a key that has it: POST /v1/api-keys."


def _typed_lately(gateway: Gateway, principal: Principal) -> bool:
    most = timedelta(minutes=gateway.settings.password_minutes)
    return principal.password_age is not None and principal.password_age <= most


async def everyone() -> None:
    """Lets everyone through, logged in or not."""


_ASK, _READ = frozenset({Scope.ASK}), frozenset({Scope.ASK, Scope.READ})

Asker = Annotated[Principal, Depends(Access(Role.USER, _ASK, consent=True))]
Reader = Annotated[Principal, Depends(Access(Role.USER, _READ, consent=True))]
AnyUser = Annotated[Principal, Depends(Access(None))]
Admin = Annotated[Principal, Depends(Access(Role.ADMIN, frozenset({Scope.ADMIN})))]
AdminOrAuditor = Annotated[
    Principal, Depends(Access(Role.ADMIN, frozenset({Scope.ADMIN}), also=(Role.AUDITOR, Scope.AUDIT)))
]
Auditor = Annotated[Principal, Depends(Access(Role.AUDITOR, frozenset({Scope.AUDIT})))]
Public = Depends(everyone)
