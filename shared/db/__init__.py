"""The database: its tables, its engines and its migrations."""

from shared.db import tables_training as tables_training  # so that the metadata always holds every table
from shared.db.engine import Database, open_database

__all__ = ["Database", "open_database"]
