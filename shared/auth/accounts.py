"""Accounts: made, changed, approved, locked. Sessions and HTTP are not its matter.

Every change is logged in the transaction that makes it.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol

from sqlalchemy import Connection, Row, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from shared.audit import record
from shared.auth.consent import CONSENT_VERSION
from shared.auth.passwords import check_password, hash_password, new_password
from shared.auth.roles import AccountStatus, Role
from shared.clock import Clock
from shared.db.tables import api_keys, sessions, users
from shared.errors import AccountLocked, Conflict, InvalidInput, NotAllowed, NotAuthenticated, NotFound
from shared.guard.verdict import Audience
from shared.ids import new_id

FREE_FAILURES = 5
MAX_LOCK_S = 900


@dataclass(frozen=True, kw_only=True)
class Account:
    """A person's account, without the password."""

    id: str
    name: str
    role: Role
    audience: Audience
    status: AccountStatus
    consented_at: datetime | None
    created_at: datetime

    @classmethod
    def from_row(cls, row: Row[Any]) -> "Account":
        """Build from a row of `users`."""
        return cls(
            id=row.id,
            name=row.name,
            role=Role(row.role),
            audience=Audience(row.audience),
            status=AccountStatus(row.status),
            consented_at=row.consented_at,
            created_at=row.created_at,
        )


def create_first_users(connection: Connection, now: datetime) -> list[tuple[str, str, str]]:
    """One log-in per role with a random password, when there are no users at all.

    Returns (name, role, password) of each made; an empty list when there were users.
    """
    if connection.execute(select(func.count()).select_from(users)).scalar_one():
        return []
    made = []
    for role in Role:
        password = new_password()
        _insert(
            connection,
            name=role.value,
            role=role,
            audience=Audience.PATIENT,
            status=AccountStatus.ACTIVE,
            password=password,
            actor=record.SYSTEM_ACTOR,
            now=now,
        )
        made.append((role.value, role.value, password))
    return made


def create_account(
    connection: Connection,
    *,
    name: str,
    role: Role,
    audience: Audience,
    password: str,
    actor: record.Actor,
    now: datetime,
) -> Account:
    """Make an account; an auditor's waits for an auditor's yes. Raises Conflict for a taken name."""
    status = AccountStatus.PENDING if role is Role.AUDITOR else AccountStatus.ACTIVE
    try:
        user_id = _insert(
            connection,
            name=name.lower(),
            role=role,
            audience=audience,
            status=status,
            password=password,
            actor=actor,
            now=now,
        )
    except IntegrityError as error:
        raise Conflict("This name is taken; choose another.") from error
    return get_account(connection, user_id)


def get_account(connection: Connection, user_id: str) -> Account:
    """One account. Raises NotFound."""
    row = connection.execute(select(users).where(users.c.id == user_id)).one_or_none()
    if row is None:
        raise NotFound
    return Account.from_row(row)


class Strangers(Protocol):
    """Counts guesses at names that nobody has, so that these lock as accounts do and tell nobody apart."""

    def guess(self, name: str) -> float:
        """Count a guess; seconds for which this name is locked, 0 when the guess may be made."""


def check_login(
    connection: Connection, name: str, password: str, clock: Clock, strangers: Strangers
) -> Account:
    """The account whose name and password these are.

    The fifth failure in a row, and each one after it, locks the name for 2, 4, 8 … seconds.
    Raises NotAuthenticated or AccountLocked; commit even then: failures count and are logged.
    """
    name = name.lower()
    # the row is locked, so that guesses at the same moment are judged one after another
    row = connection.execute(select(users).where(users.c.name == name).with_for_update()).one_or_none()
    now = clock.now(connection)  # only now: waiting for the row may have taken long
    locked_s = strangers.guess(name) if row is None else _locked_s(row, now)
    user_id = None if row is None else row.id
    if locked_s > 0:
        _log_failure(connection, user_id, "locked", now)
        raise AccountLocked(retry_after_s=locked_s)
    right = check_password(password, None if row is None else row.password_hash)
    if row is None or not right:
        if row is not None:
            _count_failure(connection, row, clock.now(connection))
        _log_failure(connection, user_id, "wrong name or password", now)
        raise NotAuthenticated("The name or the password is wrong.")
    if row.status != AccountStatus.ACTIVE:
        _log_failure(connection, row.id, row.status, now)
        waiting = "waits for an auditor's approval" if row.status == AccountStatus.PENDING else "is disabled"
        raise NotAuthenticated(f"This account {waiting}; ask an admin.")
    if row.failed_logins:
        connection.execute(
            update(users).where(users.c.id == row.id).values(failed_logins=0, locked_until=None)
        )
    return Account.from_row(row)


