"""Finds the signed checkpoints of the log that are newer than a backup."""

from typing import TypedDict

from shared.audit.checkpoint import Verifier
from shared.audit.checkpoints import kept_beyond
from shared.errors import BadCheckpoint, Conflict
from shared.storage import Storage


class Superseded(TypedDict):
    """What a checkpoint says of the log: how many entries, and in hex the root over them."""

    size: int
    root: str


def superseded(checkpoints: Storage, size: int, verifier: Verifier) -> list[Superseded]:
    """The checkpoints of more than `size` entries, each once, the smallest first.

    Raises Conflict, with the way out, for a file that the log's key did not sign; OSError as `Storage` does.
    """
    try:
        found = {(each.size, each.root.hex()) for each in kept_beyond(checkpoints, size, verifier)}
    except BadCheckpoint as error:
        raise Conflict(f"{error} (in MEDICHAT_CHECKPOINT_URL): look why, then move the file away") from None
    return [{"size": entries, "root": root} for entries, root in sorted(found)]
