"""Whether the tables at hand are those of this release, and who owns them. It changes none."""

from sqlalchemy import Connection, text

from shared.db import migrate
from shared.errors import Conflict

_OWNS = text(
    "SELECT pg_has_role(relowner, 'USAGE') FROM pg_class WHERE oid = to_regclass('public.audit_events')"
)


def check_owner(connection: Connection) -> None:
    """Raises Conflict, with the way out, when somebody else owns the tables; SQLite knows no owner."""
    if connection.dialect.name == "postgresql" and connection.execute(_OWNS).scalar() is False:
        raise Conflict(
            "only the owner of the tables can do this: set MEDICHAT_DATABASE_OWNER_URL to that role's address"
        )


def check_revision(connection: Connection) -> str:
    """The revision of the tables. Raises Conflict when it is not this release's, and as `check_owner`."""
    check_owner(connection)
    current, newest = migrate.current(connection), migrate.newest()
    if current != newest:
        raise Conflict(
            f"the tables are of revision {current or 'none'}, and those of this release of {newest}: run "
            "`medichat migrate` first, or use the release that made them"
        )
    return newest
