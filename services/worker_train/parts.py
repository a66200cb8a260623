"""Keeps the rows of a dataset: first in a sealed spool, then in sealed parts. It decides nothing."""

import hashlib
import io
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from shared.privacy.envelope import DataKey
from shared.privacy.sealed import SealedReader, SealedWriter
from shared.storage import Storage

ROWS_A_PART = 5_000
Row = dict[str, Any]


class Spool:
    """Rows that wait for their split, in a file without a name: a crash leaves nothing of it."""

    def __init__(self, folder: Path, key: DataKey) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self._key = key
        self._writer = SealedWriter(cast(IO[bytes], self._file), key, place="spool")

    def add(self, row: Row) -> None:
        """Keep a row."""
        self._writer.write(_line(row))

    def close(self) -> None:
        """Throw all away."""
        self._file.close()

    def rows(self) -> Iterator[Row]:
        """All rows in the order they came; nothing can be added after, and they can be read once."""
        self._writer.close()
        self._file.seek(0)
        with io.BufferedReader(SealedReader(cast(IO[bytes], self._file), self._key, place="spool")) as lines:
            yield from map(json.loads, lines)


class PartWriter:
    """Writes the rows of one split into parts of at most `ROWS_A_PART`."""

    def __init__(self, storage: Storage, key: DataKey, folder: str, split: str) -> None:
        self._storage, self._key = storage, key
        self._folder, self._split = folder, split
        self._waiting: list[bytes] = []
        #: What the manifest says of each part.
        self.parts: list[dict[str, Any]] = []

    def add(self, row: Row) -> None:
        """Keep a row; a part that is full is stored."""
        self._waiting.append(_line(row))
        if len(self._waiting) == ROWS_A_PART:
            self.flush()

    def flush(self) -> None:
        """Store what waits."""
        if not self._waiting:
            return
        path = f"{self._folder}/{self._split}-{len(self.parts):05d}.jsonl"
        sha256, size = store_sealed(self._storage, self._key, path, self._waiting)
        self.parts.append(
            {
                "path": path,
                "split": self._split,
                "sha256": sha256,
                "rows": len(self._waiting),
                "bytes": size,
            }
        )
        self._waiting = []


class Pictures:
    """Stores the cleaned pictures that a check finds, each once, under its SHA-256.

    The folder is the check's own: what an earlier one stored may be removed at any time, once it has ended.
    """

    def __init__(self, storage: Storage, key: DataKey, folder: str) -> None:
        self._storage, self._key, self._folder = storage, key, folder
        self._bytes: dict[str, int] = {}

    def keep(self, sha256: str, png: bytes) -> None:
        """Store a picture, unless it is stored already."""
        if sha256 not in self._bytes:
            store_sealed(self._storage, self._key, self._path(sha256), [png])
            self._bytes[sha256] = len(png)

    def manifest(self, used: set[str]) -> list[dict[str, Any]]:
        """What the manifest says of the pictures that rows use."""
        return [
            {"path": self._path(sha256), "sha256": sha256, "bytes": self._bytes[sha256]}
            for sha256 in sorted(used)
        ]

    def _path(self, sha256: str) -> str:
        return f"{self._folder}/{sha256}"


class _Measured(io.RawIOBase):
    """Passes bytes on, and takes their hash and number."""

    def __init__(self, sink: IO[bytes]) -> None:
        super().__init__()
        self._sink = sink
        self.sha256 = hashlib.sha256()
        self.bytes = 0

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self.sha256.update(data)
        self.bytes += len(data)
        return self._sink.write(data)


def store_sealed(storage: Storage, key: DataKey, path: str, chunks: list[bytes]) -> tuple[str, int]:
    """Seal a file of a dataset into storage; SHA-256 and number of the sealed bytes."""
    with storage.create(path) as file:
        sink = _Measured(file)
        with SealedWriter(cast(IO[bytes], sink), key, place=place_of(path)) as writer:
            for chunk in chunks:
                writer.write(chunk)
    return sink.sha256.hexdigest(), sink.bytes


def place_of(path: str) -> str:
    """The place that a file `datasets/<id>/<below>` is bound to."""
    _, dataset_id, below = path.split("/", 2)
    return f"dataset:{dataset_id}:{below}"


def _line(row: Row) -> bytes:
    return json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
