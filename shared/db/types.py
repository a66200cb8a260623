"""Column types that mean the same on SQLite and PostgreSQL. They know no table."""

from collections.abc import Iterable
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import CheckConstraint, DateTime, Dialect, String
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import NullType, TypeDecorator


class UtcDateTime(TypeDecorator[datetime]):
    """A timezone-aware moment, stored in UTC. Refuses naive values."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a moment without a time zone cannot be stored")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: Any | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        moment: datetime = value
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


class as_stored(FunctionElement[Any]):
    """A column as it is, unread: on SQLite, which keeps what it is given, as bytes.

    For what somebody may have altered: a value of another kind must not raise where it is read.
    """

    type = NullType()
    inherit_cache = True


@compiles(as_stored)
def _as_stored(element: as_stored, compiler: Any, **rest: Any) -> str:
    column: str = compiler.process(element.clauses, **rest)
    return f"CAST({column} AS BLOB)" if compiler.dialect.name == "sqlite" else f"({column})"


def moment_of(stored: bytes | datetime | None) -> datetime | None:
    """The moment that `as_stored` gives; None where it is none."""
    try:
        moment = datetime.fromisoformat(stored.decode()) if isinstance(stored, bytes) else stored
        if moment is None or moment.tzinfo is not None:
            return moment and moment.astimezone(UTC)
    except (ValueError, OverflowError):
        return None
    return moment.replace(tzinfo=UTC)


def one_of(column: str, members: Iterable[StrEnum]) -> CheckConstraint:
    """A constraint that keeps a text column to the values of an enum; named after the column."""
    values = ", ".join(f"'{member.value}'" for member in members)
    return CheckConstraint(f"{column} IN ({values})", name=f"{column}_known")


#: Identifiers are UUIDs as text.
Id = String(36)
