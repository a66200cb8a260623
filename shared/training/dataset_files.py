"""Where the files of a dataset lie, how they are sealed and opened. It knows no row of the database.

    datasets/<id>/raw                      the upload, as it came
    datasets/<id>/v<n>-<attempt>/<split>-00000.jsonl   normalised rows, see `DatasetReader.rows`
    datasets/<id>/v<n>-<attempt>/report.json   what the check found, until the database has it
    datasets/<id>/v<n>-<attempt>/images/<sha256>   PNG pictures that rows name
    datasets/<id>/images/<sha256>          the same, of a check by an earlier release

All of them are sealed under the dataset's data key (shared/privacy/sealed.py).
"""

import errno
import hashlib
import io
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from typing import IO, Any, Self

from pydantic import BaseModel, ConfigDict

from shared.audit.record import canonical_json
from shared.errors import DatasetDamaged, StorageFull, TooLarge, Unavailable
from shared.privacy.envelope import CannotDecrypt, DataKey
from shared.privacy.sealed import SealedReader, SealedWriter
from shared.storage import Storage

_CHUNK_BYTES = 1 << 20


class Split(StrEnum):
    """Which of the normalised rows."""

    TRAIN = "train"
    VALIDATION = "validation"  #: held out, never trained on
    QUARANTINE = "quarantine"  #: set aside: dangerous, or personal


class Part(BaseModel):
    """One file of normalised rows, as the manifest names it."""

    model_config = ConfigDict(frozen=True)

    path: str
    split: Split
    sha256: str  #: of the sealed bytes
    rows: int
    bytes: int


class Picture(BaseModel):
    """One image, as the manifest names it."""

    model_config = ConfigDict(frozen=True)

    sha256: str
    bytes: int
    #: None in a manifest of an earlier release; see `image_path`.
    path: str | None = None


class Manifest(BaseModel):
    """What a checked dataset consists of; never changed once it is stored."""

    model_config = ConfigDict(frozen=True)

    parts: tuple[Part, ...]
    images: tuple[Picture, ...] = ()
    #: Of the upload; None for a dataset of the hub.
    raw_sha256: str | None
    #: The commit of a dataset of the hub that was read.
    revision: str | None = None
    shape: str
    options: dict[str, Any]

    @classmethod
    def stored(cls, values: dict[str, Any], sha256: str | None) -> Self:
        """The manifest of a row of the database, whose `manifest_sha256` is given.

        Raises DatasetDamaged when it is not the one that was stored with it.
        """
        if hash_manifest(values) != sha256:
            raise DatasetDamaged
        return cls.model_validate(values)

    @property
    def version(self) -> int:
        """The number n of the folder `v<n>-<attempt>` that holds the parts."""
        return int(self.parts[0].path.split("/")[2].removeprefix("v").partition("-")[0])

    def of_split(self, split: Split) -> list[Part]:
        """The parts of one split, in order."""
        return [part for part in self.parts if part.split is split]

    def count(self, split: Split) -> int:
        """How many rows a split has."""
        return sum(part.rows for part in self.of_split(split))


def hash_manifest(values: dict[str, Any]) -> str:
    """The SHA-256 that names a manifest, and with it exactly the rows of the dataset."""
    return hashlib.sha256(canonical_json(values)).hexdigest()


def folder_of(dataset_id: str) -> str:
    """The folder of everything that belongs to the dataset."""
    return f"datasets/{dataset_id}"


def raw_path(dataset_id: str) -> str:
    """The upload."""
    return f"{folder_of(dataset_id)}/raw"


def version_folder(dataset_id: str, version: int, attempt: str) -> str:
    """The folder of the rows that an attempt (see `Claim.name`) at the check number `version` yielded.

    A worker that lost its lease may still write for a while: into a folder that is its own.
    """
    return f"{folder_of(dataset_id)}/v{version}-{attempt}"


def report_path(dataset_id: str, version: int, attempt: str) -> str:
    """What the attempt found, beside its rows."""
    return f"{version_folder(dataset_id, version, attempt)}/report.json"


def image_path(dataset_id: str, sha256: str) -> str:
    """One picture of which the manifest names no path."""
    return f"{folder_of(dataset_id)}/images/{sha256}"


def place_of(path: str) -> str:
    """The place (see shared/privacy/envelope.py) to which a file of a dataset is bound."""
    _, dataset_id, below = path.split("/", 2)
    return f"dataset:{dataset_id}:{below}"


