"""Moves jobs through their life in the database. It does not know what the work is, nor Redis.

Every method runs in the caller's transaction, so that a transition, its event and whatever belongs
to it (messages, audit events) are committed together or not at all.
"""

import logging
import random
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, and_, bindparam, func, or_, select, update
from sqlalchemy.sql.dml import ReturningUpdate

from shared.clock import Clock
from shared.db.rows import Into, put
from shared.db.tables import job_events, jobs
from shared.errors import IdempotencyMismatch, LeaseLost
from shared.jobs.lifecycle import ACTIVE, Event, EventKind, Kind, Lane, Snapshot, State, backoff
from shared.jobs.records import JOB_FIELDS, Claim, Job, NewJob
from shared.logs import where
from shared.settings import Settings

log = logging.getLogger(__name__)

# made once: building a statement costs more than sending it
_QUEUED_OF_USER = (
    select(jobs.c.id)
    .where(jobs.c.user_id == bindparam("user_id"), jobs.c.state == State.QUEUED.value)
    .limit(bindparam("limit"))
)
_COLUMNS = [jobs.c[name] for name in JOB_FIELDS]
_BY_ID = select(*_COLUMNS).where(jobs.c.id == bindparam("job_id"))
#: The job is still the worker's; see `_owned`.
_OWNED = and_(
    jobs.c.id == bindparam("own_id"),
    jobs.c.state == State.RUNNING,
    jobs.c.epoch == bindparam("own_epoch"),
    jobs.c.worker_id == bindparam("own_worker"),
    jobs.c.lease_expires_at > bindparam("own_now"),
)
_UPDATE_OWNED = update(jobs).where(_OWNED)
# what else they set goes along with the parameters, by the names of columns
_HOLD = _UPDATE_OWNED.values(epoch=jobs.c.epoch)
_FINISH = _UPDATE_OWNED.values(event_seq=jobs.c.event_seq + 1).returning(*_COLUMNS)


def _claim_best() -> ReturningUpdate[Any]:
    """Takes the best queued job, which nobody else is just taking, and gives its row."""
    queued = jobs.alias("queued")
    running = (
        select(jobs.c.user_id, func.count().label("running"))
        .where(jobs.c.kind == bindparam("of_kind"), jobs.c.state == State.RUNNING.value)
        .group_by(jobs.c.user_id)
        .subquery()
    )
    now = bindparam("at", type_=jobs.c.available_at.type)
    best = (
        select(queued.c.id)
        .outerjoin(running, running.c.user_id == queued.c.user_id)
        .where(
            queued.c.kind == bindparam("of_kind"),
            queued.c.state == State.QUEUED.value,
            queued.c.available_at <= now,
            or_(queued.c.deadline_at.is_(None), queued.c.deadline_at > now),
        )
        .order_by(
            (queued.c.lane != Lane.INTERACTIVE.value),
            func.coalesce(running.c.running, 0),
            queued.c.created_at,
            queued.c.id,
        )
        .limit(1)
        .with_for_update(of=queued, skip_locked=True)
    )
    return (
        update(jobs)
        .where(jobs.c.id == best.scalar_subquery(), jobs.c.state == State.QUEUED.value)
        .values(
            state=State.RUNNING.value,
            epoch=jobs.c.epoch + 1,
            attempt=jobs.c.attempt + 1,
            event_seq=jobs.c.event_seq + 1,
            worker_id=bindparam("by"),
            lease_expires_at=bindparam("until"),
            started_at=func.coalesce(jobs.c.started_at, now),
        )
        .returning(*_COLUMNS)
    )


_CLAIM = _claim_best()
_COUNT_QUEUED = select(func.count()).select_from(_QUEUED_OF_USER.subquery())


class Renewal(StrEnum):
    """What a worker learns from its heartbeat."""

    KEPT = "kept"
    CANCEL = "cancel"  #: somebody wants the job stopped
    LOST = "lost"  #: the job belongs to somebody else now


