"""Checkpoints that are whole or not there. It knows the trainer's files by name only.

A checkpoint is written aside, flushed to the disk and renamed into place: a crash or a full disk in the
middle leaves the ones before it as they were.
"""

import errno
import fcntl
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path

from services.worker_train.child import Refused

#: So many are kept.
KEPT = 2
_PREFIX = "checkpoint-"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
#: How the writers of safetensors and torch, which know no errno, word it.
_FULL_WORDS = (
    "No space left on device",
    "os error 28",
    "os error 27",
    "File too large",
    "failed writing file",
)


class DiskFull(Refused):
    """The disk has no room for what is to be written."""

    def __init__(self, advice: str) -> None:
        super().__init__("disk-full", f"The disk is full: {advice}")


@contextmanager
def written_aside(
    folder: Path, name: str, *, checkpoints: Path | None = None, alone: bool = True
) -> Iterator[Path]:
    """A folder to write to that becomes `folder / name` when the block ends, and is removed when it raises.

    Args:
        folder: where it shall lie.
        name: its name there.
        checkpoints: where those of the run lie that writes it; None when it is no run's.
        alone: nobody else writes there, so what is there by then is an older one, and replaced.

    Raises:
        DiskFull: there is no room for it.
        OSError: something else is there by then, where somebody else may write.
    """
    aside = aside_of(folder, name)
    if not alone:
        aside = aside.with_name(f"{aside.name}-{secrets.token_hex(4)}")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with nullcontext() if alone else held(aside):
            aside.mkdir()
            yield aside
            _flush(aside)
            if alone:
                shutil.rmtree(folder / name, ignore_errors=True)
            aside.rename(folder / name)
            _sync(folder)
    except BaseException as error:
        shutil.rmtree(aside, ignore_errors=True)
        if is_full(error):
            raise DiskFull(_advice(folder, checkpoints)) from error
        raise


@contextmanager
def held(aside: Path) -> Iterator[None]:
    """Hold the lock of what is written aside; it ends with this process, however that ends."""
    lock = _open_lock(aside)
    try:
        with suppress(OSError):  # where a disk knows no locks nobody gets one, and nothing is removed
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        _lock_of(aside).unlink(missing_ok=True)
        os.close(lock)


def remove_abandoned(folder: Path, name: str) -> list[Path]:
    """Remove what was written aside to become `folder / name`, where several may write, by processes that are
    no more; returns what was removed. What is being written, and what this user may not remove, stays.
    """
    written = re.compile(re.escape(aside_of(folder, name).name) + "-[0-9a-f]{8}")
    found = [path for path in folder.glob(".writing-*") if written.fullmatch(path.name)]
    return [path for path in found if path.is_dir() and _remove(path)]


def _remove(aside: Path) -> bool:
    """Remove it, unless somebody holds its lock; says whether it is gone."""
    with ExitStack() as stack:
        try:
            lock = _open_lock(aside)
            stack.callback(os.close, lock)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            stack.callback(_lock_of(aside).unlink, missing_ok=True)
            shutil.rmtree(aside)
        except OSError:
            return False
    return True


def _open_lock(aside: Path) -> int:
    return os.open(_lock_of(aside), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)


def _lock_of(aside: Path) -> Path:
    return aside.with_name(f"{aside.name}.lock")


def _advice(folder: Path, checkpoints: Path | None) -> str:
    if checkpoints is None:
        return f"free space where {folder} lies, and try again."
    return (
        "free space where MEDICHAT_STATE_DIR and the storage lie, and start the run again; the checkpoints "
        f"before ({len(all_checkpoints(checkpoints))}) are whole."
    )


def aside_of(folder: Path, name: str) -> Path:
    """Where what becomes `folder / name` is written."""
    return folder / f".writing-{name}"


def all_checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints, the oldest first."""
    found = [path for path in folder.glob(f"{_PREFIX}*") if path.name.removeprefix(_PREFIX).isdigit()]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """After how many steps it was saved."""
    return int(checkpoint.name.removeprefix(_PREFIX))


def newest_checkpoint(folder: Path) -> Path | None:
    """Where to go on from; None to start afresh."""
    return next(reversed(all_checkpoints(folder)), None)


def base_of(checkpoint: Path) -> str | None:
    """The revision of the weights that it was trained over; None when an earlier release made it."""
    try:
        config = json.loads((checkpoint / "adapter_config.json").read_text(encoding="utf-8"))
        return str(config["revision"]) if config["revision"] else None
    except (OSError, ValueError, TypeError, KeyError):  # who goes on from it says what is wrong with it
        return None


def drop_old_checkpoints(folder: Path) -> None:
    """Remove all but the newest `KEPT`."""
    for path in all_checkpoints(folder)[:-KEPT]:
        shutil.rmtree(path)


def _flush(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_full(error: BaseException) -> bool:
    """Whether it says that a disk has no room."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    return any(word in str(error) for word in _FULL_WORDS)
