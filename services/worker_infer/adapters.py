"""Which adapter answers a question, and its files on this machine. It loads no weights.

What is active is in the database and read at most every `_FRESH_S`, so that a promotion counts within
moments and an answer under way goes on under the adapter with which it began.
"""

import re
import shutil
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from sqlalchemy import Connection

from shared.errors import AdapterRefused, NotFound
from shared.jobs.records import Job
from shared.storage import Storage
from shared.training.adapter_files import AdapterFiles, check_adapter, copy_adapter
from shared.training.adapters import active, check_usable
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

        Raises AdapterRefused when the one that is named must not answer.
        """
        if job.adapter_sha256 is None:
            return self._active(connection)
        if job.adapter_sha256 == BASE:
            return None
        try:
            return check_usable(connection, job.adapter_sha256, self._base_model).sha256
        except NotFound as error:
            raise AdapterRefused(error.detail) from error

    def _active(self, connection: Connection) -> str | None:
        known = self._known
        if known is None or time.monotonic() - known[1] > _FRESH_S:
            known = self._known = active(connection, self._base_model), time.monotonic()
        return known[0]


class AdapterCopies:
    """Copies of adapters in a folder of this worker, each checked whenever it is asked for."""

    def __init__(
        self,
        storage: Storage,
        folder: Path,
        *,
        base_revision: str,
        base_layers: Mapping[str, tuple[int, int]],
    ) -> None:
        self._storage = storage
        self._folder = folder
        self._base_revision = base_revision
        self._base_layers = base_layers

    def fetch(self, sha256: str) -> AdapterFiles:
        """The adapter's files, copied from the storage unless a good copy is here.

        Raises:
            AdapterRefused: what the storage holds is not what it should be.
            OSError: the storage cannot be read, or the disk is full.
        """
        if not _SHA256.fullmatch(sha256):
            raise AdapterRefused("An adapter is named by the SHA-256 of its weights.")
        copy = self._folder / sha256
        try:
            return self._check(copy, sha256)
        except AdapterRefused:
            shutil.rmtree(copy, ignore_errors=True)
        self._folder.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=".new-", dir=self._folder))
        try:
            copy_adapter(self._storage, sha256, fresh)
            self._check(fresh, sha256)
            with suppress(OSError):  # another worker of this host was quicker
                fresh.replace(copy)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
        return self._check(copy, sha256)

    def _check(self, folder: Path, sha256: str) -> AdapterFiles:
        return check_adapter(
            folder, sha256=sha256, base_revision=self._base_revision, base_layers=self._base_layers
        )
