"""Places the legal holds again that a restored backup is older than. It lifts none.

A hold that was lifted since the backup came back with it: that keeps what could go, and loses nothing.
"""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection, select

from shared.backup.erased_again import REASON
from shared.db.tables_privacy import legal_holds
from shared.privacy.held import ListedHold
from shared.privacy.holds import place_again


def held_in(connection: Connection) -> set[str]:
    """The ids of the holds in the database, lifted or not."""
    return set(connection.execute(select(legal_holds.c.id)).scalars())


def hold_again(connection: Connection, listed: Sequence[ListedHold], *, now: datetime) -> list[str]:
    """Place what `shared.privacy.held.read_holds` found, was not lifted and is not here; returns the ids.

    Call it after what was erased since was erased again: such has nothing left to hold.
    """
    here = held_in(connection)
    return [
        hold.id
        for hold in listed
        if not hold.lifted
        and hold.id not in here
        and place_again(connection, hold.model_dump(exclude={"lifted"}), now=now, reason=REASON)
    ]
