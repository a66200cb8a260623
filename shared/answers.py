"""What is written when a job that answers a question ends, whoever ends it. It moves no job."""

import logging
from datetime import datetime

from sqlalchemy import Connection

from shared.audit import record
from shared.conversations import Conversations
from shared.jobs.lifecycle import State
from shared.jobs.records import Job
from shared.privacy.envelope import CannotDecrypt

log = logging.getLogger(__name__)

_ACTIONS = {
    State.SUCCEEDED: "answer.given",
    State.FAILED: "answer.failed",
    State.CANCELLED: "answer.cancelled",
}


def record_end(
    connection: Connection, conversations: Conversations, job: Job, *, actor: record.Actor, now: datetime
) -> str | None:
    """Keep what was released as a message and log the end, in the transaction that ended the job.

    Returns the message's id; None when nothing was kept. A job that has not ended is left alone. A text
    that can no longer be opened keeps no job from ending: then the event says `unreadable`.
    """
    if job.state not in _ACTIONS:
        return None
    message_id, unreadable = None, {}
    try:
        message_id = conversations.keep_answer(connection, job, now)
    except CannotDecrypt as error:
        log.error("the answer of job %s cannot be opened: %s", job.id, type(error).__name__)
        unreadable = {"unreadable": True}
    record.append(
        connection,
        now=now,
        actor=actor,
        action=_ACTIONS[job.state],
        object=f"job:{job.id}",
        outcome=record.Outcome.FAILED if job.state is State.FAILED else record.Outcome.DONE,
        reason=job.error,
        details={
            "conversation": job.conversation_id,
            "message": message_id,
            "model": job.model_id,
            "model_revision": job.model_revision,
            "prompt_version": job.prompt_version,
            "policy_version": job.policy_version,
            "completion_tokens": job.completion_tokens,
            "attempt": job.attempt,
            **unreadable,
        },
    )
    return message_id
