"""Keeps wrapped data keys in the database. It does not know what they encrypt."""

from collections.abc import Collection
from datetime import datetime
from typing import Literal

from sqlalchemy import Connection, select
from sqlalchemy.exc import DBAPIError

from shared.db.engine import open_database
from shared.db.rows import Into, put
from shared.db.tables import data_keys
from shared.ids import new_id
from shared.privacy.envelope import CannotDecrypt, DataKey, Envelope
from shared.privacy.master_keys import open_envelope
from shared.settings import Settings

KeyScope = Literal["conversation", "dataset", "image", "person", "search"]


def create_data_key(
    into: Into, envelope: Envelope, *, scope: KeyScope, owner_id: str, now: datetime
) -> DataKey:
    """Make a data key for one owner and store it wrapped."""
    key, wrapped, version = envelope.new_data_key(new_id())
    row = {
        "key_id": key.key_id,
        "scope": scope,
        "owner_id": owner_id,
        "wrapped_key": wrapped,
        "master_key_version": version,
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


def check_master_key(settings: Settings) -> None:
    """Raises ValueError when the master key is missing, is none, or is not the one of the database.

    A database that cannot be asked now is not: whoever needs it will say so.
    """
    envelope = open_envelope(settings)
    database = open_database(settings, pool_size=1)
    try:
        with database.read() as connection:
            compare_master_key(connection, envelope)
    except DBAPIError:
        return
    finally:
        database.close()


def compare_master_key(connection: Connection, envelope: Envelope) -> None:
    """Raises ValueError, with the way out, when the oldest data key was not wrapped by this master key."""
    oldest = connection.execute(
        select(data_keys.c.key_id, data_keys.c.wrapped_key, data_keys.c.master_key_version)
        .where(data_keys.c.wrapped_key.is_not(None))
        .order_by(data_keys.c.key_id)  # ids are in the order of time
        .limit(1)
    ).one_or_none()
    if oldest is None:
        return
    try:
        envelope.unwrap(oldest.key_id, oldest.wrapped_key, oldest.master_key_version)
    except CannotDecrypt as error:
        raise ValueError(
            "this is not the master key of this database, whose texts it cannot read: copy the folder "
            "secrets (or MEDICHAT_MASTER_KEY) from the host that was set up first"
        ) from error
