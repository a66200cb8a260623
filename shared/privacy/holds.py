"""Legal holds: what must be kept for a case, placed and lifted. They erase and keep nothing themselves.

A hold is on a person (`user:<id>`, and with them on every conversation of theirs) or on one conversation
(`conversation:<id>`). `conversations.legal_hold` repeats what the holds say, for whoever looks at that row.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, exists, literal, or_, select, update

from shared.audit import record
from shared.auth.roles import Role
from shared.conversations import ERASED
from shared.db.rows import put
from shared.db.tables import conversations, users
from shared.db.tables_privacy import dataset_conversations, legal_holds
from shared.errors import Conflict, NotFound
from shared.ids import new_id

_placer, _lifter, _subject = users.alias("placer"), users.alias("lifter"), users.alias("subject")


@dataclass(frozen=True, kw_only=True)
class Hold:
    """A hold, lifted or not."""

    id: str
    subject: str
    #: Of a person who is held, as long as they have one.
    subject_name: str | None
    #: The number of the case.
    reference: str
    placed_at: datetime
    placed_by: str
    lifted_at: datetime | None
    lifted_by: str | None

    @classmethod
    def from_row(cls, row: Row[Any]) -> "Hold":
        """Build from a row of `select_holds()`."""
        return cls(**row._mapping)


def select_holds() -> Select[Any]:
    """Every hold, with the names of those who placed and lifted it."""
    return (
        select(
            *(legal_holds.c[name] for name in ("id", "subject", "reference", "placed_at", "lifted_at")),
            _subject.c.name.label("subject_name"),
            _placer.c.name.label("placed_by"),
            _lifter.c.name.label("lifted_by"),
        )
        .join(_placer, _placer.c.id == legal_holds.c.placed_by)
        .outerjoin(_lifter, _lifter.c.id == legal_holds.c.lifted_by)
        .outerjoin(_subject, legal_holds.c.subject == literal("user:") + _subject.c.id)
    )


def is_held() -> ColumnElement[bool]:
    """Whether a row of `conversations` is held, by itself or with its person; for a WHERE."""
    subjects = (
        literal("conversation:") + conversations.c.id,
        literal("user:") + conversations.c.user_id,
    )
    return exists(
        select(legal_holds.c.id)
        .where(legal_holds.c.lifted_at.is_(None), legal_holds.c.subject.in_(subjects))
        .correlate(conversations)
    )


def holds_on_conversation(connection: Connection, conversation_id: str) -> list[str]:
    """The ids of the holds because of which this conversation cannot be erased now."""
    return _holding(connection, conversations.c.id == conversation_id)


def keep_holds(connection: Connection, conversation_id: str) -> None:
    """No hold is placed on this conversation by another until this transaction ends."""
    connection.execute(
        select(conversations.c.id)
        .where(conversations.c.id == conversation_id)
        .with_for_update(key_share=True)
    )


def holds_on_person(connection: Connection, user_id: str) -> list[str]:
    """The ids of the holds because of which this person cannot be erased now: theirs, and their talks'."""
    own = select(literal("conversation:") + conversations.c.id).where(conversations.c.user_id == user_id)
    found = select(legal_holds.c.id).where(
        legal_holds.c.lifted_at.is_(None),
        or_(legal_holds.c.subject == f"user:{user_id}", legal_holds.c.subject.in_(own)),
    )
    return list(connection.execute(found.order_by(legal_holds.c.id)).scalars())


def holds_on_dataset(connection: Connection, dataset_id: str) -> list[str]:
    """The ids of the holds on conversations that rows of this dataset were made from, and on their people."""
    made_from = select(dataset_conversations.c.conversation_id).where(
        dataset_conversations.c.dataset_id == dataset_id
    )
    return _holding(connection, conversations.c.id.in_(made_from))


def is_held_dataset(dataset_id: ColumnElement[str]) -> ColumnElement[bool]:
    """Whether a conversation that rows of this dataset were made from is held; for a WHERE."""
    held = (
        select(dataset_conversations.c.conversation_id)
        .join(conversations, conversations.c.id == dataset_conversations.c.conversation_id)
        .where(dataset_conversations.c.dataset_id == dataset_id, is_held())
    )
    return held.correlate_except(dataset_conversations, conversations).exists()


def is_held_person(user_id: ColumnElement[str]) -> ColumnElement[bool]:
    """Whether this person is held; for a WHERE."""
    return exists(
        select(legal_holds.c.id).where(
            legal_holds.c.lifted_at.is_(None), legal_holds.c.subject == literal("user:") + user_id
        )
    )


