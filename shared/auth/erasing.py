"""Erases an account: nobody can log in to it, and it names nobody. Conversations are not its matter."""

from datetime import datetime

from sqlalchemy import ColumnElement, Connection, delete, func, select, update

from shared.audit import record
from shared.auth.accounts import end_all_access, hold_account, keep_one_active
from shared.auth.passwords import UNUSABLE
from shared.auth.roles import AccountStatus
from shared.conversations import ERASED
from shared.db.tables import api_keys, conversations, data_keys, feedback, users
from shared.db.tables_review import saved_views
from shared.errors import OnHold
from shared.privacy.holds import holds_on_person, is_held
from shared.training.erasing import destroy_keys


def erase_account(
    connection: Connection,
    user_id: str,
    *,
    actor: record.Actor,
    now: datetime,
    reason: str | None = None,
    again: bool = False,
) -> list[str]:
    """Disable the account, end its access and take its name away; returns the ids of destroyed data keys.

    Args:
        reason: a code of ours, for the log.
        again: it was erased before a backup brought it back; who was the last, or held, is not asked then.

    Raises NotFound, Conflict for the last active admin or auditor or an account that was erased before, and
    OnHold for a person with a hold on them or on a conversation of theirs.
    """
    account, others = hold_account(connection, user_id)
    if not again:
        keep_one_active(account, others)
        if held := holds_on_person(connection, user_id):
            raise OnHold(held)
    end_all_access(connection, user_id, now)
    connection.execute(update(api_keys).where(api_keys.c.user_id == user_id).values(name=ERASED))
    views = connection.execute(delete(saved_views).where(saved_views.c.user_id == user_id)).rowcount
    ratings = connection.execute(delete(feedback).where(feedback.c.user_id == user_id)).rowcount
    key_ids = destroy_keys(connection, data_keys.c.owner_id == user_id, now)
    connection.execute(
        update(users)
        .where(users.c.id == user_id)
        .values(
            name=_free_name(connection, user_id),
            status=AccountStatus.DISABLED,
            password_hash=UNUSABLE,
            password_set_by=None,
            password_set_at=None,
            failed_logins=0,
            locked_until=None,
        )
    )
    record.append(
        connection,
        now=now,
        actor=actor,
        action="user.erased",
        object=f"user:{user_id}",
        reason=reason,
        details={
            "conversations": connection.execute(
                select(func.count()).where(conversations.c.user_id == user_id, _is_left())
            ).scalar_one(),
            "saved_views": views,
            "feedback": ratings,
            "keys": key_ids,
        },
    )
    return key_ids


def conversations_left(connection: Connection, user_id: str) -> list[str]:
    """Conversations of the person that are not erased yet, the oldest first."""
    found = select(conversations.c.id).where(conversations.c.user_id == user_id, _is_left())
    return list(connection.execute(found.order_by(conversations.c.id)).scalars())


def half_erased(connection: Connection, limit: int) -> list[str]:
    """Conversations of people who were erased that are not erased yet: somebody was interrupted."""
    found = (
        select(conversations.c.id)
        .join(users, users.c.id == conversations.c.user_id)
        .where(users.c.password_hash == UNUSABLE, _is_left(), ~is_held())
        .order_by(conversations.c.id)
        .limit(limit)
    )
    return list(connection.execute(found).scalars())


def _is_left() -> ColumnElement[bool]:
    return conversations.c.retention_class != ERASED


def _free_name(connection: Connection, user_id: str) -> str:
    """What the account is called; ids of people who came in the same minute begin alike."""
    name = f"{ERASED}-{user_id[:8]}"
    taken = connection.execute(select(users.c.id).where(users.c.name == name)).first()
    return name if taken is None else f"{ERASED}-{user_id}"
