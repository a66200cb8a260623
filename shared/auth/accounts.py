"""Accounts: made, changed, approved, locked. Sessions and HTTP are not its matter.

Every change is logged in the transaction that makes it.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, and_, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from shared.audit import record
from shared.auth.consent import CONSENT_VERSION
from shared.auth.passwords import UNUSABLE, hash_password, new_password
from shared.auth.roles import AccountStatus, Role
from shared.db.tables import api_keys, sessions, users
from shared.db.tables_privacy import access_grants
from shared.errors import Conflict, NotAllowed, NotFound
from shared.guard.verdict import Audience
from shared.ids import new_id

ERASED = "This account was erased, which cannot be undone; make a new one."


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
    #: Whether somebody else set the password, and the person has not changed it since.
    password_set: bool

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
            password_set=row.password_set_by is not None,
        )


def create_first_users(connection: Connection, now: datetime) -> list[tuple[str, str, str]]:
    """One log-in per role with a random password, when there are no users at all.

    Their passwords count as their owners': they are shown to the operator alone, who may read the database.
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
            password_hash=hash_password(password),
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
    password_hash: str,
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
            password_hash=password_hash,
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


def find_account(connection: Connection, name: str) -> Account:
    """The account of this name. Raises NotFound."""
    row = connection.execute(select(users).where(users.c.name == name.lower())).one_or_none()
    if row is None:
        raise NotFound("There is no account of this name; check the name.")
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
    before, others = hold_account(connection, user_id)
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
    if role is not Role.AUDITOR and status is AccountStatus.PENDING:
        status = AccountStatus.ACTIVE  # it was an auditor's, and no yes is wanted any more
    if (role, status) != (before.role, AccountStatus.ACTIVE):
        keep_one_active(before, others)
    after = {"role": role, "audience": audience, "status": status}
    changed = {name: value for name, value in after.items() if value is not getattr(before, name)}
    if changed:
        connection.execute(update(users).where(users.c.id == user_id).values(**changed))
    if status is not AccountStatus.ACTIVE or role is not before.role:
        end_all_access(connection, user_id, now)
    record.append(
        connection,
        now=now,
        actor=actor,
        action="user.changed",
        object=f"user:{user_id}",
        details=after,
    )
    return get_account(connection, user_id)


def approve_auditor(
    connection: Connection, user_id: str, password_hash: str, *, actor: record.Actor, now: datetime
) -> Account:
    """An auditor says yes to a new auditor, and hands them this password.

    The one that an admin set ends: else the admin could be that auditor. Raises NotFound or Conflict.
    """
    account, _others = hold_account(connection, user_id)
    if account.role is not Role.AUDITOR or account.status is not AccountStatus.PENDING:
        raise Conflict("This account is not waiting for an approval.")
    values = _new_password(user_id, password_hash, actor, now)
    values |= {"status": AccountStatus.ACTIVE, "approved_by": actor.id}
    connection.execute(update(users).where(users.c.id == user_id).values(**values))
    record.append(connection, now=now, actor=actor, action="user.approved", object=f"user:{user_id}")
    return get_account(connection, user_id)


def set_password(
    connection: Connection, user_id: str, password_hash: str, *, actor: record.Actor, now: datetime
) -> None:
    """Set a password and end every log-in of the account.

    When an admin sets an auditor's password, the account waits for an auditor again, whose yes replaces the
    password: else the admin could become an auditor unseen. The operator of the machine, who can read the
    database anyway, is the way back for the last auditor. Raises NotFound or Conflict.
    """
    values = _new_password(user_id, password_hash, actor, now)
    keys = actor.id != user_id
    if actor.id in (user_id, record.OPERATOR):
        # holds nobody else: whoever proved a password holds their own row
        keys |= get_account(connection, user_id).password_set  # who set the former one may have made some
    else:
        account, others = hold_account(connection, user_id)
        if account.role is Role.AUDITOR and account.status is AccountStatus.ACTIVE:
            keep_one_active(account, others)
            values["status"] = AccountStatus.PENDING
    connection.execute(update(users).where(users.c.id == user_id).values(**values))
    end_all_access(connection, user_id, now, keys=keys)
    record.append(connection, now=now, actor=actor, action="user.password_set", object=f"user:{user_id}")


def _new_password(user_id: str, password_hash: str, actor: record.Actor, now: datetime) -> dict[str, Any]:
    """The columns of a password that was just set, by its owner or by somebody else."""
    by_owner = actor.id == user_id
    return {
        "password_hash": password_hash,
        "password_set_by": None if by_owner else actor.id,
        "password_set_at": None if by_owner else now,
        "failed_logins": 0,
        "locked_until": None,
    }


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
    """Revoke the account's sessions, and its API keys, at once, and end what it may read unmasked."""
    tables = (sessions, api_keys) if keys else (sessions,)
    for table in tables:
        connection.execute(
            update(table)
            .where(table.c.user_id == user_id, table.c.revoked_at.is_(None))
            .values(revoked_at=now)
        )
    grants = access_grants.c
    connection.execute(
        update(access_grants)
        .where(grants.user_id == user_id, grants.ended_at.is_(None), grants.expires_at > now)
        .values(ended_at=now)
    )


def _insert(
    connection: Connection,
    *,
    name: str,
    role: Role,
    audience: Audience,
    status: AccountStatus,
    password_hash: str,
    actor: record.Actor,
    now: datetime,
) -> str:
    user_id = new_id()
    by = None if actor.id == record.SYSTEM else actor.id
    connection.execute(
        insert(users).values(
            id=user_id,
            name=name,
            role=role,
            audience=audience,
            status=status,
            password_hash=password_hash,
            password_set_by=by,
            password_set_at=None if by is None else now,
            created_at=now,
            created_by=by,
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


def hold_account(connection: Connection, user_id: str) -> tuple[Account, list[Account]]:
    """The account, and the other active admins and auditors, as they stay until this transaction ends.

    Raises NotFound, and Conflict when the account was erased.
    """
    # locked in one order: of two changes at the same moment the second sees what the first one made, and
    # neither waits for the other
    privileged = and_(users.c.role != Role.USER, users.c.status == AccountStatus.ACTIVE)
    rows = connection.execute(
        select(users)
        .where(or_(users.c.id == user_id, privileged))
        .order_by(users.c.id)
        .with_for_update(key_share=True)
    )
    held = {}
    for row in rows:
        if row.id == user_id and row.password_hash == UNUSABLE:
            raise Conflict(ERASED)
        held[row.id] = Account.from_row(row)
    if user_id not in held:
        raise NotFound
    return held.pop(user_id), list(held.values())


def keep_one_active(account: Account, others: list[Account]) -> None:
    """Raises Conflict when this is the last active admin or auditor; `others` are as `hold_account` found."""
    if account.role is Role.USER or account.status is not AccountStatus.ACTIVE:
        return
    if all(other.role is not account.role for other in others):
        raise Conflict(f"This is the last active {account.role}; make another one first.")
