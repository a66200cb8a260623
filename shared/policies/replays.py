"""Keeps replays: the newest answers judged again under a version. It judges nothing and keeps no text.

Which sentence is judged otherwise is kept as a job and a number; its words stay where they are, under the key
of their conversation, so erasing that erases them here too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, select, update

from shared.audit import record
from shared.db.rows import put
from shared.db.tables_guard import guard_replays
from shared.errors import NotFound
from shared.guard.verdict import Audience
from shared.ids import new_id
from shared.jobs.lifecycle import Kind, Lane
from shared.jobs.records import Claim, NewJob
from shared.jobs.store import JobStore

#: Answers that one replay judges at the most.
MOST_ANSWERS = 5000


@dataclass(frozen=True, kw_only=True)
class Replay:
    """One replay."""

    id: str
    job_id: str
    version: str
    #: How many of the newest answers are judged again.
    answers: int
    #: See services/worker_train/replay.py; None until it ended.
    counts: dict[str, Any] | None
    created_by: str
    created_at: datetime


_COLUMNS = select(*(guard_replays.c[name] for name in Replay.__dataclass_fields__))


class ReplayStore:
    """The replays in the database; every method runs in the caller's transaction."""

    def __init__(self, jobs: JobStore) -> None:
        self._jobs = jobs

    def submit(
        self,
        connection: Connection,
        *,
        version: str,
        answers: int,
        user_id: str,
        actor: record.Actor,
        now: datetime,
    ) -> Replay:
        """Ask for a replay under a version that is there."""
        new = NewJob(
            id=new_id(), kind=Kind.REPLAY, user_id=user_id, audience=Audience.CLINICIAN, lane=Lane.BATCH
        )
        self._jobs.submit(connection, new, now)
        replay = Replay(
            id=new_id(),
            job_id=new.id,
            version=version,
            answers=answers,
            counts=None,
            created_by=user_id,
            created_at=now,
        )
        put(connection, guard_replays, {**replay.__dict__, "changes": None})
        record.append(
            connection,
            now=now,
            actor=actor,
            action="replay.submitted",
            object=f"replay:{replay.id}",
            details={"version": version, "answers": answers, "job": new.id},
        )
        return replay

    def record_end(
        self,
        connection: Connection,
        claim: Claim,
        *,
        counts: Mapping[str, Any],
        changes: Sequence[Mapping[str, Any]],
    ) -> None:
        """Keep what was found; the caller finishes the job with it. Raises LeaseLost."""
        self._jobs.hold(connection, claim)
        connection.execute(
            update(guard_replays)
            .where(guard_replays.c.job_id == claim.job_id)
            .values(counts=dict(counts), changes=[dict(change) for change in changes])
        )


def find(connection: Connection, replay_id: str) -> Replay:
    """One replay. Raises NotFound."""
    row = connection.execute(_COLUMNS.where(guard_replays.c.id == replay_id)).one_or_none()
    if row is None:
        raise NotFound("There is no replay of this id.")
    return Replay(**row._mapping)


def of_job(connection: Connection, job_id: str) -> Replay:
    """The replay that a job carries out. Raises NotFound."""
    row = connection.execute(_COLUMNS.where(guard_replays.c.job_id == job_id)).one_or_none()
    if row is None:
        raise NotFound("There is no replay of this job.")
    return Replay(**row._mapping)


def newest(connection: Connection, limit: int) -> list[Replay]:
    """The newest replays."""
    rows = connection.execute(
        _COLUMNS.order_by(guard_replays.c.created_at.desc(), guard_replays.c.id.desc()).limit(limit)
    )
    return [Replay(**row._mapping) for row in rows]


def changes_of(connection: Connection, replay_id: str) -> list[dict[str, Any]]:
    """What is judged otherwise: `job`, `side`, `seq`, and `before` and `after` as [action, category]."""
    found = connection.execute(
        select(guard_replays.c.changes).where(guard_replays.c.id == replay_id)
    ).scalar_one()
    return list(found or [])
