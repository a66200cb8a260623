"""Erases one conversation: its key, and what was made from its texts outside of the key. It commits nothing.

Rows stay, for the log is bound to their ciphertexts; nobody can read those any more, and the salts of the
log's commitments (`DataKey.salt`) are gone with the key. Legal holds are respected here, whoever asks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, and_, delete, func, or_, select, update

from shared.answers import record_end
from shared.audit import record
from shared.conversations import ERASED, Conversations
from shared.db.tables import conversations, data_keys, feedback, jobs, messages, verdicts
from shared.db.tables_privacy import access_grants, dataset_conversations
from shared.db.tables_review import review_items, reviews
from shared.db.tables_training import datasets
from shared.errors import NotFound, OnHold
from shared.jobs.records import Job
from shared.jobs.store import JobStore, active
from shared.privacy.holds import holds_on_conversation
from shared.privacy.search_index import forget
from shared.training.erasing import (
    AdapterSeen,
    adapters_trained_on,
    destroy_keys,
    erase_dataset,
    made_from,
)
from shared.training.states import GONE, WITHDRAWN

#: Conversations that are cleared again with one statement.
_TOGETHER = 500


@dataclass(frozen=True, kw_only=True)
class Erased:
    """What an erasure did."""

    #: The ids of destroyed data keys.
    key_ids: list[str]
    #: Work that was ended.
    jobs: list[Job]
    #: The ids of datasets that were withdrawn because of it.
    datasets: list[str]
    #: The adapters that had been trained on its rows.
    adapters: list[AdapterSeen]


class Eraser:
    """Erases conversations; safe to share between threads."""

    def __init__(self, store: JobStore, talk: Conversations) -> None:
        self._jobs, self._talk = store, talk

    def erase(
        self,
        connection: Connection,
        conversation_id: str,
        *,
        actor: record.Actor,
        now: datetime,
        reason: str | None = None,
        again: bool = False,
    ) -> Erased:
        """Erase a conversation in the caller's transaction.

        Args:
            reason: a code of ours, for the log.
            again: it was erased before a backup brought it back; a hold that came with it was lifted since.

        Raises NotFound, also when it is erased, and OnHold.
        """
        row = connection.execute(
            select(conversations.c.key_id, conversations.c.retention_class)
            .where(conversations.c.id == conversation_id)
            .with_for_update()
        ).one_or_none()
        if row is None or row.retention_class == ERASED:
            raise NotFound("There is no conversation of yours under this id.")
        if not again and (held := holds_on_conversation(connection, conversation_id)):
            raise OnHold(held)
        ended = self._end_jobs(connection, conversation_id, actor, now)
        seen = adapters_trained_on(
            connection, made_from(dataset_conversations.c.conversation_id == conversation_id)
        )
        key_ids, withdrawn = [], _datasets_of(connection, conversation_id)
        for dataset_id in withdrawn:
            gone = erase_dataset(
                connection, self._jobs, self._talk, dataset_id, why=WITHDRAWN, actor=actor, now=now
            )
            key_ids += gone.key_ids
            ended += gone.jobs
        owned = or_(data_keys.c.key_id == row.key_id, data_keys.c.owner_id == conversation_id)
        own_keys = destroy_keys(connection, owned, now)
        counts = clear_derived(connection, [conversation_id], now)
        _close(connection, conversation_id, now)
        record.append(
            connection,
            now=now,
            actor=actor,
            action="conversation.erased",
            object=f"conversation:{conversation_id}",
            reason=reason,
            details={
                **counts,
                "keys": own_keys,
                "datasets": withdrawn,
                "adapters": [each.sha256 for each in seen],
            },
        )
        return Erased(key_ids=own_keys + key_ids, jobs=ended, datasets=withdrawn, adapters=seen)

    def _end_jobs(
        self, connection: Connection, conversation_id: str, actor: record.Actor, now: datetime
    ) -> list[Job]:
        """End its jobs at once: a worker that only stopped soon would store one more sentence."""
        found = select(jobs.c.id).where(jobs.c.conversation_id == conversation_id, active())
        ended = []
        for job_id in connection.execute(found).scalars().all():
            job = self._jobs.cancel_at_once(connection, job_id)
            if job is not None:
                record_end(connection, self._talk, job, actor=actor, now=now)
                ended.append(job)
        return ended


def clear_derived(connection: Connection, conversation_ids: Sequence[str], now: datetime) -> dict[str, int]:
    """Clear what was made from texts of conversations and is not under their keys; returns counts.

    Safe to repeat: what somebody was just writing beside an erasure is found by doing it again.
    """
    own_jobs = select(jobs.c.id).where(jobs.c.conversation_id.in_(conversation_ids))
    said = select(messages.c.id).where(messages.c.conversation_id.in_(conversation_ids))
    items = select(review_items.c.id).where(review_items.c.conversation_id.in_(conversation_ids))
    traces = [jobs.c.request_hmac, jobs.c.idempotency_key, jobs.c.payload_ciphertext]
    statements = {
        "jobs": update(jobs)
        .where(jobs.c.conversation_id.in_(conversation_ids), or_(*(each.is_not(None) for each in traces)))
        .values({each.name: None for each in traces}),
        "verdicts": update(verdicts)
        .where(verdicts.c.job_id.in_(own_jobs), verdicts.c.span_hmac.is_not(None))
        .values(span_hmac=None),
        "feedback": delete(feedback).where(feedback.c.message_id.in_(said)),
        "reviews": update(reviews)
        .where(
            reviews.c.item_id.in_(items),
            or_(reviews.c.corrected_ciphertext.is_not(None), reviews.c.note_ciphertext.is_not(None)),
        )
        .values(corrected_ciphertext=None, note_ciphertext=None),
        "review_items": update(review_items)
        .where(review_items.c.conversation_id.in_(conversation_ids), review_items.c.closed_at.is_(None))
        .values(closed_at=now),
        "access_grants": update(access_grants)
        .where(
            access_grants.c.conversation_id.in_(conversation_ids), access_grants.c.reason_ciphertext != b""
        )
        .values(reason_ciphertext=b"", ended_at=func.coalesce(access_grants.c.ended_at, now)),
    }
    counts = {name: connection.execute(statement).rowcount for name, statement in statements.items()}
    return counts | forget(connection, conversation_ids)


def clear_what_came_late(connection: Connection, since: datetime, now: datetime) -> None:
    """Clear again after the newest erasures since that moment.

    A shadow policy's verdict, or the words of a message, may have been written at the same moment.
    """
    found = (
        select(conversations.c.id)
        .join(data_keys, data_keys.c.key_id == conversations.c.key_id)
        .where(conversations.c.retention_class == ERASED, data_keys.c.destroyed_at >= since)
        .order_by(data_keys.c.destroyed_at.desc())
        .limit(_TOGETHER)
    )
    clear_derived(connection, connection.execute(found).scalars().all(), now)


def _datasets_of(connection: Connection, conversation_id: str) -> list[str]:
    """The datasets with rows of this conversation of which something is left."""
    found = (
        select(dataset_conversations.c.dataset_id)
        .join(datasets, datasets.c.id == dataset_conversations.c.dataset_id)
        .where(
            and_(
                dataset_conversations.c.conversation_id == conversation_id,
                func.coalesce(datasets.c.error, "").not_in(GONE),
            )
        )
        .order_by(dataset_conversations.c.dataset_id)
    )
    return list(connection.execute(found).scalars())


def _close(connection: Connection, conversation_id: str, now: datetime) -> None:
    """No list shows it, and nothing can be added."""
    connection.execute(
        update(conversations)
        .where(conversations.c.id == conversation_id)
        .values(
            retention_class=ERASED,
            title_ciphertext=None,
            guard_state="none",
            hidden_at=func.coalesce(conversations.c.hidden_at, now),
        )
    )
