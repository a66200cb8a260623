"""People, for admins; an auditor says yes to new auditors."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from pydantic import AfterValidator, BaseModel, Field
from sqlalchemy import Connection, and_, func, select

from services.api.deps import Access, Admin, Auditor, GatewayDep, log_denial
from services.api.errors import document
from services.api.schemas import Body, Page
from services.api.state import Gateway
from shared.audit import record
from shared.auth import accounts
from shared.auth.accounts import Account
from shared.auth.passwords import hash_password, new_password
from shared.auth.roles import AccountStatus, Role, Scope
from shared.auth.sessions import Principal
from shared.auth.set_passwords import used_set_passwords
from shared.db.tables import sessions, users
from shared.errors import Conflict, InvalidInput, NotAllowed
from shared.guard.verdict import Audience

router = APIRouter(prefix="/v1/users", tags=["people"])

_NO_KEYS = "An auditor's new password is shown to a person who is logged in, not to an API key; log in."
Approver = Annotated[Principal, Depends(Access(Role.AUDITOR, frozenset({Scope.AUDIT}), no_keys=_NO_KEYS))]

MAX_NAME = 100


class UserView(BaseModel):
    """A person's account."""

    id: str
    name: str
    role: Role
    audience: Audience
    status: AccountStatus
    created_at: datetime
    last_seen_at: datetime | None = None


class NewUserView(UserView):
    """A new account and its password, shown once."""

    password: str


class SetPasswordView(BaseModel):
    """A password that somebody else set, its owner has not changed, and somebody has logged in with."""

    user_id: str
    user_name: str
    set_by: str = Field(description="The name of who set it; `operator` for a command on the machine.")
    set_at: datetime
    logged_in_at: datetime = Field(description="The newest log-in with it.")


class PasswordView(BaseModel):
    """A new password, shown once."""

    password: str


def _lower(name: str) -> str:
    """As it is stored; some letters become two."""
    name = name.lower()
    if len(name) > MAX_NAME:
        raise ValueError(f"has more than {MAX_NAME} characters in lower case")
    return name


class NewUserBody(Body):
    """A person to let in."""

    name: Annotated[str, AfterValidator(_lower)] = Field(
        min_length=1, max_length=MAX_NAME, pattern=r"^[\w.@+-]+$", examples=["nurse.kim"]
    )
    role: Role
    audience: Audience = Audience.PATIENT
    password: str | None = Field(None, max_length=200, description="Left out: a random one is made.")


class ChangeBody(Body):
    """What to change; what is left out stays."""

    role: Role | None = None
    audience: Audience | None = None
    status: AccountStatus | None = None


@router.get("", responses=document(401, 403, 429))
def list_users(caller: Admin, gateway: GatewayDep) -> Page[UserView]:
    """Everybody, by name."""
    _log_reading(gateway, caller, pending=False)
    with gateway.database.read() as connection:
        seen = select(sessions.c.user_id, func.max(sessions.c.last_seen_at).label("seen_at"))
        seen_by = seen.group_by(sessions.c.user_id).subquery()
        rows = connection.execute(
            select(users, seen_by.c.seen_at)
            .outerjoin(seen_by, seen_by.c.user_id == users.c.id)
            .order_by(users.c.name)
        )
        items = [
            _view(Account.from_row(row)).model_copy(update={"last_seen_at": row.seen_at}) for row in rows
        ]
    return Page[UserView](items=items, next_cursor=None)


@router.get("/pending", responses=document(401, 403, 429))
def list_pending(caller: Auditor, gateway: GatewayDep) -> Page[UserView]:
    """Auditors' accounts that wait for an auditor's yes."""
    _log_reading(gateway, caller, pending=True)
    with gateway.database.read() as connection:
        waiting = and_(users.c.role == Role.AUDITOR, users.c.status == AccountStatus.PENDING)
        rows = connection.execute(select(users).where(waiting).order_by(users.c.name))
        return Page[UserView](items=[_view(Account.from_row(row)) for row in rows], next_cursor=None)


