"""Finds out who is calling, for many callers at once. Whether they may do what they ask is not its matter."""

import logging
from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy.exc import OperationalError

from services.api.state import Gateway
from shared.auth import api_keys, sessions
from shared.auth.sessions import Principal
from shared.errors import KeyRefused, NotAuthenticated
from shared.logs import where

log = logging.getLogger(__name__)


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

    One read for all, and one look for a token that came several times: a session that ended before this
    began is not found. The use of an API key that was good once is an event, about one a minute for each key.
    """
    settings = gateway.settings
    known: dict[str, Principal | NotAuthenticated] = {}
    with gateway.database.read() as connection:
        now = gateway.clock.now(connection)
        for bearer in {knock.bearer for knock in knocks}:
            try:
                known[bearer] = sessions.resolve(
                    connection,
                    bearer,
                    key=settings.secret("token_key"),
                    idle=timedelta(minutes=settings.session_idle_minutes),
                    now=now,
                )
            except NotAuthenticated as error:
                known[bearer] = error
    found = [known[knock.bearer] for knock in knocks]
    due = {
        one.session_id: one
        for one, knock in zip(found, knocks, strict=True)
        if isinstance(one, Principal) and one.note_due and not knock.watching
    }
    if due:
        _note_use(gateway, list(due.values()), now)
    _note_refused(gateway, [one for one in known.values() if isinstance(one, KeyRefused)], now)
    waits = {
        user_id: iter(gateway.limiter.allow_each(f"user:{user_id}", settings.requests_per_minute, count))
        for user_id, count in Counter(one.user_id for one in found if isinstance(one, Principal)).items()
    }
    return [
        one if isinstance(one, NotAuthenticated) else Caller(one, next(waits[one.user_id])) for one in found
    ]


def _note_use(gateway: Gateway, due: list[Principal], now: datetime) -> None:
    """Note that log-ins are used. Where a full disk forbids it they may read on, until the last note is too
    old: then they end as if they had not been used.
    """
    try:
        with gateway.database.write() as connection:
            for principal in due:
                sessions.note_use(connection, principal, now)
    except OperationalError as error:
        log.error("the use of %d log-ins could not be noted: %s", len(due), where(error))


def _note_refused(gateway: Gateway, refused: list[KeyRefused], now: datetime) -> None:
    """Log that keys were refused. Without room or peace to write they stay outside all the same."""
    due = [one for one in refused if gateway.limiter.allow(f"refused-key:{one.key_id}", 1) is None]
    if not due:
        return
    try:
        with gateway.database.write() as connection:
            for one in due:
                api_keys.log_refused(connection, one, now)
    except OperationalError as error:
        log.error("the use of %d refused API keys could not be logged: %s", len(due), where(error))
