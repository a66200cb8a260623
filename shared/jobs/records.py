"""What a job looks like to the code that handles it. It does not know how jobs are stored."""

from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any

from sqlalchemy import Row

from shared.guard.verdict import Audience
from shared.jobs.lifecycle import Kind, Lane, State


@dataclass(frozen=True, kw_only=True)
class NewJob:
    """Work to be submitted."""

    id: str
    kind: Kind
    user_id: str
    audience: Audience
    lane: Lane = Lane.INTERACTIVE
    conversation_id: str | None = None
    #: The message that the job answers.
    question_id: str | None = None
    #: The job whose answer this one replaces, or the first job of a training run that was started again.
    parent_job_id: str | None = None
    max_attempts: int = 3
    deadline_at: datetime | None = None
    #: The caller's name for this request; the same name again yields the same job.
    idempotency_key: str | None = None
    #: Keyed hash of the request, to tell a repeat from another request under the same name.
    request_hmac: str | None = None
    seed: int = 0
    #: `max_new_tokens`, `temperature`, `top_p`; `stops`: how many texts of the payload end the answer.
    sampling: dict[str, Any] = field(default_factory=dict)
    policy_version: str | None = None
    #: The adapter that shall answer; None takes the one that is active when a worker begins.
    adapter_sha256: str | None = None
    #: What else the asker wrote (shared/jobs/payload.py), under the conversation's key, and the key's id.
    payload_ciphertext: bytes | None = None
    key_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job's row, as read in one transaction."""

    id: str
    kind: Kind
    lane: Lane
    state: State
    user_id: str
    conversation_id: str | None
    question_id: str | None
    parent_job_id: str | None
    audience: Audience
    #: Attempts begun so far; a drained one does not count.
    attempt: int
    max_attempts: int
    #: Raised by one at every claim.
    epoch: int
    event_seq: int
    worker_id: str | None
    lease_expires_at: datetime | None
    #: Not claimed before this moment (back-off).
    available_at: datetime
    deadline_at: datetime | None
    cancel_requested_at: datetime | None
    request_hmac: str | None
    model_id: str | None
    model_revision: str | None
    adapter_sha256: str | None
    prompt_version: str | None
    policy_version: str | None
    seed: int
    sampling: dict[str, Any]
    prompt_tokens: int | None
    completion_tokens: int | None
    #: A stable code, NULL unless the job failed.
    error: str | None
    #: A sentence that says what to do; quotes nobody.
    error_detail: str | None
    finish_reason: str | None
    created_at: datetime
    started_at: datetime | None
    first_sentence_at: datetime | None
    finished_at: datetime | None

    @classmethod
    def from_row(cls, row: Row[Any]) -> "Job":
        """Build from a row of its columns."""
        return cls.from_values(dict(row._mapping))

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> "Job":
        """Build from the values of its columns, by their names."""
        values["kind"] = Kind(values["kind"])
        values["lane"] = Lane(values["lane"])
        values["state"] = State(values["state"])
        values["audience"] = Audience(values["audience"])
        return cls(**values)

    @property
    def claim(self) -> "Claim":
        """The right to write for this job, as of this row. Only for a running job."""
        if self.worker_id is None:
            raise ValueError("a job that no worker holds has no claim")
        return Claim(job_id=self.id, epoch=self.epoch, worker_id=self.worker_id)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A worker's right to write for a job: worth nothing once the epoch has moved on."""

    job_id: str
    epoch: int
    worker_id: str

    @property
    def name(self) -> str:
        """Names this attempt at this job, and no other: for files that another must not write over."""
        return f"{self.job_id}-{self.epoch}"


JOB_FIELDS = tuple(field.name for field in fields(Job))
