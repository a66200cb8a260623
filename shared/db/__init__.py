"""The database: its tables, its engines and its migrations."""

from shared.db import tables_audit as tables_audit  # so that the metadata always holds every table
from shared.db import tables_guard as tables_guard
from shared.db import tables_privacy as tables_privacy
from shared.db import tables_review as tables_review
from shared.db import tables_training as tables_training
from shared.db.engine import Database, is_away, open_database

__all__ = ["Database", "is_away", "open_database"]
