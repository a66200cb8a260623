"""Keeps files in a folder or an object store (any fsspec URL). It does not know what is in them.

A file appears whole or not at all. What people wrote goes through shared/privacy/sealed.py first.
"""

import errno
import io
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import fsspec  # type: ignore[import-untyped]
from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]

from shared.settings import Settings

#: A file that is being written in a folder; it is renamed when it is whole.
_UNFINISHED = ".part"
#: Libraries whose errors of the network are no OSError. Only those that the URL needs are installed.
_OF_THE_NETWORK = ("botocore", "aiohttp")
#: For botocore; seconds.
_HASTY = {"connect_timeout": 3, "read_timeout": 5, "retries": {"total_max_attempts": 1}}


class StorageAway(OSError):
    """The storage cannot be reached, or refuses; see MEDICHAT_STORAGE_URL."""


class Storage:
    """Files by path, `/` between the parts; safe to share between threads.

    Every method raises StorageAway, as do the files.
    """

    def __init__(self, url: str, *, patient: bool = True) -> None:
        """Open it; nothing is looked at yet.

        Args:
            url: a folder, `file://…`, or what an installed fsspec backend knows, e.g. `s3://bucket/x`.
            patient: whether a silent bucket is asked again, up to minutes; else it is away after seconds.
        """
        hasty: dict[str, Any] = {} if patient or urlsplit(url).scheme != "s3" else {"config_kwargs": _HASTY}
        # a cached listing hides what another process wrote
        self._fs, root = fsspec.core.url_to_fs(url, use_listings_cache=False, **hasty)
        if hasty:
            self._fs.retries = 1
        self._root = str(root).rstrip("/")

    @classmethod
    def from_settings(cls, settings: Settings) -> "Storage":
        """The storage that the operator chose."""
        return cls(settings.storage_url)

    @classmethod
    def of_checkpoints(cls, settings: Settings, *, patient: bool = False) -> "Storage":
        """Where what proves the log is kept, outside of the database. Who waits for it tries again later;
        who reads all of it is `patient`.
        """
        return cls(settings.checkpoint_url, patient=patient)

    @contextmanager
    def create(self, path: str) -> Iterator[IO[bytes]]:
        """A file to write; it appears when the block ends, and not when the block raises.

        Raises OSError, e.g. when the disk is full.
        """
        if isinstance(self._fs, LocalFileSystem):
            with _create_beside(Path(self._full(path))) as local:
                yield local
            return
        with _reached():
            file: Any = self._fs.open(self._full(path), "wb", autocommit=False)
            try:
                yield file
                file.close()
                file.commit()
            except BaseException:
                file.closed = True  # else its finaliser would write it after all
                file.discard()
                raise

    def open(self, path: str) -> IO[bytes]:
        """The file, for reading. Raises FileNotFoundError."""
        with _reached():
            file: IO[bytes] = self._fs.open(self._full(path), "rb")
        return file if isinstance(self._fs, LocalFileSystem) else io.BufferedReader(_Remote(file))

    def exists(self, path: str) -> bool:
        """Whether there is such a file."""
        with _reached():
            return bool(self._fs.exists(self._full(path)))

    def size(self, path: str) -> int:
        """Bytes of a file. Raises FileNotFoundError."""
        with _reached():
            return int(self._fs.size(self._full(path)))

    @property
    def is_local(self) -> bool:
        """Whether it is a folder of this machine."""
        return isinstance(self._fs, LocalFileSystem)

    def names(self, folder: str) -> list[str]:
        """The names of what lies directly in a folder, files and folders; empty when there is none."""
        with _reached():
            try:
                found = [str(path).rstrip("/") for path in self._fs.ls(self._full(folder), detail=False)]
            except FileNotFoundError:
                return []
        names = (path.rpartition("/")[2] for path in found)
        return [name for name in names if not name.endswith(_UNFINISHED)]

    def list(self, folder: str = "") -> list[str]:
        """The paths of all files below a folder (or all there are), sorted; empty when there is none."""
        start = len(self._root) + 1
        with _reached():
            found = (
                str(path)[start:] for path in self._fs.find(self._full(folder) if folder else self._root)
            )
            return sorted(path for path in found if not path.endswith(_UNFINISHED))

    def delete(self, path: str) -> None:
        """Remove a file, or a folder with all in it; nothing happens when it is not there."""
        with _reached(), suppress(FileNotFoundError):  # somebody else may be removing the same
            if self._fs.exists(self._full(path)):
                self._fs.rm(self._full(path), recursive=True)

    def _full(self, path: str) -> str:
        parts = path.split("/")
        if not path or any(part in ("", ".", "..") for part in parts):
            raise ValueError("not a path within the storage")
        return f"{self._root}/{path}"


class _Remote(io.RawIOBase):
    """A file of an object store, which is fetched while it is read."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__()
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def readinto(self, buffer: "memoryview | bytearray") -> int:  # type: ignore[override]
        with _reached():
            data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


@contextmanager
def _reached() -> Iterator[None]:
    """Turns what the libraries of object stores raise into StorageAway."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) or type(error).__module__.partition(".")[0] not in _OF_THE_NETWORK:
            raise
        raise StorageAway(errno.EIO, f"the storage cannot be used: {type(error).__name__}") from error


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
