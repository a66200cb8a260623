"""Finds out who is calling, for many callers at once. Whether they may do what they ask is not its matter."""

from dataclasses import dataclass
from datetime import timedelta

from services.api.state import Gateway
from shared.auth import sessions
from shared.auth.sessions import Principal
from shared.errors import NotAuthenticated


@dataclass(frozen=True)
class Knock:
    """A bearer token, and whether it came by itself: a page that merely watches is no use of a log-in."""

    bearer: str
    watching: bool = False


@dataclass(frozen=True)
class Caller:
    """Who is calling, and for how many seconds they must wait if they called too often (else None)."""

    principal: Principal
    wait_s: float | None


def identify(gateway: Gateway, knocks: list[Knock]) -> list[Caller | Exception]:
    """The caller behind each bearer token, or NotAuthenticated; each is counted as one request.

    One read for all: a session that ended before this began is not found.
    """
    settings = gateway.settings
    found: list[Principal | NotAuthenticated] = []
    with gateway.database.read() as connection:
        now = gateway.clock.now(connection)
        for knock in knocks:
            try:
                principal = sessions.resolve(
                    connection,
                    knock.bearer,
                    key=settings.secret("token_key"),
                    idle=timedelta(minutes=settings.session_idle_minutes),
                    now=now,
                )
            except NotAuthenticated as error:
                found.append(error)
            else:
                found.append(principal)
    due = {
        one.session_id: one
        for one, knock in zip(found, knocks, strict=True)
        if isinstance(one, Principal) and one.note_due and not knock.watching
    }
    if due:
        with gateway.database.write() as connection:
            for principal in due.values():
                sessions.note_use(connection, principal, now)
    return [
        one if isinstance(one, NotAuthenticated) else Caller(one, _wait_s(gateway, one.user_id))
        for one in found
    ]


def _wait_s(gateway: Gateway, user_id: str) -> float | None:
    return gateway.limiter.allow(f"user:{user_id}", gateway.settings.requests_per_minute)
