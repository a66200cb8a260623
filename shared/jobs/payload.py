"""What an asker wrote beside the question: texts that end the answer. Sealed, as all that people write."""

import json
from collections.abc import Sequence

from sqlalchemy import Connection, select

from shared.db.tables import jobs
from shared.privacy.envelope import DataKey


def seal_stops(stops: Sequence[str], *, key: DataKey, job_id: str) -> bytes:
    """The payload of a job whose answer ends before any of these texts."""
    return key.encrypt(json.dumps({"stop": list(stops)}), place=_place(job_id))


def read_stops(connection: Connection, job_id: str, *, key: DataKey) -> tuple[str, ...]:
    """The texts that end a job's answer; none where it has no payload. Raises CannotDecrypt."""
    sealed = connection.execute(
        select(jobs.c.payload_ciphertext).where(jobs.c.id == job_id)
    ).scalar_one_or_none()
    if sealed is None:
        return ()
    return tuple(json.loads(key.decrypt(sealed, place=_place(job_id)))["stop"])


def _place(job_id: str) -> str:
    return f"payload:{job_id}"
