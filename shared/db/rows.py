"""Collects new rows of several tables and stores them with one statement per table. It reads nothing.

Sending a statement costs more than a row: forty questions stored together cost a third of forty
stored one by one.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

from sqlalchemy import Connection, Insert, Table, insert


class Rows:
    """Rows waiting to be stored; tables are written in the order in which they were first named."""

    def __init__(self) -> None:
        self._waiting: dict[Table, list[Mapping[str, Any]]] = {}

    def add(self, table: Table, row: Mapping[str, Any]) -> None:
        """Keep a row for `store`. Rows of one table must name the same columns."""
        self._waiting.setdefault(table, []).append(row)

    def store(self, connection: Connection) -> None:
        """Insert what was collected. Raises sqlalchemy's IntegrityError; roll back then."""
        for table, rows in self._waiting.items():
            connection.execute(_insert(table), rows)
        self._waiting.clear()


#: Where a new row goes: to the database at once, or to those that are stored together later.
Into = Connection | Rows


def put(into: Into, table: Table, row: Mapping[str, Any]) -> None:
    """Insert a row now, or keep it with the others."""
    if isinstance(into, Rows):
        into.add(table, row)
    else:
        into.execute(_insert(table), dict(row))


@cache
def _insert(table: Table) -> Insert:
    """Made once: building a statement costs more than sending it."""
    return insert(table)