@router.get("/set-passwords", responses=document(401, 403, 429))
def list_set_passwords(caller: Auditor, gateway: GatewayDep) -> Page[SetPasswordView]:
    """Accounts that were logged in to with a password that another set, until their owner changes it."""
    _log_reading(gateway, caller, set_passwords=True)
    with gateway.database.read() as connection:
        found = used_set_passwords(connection)
    items = [SetPasswordView.model_validate(each, from_attributes=True) for each in found]
    return Page[SetPasswordView](items=items, next_cursor=None)


@router.post("", status_code=201, responses=document(401, 403, 409, 413, 422, 429))
def create_user(body: NewUserBody, caller: Admin, gateway: GatewayDep) -> NewUserView:
    """Make an account. An auditor's cannot log in until an existing auditor approves it."""
    password = body.password or new_password()
    password_hash = hash_password(password)  # before the transaction: it is slow by design
    with gateway.database.write() as connection:
        account = accounts.create_account(
            connection,
            name=body.name,
            role=body.role,
            audience=body.audience,
            password_hash=password_hash,
            actor=caller.actor,
            now=gateway.clock.now(connection),
        )
    return NewUserView(**_view(account).model_dump(), password=password)


@router.patch("/{user_id}", responses=document(401, 403, 404, 409, 413, 422, 429))
def change_user(
    user_id: str, body: ChangeBody, request: Request, caller: Admin, gateway: GatewayDep
) -> UserView:
    """Change role, audience or status; a changed role or a disabled account ends its log-ins at once."""
    if not body.model_fields_set:
        raise InvalidInput("Name at least one of role, audience and status.")
    with _changing(gateway, request, caller, user_id) as connection:
        account = accounts.change_account(
            connection,
            user_id,
            actor=caller.actor,
            now=gateway.clock.now(connection),
            role=body.role,
            audience=body.audience,
            status=body.status,
        )
    return _view(account)


@router.post("/{user_id}/password", responses=document(401, 403, 404, 409, 429))
def reset_password(user_id: str, request: Request, caller: Admin, gateway: GatewayDep) -> PasswordView:
    """Give a person a new random password; an auditor then waits for an auditor's yes again.

    With that yes comes another password.
    """
    password = new_password()
    password_hash = hash_password(password)
    with _changing(gateway, request, caller, user_id) as connection:
        now = gateway.clock.now(connection)
        accounts.set_password(connection, user_id, password_hash, actor=caller.actor, now=now)
    return PasswordView(password=password)


@router.post("/{user_id}/approve", responses=document(401, 403, 404, 409, 429))
def approve_auditor(user_id: str, request: Request, caller: Approver, gateway: GatewayDep) -> NewUserView:
    """Say yes to a new auditor, and hand them this new password: an admin knows the one they had."""
    password = new_password()
    password_hash = hash_password(password)
    with _changing(gateway, request, caller, user_id) as connection:
        now = gateway.clock.now(connection)
        account = accounts.approve_auditor(connection, user_id, password_hash, actor=caller.actor, now=now)
    return NewUserView(**_view(account).model_dump(), password=password)


@contextmanager
def _changing(gateway: Gateway, request: Request, caller: Principal, user_id: str) -> Iterator[Connection]:
    """A transaction that changes an account; that this is refused is logged in one of its own."""
    try:
        with gateway.database.write() as connection:
            yield connection
    except (NotAllowed, Conflict) as error:
        log_denial(gateway, request, caller, error.detail, f"user:{user_id}")
        raise


def _log_reading(gateway: Gateway, caller: Principal, **details: bool) -> None:
    """Reading the accounts is itself an event, written before anything is shown."""
    with gateway.database.write() as connection:
        now = gateway.clock.now(connection)
        record.append(connection, now=now, actor=caller.actor, action="users.read", details=details)


def _view(account: Account) -> UserView:
    return UserView(
        id=account.id,
        name=account.name,
        role=account.role,
        audience=account.audience,
        status=account.status,
        created_at=account.created_at,
    )
