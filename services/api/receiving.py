"""Takes datasets in: seals what comes, then submits the check; leaves nothing when it breaks off.

It does not know HTTP.
"""

import logging
import os
import re
import stat
import time
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO

from sqlalchemy import insert, select, update

from services.api.state import Gateway
from shared.audit import record
from shared.auth.sessions import Principal
from shared.db.tables_privacy import dataset_conversations
from shared.db.tables_training import datasets
from shared.errors import InvalidInput, MediChatError
from shared.jobs.lifecycle import Kind
from shared.logs import where
from shared.training.dataset_files import RawWriter, too_large
from shared.training.dataset_records import Dataset
from shared.training.datasets import By
from shared.training.options import DatasetOptions
from shared.training.states import DatasetState

log = logging.getLogger(__name__)

_CHUNK_BYTES = 1 << 20
_NOTE_EVERY_S = 2.0
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


class Reception:
    """One upload under way. Call `finish`, or `abandon` when it breaks off."""

    def __init__(
        self,
        gateway: Gateway,
        caller: Principal,
        *,
        name: str | None,
        source: str,
        source_name: str,
        options: DatasetOptions,
        total: int | None,
    ) -> None:
        """`total` bytes are announced, if any number is. Raises StorageFull or Unavailable."""
        self._gateway, self._by, self._total = gateway, by(caller), total
        with gateway.database.write() as connection:
            self._id, key = gateway.datasets.create(
                connection,
                name=name,
                source=source,
                source_name=source_name,
                options=options,
                by=self._by,
                now=gateway.clock.now(connection),
            )
        self._noted = time.monotonic()
        try:
            self._writer = RawWriter(
                gateway.datasets.storage, key, self._id, max_bytes=gateway.settings.max_dataset_bytes
            )
        except MediChatError:
            self._forget("no-storage")
            raise

    @property
    def dataset_id(self) -> str:
        """The dataset that receives."""
        return self._id

    def name_conversations(self, conversation_ids: Collection[str]) -> None:
        """Note which conversations its rows come from, so that an erasure finds them."""
        rows = [{"dataset_id": self._id, "conversation_id": each} for each in sorted(conversation_ids)]
        with self._gateway.database.write() as connection:
            connection.execute(insert(dataset_conversations), rows)

    def write(self, data: "bytes | bytearray") -> None:
        """Take the next piece. Raises TooLarge, StorageFull, Unavailable."""
        self._writer.write(data)
        if time.monotonic() - self._noted > _NOTE_EVERY_S:
            self._noted = time.monotonic()
            with self._gateway.database.write() as connection:
                now = self._gateway.clock.now(connection)
                self._gateway.datasets.note_received(
                    connection, self._id, done=self._writer.bytes, total=self._total, now=now
                )

    def finish(self) -> Dataset:
        """All has come: submit its check. Raises InvalidInput for nothing at all."""
        if self._writer.bytes == 0:
            raise InvalidInput("The file is empty; send one with at least one row.")
        gateway, sha256 = self._gateway, self._writer.finish()
        with gateway.database.write() as connection:
            now = gateway.clock.now(connection)
            job = gateway.datasets.received(
                connection, self._id, size=self._writer.bytes, sha256=sha256, by=self._by, now=now
            )
            dataset = gateway.datasets.get(connection, self._id)
        gateway.bell.work(Kind.VALIDATE, job.id)
        return dataset

    def abandon(self, reason: str) -> None:
        """Leave nothing behind but an event; `reason` is a code."""
        try:
            self._writer.discard()
        finally:
            self._forget(reason)

    def _forget(self, reason: str) -> None:
        """Files go before the row: as long as it stands, though nobody sees it, maintenance finds both."""
        gateway, removed = self._gateway, True
        if self._was_received():
            return
        try:
            gateway.datasets.delete_files(self._id)
        except OSError as error:
            log.warning("files of dataset %s could not be removed: %s", self._id, where(error))
            removed = False
        with gateway.database.write() as connection:
            now = gateway.clock.now(connection)
            if not removed:
                hidden = update(datasets).where(datasets.c.id == self._id).values(hidden_at=now)
                connection.execute(hidden)
            elif not gateway.datasets.abandon(connection, self._id):
                return
            record.append(
                connection,
                now=now,
                actor=self._by.actor,
                action="dataset.received",
                object=f"dataset:{self._id}",
                outcome=record.Outcome.FAILED,
                reason=reason,
            )

    def _was_received(self) -> bool:
        """Whether it was received after all: a commit of which nobody heard is waited for."""
        state = select(datasets.c.state).where(datasets.c.id == self._id).with_for_update()
        with self._gateway.database.write() as connection:
            return connection.execute(state).scalar_one_or_none() not in (None, DatasetState.RECEIVING)


def by(caller: Principal) -> By:
    """The caller, as the dataset store names who acts."""
    return By(caller.user_id, caller.audience, caller.actor)


def import_path(
    gateway: Gateway, caller: Principal, *, name: str | None, location: str, options: DatasetOptions
) -> Dataset:
    """Copy a file of this machine. Raises InvalidInput when it may not or cannot be read, or TooLarge."""
    with _open_below(gateway.settings.dataset_import_dir, location) as file:
        size = os.fstat(file.fileno()).st_size
        if size > gateway.settings.max_dataset_bytes:
            raise too_large(gateway.settings.max_dataset_bytes)
        reception = Reception(
            gateway,
            caller,
            name=name,
            source="path",
            source_name=location,
            options=options,
            total=size,
        )
        try:
            while chunk := file.read(_CHUNK_BYTES):
                reception.write(chunk)
            return reception.finish()
        except BaseException as error:
            reception.abandon(reason_of(error))
            raise


def import_hub(
    gateway: Gateway, caller: Principal, *, name: str | None, location: str, options: DatasetOptions
) -> Dataset:
    """Note a dataset of the hub; the worker that checks it downloads it. Raises InvalidInput."""
    if not _HUB_ID.fullmatch(location):
        raise InvalidInput("A hub id is `owner/name`, for example lavita/ChatDoctor-HealthCareMagic-100k.")
    who = by(caller)
    with gateway.database.write() as connection:
        now = gateway.clock.now(connection)
        dataset_id, _ = gateway.datasets.create(
            connection, name=name, source="hub", source_name=location, options=options, by=who, now=now
        )
        job = gateway.datasets.received(connection, dataset_id, size=None, sha256=None, by=who, now=now)
        dataset = gateway.datasets.get(connection, dataset_id)
    gateway.bell.work(Kind.VALIDATE, job.id)
    return dataset


def reason_of(error: BaseException) -> str:
    """A code for the log: why an upload broke off."""
    return error.code if isinstance(error, MediChatError) else "broke-off"


@contextmanager
def _open_below(folder: Path | None, location: str) -> Iterator[IO[bytes]]:
    """A regular file below the folder that the operator opened for this, wherever links lead."""
    if folder is None:
        raise InvalidInput(
            "This server imports no files: its operator sets MEDICHAT_DATASET_IMPORT_DIR to a folder first."
        )
    missing = InvalidInput("There is no such file below MEDICHAT_DATASET_IMPORT_DIR; check the path.")
    try:
        root = folder.resolve(strict=True)
        path = (root / location).resolve(strict=True)
        if not path.is_relative_to(root) or not path.is_file():
            raise missing
        # what a name means may change between the look and the opening: links and pipes are refused again
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (OSError, ValueError, RuntimeError) as error:
        raise missing from error
    with closing(os.fdopen(descriptor, "rb")) as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise missing
        yield file