def change_account(
    connection: Connection,
    user_id: str,
    *,
    actor: record.Actor,
    now: datetime,
    role: Role | None = None,
    audience: Audience | None = None,
    status: AccountStatus | None = None,
) -> Account:
    """Change role, audience or status. Raises NotFound, Conflict or NotAllowed."""
    before = get_account(connection, user_id)
    if status is AccountStatus.PENDING:
        raise Conflict("An account becomes pending by itself, when it becomes an auditor's.")
    role, audience, status = role or before.role, audience or before.audience, status or before.status
    if role is Role.AUDITOR and (before.role is not Role.AUDITOR or before.status is AccountStatus.PENDING):
        if status is AccountStatus.ACTIVE and before.status is AccountStatus.PENDING:
            raise NotAllowed("Only an auditor can approve an auditor's account.")
        status = AccountStatus.PENDING if status is AccountStatus.ACTIVE else status
    if (
        before.role is Role.AUDITOR
        and before.status is AccountStatus.DISABLED
        and status is AccountStatus.ACTIVE
    ):
        status = AccountStatus.PENDING  # else disabling and enabling would stand in for the auditor's yes
    if (role, status) != (before.role, AccountStatus.ACTIVE):
        _keep_one(connection, before)
    connection.execute(
        update(users).where(users.c.id == user_id).values(role=role, audience=audience, status=status)
    )
    if status is not AccountStatus.ACTIVE or role is not before.role:
        end_all_access(connection, user_id, now)
    record.append(
        connection,
        now=now,
        actor=actor,
        action="user.changed",
        object=f"user:{user_id}",
        details={"role": role, "audience": audience, "status": status},
    )
    return get_account(connection, user_id)


def approve_auditor(connection: Connection, user_id: str, *, actor: record.Actor, now: datetime) -> Account:
    """An auditor says yes to a new auditor. Raises NotFound or Conflict."""
    account = get_account(connection, user_id)
    if account.status is not AccountStatus.PENDING:
        raise Conflict("This account is not waiting for an approval.")
    connection.execute(
        update(users).where(users.c.id == user_id).values(status=AccountStatus.ACTIVE, approved_by=actor.id)
    )
    record.append(connection, now=now, actor=actor, action="user.approved", object=f"user:{user_id}")
    return get_account(connection, user_id)


def check_own_password(
    connection: Connection, user_id: str, password: str, *, actor: record.Actor, clock: Clock
) -> None:
    """Whether this is the password of somebody who is logged in; failures count as those at log-in.

    Raises InvalidInput or AccountLocked; commit even then.
    """
    row = connection.execute(select(users).where(users.c.id == user_id).with_for_update()).one()
    now = clock.now(connection)
    locked_s = _locked_s(row, now)
    if locked_s <= 0 and check_password(password, row.password_hash):
        return
    if locked_s <= 0:
        _count_failure(connection, row, clock.now(connection))
    record.append(
        connection,
        now=now,
        actor=actor,
        action="user.password_set",
        object=f"user:{user_id}",
        outcome=record.Outcome.FAILED,
        reason="locked" if locked_s > 0 else "wrong current password",
    )
    if locked_s > 0:
        raise AccountLocked(retry_after_s=locked_s)
    raise InvalidInput("The current password is wrong.")


