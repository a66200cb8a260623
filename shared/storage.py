"""Keeps files in a folder or an object store (any fsspec URL). It does not know what is in them.

A file appears whole or not at all. What people wrote goes through shared/privacy/sealed.py first.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import fsspec  # type: ignore[import-untyped]

from shared.settings import Settings


class Storage:
    """Files by path, `/` between the parts; safe to share between threads."""

    def __init__(self, url: str) -> None:
        """`url`: a folder, `file://…`, or what an installed fsspec backend knows, e.g. `s3://bucket/x`."""
        self._fs, root = fsspec.core.url_to_fs(url, auto_mkdir=True)
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
        return sorted(str(found)[start:] for found in self._fs.find(self._full(folder)))

    def delete(self, path: str) -> None:
        """Remove a file, or a folder with all in it; nothing happens when it is not there."""
        if self._fs.exists(self._full(path)):
            self._fs.rm(self._full(path), recursive=True)

    def _full(self, path: str) -> str:
        parts = path.split("/")
        if not path or any(part in ("", ".", "..") for part in parts):
            raise ValueError("not a path within the storage")
        return f"{self._root}/{path}"
