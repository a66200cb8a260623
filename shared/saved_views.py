"""Keeps searches that auditors save, sealed under a key of the person. It does not know what they search."""

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select

from shared.db.tables import data_keys
from shared.db.tables_review import saved_views
from shared.errors import Conflict
from shared.ids import new_id
from shared.privacy.envelope import CannotDecrypt, DataKey, Envelope
from shared.privacy.keys import create_data_key

#: Views of one person.
MOST_VIEWS = 50


@dataclass(frozen=True, kw_only=True)
class SavedView:
    """A search that a person keeps."""

    id: str
    name: str
    #: JSON-serialisable.
    filters: dict[str, Any]
    created_at: datetime


def save_view(
    connection: Connection,
    envelope: Envelope,
    *,
    user_id: str,
    name: str,
    filters: dict[str, Any],
    now: datetime,
) -> SavedView:
    """Keep a search. Raises Conflict when the person keeps `MOST_VIEWS` already."""
    mine = select(func.count()).select_from(saved_views).where(saved_views.c.user_id == user_id)
    if connection.execute(mine).scalar_one() >= MOST_VIEWS:
        raise Conflict(f"You keep {MOST_VIEWS} views already; delete one that you no longer need.")
    view = SavedView(id=new_id(), name=name, filters=filters, created_at=now)
    key = _persons_key(connection, envelope, user_id, now)
    sealed = key.encrypt(json.dumps({"name": name, "filters": filters}), place=f"view:{view.id}")
    row = {
        "id": view.id,
        "user_id": user_id,
        "view_ciphertext": sealed,
        "key_id": key.key_id,
        "created_at": now,
    }
    connection.execute(insert(saved_views), row)
    return view


def list_views(connection: Connection, envelope: Envelope, user_id: str) -> list[SavedView]:
    """The searches that a person keeps, by name; those that cannot be opened any more are left out."""
    rows = connection.execute(
        select(saved_views, data_keys.c.wrapped_key, data_keys.c.master_key_version)
        .join(data_keys, data_keys.c.key_id == saved_views.c.key_id)
        .where(saved_views.c.user_id == user_id)
    )
    views = []
    for row in rows:
        try:
            key = envelope.unwrap(row.key_id, row.wrapped_key, row.master_key_version)
            said = json.loads(key.decrypt(row.view_ciphertext, place=f"view:{row.id}"))
        except CannotDecrypt:
            continue
        views.append(SavedView(id=row.id, created_at=row.created_at, **said))
    return sorted(views, key=lambda view: (view.name.casefold(), view.id))


def remove_view(connection: Connection, user_id: str, view_id: str) -> bool:
    """Delete a search of this person's; false when there is none."""
    mine = delete(saved_views).where(saved_views.c.id == view_id, saved_views.c.user_id == user_id)
    return connection.execute(mine.returning(saved_views.c.id)).one_or_none() is not None


def _persons_key(connection: Connection, envelope: Envelope, user_id: str, now: datetime) -> DataKey:
    """A key of the person, made at first use. Of two made at once both stay: each view names its own."""
    row = connection.execute(
        select(data_keys)
        .where(
            data_keys.c.scope == "person",
            data_keys.c.owner_id == user_id,
            data_keys.c.wrapped_key.is_not(None),
        )
        .order_by(data_keys.c.key_id)
        .limit(1)
    ).one_or_none()
    if row is None:
        return create_data_key(connection, envelope, scope="person", owner_id=user_id, now=now)
    return envelope.unwrap(row.key_id, row.wrapped_key, row.master_key_version)
