"""Finds the signed checkpoints of the log that are newer than a backup. It verifies none of them.

They are files `checkpoint-<size>-<id>.txt` in C2SP's tlog-checkpoint: origin, size and root, a line each.
"""

import base64
import re
from typing import TypedDict

from shared.errors import Conflict
from shared.storage import Storage

_NAME = re.compile(r"(?:.*/)?checkpoint-(\d{12})-[^/]+\.txt")
_HASH_BYTES = 32


class Superseded(TypedDict):
    """What a checkpoint says of the log: how many entries, and in hex the root over them."""

    size: int
    root: str


def superseded(checkpoints: Storage, size: int) -> list[Superseded]:
    """The checkpoints of more than `size` entries, each once, the smallest first.

    Raises Conflict, with the way out, for a file that is no checkpoint, and OSError as `Storage` does.
    """
    found: set[tuple[int, str]] = set()
    for path in checkpoints.list():
        named = _NAME.fullmatch(path)
        if named is not None and int(named[1]) > size:
            with checkpoints.open(path) as file:
                found.add(_parse(path, file.read()))
    return [{"size": entries, "root": root} for entries, root in sorted(found)]


def _parse(path: str, note: bytes) -> tuple[int, str]:
    try:
        _origin, size, root = note.decode().split("\n")[:3]
        decoded = base64.b64decode(root, validate=True)
        if len(decoded) != _HASH_BYTES:
            raise ValueError
        return int(size), decoded.hex()
    except ValueError:
        raise Conflict(
            f"{path} in MEDICHAT_CHECKPOINT_URL is no checkpoint of the log: look why, then move it away"
        ) from None
