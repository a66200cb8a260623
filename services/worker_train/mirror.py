"""Keeps the checkpoints of a run where another host finds them. It does not know what is in them.

A checkpoint is copied file by file; `WHOLE`, written last, lists the files, and a checkpoint without it
does not exist for the reader.
"""

import json
import shutil
from pathlib import Path

from shared.storage import Storage

#: Checkpoints of a run that are kept in the storage.
KEPT = 2
_WHOLE = "WHOLE"
_NAME = "checkpoint-"


class Checkpoints:
    """The checkpoints of one run: in the folder of this host, and mirrored in the storage.

    Each attempt mirrors into a folder of its own, and deletes none of a later one: a worker that lost its
    lease may still write for a while.
    """

    def __init__(self, storage: Storage, run_id: str, folder: Path, *, epoch: int) -> None:
        """`epoch`: of the claim that this attempt holds; it grows from attempt to attempt."""
        self._storage = storage
        self._place = f"runs/{run_id}/checkpoints"
        self._epoch = epoch
        self.folder = folder

    def newest(self) -> int | None:
        """The step of the newest checkpoint on this host."""
        return max(self._local(), default=None)

    def mirror(self, step: int) -> None:
        """Copy one checkpoint to the storage and drop those that it makes superfluous. Raises OSError."""
        source, place = self.folder / f"{_NAME}{step}", f"{self._place}/{self._epoch}/{_NAME}{step}"
        names = sorted(str(path.relative_to(source)) for path in source.rglob("*") if path.is_file())
        for name in names:
            copy_in(self._storage, source / name, f"{place}/{name}")
        with self._storage.create(f"{place}/{_WHOLE}") as file:
            file.write(json.dumps(names).encode())
        mirrored = self._mirrored()
        for old in sorted(which for which in mirrored if which[0] <= self._epoch)[:-KEPT]:
            self._storage.delete(mirrored[old])

    def fetch(self) -> int | None:
        """Bring the newest checkpoint to this host, unless it is here; returns its step. Raises OSError."""
        mirrored, here = self._mirrored(), self.newest()
        newest = max(mirrored, default=None)
        if newest is None or (here is not None and here >= newest[1]):
            return here
        place, step = mirrored[newest], newest[1]
        with self._storage.open(f"{place}/{_WHOLE}") as file:
            names = json.loads(file.read())
        partial = self.folder / f"fetching-{step}"
        shutil.rmtree(partial, ignore_errors=True)
        for name in names:
            copy_out(self._storage, f"{place}/{name}", partial / name)
        partial.rename(self.folder / f"{_NAME}{step}")
        return step

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
                # an earlier release had no folder for the attempt
                found[int(epoch) if epoch.isdecimal() else 0, int(name.removeprefix(_NAME))] = place
        return found


def copy_in(storage: Storage, source: Path, path: str) -> None:
    """Copy a file of this host to the storage, in flat memory."""
    with source.open("rb") as reader, storage.create(path) as writer:
        shutil.copyfileobj(reader, writer, 1 << 20)


def copy_out(storage: Storage, path: str, target: Path) -> None:
    """Copy a file of the storage to this host, in flat memory."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with storage.open(path) as reader, target.open("wb") as writer:
        shutil.copyfileobj(reader, writer, 1 << 20)
