"""Copies of adapters, for as long as a program needs them. Whoever is killed meanwhile leaves one, which the
next that copies removes, or a worker's round of leftovers. It does not know what is in them.
"""

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from services.worker_train.checkpoints import aside_of, held, remove_abandoned

_NAME = "copy"


@contextmanager
def folder_for_copy(state_dir: Path) -> Iterator[Path]:
    """An empty folder for its owner only, which is removed when the block ends. Raises OSError."""
    remove_abandoned_copies(state_dir)
    copy = aside_of(state_dir.absolute(), f"{_NAME}-{secrets.token_hex(4)}")
    with held(copy):
        copy.mkdir(mode=0o700)
        try:
            yield copy
        finally:
            shutil.rmtree(copy, ignore_errors=True)


def remove_abandoned_copies(state_dir: Path) -> None:
    """Remove those of programs that are no more."""
    remove_abandoned(state_dir.absolute(), _NAME)
