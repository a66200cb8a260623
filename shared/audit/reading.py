"""Reads rows as they are stored, whoever wrote them. It believes no type of a column.

SQLite keeps what it is given: a text where bytes belong, bytes that are no text. A verification has to name
that, and not to fail of it; so nothing here converts a value, and nothing is refused.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
from sqlalchemy import (
    ColumnElement,
    Connection,
    Executable,
    String,
    bindparam,
    func,
    select,
    type_coerce,
)
from sqlalchemy.exc import OperationalError, SQLAlchemyError

#: Between ids that are sent as one text, which costs less than an array; no id has it.
_BETWEEN = "\n"
#: A moment as text, on both databases alike.
_MOMENT = "YYYY-MM-DD HH24:MI:SS.US"
_BY_INDEX = {"enable_hashjoin": "off", "enable_mergejoin": "off", "max_parallel_workers_per_gather": "0"}


def fetch(connection: Connection, statement: Executable, values: dict[str, Any] | None = None) -> list[Any]:
    """All rows as plain tuples of what the driver gives.

    SQLite's driver refuses a text that is no UTF-8; then its bytes are given as lone surrogates.
    """
    if connection.dialect.name != "sqlite":
        with _binary(connection):
            return _all_rows(connection, statement, values)
    try:
        return _all_rows(connection, statement, values)
    except (OperationalError, sqlite3.OperationalError):
        with any_text(connection):
            return _all_rows(connection, statement, values)


def _all_rows(connection: Connection, statement: Executable, values: dict[str, Any] | None) -> list[Any]:
    result = connection.execute(statement, values or {})
    try:
        return [] if result.cursor is None else list(result.cursor.fetchall())
    finally:
        result.close()


class _BinaryCursor(psycopg.Cursor[Any]):
    """Has the server send bytes as they are, and not as hexadecimal text."""

    def __init__(self, connection: psycopg.Connection[Any], **options: Any) -> None:
        super().__init__(connection, **options)
        self.format = psycopg.pq.Format.BINARY


@contextmanager
def _binary(connection: Connection) -> Iterator[None]:
    driver: Any = connection.connection.driver_connection
    before = driver.cursor_factory
    driver.cursor_factory = _BinaryCursor
    try:
        yield
    finally:
        driver.cursor_factory = before


@contextmanager
def any_text(connection: Connection) -> Iterator[None]:
    """Within it SQLite gives any text, at some cost; other databases hold none but UTF-8."""
    driver: Any = connection.connection.driver_connection
    if not isinstance(driver, sqlite3.Connection):
        yield
        return
    before = driver.text_factory
    driver.text_factory = _text
    try:
        yield
    finally:
        driver.text_factory = before


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


@contextmanager
def by_index(connection: Connection) -> Iterator[None]:
    """Within it PostgreSQL looks up each row by its index, which is best for a page of a long table.

    Left to itself it reads a whole table for a page, or starts workers that cost more than they do.
    """
    if connection.dialect.name != "postgresql":
        yield
        return
    for name, value in _BY_INDEX.items():
        connection.exec_driver_sql(f"SET {name} = {value}")
    try:
        yield
    finally:
        with suppress(SQLAlchemyError):  # a connection that was lost needs no settings
            for name in _BY_INDEX:
                connection.exec_driver_sql(f"RESET {name}")


def moment(connection: Connection, column: ColumnElement[Any]) -> ColumnElement[Any]:
    """The moment as `2026-11-02 09:15:00.000000` in UTC: PostgreSQL makes text of it faster than Python does.

    On SQLite it is what is stored, whatever that is.
    """
    if connection.dialect.name == "postgresql":
        return func.to_char(func.timezone("UTC", column), _MOMENT)
    return type_coerce(column, String)


def among(connection: Connection, column: ColumnElement[Any]) -> ColumnElement[bool]:
    """Whether the column is one of `ids`, a parameter that `as_ids` makes: one, however many there are."""
    if connection.dialect.name == "postgresql":
        return column == func.any(func.string_to_array(bindparam("ids", type_=String), _BETWEEN))
    found = func.json_each(bindparam("ids", type_=String)).table_valued("value")
    return column.in_(select(found.c.value))


def as_ids(connection: Connection, ids: Collection[str]) -> dict[str, Any]:
    """The parameter of `among`."""
    together = (
        _BETWEEN.join(sorted(ids)) if connection.dialect.name == "postgresql" else json.dumps(sorted(ids))
    )
    return {"ids": together}
