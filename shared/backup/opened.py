"""Opens a backup and checks that every byte of its parts is what was written. It writes nothing."""

import hashlib
import tarfile
from collections.abc import Callable
from contextlib import suppress
from typing import IO

from pydantic import ValidationError

from shared.backup.manifest import MANIFEST, MANIFEST_SHA256, Manifest, Part
from shared.errors import InvalidInput

_BLOCK_BYTES = 1 << 20
_MANIFEST_BYTES = 1 << 30


class BackupRefused(InvalidInput):
    """The backup is damaged or is none; take another copy of it."""


class Backup:
    """A backup that is whole."""

    def __init__(self, source: IO[bytes], *, told: Callable[[int], None]) -> None:
        """Read all of it once; `told` hears how many bytes of parts were checked.

        Raises BackupRefused when it is not, byte for byte, what was written.
        """
        try:
            self._tar = tarfile.open(fileobj=source, mode="r:")  # noqa: SIM115 - the source is the caller's
            self._members = {member.name: member for member in self._tar}
        except tarfile.TarError as error:
            raise BackupRefused from error
        self.manifest = self._read_manifest()
        expected = {part.name for part in self.manifest.parts()} | {MANIFEST, MANIFEST_SHA256}
        if expected != self._members.keys():
            raise BackupRefused("The backup lacks parts, or has some that it should not; take another copy.")
        checked = 0
        for part in self.manifest.parts():
            self._check(part)
            checked += part.bytes
            told(checked)

    def open(self, part: Part) -> IO[bytes]:
        """A part's bytes."""
        return self._open(part.name)

    def read(self, part: Part) -> bytes:
        """A part's bytes at once. Raises BackupRefused when they changed since they were checked."""
        data = self._open(part.name).read()
        if hashlib.sha256(data).hexdigest() != part.sha256:
            raise BackupRefused("The backup was changed while it was read; nothing was restored.")
        return data

    def _read_manifest(self) -> Manifest:
        with suppress(KeyError):
            described = self._open(MANIFEST).read(_MANIFEST_BYTES)
            if hashlib.sha256(described).hexdigest().encode() == self._open(MANIFEST_SHA256).read():
                try:
                    return Manifest.model_validate_json(described)
                except ValidationError:
                    raise BackupRefused(
                        "The backup is of a format that this release does not know; restore it with the "
                        "release that took it."
                    ) from None
        raise BackupRefused

    def _check(self, part: Part) -> None:
        sha256, size = hashlib.sha256(), 0
        with self._open(part.name) as file:
            while block := file.read(_BLOCK_BYTES):
                sha256.update(block)
                size += len(block)
        if (size, sha256.hexdigest()) != (part.bytes, part.sha256):
            raise BackupRefused(f"The backup's part {part.name} is damaged; take another copy of the backup.")

    def _open(self, name: str) -> IO[bytes]:
        file = self._tar.extractfile(self._members[name])
        if file is None:  # a folder or a link
            raise BackupRefused
        return file
