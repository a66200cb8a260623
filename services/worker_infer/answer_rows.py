"""Stores what one attempt at a job shows, and how it ends.

Everything is fenced by the claim: a worker that lost its lease releases nothing more. It does not know
where the sentences come from.
"""

import logging
from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from services.worker_infer.tools import Tools
from shared.answers import record_end, respond
from shared.audit import record
from shared.audit.binding import bind_verdict
from shared.conversations import StoredVerdict
from shared.db import is_away
from shared.errors import LeaseLost
from shared.guard.gate import Release
from shared.guard.verdict import Action, Verdict
from shared.jobs.leases import Hold
from shared.jobs.lifecycle import EventKind
from shared.jobs.persist import persist
from shared.jobs.records import Job
from shared.policies.live import Standing
from shared.privacy.envelope import DataKey
from shared.training.adapters import hold_unrecalled

log = logging.getLogger(__name__)
T = TypeVar("T")


class AnswerRows:
    """The rows of one attempt; LeaseLost from any of it means that another worker has the job."""

    def __init__(self, tools: Tools, job: Job, hold: Hold, standing: Standing) -> None:
        """`standing` judges this answer, to its end."""
        self._tools = tools
        self._job = job
        self._hold = hold
        self._standing = standing
        self._actor = record.Actor(record.SYSTEM, tools.worker_id)
        #: The conversation's, once it was read.
        self._key: DataKey | None = None
        #: That answers; None for the base model alone.
        self._adapter: str | None = None
        #: What is shown of the answer so far, and in how many sentences.
        self._shown, self._seq = "", 0
        #: Tokens of the answer: those that an earlier attempt released, and all of this one.
        self.completion_tokens = 0
        #: What writes this answer and from how much: columns that go along with the first write.
        self.notes: dict[str, Any] = {}
        #: Whether the job went back to the queue because the engine takes no more.
        self.handed_back = False

    def go_on(self, *, key: DataKey, adapter: str | None, shown: str, sentences: int) -> None:
        """The conversation was read: `shown` are the `sentences` that an earlier attempt released."""
        self._key, self._adapter = key, adapter
        self._shown, self._seq = shown, sentences

    def note_need(self, verdict: Verdict) -> None:
        """Keep with the conversation that the person told before that they are in need, and log why.

        It is no verdict on this job's question, so it is no row of its own.
        """
        job, category = self._job, verdict.category
        assert job.conversation_id is not None
        assert category is not None
        talk = job.conversation_id

        def write(connection: Connection) -> None:
            now = self._tools.jobs.hold(connection, job.claim)
            self._tools.conversations.note_need(connection, talk, category)
            record.append(
                connection,
                now=now,
                actor=self._actor,
                action=f"guard.{category}",
                object=f"job:{job.id}",
                reason="told before the question",
                details={
                    "conversation": talk,
                    "category": category,
                    "layer": verdict.layer,
                    "source": verdict.source,
                    "score": verdict.score,
                    "policy_version": self._standing.guard.policy_version,
                },
            )

        self.persist(write)

    # -- sentences

    def release(self, releases: list[Release]) -> None:
        """Commit the sentences, then say so: never the other way round."""
        if not releases:
            return

        def write(connection: Connection) -> None:
            now = self._tools.jobs.hold(connection, self._job.claim, **self._columns(connection, releases))
            self._write_sentences(connection, releases, now)

        self.persist(write)
        self._released(releases)
        self._tools.bell.news(self._job.id, self._seq)

    def _released(self, releases: list[Release]) -> None:
        """Count what is shown now, and let the shadow policy look at it."""
        shadow = self._standing.shadow
        if shadow is not None:
            self._tools.shadow.look(shadow, self._job, releases, self._seq + 1, self._shown)
        self._seq += len(releases)
        self._shown += "".join(release.text for release in releases)

    def _columns(self, connection: Connection, releases: list[Release]) -> dict[str, Any]:
        """What the job's row learns when these sentences are stored."""
        values = dict(self.notes)
        if releases and self._seq == 0 and self._job.first_sentence_at is None:
            values["first_sentence_at"] = self._tools.jobs.clock.now(connection)
        return values

    def _write_sentences(self, connection: Connection, releases: list[Release], now: datetime) -> None:
        """The caller has fenced the transaction. Raises AdapterRecalled: nothing of it is shown any more."""
        if not releases:
            return
        if self._adapter is not None:
            hold_unrecalled(connection, self._adapter)
        job, key = self._job, self._key
        assert key is not None
        for seq, release in enumerate(releases, start=self._seq + 1):
            verdict_id = None
            if release.verdict.action is not Action.ALLOW:
                verdict_id = self._write_verdict(connection, release, now)
            self._tools.conversations.release(
                connection,
                key,
                job_id=job.id,
                seq=seq,
                epoch=job.epoch,
                text=release.text,
                suppressed=release.suppressed,
                verdict_id=verdict_id,
                action=release.verdict.action,
                now=now,
            )

    def _write_verdict(self, connection: Connection, release: Release, now: datetime) -> str:
        job, verdict = self._job, release.verdict
        stored = StoredVerdict(
            verdict=verdict,
            policy_version=self._standing.guard.policy_version,
            text=release.suppressed or release.text,
        )
        verdict_id = self._tools.conversations.store_verdict(
            connection, job_id=job.id, stored=stored, now=now
        )
        record.append(
            connection,
            now=now,
            actor=self._actor,
            action="guard.flagged" if verdict.action is Action.ESCALATE else "guard.stepped_in",
            object=f"job:{job.id}",
            details=bind_verdict(verdict_id, verdict, self._standing.guard.policy_version),
        )
        return verdict_id

    # -- the end of the attempt

    def succeed(self, finish_reason: str, last: list[Release]) -> None:
        """The answer is whole with these last sentences, or the guard ended it with them."""
        self._finish(
            EventKind.SUCCEEDED,
            last,
            finish_reason=finish_reason,
            completion_tokens=self.completion_tokens,
        )

    def cancelled(self) -> None:
        """The person wants no more of it."""
        self._finish(
            EventKind.CANCELLED, [], finish_reason="cancelled", completion_tokens=self.completion_tokens
        )

    def fail(self, error: str, detail: str) -> None:
        """No attempt would do better."""
        self._finish(EventKind.FAILED, [], error=error, error_detail=detail)

    def respond(self, question: str, verdict: Verdict) -> None:
        """End with the guard's own answer."""
        tools, guard = self._tools, self._standing.guard

        def move(connection: Connection) -> Job:
            now = tools.jobs.clock.now(connection)
            job = tools.jobs.finish(
                connection,
                self._job.claim,
                EventKind.SUCCEEDED,
                finish_reason="guard",
                adapter_sha256=None,  # it wrote nothing of this, whoever named it
                first_sentence_at=now,
                policy_version=guard.policy_version,
            )
            respond(
                connection,
                tools.conversations,
                job,
                guard=guard,
                verdict=verdict,
                question=question,
                locale=tools.settings.locale,
                actor=self._actor,
                now=now,
            )
            return job

        self._transition(move)

    def retry(self, error: str, detail: str) -> None:
        """Give this attempt up; the job is tried again, or fails if this was its last."""
        claim = self._job.claim
        try:
            job = self._transition(
                lambda connection: self._tools.jobs.retry(connection, claim, error=error, error_detail=detail)
            )
        except LeaseLost:
            return
        except DBAPIError as error_now:
            if not is_away(error_now):
                raise
            return  # the lease will run out, and the reconciler decides
        log.warning("job %s: attempt %d ended in %s, now %s", job.id, job.attempt, error, job.state)

    def drain(self) -> None:
        """Give the job back to the queue, and wake another worker for it."""
        self.handed_back = True
        job = self._transition(lambda connection: self._tools.jobs.drain(connection, self._job.claim))
        log.info("job %s went back to the queue", job.id)
        self._tools.bell.work(job.kind, job.id)

    def _finish(self, kind: EventKind, last: list[Release], **values: Any) -> None:
        def move(connection: Connection) -> Job:
            columns = {**self._columns(connection, last), **values}
            job = self._tools.jobs.finish(connection, self._job.claim, kind, **columns)
            self._write_sentences(connection, last, self._tools.jobs.clock.now(connection))
            return job

        self._transition(move)
        self._released(last)

    def _transition(self, move: Callable[[Connection], Job]) -> Job:
        def write(connection: Connection) -> Job:
            job = move(connection)
            now = self._tools.jobs.clock.now(connection)
            record_end(connection, self._tools.conversations, job, actor=self._actor, now=now, key=self._key)
            return job

        return self.persist(write)

    def persist(self, work: Callable[[Connection], T], *, read_only: bool = False) -> T:
        """What `work` returns, tried for as long as the lease lasts while the database is away."""
        patience_s = self._tools.settings.lease_s
        return persist(self._tools.database, self._hold, work, patience_s=patience_s, read_only=read_only)
