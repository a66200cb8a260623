"""Says what to do when the disk or the storage fails a program. It reads and writes nothing."""

from services.worker_train.checkpoints import DiskFull, is_full
from services.worker_train.child import Away, Refused
from services.worker_train.reading import StorageFailed
from shared.storage import StorageAway


def of_files(error: Exception, *, again: str) -> Refused | None:
    """What `error` means, Away where another attempt may do better; None when it is something else.

    `again`: what to do once there is room.
    """
    if isinstance(error, StorageFailed | StorageAway):
        return Away("storage", "The storage cannot be read or written now; see MEDICHAT_STORAGE_URL.")
    if is_full(error):
        return DiskFull(f"free space where MEDICHAT_STATE_DIR and the storage lie, and {again}.")
    return None
