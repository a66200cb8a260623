"""Keeps wrapped data keys in the database. It does not know what they encrypt."""

from collections.abc import Collection
from datetime import datetime
from typing import Literal

from sqlalchemy import Connection, select

from shared.db.rows import Into, put
from shared.db.tables import data_keys
from shared.ids import new_id
from shared.privacy.envelope import DataKey, Envelope

KeyScope = Literal["conversation", "dataset", "image"]


def create_data_key(
    into: Into, envelope: Envelope, *, scope: KeyScope, owner_id: str, now: datetime
) -> DataKey:
    """Make a data key for one owner and store it wrapped."""
    key, wrapped = envelope.new_data_key(new_id())
    row = {
        "key_id": key.key_id,
        "scope": scope,
        "owner_id": owner_id,
        "wrapped_key": wrapped,
        "master_key_version": envelope.version,
        "created_at": now,
    }
    put(into, data_keys, row)
    return key


def load_data_keys(
    connection: Connection, envelope: Envelope, key_ids: Collection[str]
) -> dict[str, DataKey]:
    """Several data keys by id. Raises KeyDestroyed or CannotDecrypt for the first that cannot be used."""
    rows = connection.execute(
        select(data_keys.c.key_id, data_keys.c.wrapped_key, data_keys.c.master_key_version).where(
            data_keys.c.key_id.in_(set(key_ids))
        )
    )
    return {row.key_id: envelope.unwrap(row.key_id, row.wrapped_key, row.master_key_version) for row in rows}