def set_password(
    connection: Connection, user_id: str, password: str, *, actor: record.Actor, now: datetime
) -> None:
    """Set a password and end every log-in of the account.

    When somebody else sets an auditor's password, the account waits for an auditor again: else an
    admin could become an auditor unseen. Raises NotFound or InvalidInput.
    """
    account = get_account(connection, user_id)
    values: dict[str, Any] = {
        "password_hash": hash_password(password),
        "failed_logins": 0,
        "locked_until": None,
    }
    if account.role is Role.AUDITOR and actor.id != user_id:
        _keep_one(connection, account)
        values["status"] = AccountStatus.PENDING
    connection.execute(update(users).where(users.c.id == user_id).values(**values))
    end_all_access(connection, user_id, now, keys=actor.id != user_id)
    record.append(connection, now=now, actor=actor, action="user.password_set", object=f"user:{user_id}")


def record_consent(connection: Connection, user_id: str, *, actor: record.Actor, now: datetime) -> None:
    """Note that the person accepted the disclaimer; the first time counts."""
    noted = connection.execute(
        update(users)
        .where(users.c.id == user_id, users.c.consent_version.is_distinct_from(CONSENT_VERSION))
        .values(consented_at=now, consent_version=CONSENT_VERSION)
    )
    if noted.rowcount:
        record.append(
            connection,
            now=now,
            actor=actor,
            action="consent.given",
            object=f"user:{user_id}",
            details={"version": CONSENT_VERSION},
        )


def end_all_access(connection: Connection, user_id: str, now: datetime, *, keys: bool = True) -> None:
    """Revoke the account's sessions, and its API keys, at once."""
    tables = (sessions, api_keys) if keys else (sessions,)
    for table in tables:
        connection.execute(
            update(table)
            .where(table.c.user_id == user_id, table.c.revoked_at.is_(None))
            .values(revoked_at=now)
        )


def _insert(
    connection: Connection,
    *,
    name: str,
    role: Role,
    audience: Audience,
    status: AccountStatus,
    password: str,
    actor: record.Actor,
    now: datetime,
) -> str:
    user_id = new_id()
    connection.execute(
        insert(users).values(
            id=user_id,
            name=name,
            role=role,
            audience=audience,
            status=status,
            password_hash=hash_password(password),
            created_at=now,
            created_by=None if actor.id == record.SYSTEM else actor.id,
        )
    )
    record.append(
        connection,
        now=now,
        actor=actor,
        action="user.created",
        object=f"user:{user_id}",
        details={"role": role, "audience": audience, "status": status},
    )
    return user_id


def _keep_one(connection: Connection, account: Account) -> None:
    """Raises Conflict when this is the last active admin or auditor."""
    if account.role is Role.USER or account.status is not AccountStatus.ACTIVE:
        return
    others = connection.execute(
        select(func.count()).where(
            users.c.role == account.role, users.c.status == AccountStatus.ACTIVE, users.c.id != account.id
        )
    ).scalar_one()
    if not others:
        raise Conflict(f"This is the last active {account.role}; make another one first.")


def lock_s(failures: int) -> float:
    """For how many seconds a name is locked after this many failures in a row."""
    exponent = min(failures - FREE_FAILURES + 1, 32)
    return min(2.0**exponent, MAX_LOCK_S) if exponent > 0 else 0.0


def _locked_s(row: Row[Any], now: datetime) -> float:
    return (row.locked_until - now).total_seconds() if row.locked_until is not None else 0.0


def _count_failure(connection: Connection, row: Row[Any], now: datetime) -> None:
    seconds = lock_s(row.failed_logins + 1)
    lock = now + timedelta(seconds=seconds) if seconds else None
    connection.execute(
        update(users)
        .where(users.c.id == row.id)
        .values(failed_logins=users.c.failed_logins + 1, locked_until=lock)
    )


def _log_failure(connection: Connection, user_id: str | None, reason: str, now: datetime) -> None:
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
