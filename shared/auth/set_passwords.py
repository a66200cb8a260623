"""Finds passwords that somebody else set and their owner has not changed. It sets none.

Whoever set such a password may log in with it as its owner. That cannot be told from the owner's own log-in,
so both are shown: to auditors, and to the owner.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Select, func, select

from shared.audit import record
from shared.auth.roles import AccountStatus
from shared.db.tables import sessions, users

_setter = users.alias("setter")


@dataclass(frozen=True, kw_only=True)
class SetPassword:
    """A password that its owner has not changed since somebody else set it."""

    user_id: str
    user_name: str
    #: The name of who set it; `operator` for a command on the machine.
    set_by: str
    #: Their role, or `operator`.
    set_by_role: str
    set_at: datetime
    #: The newest log-in with it; None when there was none.
    logged_in_at: datetime | None


def password_set_for(connection: Connection, user_id: str) -> SetPassword | None:
    """How it is with this person's password; None when they set it themselves."""
    row = connection.execute(_found().where(users.c.id == user_id)).one_or_none()
    return None if row is None else SetPassword(**row._mapping)


def used_set_passwords(connection: Connection) -> list[SetPassword]:
    """Those with which somebody logged in, the newest first."""
    found = _found().where(_logged_in().is_not(None)).order_by(users.c.password_set_at.desc(), users.c.id)
    return [SetPassword(**row._mapping) for row in connection.execute(found)]


def count_used(connection: Connection) -> int:
    """How many accounts, of those one can log in to, somebody did with a password that another set."""
    enabled = users.c.status != AccountStatus.DISABLED
    wanted = select(func.count()).select_from(users).where(_is_set(), _logged_in().is_not(None), enabled)
    return int(connection.execute(wanted).scalar_one())


def _is_set() -> Any:
    return users.c.password_set_by.is_not(None)


def _logged_in() -> Any:
    newest = select(func.max(sessions.c.created_at)).where(
        sessions.c.user_id == users.c.id, sessions.c.created_at >= users.c.password_set_at
    )
    return newest.correlate(users).scalar_subquery()


def _found() -> Select[Any]:
    return (
        select(
            users.c.id.label("user_id"),
            users.c.name.label("user_name"),
            func.coalesce(_setter.c.name, record.OPERATOR).label("set_by"),
            func.coalesce(_setter.c.role, record.OPERATOR).label("set_by_role"),
            users.c.password_set_at.label("set_at"),
            _logged_in().label("logged_in_at"),
        )
        .outerjoin(_setter, _setter.c.id == users.c.password_set_by)
        .where(_is_set())
    )