def place(
    connection: Connection, *, kind: str, id: str, reference: str, actor: record.Actor, now: datetime
) -> str:
    """Hold a `user` or a `conversation`; returns the hold's id.

    Raises NotFound, and Conflict when nothing is left to hold or this case holds it already.
    """
    subject = f"{kind}:{id}"
    _require_something_left(connection, kind, id)
    same = select(legal_holds.c.id).where(
        legal_holds.c.subject == subject,
        legal_holds.c.reference == reference,
        legal_holds.c.lifted_at.is_(None),
    )
    if connection.execute(same).first() is not None:
        raise Conflict("This case holds it already; nothing was changed.")
    hold_id = new_id()
    row = {
        "id": hold_id,
        "subject": subject,
        "reference": reference,
        "placed_at": now,
        "placed_by": actor.id,
    }
    _put(connection, row, actor=actor, now=now)
    return hold_id


def place_again(connection: Connection, row: Mapping[str, Any], *, now: datetime, reason: str) -> bool:
    """Place a hold that a restored backup is older than; whether there was something left to hold.

    Where the backup lacks who placed it, it is under the oldest account of an admin or auditor; the event
    names who it was.
    """
    kind, _, id = row["subject"].partition(":")
    try:
        _require_something_left(connection, kind, id)
    except (NotFound, Conflict):
        return False
    oldest = (users.c.id == row["placed_by"]).desc(), (users.c.role != Role.USER).desc(), users.c.created_at
    placer = connection.execute(select(users.c.id).order_by(*oldest, users.c.id).limit(1)).scalar_one()
    _put(
        connection,
        {**row, "placed_by": placer},
        actor=record.OPERATOR_ACTOR,
        now=now,
        reason=reason,
        placed_by=row["placed_by"],
    )
    return True


def lift(connection: Connection, hold_id: str, *, actor: record.Actor, now: datetime) -> None:
    """End a hold. Raises NotFound, and Conflict when it was lifted before."""
    row = connection.execute(select(legal_holds).where(legal_holds.c.id == hold_id)).one_or_none()
    if row is None:
        raise NotFound("There is no hold under this id; see GET /v1/holds.")
    lifted = connection.execute(
        update(legal_holds)
        .where(legal_holds.c.id == hold_id, legal_holds.c.lifted_at.is_(None))
        .values(lifted_at=now, lifted_by=actor.id)
    )
    if lifted.rowcount != 1:
        raise Conflict("This hold was lifted before.")
    _repeat_in_conversations(connection, row.subject)
    record.append(
        connection,
        now=now,
        actor=actor,
        action="hold.lifted",
        object=f"hold:{hold_id}",
        details={"subject": row.subject, "reference": row.reference},
    )


def repeat_for_new_conversations(connection: Connection) -> None:
    """Note the hold on conversations that a held person has begun since."""
    held = connection.execute(
        select(legal_holds.c.subject)
        .where(legal_holds.c.lifted_at.is_(None), legal_holds.c.subject.startswith("user:"))
        .distinct()
    ).scalars()
    people = [subject.removeprefix("user:") for subject in held]
    if people:
        connection.execute(
            update(conversations)
            .where(conversations.c.user_id.in_(people), conversations.c.legal_hold.is_(False))
            .values(legal_hold=True)
        )


def _put(
    connection: Connection,
    row: Mapping[str, Any],
    *,
    actor: record.Actor,
    now: datetime,
    reason: str | None = None,
    **details: str,
) -> None:
    put(connection, legal_holds, row)
    _repeat_in_conversations(connection, row["subject"])
    record.append(
        connection,
        now=now,
        actor=actor,
        action="hold.placed",
        object=f"hold:{row['id']}",
        reason=reason,
        details={"subject": row["subject"], "reference": row["reference"], **details},
    )


def _holding(connection: Connection, which: ColumnElement[bool]) -> list[str]:
    """The ids of the holds on these conversations and their people."""
    found = (
        select(legal_holds.c.id)
        .join(
            conversations,
            or_(
                legal_holds.c.subject == literal("conversation:") + conversations.c.id,
                legal_holds.c.subject == literal("user:") + conversations.c.user_id,
            ),
        )
        .where(which, legal_holds.c.lifted_at.is_(None))
        .distinct()
    )
    return list(connection.execute(found.order_by(legal_holds.c.id)).scalars())


def _require_something_left(connection: Connection, kind: str, id: str) -> None:
    """The subject's row is locked: an erasure at this moment is over, or finds the hold."""
    if kind == "user":
        found = connection.execute(select(users.c.id).where(users.c.id == id).with_for_update())
        if found.one_or_none() is None:
            raise NotFound("There is nobody under this id.")
        return
    row = connection.execute(
        select(conversations.c.retention_class).where(conversations.c.id == id).with_for_update()
    ).one_or_none()
    if row is None:
        raise NotFound("There is no conversation under this id.")
    if row.retention_class == ERASED:
        raise Conflict("This conversation was erased before; there is nothing left to hold.")


def _repeat_in_conversations(connection: Connection, subject: str) -> None:
    kind, _, id = subject.partition(":")
    column = conversations.c.user_id if kind == "user" else conversations.c.id
    connection.execute(update(conversations).where(column == id).values(legal_hold=is_held()))