@dataclass(frozen=True, kw_only=True)
class JobRules:
    """Times and limits of a job's life, in seconds."""

    lease_s: float = 60.0
    retry_base_s: float = 2.0
    #: A worker that works on past the job's deadline for longer loses the job.
    deadline_grace_s: float = 10.0
    #: A queued job that nobody took for this long is announced again.
    redispatch_s: float = 5.0
    #: Such jobs announced in one round, at the most.
    redispatch_most: int = 100

    @classmethod
    def from_settings(cls, settings: Settings) -> "JobRules":
        """The rules that an operator set."""
        return cls(
            lease_s=settings.lease_s, retry_base_s=settings.retry_base_s, redispatch_s=settings.reconcile_s
        )


class JobStore:
    """The jobs in the database; safe to share between threads."""

    def __init__(self, clock: Clock, rules: JobRules, *, jitter: Callable[[], float] = random.random) -> None:
        self.clock = clock
        self.rules = rules
        self._jitter = jitter

    # -- submitting and reading

    def find_repeat(self, connection: Connection, user_id: str, key: str, request_hmac: str) -> Job | None:
        """The job already submitted under this Idempotency-Key, if any.

        Raises IdempotencyMismatch when the key named another request.
        """
        row = connection.execute(
            _select_jobs().where(jobs.c.user_id == user_id, jobs.c.idempotency_key == key)
        ).one_or_none()
        if row is None:
            return None
        job = Job.from_row(row)
        if job.request_hmac != request_hmac:
            raise IdempotencyMismatch
        return job

    def submit(self, into: Into, new: NewJob, now: datetime) -> Job:
        """Insert a queued job and its first event.

        Raises sqlalchemy's IntegrityError (when `into` is stored) when the Idempotency-Key is taken or
        the conversation already has an active job: roll back and look again.
        """
        return self._insert(into, new, now, [EventKind.SUBMITTED], state=State.QUEUED)

    def submit_settled(self, into: Into, new: NewJob, now: datetime, **values: Any) -> Job:
        """Insert a job that has succeeded already: its answer needs no worker and never queues."""
        times = {"started_at": now, "first_sentence_at": now, "finished_at": now}
        kinds = [EventKind.SUBMITTED, EventKind.SUCCEEDED]
        return self._insert(into, new, now, kinds, state=State.SUCCEEDED, **times, **values)

    def get(self, connection: Connection, job_id: str) -> Job:
        """One job. Raises sqlalchemy's NoResultFound."""
        return Job.from_row(connection.execute(_BY_ID, {"job_id": job_id}).one())

    def events(self, connection: Connection, job_id: str) -> list[Event]:
        """A job's events, oldest first."""
        rows = connection.execute(
            select(job_events).where(job_events.c.job_id == job_id).order_by(job_events.c.seq)
        )
        return [
            Event(
                seq=row.seq,
                kind=EventKind(row.kind),
                epoch=row.epoch,
                attempt=row.attempt,
                worker_id=row.worker_id,
            )
            for row in rows
        ]

    def count_queued(self, connection: Connection, user_id: str, limit: int) -> int:
        """How many jobs of this person wait for a worker; counts no further than `limit`."""
        return connection.execute(_COUNT_QUEUED, {"user_id": user_id, "limit": limit}).scalar_one()

    # -- what a worker does

    def claim(self, connection: Connection, kind: Kind, worker_id: str) -> Job | None:
        """Take the best queued job: lane first, then the person with the fewest running, then age."""
        now = self.clock.now(connection)
        row = connection.execute(
            _CLAIM,
            {
                "of_kind": kind.value,
                "at": now,
                "by": worker_id,
                "until": now + timedelta(seconds=self.rules.lease_s),
            },
        ).one_or_none()
        if row is None:
            return None
        job = Job.from_row(row)
        self._record(connection, job, EventKind.CLAIMED, now)
        return job

    def count_overlooked(self, connection: Connection, kinds: Collection[Kind], limit: int) -> int:
        """How many jobs of these kinds nobody took for `JobRules.redispatch_s`, up to `limit`."""
        now = self.clock.now(connection)
        overlooked = select(jobs.c.id).where(
            jobs.c.state == State.QUEUED,
            jobs.c.kind.in_(kinds),
            jobs.c.available_at <= now - timedelta(seconds=self.rules.redispatch_s),
            or_(jobs.c.deadline_at.is_(None), jobs.c.deadline_at > now),
        )
        return connection.execute(
            select(func.count()).select_from(overlooked.limit(limit).subquery())
        ).scalar_one()

    def renew(self, connection: Connection, claim: Claim) -> Renewal:
        """Heartbeat: own the job for another lease, and learn whether it should stop.

        A job whose deadline passed some time ago is lost.
        """
        now = self.clock.now(connection)
        in_time = or_(
            jobs.c.deadline_at.is_(None),
            jobs.c.deadline_at > now - timedelta(seconds=self.rules.deadline_grace_s),
        )
        row = connection.execute(
            _UPDATE_OWNED.where(in_time)
            .values(lease_expires_at=now + timedelta(seconds=self.rules.lease_s))
            .returning(jobs.c.cancel_requested_at),
            _owned(claim, now),
        ).one_or_none()
        if row is None:
            return Renewal.LOST
        return Renewal.KEPT if row.cancel_requested_at is None else Renewal.CANCEL

    def hold(self, connection: Connection, claim: Claim, **values: Any) -> datetime:
        """Lock the job's row for this transaction, set columns, and return the moment.

        Whatever else the transaction writes is thereby fenced. Raises LeaseLost.
        """
        now = self.clock.now(connection)
        held = connection.execute(_HOLD, _columns(values) | _owned(claim, now))
        if held.rowcount != 1:
            raise LeaseLost
        return now

    def finish(
        self,
        connection: Connection,
        claim: Claim,
        kind: EventKind,
        *,
        error: str | None = None,
        error_detail: str | None = None,
        **values: Any,
    ) -> Job:
        """End the job as `succeeded`, `failed` or `cancelled`. Raises LeaseLost."""
        now = self.clock.now(connection)
        columns = {**_end(kind, now), "error": error, "error_detail": error_detail, **values}
        ended = connection.execute(_FINISH, _columns(columns) | _owned(claim, now)).one_or_none()
        if ended is None:
            raise LeaseLost
        job = Job.from_row(ended)
        self._record(connection, job, kind, now, reason=error)
        return job

    def retry(self, connection: Connection, claim: Claim, *, error: str, error_detail: str) -> Job:
        """Give the attempt up: queued again after a back-off, or ended if it was the last.

        Raises LeaseLost.
        """
        now = self.hold(connection, claim)
        job = self.get(connection, claim.job_id)
        return self._give_up_attempt(connection, job, EventKind.RETRIED, now, error, error_detail)

    def drain(self, connection: Connection, claim: Claim) -> Job:
        """Hand the job back unfinished, because the worker is shutting down. Raises LeaseLost."""
        return self._hand_back(connection, claim, EventKind.DRAINED, timedelta())

    def postpone(self, connection: Connection, claim: Claim, seconds: float) -> Job:
        """Hand the job back for `seconds`, because there is no room for it now. Raises LeaseLost."""
        return self._hand_back(connection, claim, EventKind.POSTPONED, timedelta(seconds=seconds))

    # -- what others do

    def cancel(self, connection: Connection, job_id: str) -> Job | None:
        """Stop a job: a queued one ends at once, a running one is asked to, an ended one stays.

        Returns the job as it is then; None when that changed nothing, so that what belongs to the change is
        written once, however many cancel at the same moment.
        """
        now = self.clock.now(connection)
        while True:
            job = self.get(connection, job_id)
            if job.state is State.QUEUED:
                values, kind = _end(EventKind.CANCELLED, now), EventKind.CANCELLED
            elif job.state is State.RUNNING and job.cancel_requested_at is None:
                values, kind = {"cancel_requested_at": now}, EventKind.CANCEL_REQUESTED
            else:
                return None
            moved = connection.execute(_moved(job, values)).one_or_none()
            if moved is not None:
                job = Job.from_row(moved)
                self._record(connection, job, kind, now)
                return job

    def cancel_at_once(self, connection: Connection, job_id: str) -> Job | None:
        """End a job, whoever works on it: the next write of its worker finds that the job is lost.

        Returns the job as it is then; None when it had ended before.
        """
        now = self.clock.now(connection)
        while (job := self.get(connection, job_id)).state in ACTIVE:
            moved = connection.execute(_moved(job, _end(EventKind.CANCELLED, now))).one_or_none()
            if moved is not None:
                job = Job.from_row(moved)
                self._record(connection, job, EventKind.CANCELLED, now)
                return job
        return None

    def expire(self, connection: Connection, then: Callable[[Job], object] | None = None) -> list[Job]:
        """Take back jobs whose lease ran out, and fail jobs past their deadline; returns those moved.

        `then` is called with each moved job, in a savepoint with its move: what goes wrong with one job is
        logged and leaves it as it was, and the others move.
        """
        now = self.clock.now(connection)
        overdue = and_(jobs.c.state == State.QUEUED, jobs.c.deadline_at <= now)
        over_long = jobs.c.deadline_at <= now - timedelta(seconds=self.rules.deadline_grace_s)
        abandoned = and_(jobs.c.state == State.RUNNING, or_(jobs.c.lease_expires_at <= now, over_long))
        rows = connection.execute(
            _select_jobs().where(or_(overdue, abandoned)).with_for_update(skip_locked=True)
        ).all()
        moved = []
        for row in rows:
            try:
                with connection.begin_nested():
                    job = self._expire_one(connection, Job.from_row(row), now)
                    if then is not None:
                        then(job)
            except Exception as error:
                if connection.invalidated:
                    raise
                log.error("job %s could not be taken back: %s", row.id, where(error))
            else:
                moved.append(job)
        return moved

    def fail_queued(
        self,
        connection: Connection,
        kind: Kind,
        *,
        error: str,
        error_detail: str,
        then: Callable[[Job], object],
    ) -> list[Job]:
        """Fail every queued job of a kind, but for those that a worker is taking now; returns them.

        `then` is called with each, in the same transaction.
        """
        now = self.clock.now(connection)
        values = _end(EventKind.FAILED, now) | {"error": error, "error_detail": error_detail}
        queued = _select_jobs().where(jobs.c.kind == kind, jobs.c.state == State.QUEUED)
        failed = []
        for row in connection.execute(queued.with_for_update(skip_locked=True)).all():
            job = self._move(connection, Job.from_row(row), EventKind.FAILED, now, values)
            then(job)
            failed.append(job)
        return failed

    def take_stale(self, connection: Connection) -> list[Job]:
        """The oldest queued jobs that were announced too long ago, marked as announced now.

        At most `JobRules.redispatch_most`: whoever is woken takes the best job, whatever the hint said, so a
        long queue needs no message for each of its jobs.
        """
        now = self.clock.now(connection)
        before = now - timedelta(seconds=self.rules.redispatch_s)
        stale = and_(
            jobs.c.state == State.QUEUED,
            jobs.c.available_at <= now,
            func.coalesce(jobs.c.dispatched_at, jobs.c.created_at) <= before,
        )
        oldest = select(jobs.c.id).where(stale).order_by(jobs.c.created_at).limit(self.rules.redispatch_most)
        ids = connection.execute(
            update(jobs).where(jobs.c.id.in_(oldest)).values(dispatched_at=now).returning(jobs.c.id)
        )
        found = [row.id for row in ids]
        return [Job.from_row(row) for row in connection.execute(_select_jobs().where(jobs.c.id.in_(found)))]

    # -- inside

    def _hand_back(self, connection: Connection, claim: Claim, kind: EventKind, wait: timedelta) -> Job:
        """Queued again without burning the attempt, unless somebody wants the job stopped."""
        now = self.hold(connection, claim)
        job = self.get(connection, claim.job_id)
        if job.cancel_requested_at is not None:
            return self._move(connection, job, EventKind.CANCELLED, now, _end(EventKind.CANCELLED, now))
        values = {**_queued(now + wait), "attempt": job.attempt - 1}
        return self._move(connection, job, kind, now, values)

    def _expire_one(self, connection: Connection, job: Job, now: datetime) -> Job:
        if job.cancel_requested_at is not None:
            return self._move(connection, job, EventKind.CANCELLED, now, _end(EventKind.CANCELLED, now))
        if job.deadline_at is not None and job.deadline_at <= now:
            values = _end(EventKind.FAILED, now) | {
                "error": "deadline",
                "error_detail": "No answer was ready in time; ask again when the system is less busy.",
            }
            return self._move(connection, job, EventKind.FAILED, now, values)
        detail = "The worker was lost several times while it worked on this; tell your admin the job's id."
        return self._give_up_attempt(connection, job, EventKind.LEASE_EXPIRED, now, "worker-lost", detail)

    def _give_up_attempt(
        self, connection: Connection, job: Job, kind: EventKind, now: datetime, error: str, detail: str
    ) -> Job:
        if job.cancel_requested_at is not None:
            return self._move(connection, job, EventKind.CANCELLED, now, _end(EventKind.CANCELLED, now))
        if job.attempt >= job.max_attempts:
            values = _end(EventKind.FAILED, now) | {"error": error, "error_detail": detail}
            return self._move(connection, job, EventKind.FAILED, now, values)
        available_at = now
        if kind is EventKind.RETRIED:  # a lost worker is not the job's fault: another one may begin at once
            available_at += backoff(job.attempt, base_s=self.rules.retry_base_s, jitter=self._jitter())
        return self._move(connection, job, kind, now, _queued(available_at))

    def _move(
        self, connection: Connection, job: Job, kind: EventKind, now: datetime, values: dict[str, Any]
    ) -> Job:
        """Apply a transition to a row that this transaction holds."""
        moved = Job.from_row(connection.execute(_moved(job, values)).one())
        self._record(connection, moved, kind, now, reason=values.get("error"))
        return moved

    def _insert(self, into: Into, new: NewJob, now: datetime, kinds: list[EventKind], **values: Any) -> Job:
        """A new row with an event of each kind; the row is known, so it is not read again."""
        row = {
            **dict.fromkeys(JOB_FIELDS),
            **new.__dict__,
            "attempt": 0,
            "epoch": 0,
            "event_seq": len(kinds),
            "available_at": now,
            "created_at": now,
            **values,
        }
        put(into, jobs, row)
        for seq, kind in enumerate(kinds, start=1):
            event = {"job_id": new.id, "seq": seq, "at": now, "kind": kind, "epoch": 0, "attempt": 0}
            put(into, job_events, event)
        return Job(**{name: row[name] for name in JOB_FIELDS})

    def _record(
        self, connection: Connection, job: Job, kind: EventKind, now: datetime, reason: str | None = None
    ) -> None:
        event = {
            "job_id": job.id,
            "seq": job.event_seq,
            "at": now,
            "kind": kind,
            "epoch": job.epoch,
            "attempt": job.attempt,
            "worker_id": job.worker_id,
            "reason": reason,
        }
        put(connection, job_events, event)


