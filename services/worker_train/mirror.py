"""Keeps the checkpoints of a run where another host finds them. It does not know what is in them.

A checkpoint is copied file by file; `WHOLE`, written last, lists the files with their hashes, and a
checkpoint without it does not exist for the reader. It is sealed: who can only write to the storage makes no
checkpoint that a trainer would read, and changes none.
"""

import errno
import hashlib
import hmac
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from services.worker_train.checkpoints import DiskFull, written_aside
from shared.privacy.envelope import Envelope
from shared.storage import Storage
from shared.training.runs import folder_of

#: Checkpoints of a run that are kept in the storage.
KEPT = 2
#: So much is copied before it is asked again whether it is needed.
_BLOCK_BYTES = 1 << 20
_WHOLE = "WHOLE"
_NAME = "checkpoint-"


class _Differs(Exception):
    """The checkpoint in the storage is not the one that was mirrored."""


class _Stopped(Exception):
    """Nobody needs what is being copied any more."""


def _never() -> bool:
    return False


class Checkpoints:
    """The checkpoints of one run: in the folder of this host, and mirrored in the storage.

    Each attempt mirrors into a folder of its own, and deletes none of a later one: a worker that lost its
    lease may still write for a while.
    """

    def __init__(
        self, storage: Storage, envelope: Envelope, run_id: str, folder: Path, *, epoch: int
    ) -> None:
        """`epoch`: of the claim that this attempt holds; it grows from attempt to attempt."""
        self._storage, self._envelope, self._run_id = storage, envelope, run_id
        self._place = f"{folder_of(run_id)}/checkpoints"
        self._epoch = epoch
        self.folder = folder

    def newest(self) -> int | None:
        """The step of the newest checkpoint on this host."""
        return max(self._local(), default=None)

    def mirror(self, step: int, stopped: Callable[[], bool] = _never) -> None:
        """Copy one checkpoint to the storage and drop those that it makes superfluous. Raises OSError.

        Once it is `stopped`, nothing of it is left there.
        """
        source, place = self.folder / f"{_NAME}{step}", f"{self._place}/{self._epoch}/{_NAME}{step}"
        names = sorted(str(path.relative_to(source)) for path in source.rglob("*") if path.is_file())
        try:
            hashes = {
                name: copy_in(self._storage, source / name, f"{place}/{name}", stopped) for name in names
            }
        except _Stopped:
            self._storage.delete(place)
            return
        with self._storage.create(f"{place}/{_WHOLE}") as file:
            file.write(json.dumps({"files": hashes, "seal": self._seal(step, hashes)}).encode())
        mirrored = self._mirrored()
        for old in sorted(which for which in mirrored if which[0] <= self._epoch)[:-KEPT]:
            self._storage.delete(mirrored[old])

    def fetch(self) -> tuple[int | None, list[int]]:
        """Bring the newest checkpoint to this host, unless it is here; returns its step, and the steps of
        newer ones that were skipped because they are not as they were mirrored. Raises OSError.
        """
        mirrored, here, skipped = self._mirrored(), self.newest(), list[int]()
        for which in sorted(mirrored, reverse=True):
            step = which[1]
            if here is not None and here >= step:
                break
            try:
                self._fetch(mirrored[which], step)
            except _Differs:
                skipped.append(step)
            except DiskFull as error:
                raise OSError(errno.ENOSPC, "the disk is full") from error
            else:
                return step, skipped
        return here, skipped

    def _fetch(self, place: str, step: int) -> None:
        hashes = self._hashes(place, step)
        with written_aside(self.folder, f"{_NAME}{step}") as aside:
            for name, expected in hashes.items():
                try:
                    found = copy_out(self._storage, f"{place}/{name}", aside / name)
                except FileNotFoundError as error:
                    raise _Differs from error
                if found != expected:
                    raise _Differs

    def _hashes(self, place: str, step: int) -> dict[str, str]:
        """The SHA-256 of each file, once the seal is found to be ours; an earlier release made none."""
        with self._storage.open(f"{place}/{_WHOLE}") as file:
            try:
                whole: Any = json.loads(file.read())
                hashes, seal = dict(whole["files"]), str(whole["seal"])
                ours = hmac.compare_digest(seal.encode(), self._seal(step, hashes).encode())
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                raise _Differs from error
        if not ours:
            raise _Differs
        return hashes

    def _seal(self, step: int, hashes: dict[str, str]) -> str:
        """Bound to the run and the step: a checkpoint cannot take the place of another."""
        told = {"checkpoint": step, "run": self._run_id, "files": hashes}
        return self._envelope.fingerprint(json.dumps(told, sort_keys=True))

    def delete(self) -> None:
        """Forget them all, here and in the storage."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._storage.delete(self._place)

    def _local(self) -> set[int]:
        numbers = [path.name.removeprefix(_NAME) for path in self.folder.glob(f"{_NAME}*")]
        return {int(number) for number in numbers if number.isdecimal()}  # others are not whole yet

    def _mirrored(self) -> dict[tuple[int, int], str]:
        """Where those are of which every file is there, by attempt and step."""
        found: dict[tuple[int, int], str] = {}
        end = f"/{_WHOLE}"
        for path in self._storage.list(self._place):
            if path.endswith(end):
                place = path.removesuffix(end)
                epoch, name = place.split("/")[-2:]
                step = name.removeprefix(_NAME)
                if not step.isdecimal():
                    continue  # nothing of ours
                # an earlier release had no folder for the attempt
                found[int(epoch) if epoch.isdecimal() else 0, int(step)] = place
        return found


def copy_in(storage: Storage, source: Path, path: str, stopped: Callable[[], bool] = _never) -> str:
    """Copy a file of this host to the storage, in flat memory; returns its SHA-256."""
    with source.open("rb") as reader, storage.create(path) as writer:
        return _copy(reader, writer, stopped)


def copy_out(storage: Storage, path: str, target: Path) -> str:
    """Copy a file of the storage to this host, in flat memory; returns its SHA-256."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with storage.open(path) as reader, target.open("wb") as writer:
        return _copy(reader, writer)


def _copy(reader: IO[bytes], writer: IO[bytes], stopped: Callable[[], bool] = _never) -> str:
    digest = hashlib.sha256()
    while data := reader.read(_BLOCK_BYTES):
        if stopped():
            raise _Stopped
        digest.update(data)
        writer.write(data)
    return digest.hexdigest()
