"""Opens the database for reading and for writing. It knows no table.

On SQLite every write transaction begins with `BEGIN IMMEDIATE` (a deferred one that reads first
fails with "busy" under load) and waits its turn on a lock of this process, so that threads queue
fairly instead of polling the file.
"""

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    DisconnectionError,
    InterfaceError,
    OperationalError,
)

from shared.settings import Settings

#: What each connection to SQLite is told. What is committed outlives a machine that loses its power, and what
#: is deleted is overwritten: else a destroyed key could be read in a free page.
SQLITE_PRAGMAS = {
    "journal_mode": "WAL",
    "busy_timeout": "5000",
    "foreign_keys": "ON",
    "synchronous": "FULL",
    "secure_delete": "ON",
}
#: How long readers are waited for when the write-ahead log is emptied, in milliseconds.
_EMPTYING_MS = 500

#: A host that vanished is noticed within half a minute (libpq's names, in seconds and in milliseconds).
_TCP = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}
#: A connection that was not used for longer is tried before it is used, in seconds.
_IDLE_S = 1.0


class Database:
    """The one door to the database: `with db.write() as connection` is one transaction."""

    def __init__(self, writer: Engine, reader: Engine) -> None:
        self.writer = writer
        self.reader = reader
        self._turn = threading.Lock() if writer.dialect.name == "sqlite" else None

    @property
    def dialect(self) -> str:
        """`sqlite` or `postgresql`."""
        return self.writer.dialect.name

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One write transaction: committed at the end, rolled back when the block raises."""
        if self._turn is None:
            with self.writer.begin() as connection:
                yield connection
            return
        with self._turn, self.writer.begin() as connection:
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """One read transaction; nothing written in it is kept."""
        with self.reader.connect() as connection:
            yield connection

    def empty_write_ahead_log(self) -> bool:
        """On SQLite, bring the file up to date and cut off its log, in which what was deleted still stands.

        Returns whether it is done; a reader may stand in the way. Elsewhere there is nothing to do here.
        """
        if self._turn is None:
            return True
        with self._turn:
            pooled = self.writer.raw_connection()
            try:
                cursor = pooled.cursor()
                cursor.execute(f"PRAGMA busy_timeout={_EMPTYING_MS}")
                cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                (busy, *_pages) = cursor.fetchone() or (1,)
                cursor.execute(f"PRAGMA busy_timeout={SQLITE_PRAGMAS['busy_timeout']}")
                cursor.close()
            finally:
                pooled.close()
        return not busy

    def close(self) -> None:
        """Close every pooled connection."""
        self.writer.dispose()
        self.reader.dispose()


def is_away(error: DBAPIError) -> bool:
    """Whether the database could not be reached, or ended the connection: trying again may help."""
    return isinstance(error, OperationalError | InterfaceError) or error.connection_invalidated


def open_database(settings: Settings, *, owner: bool = False, pool_size: int = 20) -> Database:
    """Open the database that the settings name, as the application role or as the owner.

    Raises ValueError, naming the setting, when its URL is none of a database that MediChat can use.
    """
    password = settings.database_owner_password if owner else settings.database_password
    try:
        url = make_url(settings.database_owner_url if owner else settings.database_url)
        if password is not None and password.get_secret_value():
            url = url.set(password=password.get_secret_value())
        return connect(url, pool_size=pool_size, idle_in_transaction_s=settings.lease_s)
    except (ArgumentError, ImportError, ValueError):  # no URL, no known database, no port
        raise ValueError(
            f"{database_setting(settings, owner=owner)} is no address of a database that MediChat can use: "
            "write postgresql+psycopg://NAME@HOST/DATABASE or sqlite:///FILE"
        ) from None


def database_setting(settings: Settings, *, owner: bool) -> str:
    """The setting that says where the database is, for the owner or the application."""
    apart = owner and settings.database_owner_url != settings.database_url
    return "MEDICHAT_DATABASE_OWNER_URL" if apart else "MEDICHAT_DATABASE_URL"


def sqlite_file(url: str) -> Path | None:
    """The file of a database on SQLite; None for another, and for one in memory."""
    parts = make_url(url)
    named = parts.get_backend_name() == "sqlite" and parts.database not in (None, "", ":memory:")
    return Path(str(parts.database)) if named else None


def connect(url: URL | str, *, pool_size: int = 20, idle_in_transaction_s: float = 60.0) -> Database:
    """Open a database by its SQLAlchemy URL; nothing is created.

    PostgreSQL ends a transaction whose process says nothing for `idle_in_transaction_s`: a process that
    froze or lost its network must not keep its locks.
    """
    url = make_url(url)
    if url.get_backend_name() == "sqlite":
        writer = create_engine(url, pool_size=pool_size, max_overflow=pool_size, hide_parameters=True)
        reader = create_engine(url, pool_size=pool_size, max_overflow=pool_size, hide_parameters=True)
        _configure_sqlite(writer, "BEGIN IMMEDIATE")
        _configure_sqlite(reader, "BEGIN")
        return Database(writer, reader)
    engine = create_engine(
        url,
        pool_size=pool_size,
        max_overflow=pool_size,
        hide_parameters=True,  # else an error's message, and with it a log, holds what was stored
        connect_args={
            **_TCP,
            "connect_timeout": 5,
            "options": f"-c idle_in_transaction_session_timeout={max(1, int(idle_in_transaction_s * 1000))}",
        },
    )
    _ping_the_idle(engine)
    # each statement of a reader sees what is committed, with or without a transaction around it
    return Database(engine, engine.execution_options(isolation_level="AUTOCOMMIT"))


def _ping_the_idle(engine: Engine) -> None:
    """Try a connection that was not used for a while before it is used: the server may have restarted.

    SQLAlchemy's own `pool_pre_ping` does so each time, a round trip per transaction.
    """

    @event.listens_for(engine, "checkin")
    def _on_checkin(_connection: Any, record: Any) -> None:
        record.info["used_at"] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def _on_checkout(connection: Any, record: Any, _proxy: Any) -> None:
        if time.monotonic() - record.info.get("used_at", time.monotonic()) < _IDLE_S:
            return
        try:
            engine.dialect.do_ping(connection)
        except Exception as error:
            raise DisconnectionError from error  # the pool opens another


def _configure_sqlite(engine: Engine, begin: str) -> None:
    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: Any) -> None:
        raw: sqlite3.Connection = connection
        raw.isolation_level = None  # SQLAlchemy says BEGIN itself, below
        cursor = raw.cursor()
        for name, value in SQLITE_PRAGMAS.items():
            cursor.execute(f"PRAGMA {name}={value}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:
        connection.exec_driver_sql(begin)
