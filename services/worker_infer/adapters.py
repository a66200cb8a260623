"""Which adapter answers a question, and its files on this machine. It loads no weights.

What is active is in the database. While that is an adapter, each answer asks for it: one that was recalled or
rolled back begins none. While it is the base model alone, the database is asked at most every `_FRESH_S`, so
that a promotion counts within moments. An answer under way goes on under the adapter with which it began,
until that is recalled.
"""

import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from shared.db import Database
from shared.errors import AdapterRefused, NotFound
from shared.jobs.records import Job
from shared.storage import Storage
from shared.training.adapter_files import AdapterFiles, check_adapter, copy_adapter, hash_files
from shared.training.adapters import active, check_usable, files_hash
from shared.training.states import BASE

_FRESH_S = 2.0
_SHA256 = re.compile(r"[0-9a-f]{64}")


class ActiveAdapter:
    """Chooses the adapter for each answer; safe to share between threads."""

    def __init__(self, base_model: str) -> None:
        """`base_model` is the catalogue's name."""
        self._base_model = base_model
        self._known: tuple[str | None, float] | None = None

    def choose(self, connection: Connection, job: Job) -> str | None:
        """The adapter that the job names (an earlier attempt's too), else the active one; None: the base.

        Raises AdapterRefused when it must not answer.
        """
        if job.adapter_sha256 == BASE:
            return None
        if job.adapter_sha256 is None:
            return self._active(connection)
        return self._named(connection, job.adapter_sha256)

    def _named(self, connection: Connection, sha256: str) -> str:
        try:
            return check_usable(connection, sha256, self._base_model).sha256
        except NotFound as error:
            raise AdapterRefused(error.detail) from error

    def _active(self, connection: Connection) -> str | None:
        known = self._known
        if known is None or known[0] is not None or time.monotonic() - known[1] > _FRESH_S:
            known = self._known = active(connection, self._base_model), time.monotonic()
        return known[0]


class AdapterCopies:
    """Copies of adapters in a folder of this worker, each checked whenever it is asked for."""

    def __init__(
        self,
        storage: Storage,
        folder: Path,
        *,
        files_hash: Callable[[str], str],
        base_revision: str,
        base_layers: Mapping[str, tuple[int, int]],
    ) -> None:
        """`files_hash`: asks the registry what an adapter's files beside its weights must hash to."""
        self._storage = storage
        self._folder = folder
        self._files_hash = files_hash
        self._base_revision = base_revision
        self._base_layers = base_layers
        #: Hashes of adapters that are being verified and have none yet in the registry.
        self._on_trial: dict[str, str] = {}
        self._one_trial = threading.Lock()

    def fetch(self, sha256: str) -> AdapterFiles:
        """The adapter's files, copied from the storage unless a good copy is here.

        Raises:
            AdapterRefused: what the storage holds is not what it should be.
            OSError: storage or database cannot be read, or the disk is full.
        """
        if not _SHA256.fullmatch(sha256):
            raise AdapterRefused("An adapter is named by the SHA-256 of its weights.")
        copy, files_sha256 = self._folder / sha256, self._on_trial.get(sha256) or self._files_hash(sha256)
        try:
            return self._check(copy, sha256, files_sha256)
        except AdapterRefused:
            shutil.rmtree(copy, ignore_errors=True)
        self._folder.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=".new-", dir=self._folder))
        try:
            copy_adapter(self._storage, sha256, fresh)
            self._check(fresh, sha256, files_sha256)
            with suppress(OSError):  # another worker of this host was quicker
                fresh.replace(copy)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
        return self._check(copy, sha256, files_sha256)

    @contextmanager
    def on_trial(self, sha256: str) -> Iterator[str]:
        """While this lasts, `fetch` takes what the storage holds now, good or not, for what was registered;
        gives what its files beside the weights hash to. One trial at a time: another one waits.

        Raises AdapterRefused or OSError.
        """
        with self._one_trial:
            with tempfile.TemporaryDirectory() as fresh:
                copy_adapter(self._storage, sha256, Path(fresh))
                self._on_trial[sha256] = hash_files(Path(fresh))
            try:
                yield self._on_trial[sha256]
            finally:
                del self._on_trial[sha256]

    def _check(self, folder: Path, sha256: str, files_sha256: str) -> AdapterFiles:
        return check_adapter(
            folder,
            sha256=sha256,
            files_sha256=files_sha256,
            base_revision=self._base_revision,
            base_layers=self._base_layers,
        )


def ask_registry(database: Database) -> Callable[[str], str]:
    """`files_hash` of the adapters in a database, with the errors that `AdapterCopies.fetch` may raise."""

    def ask(sha256: str) -> str:
        try:
            with database.read() as connection:
                return files_hash(connection, sha256)
        except NotFound as error:
            raise AdapterRefused(error.detail) from error
        except DBAPIError as error:
            raise OSError("the database cannot be read") from error

    return ask
