"""Keeps files in a folder or an object store (any fsspec URL). It does not know what is in them.

A file appears whole or not at all. What people wrote goes through shared/privacy/sealed.py first.
"""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import fsspec  # type: ignore[import-untyped]
from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]

from shared.settings import Settings

#: A file that is being written in a folder; it is renamed when it is whole.
_UNFINISHED = ".part"


class Storage:
    """Files by path, `/` between the parts; safe to share between threads."""

    def __init__(self, url: str) -> None:
        """`url`: a folder, `file://…`, or what an installed fsspec backend knows, e.g. `s3://bucket/x`."""
        self._fs, root = fsspec.core.url_to_fs(url)
        self._root = str(root).rstrip("/")

    @classmethod
    def from_settings(cls, settings: Settings) -> "Storage":
        """The storage that the operator chose."""
        return cls(settings.storage_url)

    @contextmanager
    def create(self, path: str) -> Iterator[IO[bytes]]:
        """A file to write; it appears when the block ends, and not when the block raises.

        Raises OSError, e.g. when the disk is full.
        """
        if isinstance(self._fs, LocalFileSystem):
            with _create_beside(Path(self._full(path))) as local:
                yield local
            return
        file: Any = self._fs.open(self._full(path), "wb", autocommit=False)
        try:
            yield file
            file.close()
        except BaseException:
            file.discard()
            raise
        file.commit()

    def open(self, path: str) -> IO[bytes]:
        """The file, for reading. Raises FileNotFoundError."""
        file: IO[bytes] = self._fs.open(self._full(path), "rb")
        return file

    def exists(self, path: str) -> bool:
        """Whether there is such a file."""
        return bool(self._fs.exists(self._full(path)))

    def size(self, path: str) -> int:
        """Bytes of a file. Raises FileNotFoundError."""
        return int(self._fs.size(self._full(path)))

    def list(self, folder: str) -> list[str]:
        """The paths of all files below a folder, sorted; empty when there is none."""
        start = len(self._root) + 1
        found = (str(path)[start:] for path in self._fs.find(self._full(folder)))
        return sorted(path for path in found if not path.endswith(_UNFINISHED))

    def delete(self, path: str) -> None:
        """Remove a file, or a folder with all in it; nothing happens when it is not there."""
        if self._fs.exists(self._full(path)):
            self._fs.rm(self._full(path), recursive=True)

    def _full(self, path: str) -> str:
        parts = path.split("/")
        if not path or any(part in ("", ".", "..") for part in parts):
            raise ValueError("not a path within the storage")
        return f"{self._root}/{path}"


@contextmanager
def _create_beside(path: Path) -> Iterator[IO[bytes]]:
    """Write next to the file's place and rename: fsspec's own way goes through /tmp, maybe another disk."""
    unfinished = path.with_name(f"{path.name}.{secrets.token_hex(8)}{_UNFINISHED}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with unfinished.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
