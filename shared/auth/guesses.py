"""Guesses at passwords: counted, judged, settled. Sessions and HTTP are not its matter.

Judging is slow by design, so it happens between two short writes and holds no lock of the database. The
first counts the guess as a failure, so that guesses at the same moment count one after another; the second
takes that back if the password was right, and still is.

Guesses of who is logged in are counted by their log-in, all others by the name: so strangers who guess at a
name keep out nobody who is in. Failures are forgotten a day after the last of them.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol

from sqlalchemy import Connection, Row, Select, select, update

from shared.audit import record
from shared.auth.accounts import Account
from shared.auth.passwords import check_password
from shared.auth.roles import AccountStatus
from shared.clock import Clock
from shared.db.tables import sessions, users
from shared.errors import AccountLocked, InvalidInput, NotAuthenticated

FREE_FAILURES = 5
MAX_LOCK_S = 900
FORGOTTEN_AFTER = timedelta(days=1)


#: What a guess is counted by: the account, or the log-in that it comes from.
_ACCOUNT: Select[Any] = select(users, users.c.failed_logins.label("failures"))
_LOGIN: Select[Any] = select(
    *(users.c.id, users.c.password_hash),
    *(sessions.c.failed_guesses.label("failures"), sessions.c.locked_until),
).join(sessions, sessions.c.user_id == users.c.id)


class Strangers(Protocol):
    """Counts guesses at names that nobody has, so that these lock as accounts do and tell nobody apart."""

    def guess(self, name: str) -> float:
        """Count a guess; seconds for which this name is locked, 0 when the guess may be made."""


@dataclass(frozen=True, kw_only=True)
class Guess:
    """A guess that was counted as a failure and is not settled yet."""

    #: None for a name that nobody has.
    user_id: str | None = None
    #: The log-in that it is counted by; None where it is counted by the account.
    sid: str | None = None
    #: What it is judged by.
    password_hash: str | None = None
    #: Failures in a row, this one included.
    failures: int = 0
    #: Until when this guess locks; that is the moment of the guess itself where failures are few.
    locked_until: datetime | None = None

    def judge(self, password: str) -> bool:
        """Whether the password is right. Slow: call it outside any transaction."""
        return check_password(password, self.password_hash)


@dataclass(frozen=True)
class _Settled:
    """What became of a guess: right only if the password is still the one it was judged by."""

    row: Row[Any] | None
    right: bool
    #: For how many seconds other guesses have locked what this one is counted by.
    locked_s: float
    now: datetime


def begin_login(connection: Connection, name: str, clock: Clock, strangers: Strangers) -> Guess:
    """Count a guess at this name's password.

    The fifth failure in a row, and each one after it, locks the name for 2, 4, 8 … seconds.
    Raises AccountLocked; commit even then: it is logged.
    """
    name = name.lower()
    # the row is locked, so that guesses at the same moment count one after another
    row = connection.execute(_ACCOUNT.where(users.c.name == name).with_for_update()).one_or_none()
    now = clock.now(connection)  # only now: waiting for the row may have taken long
    locked_s = strangers.guess(name) if row is None else _locked_s(row, now)
    if locked_s > 0:
        _log_refusal(connection, None if row is None else row.id, "locked", now)
        raise AccountLocked(retry_after_s=locked_s)
    return Guess() if row is None else _count(connection, row, now)


def settle_login(connection: Connection, guess: Guess, *, right: bool, clock: Clock) -> Account:
    """The account, if the guess was right.

    Raises NotAuthenticated or AccountLocked; commit even then: failures are logged.
    """
    settled = _settle(connection, guess, right, clock)
    row, now = settled.row, settled.now
    if row is None or not settled.right:
        _log_refusal(connection, guess.user_id, "wrong name or password", now)
        raise NotAuthenticated("The name or the password is wrong.")
    if settled.locked_s > 0:
        _log_refusal(connection, row.id, "locked", now)
        raise AccountLocked(retry_after_s=settled.locked_s)
    if row.status != AccountStatus.ACTIVE:
        _log_refusal(connection, row.id, row.status, now)
        waiting = "waits for an auditor's approval" if row.status == AccountStatus.PENDING else "is disabled"
        raise NotAuthenticated(f"This account {waiting}; ask an admin.")
    return Account.from_row(row)


def begin_own(connection: Connection, sid: str, *, actor: record.Actor, clock: Clock) -> Guess:
    """Count a guess at the password of somebody who is logged in, by this log-in.

    Raises AccountLocked; commit even then: it is logged.
    """
    row = connection.execute(_LOGIN.where(sessions.c.sid == sid).with_for_update()).one()
    now = clock.now(connection)
    locked_s = _locked_s(row, now)
    if locked_s > 0:
        _log_not_set(connection, row.id, "locked", actor, now)
        raise AccountLocked(retry_after_s=locked_s)
    return _count(connection, row, now, sid)


def settle_own(
    connection: Connection, guess: Guess, *, right: bool, actor: record.Actor, clock: Clock
) -> None:
    """Raises InvalidInput or AccountLocked unless the guess was right; commit even then."""
    settled = _settle(connection, guess, right, clock)
    if not settled.right:
        _log_not_set(connection, str(guess.user_id), "wrong current password", actor, settled.now)
        raise InvalidInput("The current password is wrong.")
    if settled.locked_s > 0:
        _log_not_set(connection, str(guess.user_id), "locked", actor, settled.now)
        raise AccountLocked(retry_after_s=settled.locked_s)


def lock_s(failures: int) -> float:
    """For how many seconds a name is locked after this many failures in a row."""
    exponent = min(failures - FREE_FAILURES + 1, 32)
    return min(2.0**exponent, MAX_LOCK_S) if exponent > 0 else 0.0


def _locked_s(row: Row[Any], now: datetime) -> float:
    if row.locked_until is None or not lock_s(row.failures):
        return 0.0
    left_s = (row.locked_until - now).total_seconds()
    return left_s if left_s <= MAX_LOCK_S else 0.0  # of before the clock was set back


def _lock_from(now: datetime, failures: int) -> datetime:
    return now + timedelta(seconds=lock_s(failures))


def _count(connection: Connection, row: Row[Any], now: datetime, sid: str | None = None) -> Guess:
    forgotten = row.locked_until is not None and row.locked_until <= now - FORGOTTEN_AFTER
    failures = 1 if forgotten else row.failures + 1
    lock = _lock_from(now, failures)
    guess = Guess(
        user_id=row.id, sid=sid, password_hash=row.password_hash, failures=failures, locked_until=lock
    )
    _write(connection, guess, failures, lock)
    return guess


def _write(connection: Connection, guess: Guess, failures: int, locked_until: datetime | None) -> None:
    """Keep how many failures there were by what the guess is counted by."""
    if guess.sid is None:
        values = {"failed_logins": failures, "locked_until": locked_until}
        connection.execute(update(users).where(users.c.id == guess.user_id).values(**values))
    else:
        values = {"failed_guesses": failures, "locked_until": locked_until}
        connection.execute(update(sessions).where(sessions.c.sid == guess.sid).values(**values))


def _settle(connection: Connection, guess: Guess, right: bool, clock: Clock) -> _Settled:
    """Take the failure back if the guess was right, else let its lock begin only now."""
    if guess.user_id is None:
        return _Settled(None, False, 0.0, clock.now(connection))
    counted = _ACCOUNT.where(users.c.id == guess.user_id)
    if guess.sid is not None:
        counted = _LOGIN.where(sessions.c.sid == guess.sid)
    row = connection.execute(counted.with_for_update()).one()
    now = clock.now(connection)
    same = row.password_hash == guess.password_hash
    locked_s = _locked_s(row, now) if row.locked_until != guess.locked_until else 0.0
    if right and same and locked_s <= 0:
        left = max(row.failures - guess.failures, 0)  # guesses that were counted since are not forgiven
        _write(connection, guess, left, row.locked_until if left else None)
    elif same and row.failures == guess.failures:
        _write(connection, guess, guess.failures, _lock_from(now, guess.failures))
    return _Settled(row, right and same, locked_s, now)


def _log_refusal(connection: Connection, user_id: str | None, reason: str, now: datetime) -> None:
    # the name that was typed is not kept: people type passwords there
    record.append(
        connection,
        now=now,
        actor=record.Actor(user_id or "anonymous"),
        action="session.refused",
        object=f"user:{user_id}" if user_id else None,
        outcome=record.Outcome.DENIED,
        reason=reason,
    )


def _log_not_set(
    connection: Connection, user_id: str, reason: str, actor: record.Actor, now: datetime
) -> None:
    record.append(
        connection,
        now=now,
        actor=actor,
        action="user.password_set",
        object=f"user:{user_id}",
        outcome=record.Outcome.FAILED,
        reason=reason,
    )
