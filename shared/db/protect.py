"""Lays triggers: insert-only tables refuse change, and new rows join the queues of what is still to be done
with them. It creates no table.

SQLite has no roles, so triggers refuse. On PostgreSQL the tables belong to the owner, and the
application's role `medichat_app` (of which the application's login is a member) is granted only
what it needs; triggers refuse the owner as well, so that only who may drop a trigger can edit.
"""

from sqlalchemy import Connection, inspect, text

from shared.db.tables import INSERT_ONLY, metadata

APPLICATION_ROLE = "medichat_app"
#: Of each table the queue that its new rows join, and the column of their ids there.
_QUEUES = {"audit_events": ("audit_pending", "event_id"), "messages": ("search_pending", "message_id")}


def lay_queues(connection: Connection) -> None:
    """Lay the triggers by which each new row joins its queue, whoever writes it; safe to repeat."""
    present = set(inspect(connection).get_table_names())
    for table, (queue, column) in _QUEUES.items():
        if queue not in present:
            continue
        join = f"INSERT INTO {queue} ({column}) VALUES (NEW.id);"  # noqa: S608 - names of our tables
        if connection.dialect.name == "sqlite":
            trigger = f"TRIGGER IF NOT EXISTS {table}_join AFTER INSERT ON {table} BEGIN {join} END"
            connection.execute(text(f"CREATE {trigger}"))
            continue
        connection.execute(
            text(
                f"CREATE OR REPLACE FUNCTION join_{queue}() RETURNS trigger LANGUAGE plpgsql AS "
                f"$$ BEGIN {join} RETURN NULL; END $$"
            )
        )
        connection.execute(
            text(
                f"CREATE OR REPLACE TRIGGER {table}_join AFTER INSERT ON {table} "
                f"FOR EACH ROW EXECUTE FUNCTION join_{queue}()"
            )
        )


def protect_insert_only(connection: Connection) -> None:
    """Lay the triggers that refuse UPDATE and DELETE; safe to repeat."""
    present = set(inspect(connection).get_table_names())
    lay = _protect_sqlite if connection.dialect.name == "sqlite" else _protect_postgresql
    for table in INSERT_ONLY:
        if table in present:
            lay(connection, table)


def grant_to_application(connection: Connection) -> None:
    """Grant the application's role what it needs on every table; nothing to do on SQLite.

    Raises sqlalchemy's ProgrammingError when the role is missing and the owner may not create it.
    """
    if connection.dialect.name != "postgresql":
        return
    if not connection.execute(
        text("SELECT 1 FROM pg_roles WHERE rolname = :role"), {"role": APPLICATION_ROLE}
    ).scalar():
        connection.execute(text(f"CREATE ROLE {APPLICATION_ROLE} NOLOGIN"))
    connection.execute(text(f"GRANT USAGE ON SCHEMA public TO {APPLICATION_ROLE}"))
    present = set(inspect(connection).get_table_names())
    for table in metadata.sorted_tables:
        if table.name in present:
            rights = "SELECT, INSERT" if table.name in INSERT_ONLY else "SELECT, INSERT, UPDATE, DELETE"
            connection.execute(text(f"REVOKE ALL ON {table.name} FROM {APPLICATION_ROLE}"))
            connection.execute(text(f"GRANT {rights} ON {table.name} TO {APPLICATION_ROLE}"))


def _protect_sqlite(connection: Connection, table: str) -> None:
    refuse = f"BEGIN SELECT RAISE(ABORT, '{table} is insert-only'); END"
    for verb in ("UPDATE", "DELETE"):
        name = f"{table}_no_{verb.lower()}"
        connection.execute(text(f"CREATE TRIGGER IF NOT EXISTS {name} BEFORE {verb} ON {table} {refuse}"))
    # INSERT OR REPLACE deletes what is in its way, and the trigger of a DELETE does not hear of it
    keys = (" AND ".join(f"{name} = NEW.{name}" for name in key) for key in _unique(connection, table))
    taken = f"EXISTS (SELECT 1 FROM {table} WHERE {' OR '.join(keys)})"  # noqa: S608 - names of our tables
    name = f"{table}_no_replace"
    connection.execute(
        text(f"CREATE TRIGGER IF NOT EXISTS {name} BEFORE INSERT ON {table} WHEN {taken} {refuse}")
    )


def _unique(connection: Connection, table: str) -> list[list[str]]:
    """The columns of each key that no two rows of the table share."""
    seen = inspect(connection)
    constraints = [each["column_names"] for each in seen.get_unique_constraints(table)]
    indexes = [each["column_names"] for each in seen.get_indexes(table) if each["unique"]]
    first = seen.get_pk_constraint(table)["constrained_columns"]
    return [["rowid"], first, *constraints, *([name for name in key if name] for key in indexes)]


def _protect_postgresql(connection: Connection, table: str) -> None:
    connection.execute(
        text(
            "CREATE OR REPLACE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION '% is insert-only', TG_TABLE_NAME; END $$"
        )
    )
    connection.execute(
        text(
            f"CREATE OR REPLACE TRIGGER {table}_no_change BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
        )
    )
