"""What a backup says of itself: its parts, and what each must be. It reads and writes no part.

A backup is a tar. Its members are parts of tables (`tables/<name>/<number>.jsonl`, a row a line), then files
of the storage (`storage/<path>`), then the manifest, then the manifest's SHA-256.
"""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict

MANIFEST, MANIFEST_SHA256 = "manifest.json", "manifest.sha256"
#: Whoever works or is logged in is so now: after a restore everybody logs in again.
LEFT_OUT = ("leases", "refresh_tokens", "sessions", "workers")


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Part(_Record):
    """Some rows of a table, or a file of the storage."""

    name: str
    bytes: int
    sha256: str
    #: 0 for a file of the storage.
    rows: int = 0


class TableParts(_Record):
    """A table: its columns in the order in which each row has them, and its rows."""

    columns: list[str]
    rows: int
    parts: list[Part]


class Manifest(_Record):
    """All of a backup."""

    #: Changes when an older release could not read what is written.
    format: Literal[1] = 1
    #: Revision of the tables (see shared/db/migrations).
    revision: str
    taken_at: datetime
    #: Entries of the sealed log.
    sealed: int
    tables: dict[str, TableParts]
    #: None: the files of the storage are not in it.
    storage: list[Part] | None

    def parts(self) -> list[Part]:
        """Everything but the manifest."""
        return [part for table in self.tables.values() for part in table.parts] + (self.storage or [])


_OF_STORAGE = "storage/"


def storage_name(path: str) -> str:
    """The member that holds a file of the storage."""
    return f"{_OF_STORAGE}{path}"


def storage_path(name: str) -> str:
    """The file of the storage that a member holds."""
    return name.removeprefix(_OF_STORAGE)
