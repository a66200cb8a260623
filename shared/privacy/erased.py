"""Keeps the list of destroyed data keys outside of the database, for restores. It destroys none itself.

An empty file `erased/<key_id>` beside the signed checkpoints of the log: a backup that is older than an
erasure brings the key back, and the list takes it away again. It holds ids only.
"""

from collections.abc import Iterable

from shared.ids import is_id
from shared.storage import Storage

_FOLDER = "erased"


def note_erased(place: Storage, key_ids: Iterable[str]) -> None:
    """Add keys to the list in `Storage.of_checkpoints(settings)`; safe to repeat.

    Call it after the commit that destroyed the keys: one that is listed and lives would be lost at a restore.
    Maintenance lists what could not be listed then.
    Raises ValueError for what is no id, before anything is listed, and OSError as `Storage` does.
    """
    wanted = list(key_ids)
    if not all(map(is_id, wanted)):
        raise ValueError("not the id of a data key")
    for key_id in wanted:
        with place.create(f"{_FOLDER}/{key_id}"):
            pass


def read_erased(place: Storage) -> set[str]:
    """The ids of all keys that were ever listed. Raises OSError as `Storage` does."""
    names = (path.rpartition("/")[2] for path in place.list(_FOLDER))
    return {name for name in names if is_id(name)}
