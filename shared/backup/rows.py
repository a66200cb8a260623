"""Rows as lines of JSON and back, the same for each kind of database. It knows the types of columns only.

Bytes are base64, moments are ISO 8601 in UTC, and columns of JSON are their text, so that nothing about them
changes on the way.
"""

import base64
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from functools import cache
from typing import Any, TypeVar

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

_Turn = Callable[[Any], Any]
_Item = TypeVar("_Item")


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
        None if value is None else as_json(value)
        for as_json, value in zip(_encoders(table), row, strict=True)
    ]
    return json.dumps(values, separators=(",", ":")).encode() + b"\n"


def decode(table: Table, lines: Iterable[bytes]) -> list[dict[str, Any]]:
    """The rows of lines, by column. Raises ValueError for what `encode` never writes."""
    columns = _decoders(table)
    return [
        {
            name: None if value is None else from_json(value)
            for (name, from_json), value in zip(columns, json.loads(line), strict=True)
        }
        for line in lines
    ]


def batches(items: Sequence[_Item], size: int) -> Iterator[Sequence[_Item]]:
    """The items in their order, up to `size` at a time."""
    return (items[start : start + size] for start in range(0, len(items), size))


def _bound(column: Column[Any], connection: Connection) -> ColumnElement[Any]:
    if not isinstance(column.type, JSON):
        return bindparam(column.name, type_=column.type)
    text = bindparam(column.name, type_=Text())
    return cast(text, JSON) if connection.dialect.name == "postgresql" else text


@cache
def _encoders(table: Table) -> tuple[_Turn, ...]:
    return tuple(_turned(column, _to_base64, datetime.isoformat) for column in table.columns)


@cache
def _decoders(table: Table) -> tuple[tuple[str, _Turn], ...]:
    return tuple(
        (column.name, _turned(column, _from_base64, datetime.fromisoformat)) for column in table.columns
    )


def _turned(column: Column[Any], of_bytes: _Turn, of_moment: _Turn) -> _Turn:
    if isinstance(column.type, LargeBinary):
        return of_bytes
    return of_moment if isinstance(column.type, UtcDateTime) else _as_it_is


def _to_base64(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _from_base64(value: str) -> bytes:
    return base64.b64decode(value, validate=True)


def _as_it_is(value: Any) -> Any:
    return value
