"""Takes a backup while everything runs. It holds what the database holds: ciphertext, wrapped keys, metadata,
hashes of passwords and of API keys; no master key.

All tables are read in one transaction, which sees none of what is committed meanwhile. Memory stays flat: a
part of a table is in it at a time.
"""

import hashlib
import io
import tarfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import IO

from sqlalchemy import Connection, Table, func, select, text

from shared.backup.manifest import (
    LEFT_OUT,
    MANIFEST,
    MANIFEST_SHA256,
    Manifest,
    Part,
    TableParts,
    storage_name,
)
from shared.backup.rows import all_rows, encode
from shared.backup.tables import check_revision
from shared.db import Database
from shared.db.tables import audit_seals, metadata, pictures
from shared.storage import Storage

_PART_BYTES = 8_000_000
_FETCHED = 500
#: Rows that are fetched together where each has some megabytes.
_FETCHED_PICTURES = 4
_READABLE_BY_OWNER = 0o600

#: Is told what is being read, and how many rows or files of it were.
Told = Callable[[str, int], None]


def take_backup(
    database: Database, sink: IO[bytes], *, now: datetime, storage: Storage | None, told: Told
) -> Manifest:
    """Write a backup into `sink`, with every file of `storage` when it is given.

    Raises Conflict, with the way out, when the tables are not those of this release, and OSError.
    """
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.PAX_FORMAT) as tar:
        with _snapshot(database) as connection:
            revision = check_revision(connection)
            tables = {
                table.name: _write_table(connection, table, tar, told, now)
                for table in metadata.sorted_tables
                if table.name not in LEFT_OUT
            }
            sealed = connection.execute(select(func.count()).select_from(audit_seals)).scalar_one()
        files = None if storage is None else _write_storage(storage, tar, told, now)
        manifest = Manifest(revision=revision, taken_at=now, sealed=sealed, tables=tables, storage=files)
        described = manifest.model_dump_json().encode()
        _add(tar, MANIFEST, described, now)
        _add(tar, MANIFEST_SHA256, hashlib.sha256(described).hexdigest().encode(), now)
    return manifest


@contextmanager
def _snapshot(database: Database) -> Iterator[Connection]:
    """One transaction that sees the database as it is now, however long it takes."""
    if database.dialect == "sqlite":
        with database.read() as connection:
            yield connection
        return
    engine = database.writer.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        yield connection


def _write_table(
    connection: Connection, table: Table, tar: tarfile.TarFile, told: Told, now: datetime
) -> TableParts:
    together = _FETCHED_PICTURES if table is pictures else _FETCHED
    rows = (
        encode(table, row)
        for row in connection.execution_options(yield_per=together).execute(all_rows(table))
    )
    parts: list[Part] = []
    count = 0
    for lines in _in_parts(rows):
        name, data = f"tables/{table.name}/{len(parts):05}.jsonl", b"".join(lines)
        sha256 = hashlib.sha256(data).hexdigest()
        parts.append(Part(name=name, rows=len(lines), bytes=len(data), sha256=sha256))
        _add(tar, name, data, now)
        count += len(lines)
        told(table.name, count)
    return TableParts(columns=[column.name for column in table.columns], rows=count, parts=parts)


def _in_parts(lines: Iterable[bytes]) -> Iterator[list[bytes]]:
    part: list[bytes] = []
    size = 0
    for line in lines:
        if part and size + len(line) > _PART_BYTES:
            yield part
            part, size = [], 0
        part.append(line)
        size += len(line)
    if part:
        yield part


def _write_storage(storage: Storage, tar: tarfile.TarFile, told: Told, now: datetime) -> list[Part]:
    """Files appear whole and never change; one that is removed before it is read is left out."""
    parts: list[Part] = []
    for path in storage.list():
        try:
            size, file = storage.size(path), storage.open(path)
        except FileNotFoundError:
            continue
        with file:
            hashing = _Hashing(file)
            tar.addfile(_described(storage_name(path), size, now), hashing)
        parts.append(Part(name=storage_name(path), bytes=size, sha256=hashing.sha256.hexdigest()))
        told("storage", len(parts))
    return parts


class _Hashing(io.RawIOBase):
    """A file of which what is read is hashed."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__()
        self._file = file
        self.sha256 = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self.sha256.update(data)
        return data


def _add(tar: tarfile.TarFile, name: str, data: bytes, now: datetime) -> None:
    tar.addfile(_described(name, len(data), now), io.BytesIO(data))


def _described(name: str, size: int, now: datetime) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, _READABLE_BY_OWNER, int(now.timestamp())
    return info
