"""Rows as lines of JSON and back, the same for each kind of database. It knows the types of columns only.

Bytes are base64, moments are ISO 8601 in UTC, and columns of JSON are their text, so that nothing about them
changes on the way.
"""

import base64
import json
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import (
    JSON,
    Column,
    ColumnElement,
    Connection,
    Insert,
    LargeBinary,
    Select,
    Table,
    Text,
    bindparam,
    cast,
    insert,
    select,
)

from shared.db.types import UtcDateTime


def all_rows(table: Table) -> Select[Any]:
    """Every row in the order of its key; JSON as its text."""
    columns = [cast(column, Text) if isinstance(column.type, JSON) else column for column in table.columns]
    return select(*columns).order_by(*table.primary_key.columns)


def insert_lines(table: Table, connection: Connection) -> Insert:
    """Takes what `decode` made of lines."""
    return insert(table).values({column.name: _bound(column, connection) for column in table.columns})


def encode(table: Table, row: Sequence[Any]) -> bytes:
    """A row of `all_rows` as a line."""
    values = [
        None if value is None else _encoder(column)(value)
        for column, value in zip(table.columns, row, strict=True)
    ]
    return json.dumps(values, separators=(",", ":")).encode() + b"\n"


def decode(table: Table, lines: Iterable[bytes]) -> list[dict[str, Any]]:
    """The rows of lines, by column. Raises ValueError for what `encode` never writes."""
    columns = list(table.columns)
    return [
        {
            column.name: None if value is None else _decoder(column)(value)
            for column, value in zip(columns, json.loads(line), strict=True)
        }
        for line in lines
    ]


def _bound(column: Column[Any], connection: Connection) -> ColumnElement[Any]:
    if not isinstance(column.type, JSON):
        return bindparam(column.name, type_=column.type)
    text = bindparam(column.name, type_=Text())
    return cast(text, JSON) if connection.dialect.name == "postgresql" else text


def _encoder(column: Column[Any]) -> Callable[[Any], Any]:
    if isinstance(column.type, LargeBinary):
        return lambda value: base64.b64encode(value).decode()
    if isinstance(column.type, UtcDateTime):
        return lambda value: value.isoformat()
    return lambda value: value


def _decoder(column: Column[Any]) -> Callable[[Any], Any]:
    if isinstance(column.type, LargeBinary):
        return lambda value: base64.b64decode(value, validate=True)
    if isinstance(column.type, UtcDateTime):
        return datetime.fromisoformat
    return lambda value: value
