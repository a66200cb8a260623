"""The database: its tables, its engines and its migrations."""

from shared.db.engine import Database, open_database

__all__ = ["Database", "open_database"]