@contextmanager
def storage_errors() -> Iterator[None]:
    """Says what to do about a storage that cannot be written."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull from error
        raise Unavailable("The storage cannot be written; see MEDICHAT_STORAGE_URL.") from error


class RawWriter:
    """Takes an upload in pieces and seals it into storage; it appears there at `finish` and not before."""

    def __init__(self, storage: Storage, key: DataKey, dataset_id: str, *, max_bytes: int) -> None:
        """Raises StorageFull or Unavailable, as do all methods."""
        self.bytes = 0
        self._sha256 = hashlib.sha256()
        self._max_bytes = max_bytes
        self._stack = ExitStack()
        path = raw_path(dataset_id)
        with storage_errors():
            file = self._stack.enter_context(storage.create(path))
            self._sealed = SealedWriter(file, key, place=place_of(path))

    def write(self, data: "bytes | bytearray") -> None:
        """Take the next piece. Raises TooLarge."""
        self.bytes += len(data)
        if self.bytes > self._max_bytes:
            raise too_large(self._max_bytes)
        self._sha256.update(data)
        with storage_errors():
            self._sealed.write(data)

    def finish(self) -> str:
        """Put the file in place; returns the SHA-256 of the plaintext."""
        with storage_errors():
            self._sealed.close()
            self._stack.close()
        return self._sha256.hexdigest()

    def discard(self) -> None:
        """Leave nothing behind; safe to repeat, and after `finish` without effect."""
        stack, self._stack = self._stack, ExitStack()
        error = _Discarded()
        stack.__exit__(_Discarded, error, None)


class _Discarded(Exception):
    """Makes `Storage.create` throw the file away."""


def too_large(max_bytes: int) -> TooLarge:
    """The refusal of a dataset that is larger than allowed."""
    return TooLarge(
        f"A dataset may have at most {max_bytes} bytes; split it, or raise MEDICHAT_MAX_DATASET_BYTES."
    )


class DatasetReader:
    """Reads the rows of a checked dataset; each part is compared with the manifest before it is read."""

    def __init__(self, storage: Storage, key: DataKey, dataset_id: str, manifest: Manifest) -> None:
        self._storage, self._key, self._dataset_id = storage, key, dataset_id
        self.manifest = manifest

    def open_part(self, part: Part) -> IO[bytes]:
        """One part in the clear. Raises DatasetDamaged when it is not what the manifest says."""
        digest = hashlib.sha256()
        try:
            with self._storage.open(part.path) as file:
                while chunk := file.read(_CHUNK_BYTES):
                    digest.update(chunk)
            if digest.hexdigest() != part.sha256:
                raise DatasetDamaged
            return open_sealed(self._storage, self._key, part.path)
        except (FileNotFoundError, CannotDecrypt) as error:
            raise DatasetDamaged from error

    def rows(self, split: Split, *, offset: int = 0, limit: int | None = None) -> Iterator[dict[str, Any]]:
        """The rows of a split in order: `id`, `messages`, `image`, `group`; set aside: `line`, `reason` too.

        Parts before `offset` are not opened. Raises DatasetDamaged.
        """
        left = self.manifest.count(split) if limit is None else limit
        for part in self.manifest.of_split(split):
            if left <= 0:
                return
            if offset >= part.rows:
                offset -= part.rows
                continue
            with self.open_part(part) as lines:
                for number, line in enumerate(lines):
                    if number >= offset and left > 0:
                        left -= 1
                        yield json.loads(line)
            offset = 0

    def read_image(self, sha256: str) -> bytes:
        """One picture, as PNG. Raises KeyError when no row names it, and DatasetDamaged."""
        named = next((picture for picture in self.manifest.images if picture.sha256 == sha256), None)
        if named is None:
            raise KeyError(sha256)
        path = named.path or image_path(self._dataset_id, sha256)
        try:
            with open_sealed(self._storage, self._key, path) as file:
                image = file.read()
        except (FileNotFoundError, CannotDecrypt) as error:
            raise DatasetDamaged from error
        if hashlib.sha256(image).hexdigest() != sha256:
            raise DatasetDamaged
        return image


def open_sealed(storage: Storage, key: DataKey, path: str) -> IO[bytes]:
    """A file of a dataset in the clear. Raises FileNotFoundError or, also while reading, CannotDecrypt."""
    return io.BufferedReader(SealedReader(storage.open(path), key, place=place_of(path)))
