"""Keeps the list of what was erased outside of the database, for restores. It erases nothing itself.

An empty file `erased/<id>` beside the signed checkpoints of the log, for each destroyed data key and each
erased person: a backup that is older than an erasure brings them back, and the list takes them away again. It
holds ids only; an account and a key never have the same.
"""

from collections.abc import Iterable

from shared.ids import is_id
from shared.storage import Storage

_FOLDER = "erased"


def note_erased(place: Storage, ids: Iterable[str]) -> None:
    """Add keys and people to the list in `Storage.of_checkpoints(settings)`; safe to repeat.

    Call it after the commit that destroyed the keys: one that is listed and lives would be lost at a restore.
    Maintenance lists what could not be listed then.
    Raises ValueError for what is no id, before anything is listed, and OSError as `Storage` does.
    """
    wanted = list(ids)
    if not all(map(is_id, wanted)):
        raise ValueError("not the id of a data key or an account")
    for id in wanted:
        with place.create(f"{_FOLDER}/{id}"):
            pass


def read_erased(place: Storage) -> set[str]:
    """All ids that were ever listed. Raises OSError as `Storage` does."""
    names = (path.rpartition("/")[2] for path in place.list(_FOLDER))
    return {name for name in names if is_id(name)}
