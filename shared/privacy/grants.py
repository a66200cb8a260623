"""Keeps who may read which conversation unmasked, for how long and why. It shows no conversation.

The reason is sealed under the conversation's key: it may name the person, and is erased with them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Column, ColumnElement, Connection, Row, Select, func, select, update

from shared.conversations import Conversations
from shared.db.tables import users
from shared.db.tables_privacy import access_grants
from shared.errors import Conflict, NotFound
from shared.ids import new_id
from shared.privacy.access_kinds import AccessKind
from shared.privacy.envelope import CannotDecrypt

UNKNOWN = "There is no emergency access of yours under this id; check the id."


@dataclass(frozen=True, kw_only=True)
class AccessGrant:
    """One grant."""

    id: str
    kind: AccessKind
    user_id: str
    user_name: str
    conversation_id: str
    granted_at: datetime
    expires_at: datetime
    #: When it was ended before its time.
    ended_at: datetime | None
    #: When an auditor said that they have seen it.
    acknowledged_at: datetime | None
    acknowledged_by: str | None

    def is_open(self, now: datetime) -> bool:
        """Whether it lets its person read at this moment."""
        return self.ended_at is None and now < self.expires_at


_FOUND = select(access_grants, users.c.name.label("user_name")).join(
    users, users.c.id == access_grants.c.user_id
)


def open_grant(
    connection: Connection,
    conversations: Conversations,
    *,
    kind: AccessKind,
    user_id: str,
    conversation_id: str,
    reason: str,
    life: timedelta,
    now: datetime,
) -> AccessGrant:
    """Let the person read the conversation until `now + life`.

    Raises NotFound; KeyDestroyed when it was erased; Conflict when they may already.
    """
    key = conversations.key(connection, conversation_id)
    if open_grant_of(connection, kind=kind, user_id=user_id, conversation_id=conversation_id, now=now):
        raise Conflict("You may read this conversation already; look at your open accesses.")
    grant_id = new_id()
    connection.execute(
        access_grants.insert().values(
            id=grant_id,
            kind=kind,
            user_id=user_id,
            conversation_id=conversation_id,
            reason_ciphertext=key.encrypt(reason, place=reason_place(grant_id)),
            key_id=key.key_id,
            granted_at=now,
            expires_at=now + life,
        )
    )
    return find_grant(connection, grant_id)


def find_grant(connection: Connection, grant_id: str, kind: AccessKind | None = None) -> AccessGrant:
    """One grant by its id. Raises NotFound."""
    wanted = _FOUND.where(access_grants.c.id == grant_id)
    if kind is not None:
        wanted = wanted.where(access_grants.c.kind == kind)
    row = connection.execute(wanted).one_or_none()
    if row is None:
        raise NotFound(UNKNOWN)
    return _grant(row)


def open_grant_of(
    connection: Connection, *, kind: AccessKind, user_id: str, conversation_id: str, now: datetime
) -> AccessGrant | None:
    """The grant by which the person may read this conversation now."""
    row = connection.execute(
        _FOUND.where(
            access_grants.c.kind == kind,
            access_grants.c.user_id == user_id,
            access_grants.c.conversation_id == conversation_id,
            *_open_at(now),
        ).order_by(access_grants.c.expires_at.desc())
    ).first()
    return None if row is None else _grant(row)


def grants_to(connection: Connection, conversation_id: str) -> list[AccessGrant]:
    """Every grant to read this conversation, the newest first."""
    return _all(connection, _FOUND.where(access_grants.c.conversation_id == conversation_id))


def newest_grants(
    connection: Connection, kind: AccessKind, *conditions: ColumnElement[bool], limit: int
) -> list[AccessGrant]:
    """Grants of a kind, the newest first."""
    return _all(connection, _FOUND.where(access_grants.c.kind == kind, *conditions).limit(limit))


def count_unacknowledged(connection: Connection) -> int:
    """How many emergency accesses no auditor has said yet to have seen."""
    return _count(connection, access_grants.c.acknowledged_at.is_(None))


def count_open(connection: Connection, now: datetime) -> int:
    """How many emergency accesses are open at this moment."""
    return _count(connection, *_open_at(now))


def end_grant(connection: Connection, grant: AccessGrant, now: datetime) -> AccessGrant:
    """End it before its time. Raises Conflict when it is over already."""
    if not grant.is_open(now) or not _note(connection, grant.id, access_grants.c.ended_at, ended_at=now):
        raise Conflict("This access is over already; reload the list.")
    return find_grant(connection, grant.id)


def acknowledge_grant(connection: Connection, grant: AccessGrant, user_id: str, now: datetime) -> AccessGrant:
    """Note that an auditor has seen it. Raises Conflict when one has."""
    seen = {"acknowledged_at": now, "acknowledged_by": user_id}
    if not _note(connection, grant.id, access_grants.c.acknowledged_at, **seen):
        raise Conflict("An auditor has acknowledged this already; reload the list.")
    return find_grant(connection, grant.id)


def reasons_of(
    connection: Connection, conversations: Conversations, grants: Sequence[AccessGrant]
) -> dict[str, str | None]:
    """Why each was asked for, by the grant's id; None when that was erased with the conversation."""
    rows = connection.execute(
        select(access_grants.c.id, access_grants.c.conversation_id, access_grants.c.reason_ciphertext).where(
            access_grants.c.id.in_([grant.id for grant in grants])
        )
    ).all()
    reasons: dict[str, str | None] = {}
    for row in rows:
        try:
            key = conversations.key(connection, row.conversation_id)
            reasons[row.id] = key.decrypt(row.reason_ciphertext, place=reason_place(row.id))
        except CannotDecrypt:
            reasons[row.id] = None
    return reasons


def _open_at(now: datetime) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return access_grants.c.ended_at.is_(None), access_grants.c.expires_at > now


def _count(connection: Connection, *conditions: ColumnElement[bool]) -> int:
    counted = select(func.count()).select_from(access_grants)
    breaking = access_grants.c.kind == AccessKind.BREAK_GLASS
    return int(connection.execute(counted.where(breaking, *conditions)).scalar_one())


def _all(connection: Connection, wanted: Select[Any]) -> list[AccessGrant]:
    newest = wanted.order_by(access_grants.c.granted_at.desc(), access_grants.c.id.desc())
    return [_grant(row) for row in connection.execute(newest)]


def _note(connection: Connection, grant_id: str, unless: Column[Any], **values: Any) -> bool:
    """Store the values, unless this column has one already; whether it had none."""
    changing = update(access_grants).where(access_grants.c.id == grant_id, unless.is_(None))
    return connection.execute(changing.values(**values)).rowcount == 1


def reason_place(grant_id: str) -> str:
    """What the ciphertext of a reason is bound to."""
    return f"reason:{grant_id}"


def _grant(row: Row[Any]) -> AccessGrant:
    return AccessGrant(
        id=row.id,
        kind=AccessKind(row.kind),
        user_id=row.user_id,
        user_name=row.user_name,
        conversation_id=row.conversation_id,
        granted_at=row.granted_at,
        expires_at=row.expires_at,
        ended_at=row.ended_at,
        acknowledged_at=row.acknowledged_at,
        acknowledged_by=row.acknowledged_by,
    )