def snapshot(job: Job) -> Snapshot:
    """The part of the row that the job's events determine: `lifecycle.fold` must yield the same."""
    return Snapshot(
        state=job.state,
        epoch=job.epoch,
        attempt=job.attempt,
        worker_id=job.worker_id,
        cancel_requested=job.cancel_requested_at is not None,
        event_seq=job.event_seq,
    )


def active() -> ColumnElement[bool]:
    """Rows that have not ended."""
    return jobs.c.state.in_([state.value for state in ACTIVE])


def _select_jobs() -> Select[Any]:
    return select(*_COLUMNS)


def _moved(job: Job, values: dict[str, Any]) -> ReturningUpdate[Any]:
    """Sets these columns if nobody moved the job since it was read; gives the new row."""
    return (
        update(jobs)
        .where(jobs.c.id == job.id, jobs.c.event_seq == job.event_seq)
        .values(**values, event_seq=jobs.c.event_seq + 1)
        .returning(*_COLUMNS)
    )


def _owned(claim: Claim, now: datetime) -> dict[str, Any]:
    """The parameters of `_OWNED`."""
    return {
        "own_id": claim.job_id,
        "own_epoch": claim.epoch,
        "own_worker": claim.worker_id,
        "own_now": now,
    }


def _columns(values: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters that set columns. Raises TypeError for what is none, of which nobody else would tell."""
    if unknown := values.keys() - jobs.c.keys():
        raise TypeError(f"jobs has no column {min(unknown)}")
    return dict(values)


def _end(kind: EventKind, now: datetime) -> dict[str, Any]:
    return {"state": kind.value, "finished_at": now, "worker_id": None, "lease_expires_at": None}


def _queued(available_at: datetime) -> dict[str, Any]:
    return {
        "state": State.QUEUED,
        "available_at": available_at,
        "dispatched_at": None,
        "worker_id": None,
        "lease_expires_at": None,
    }
