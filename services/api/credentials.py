"""Judges passwords for those who log in or change theirs, outside any transaction. It knows no route."""

import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import TypeVar

from sqlalchemy import Connection

from services.api.state import Gateway
from shared.auth import accounts, guesses, sessions
from shared.auth.accounts import Account
from shared.auth.passwords import check_length, hash_password
from shared.auth.sessions import Principal, TokenPair
from shared.db import Database
from shared.errors import LimitReached, MediChatError

T = TypeVar("T")
#: Guesses at one account, or of one log-in, are judged one after another here, so that nobody who sends
#: several at once is taken for somebody who guesses. Between gateways it is enough to count before judging.
_TURNS = tuple(threading.Lock() for _ in range(64))


def log_in(
    gateway: Gateway,
    address: str,
    name: str,
    password: str,
    start: Callable[[Connection, Account, datetime], T],
) -> T:
    """What `start` makes of the account: the log-in begins in the transaction that lets the person in.

    Failures are counted and logged whatever becomes of the request.
    Raises NotAuthenticated, AccountLocked, LimitReached, or Unavailable without Redis.
    """
    wait_s = gateway.limiter.require(f"login:{address}", gateway.settings.logins_per_minute)
    if wait_s is not None:
        raise LimitReached("Too many log-ins from this address; wait and try again.", retry_after_s=wait_s)
    clock, strangers = gateway.clock, gateway.limiter.strangers(gateway.envelope.fingerprint)

    def settle(connection: Connection) -> T:
        account = guesses.settle_login(connection, guess, right=right, clock=clock)
        return start(connection, account, clock.now(connection))

    with _turn(name):
        guess = _committed(
            gateway.database, lambda connection: guesses.begin_login(connection, name, clock, strangers)
        )
        right = guess.judge(password)
        return _committed(gateway.database, settle)


def refresh(gateway: Gateway, address: str, token: str) -> TokenPair:
    """New tokens for a refresh token. Failures are logged.

    Without Redis whoever is logged in stays so, and other tokens are not looked at any further.
    Raises NotAuthenticated, LimitReached, or Unavailable without Redis.
    """
    with gateway.database.read() as connection:  # a write is others' time, and this may come from anybody
        sid = sessions.session_of(connection, token)
    # a log-in is counted by itself: many may share an address, and strangers there must not end them
    limiter, most = gateway.limiter, gateway.settings.logins_per_minute
    wait_s = limiter.require(f"refresh:{address}", most) if sid is None else limiter.allow(f"sid:{sid}", most)
    if wait_s is not None:
        raise LimitReached("Too many refreshes in one minute; wait and try again.", retry_after_s=wait_s)
    key = gateway.settings.secret("token_key")
    idle = timedelta(minutes=gateway.settings.session_idle_minutes)

    def trade(connection: Connection) -> TokenPair:
        return sessions.refresh(connection, token, key=key, idle=idle, now=gateway.clock.now(connection))

    return _committed(gateway.database, trade)


def change_password(gateway: Gateway, caller: Principal, current: str, new: str) -> None:
    """Set one's own password and end every log-in of the account. Raises InvalidInput or AccountLocked."""
    check_length(new)
    clock, actor = gateway.clock, caller.actor

    def begin(connection: Connection) -> guesses.Guess:
        return guesses.begin_own(connection, caller.session_id, actor=actor, clock=clock)

    def settle(connection: Connection) -> None:
        guesses.settle_own(connection, guess, right=right, actor=actor, clock=clock)
        now = clock.now(connection)
        accounts.set_password(connection, caller.user_id, new_hash, actor=actor, now=now)

    with _turn(caller.session_id):
        guess = _committed(gateway.database, begin)
        right = guess.judge(current)
        new_hash = hash_password(new) if right else ""
        _committed(gateway.database, settle)


def reauthenticate(gateway: Gateway, caller: Principal, password: str) -> None:
    """Let the caller do what asks for the password again. Raises InvalidInput or AccountLocked."""
    clock, actor = gateway.clock, caller.actor

    def begin(connection: Connection) -> guesses.Guess:
        return guesses.begin_own(connection, caller.session_id, actor=actor, clock=clock)

    def settle(connection: Connection) -> None:
        guesses.settle_own(connection, guess, right=right, actor=actor, clock=clock)
        sessions.reauthenticate(connection, caller, clock.now(connection))

    with _turn(caller.session_id):
        guess = _committed(gateway.database, begin)
        right = guess.judge(password)
        _committed(gateway.database, settle)


def _committed(database: Database, act: Callable[[Connection], T]) -> T:
    """The act in one write. A refusal is raised only once the rows that it wrote are committed."""
    with database.write() as connection:
        try:
            return act(connection)
        except MediChatError as error:
            refused = error
    raise refused


def _turn(name: str) -> threading.Lock:
    return _TURNS[hash(name.lower()) % len(_TURNS)]
