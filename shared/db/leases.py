"""Elects one of several processes by a row: whoever holds the lease does the work. It knows no work."""

from datetime import datetime, timedelta

from sqlalchemy import Connection, or_
from sqlalchemy.dialects import postgresql, sqlite

from shared.db.tables import leases


def hold_lease(connection: Connection, name: str, holder: str, *, life: timedelta, now: datetime) -> bool:
    """Take or renew the lease; false while another's is good.

    One that is good for longer than any could be is of before the clock was set back: it counts as run out.
    Twice `life`, since who waited for another's transaction compares with an earlier `now` than that one had.
    """
    make = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    wish = make(leases).values(name=name, holder=holder, expires_at=now + life)
    taken = connection.execute(
        wish.on_conflict_do_update(
            index_elements=[leases.c.name],
            set_={"holder": holder, "expires_at": now + life},
            where=or_(
                leases.c.holder == holder,
                leases.c.expires_at <= now,
                leases.c.expires_at > now + 2 * life,
            ),
        ).returning(leases.c.holder)  # psycopg forgets how many rows an INSERT touched
    )
    return taken.one_or_none() is not None


def give_up_lease(connection: Connection, name: str, holder: str) -> None:
    """Let another take over at once."""
    connection.execute(leases.delete().where(leases.c.name == name, leases.c.holder == holder))
