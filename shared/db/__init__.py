"""The database: its tables, its engines and its migrations."""

from shared.db.engine import Database, is_away, open_database

__all__ = ["Database", "is_away", "open_database"]
