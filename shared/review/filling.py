"""Puts answers into the queue of the review, as the rules say. It reads no text and asks no reviewer.

It looks through what came since it last looked, up to a mark in the database. The mark never passes what is
younger than `OVERLAP`, so that a row that was committed late is seen as well; what is seen twice changes
nothing, because an answer stands in the queue once. It may be stopped anywhere and begin again.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, select, update
from sqlalchemy.dialects import postgresql, sqlite

from shared.clock import Clock
from shared.db import Database
from shared.db.tables import conversations, data_keys, feedback, messages, verdicts
from shared.db.tables_review import review_items, review_marks
from shared.ids import first_id_at, moment_of, new_id
from shared.privacy.envelope import Envelope
from shared.review.rules import FIRST, GuardDone, Reason, drawn, priority, reason_of
from shared.settings import Settings

#: No transaction that writes an answer or a rating takes this long; clocks of hosts differ by less.
OVERLAP = timedelta(minutes=2)
#: The first time, answers of this long ago are looked at too, and no older ones.
FIRST_LOOK = timedelta(days=7)
#: Rows of one kind that one round looks at.
ROWS = 500
#: A mark that would move by less waits for a later round, and so does the search for what was erased.
_STEP = timedelta(seconds=30)
_ANSWERS, _RATINGS = "answers", "ratings"


@dataclass(frozen=True, kw_only=True)
class _Answer:
    """An answer that may be worth a review."""

    job_id: str
    conversation_id: str
    moment: datetime
    disliked: bool


@dataclass(frozen=True)
class _Look:
    """What one look found, and where the next begins."""

    answers: list[_Answer]
    mark: datetime


class Filling:
    """Fills the queue; safe to share between threads, and to run in several gateways at once."""

    def __init__(self, envelope: Envelope, clock: Clock, settings: Settings) -> None:
        self._envelope, self._clock = envelope, clock
        self._sample = settings.review_sample_percent
        self._double = settings.review_double_percent

    def fill(self, database: Database) -> int:
        """One round, of at most `ROWS` answers and as many ratings; returns how many joined the queue."""
        with database.read() as connection:
            now = self._clock.now(connection)
            before = _marks(connection, now)
            looks = {
                _ANSWERS: _look_at_answers(connection, before[_ANSWERS], now),
                _RATINGS: _look_at_ratings(connection, before[_RATINGS], now),
            }
            new, better = self._wanted(connection, [each for look in looks.values() for each in look.answers])
        moved = {name: look.mark for name, look in looks.items() if look.mark - before[name] >= _STEP}
        if not new and not better and not moved:
            return 0
        with database.write() as connection:
            joined = sum(join(connection, row, now) for row in new)
            for row in better:
                _raise(connection, row)
            for name, mark in moved.items():
                _set_mark(connection, name, mark)
            if moved:
                close_erased(connection, now)
        return joined

    def row(
        self, connection: Connection, job_id: str, conversation_id: str, reason: Reason | None
    ) -> dict[str, Any] | None:
        """What the queue would hold of this answer; with a reason, for that one. None: nothing."""
        done = guard_done(connection, [job_id]).get(job_id, GuardDone())
        return self._row(job_id, conversation_id, done, reason)

    def _row(
        self, job_id: str, conversation_id: str, done: GuardDone, reason: Reason | None
    ) -> dict[str, Any] | None:
        sampled = drawn(self._envelope.fingerprint(f"review sample:{job_id}"), self._sample)
        reason = reason or reason_of(done, sampled=sampled)
        if reason is None:
            return None
        double = drawn(self._envelope.fingerprint(f"review double:{job_id}"), self._double)
        return {
            "job_id": job_id,
            "conversation_id": conversation_id,
            "reason": reason,
            "priority": priority(reason, grave=done.grave),
            "sampled": sampled,
            "wanted": 2 if double else 1,
        }

    def _wanted(
        self, connection: Connection, found: Iterable[_Answer]
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """The rows that join the queue, and those that stand in it already and move up."""
        answers: dict[str, _Answer] = {}
        for each in found:
            if each.job_id not in answers or each.disliked:
                answers[each.job_id] = each
        known = _known(connection, answers)
        # an answer that nobody rated and that is there already is there for all that it can be
        looked_at = [each for each in answers.values() if each.disliked or each.job_id not in known]
        done = guard_done(connection, [each.job_id for each in looked_at])
        new, better = [], []
        for each in looked_at:
            reason = Reason.THUMBS_DOWN if each.disliked else None
            row = self._row(each.job_id, each.conversation_id, done.get(each.job_id, GuardDone()), reason)
            if row is None:
                continue
            if each.job_id not in known:
                new.append(row)
            elif row["priority"] < known[each.job_id]:
                better.append(row)
        return new, better


def guard_done(connection: Connection, job_ids: Collection[str]) -> dict[str, GuardDone]:
    """What the guard did to these answers; those of which it said nothing are left out."""
    found: dict[str, list[tuple[str, str]]] = {}
    rows = connection.execute(
        select(verdicts.c.job_id, verdicts.c.action, verdicts.c.severity).where(
            verdicts.c.job_id.in_(job_ids), verdicts.c.shadow.is_(False)
        )
    )
    for row in rows:
        found.setdefault(row.job_id, []).append((row.action, row.severity))
    return {job_id: GuardDone.of(judged) for job_id, judged in found.items()}


def close_erased(connection: Connection, now: datetime) -> None:
    """Take answers out of the queue whose conversation was erased."""
    erased = (
        select(conversations.c.id)
        .join(data_keys, data_keys.c.key_id == conversations.c.key_id)
        .where(conversations.c.id == review_items.c.conversation_id, data_keys.c.wrapped_key.is_(None))
    )
    connection.execute(
        update(review_items).where(review_items.c.closed_at.is_(None), erased.exists()).values(closed_at=now)
    )


def _look_at_answers(connection: Connection, since: datetime, now: datetime) -> _Look:
    rows = connection.execute(
        select(messages.c.id, messages.c.job_id, messages.c.conversation_id)
        .join(conversations, conversations.c.id == messages.c.conversation_id)
        .join(data_keys, data_keys.c.key_id == conversations.c.key_id)
        .where(
            messages.c.id >= first_id_at(since),  # ids are in the order of time
            messages.c.role == "assistant",
            messages.c.job_id.is_not(None),
            data_keys.c.wrapped_key.is_not(None),
        )
        .order_by(messages.c.id)
        .limit(ROWS)
    )
    found = [
        _Answer(
            job_id=row.job_id,
            conversation_id=row.conversation_id,
            moment=moment_of(row.id),
            disliked=False,
        )
        for row in rows
    ]
    return _Look(found, _next_mark(found, since, now))


def _look_at_ratings(connection: Connection, since: datetime, now: datetime) -> _Look:
    rows = connection.execute(
        select(feedback.c.updated_at, messages.c.job_id, messages.c.conversation_id)
        .join(messages, messages.c.id == feedback.c.message_id)
        .join(data_keys, data_keys.c.key_id == feedback.c.key_id)
        .where(
            feedback.c.updated_at >= since,
            feedback.c.rating == "down",
            messages.c.job_id.is_not(None),
            data_keys.c.wrapped_key.is_not(None),
        )
        .order_by(feedback.c.updated_at)
        .limit(ROWS)
    )
    found = [
        _Answer(job_id=row.job_id, conversation_id=row.conversation_id, moment=row.updated_at, disliked=True)
        for row in rows
    ]
    return _Look(found, _next_mark(found, since, now))


def _next_mark(found: list[_Answer], since: datetime, now: datetime) -> datetime:
    seen_up_to = found[-1].moment if len(found) == ROWS else now
    return max(since, min(seen_up_to, now - OVERLAP))


def _known(connection: Connection, job_ids: Collection[str]) -> dict[str, int]:
    """The priority of each answer that stands in the queue; one that is done with moves up no more."""
    rows = connection.execute(
        select(review_items.c.job_id, review_items.c.priority, review_items.c.closed_at).where(
            review_items.c.job_id.in_(job_ids)
        )
    )
    return {row.job_id: FIRST if row.closed_at else row.priority for row in rows}


def _marks(connection: Connection, now: datetime) -> dict[str, datetime]:
    rows = connection.execute(select(review_marks)).all()
    return dict.fromkeys((_ANSWERS, _RATINGS), now - FIRST_LOOK) | {row.name: row.at for row in rows}


def _set_mark(connection: Connection, name: str, at: datetime) -> None:
    make = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    new = make(review_marks).values(name=name, at=at.astimezone(UTC))
    connection.execute(
        new.on_conflict_do_update(
            index_elements=[review_marks.c.name], set_={"at": at}, where=review_marks.c.at < at
        )
    )


def join(connection: Connection, row: dict[str, Any], now: datetime) -> int:
    """Put an answer into the queue unless it stands there; returns how many joined."""
    make = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    new = make(review_items).values(id=new_id(), created_at=now, **row)
    joined = connection.execute(
        new.on_conflict_do_nothing(index_elements=[review_items.c.job_id]).returning(review_items.c.id)
    )
    return 0 if joined.one_or_none() is None else 1


def _raise(connection: Connection, row: dict[str, Any]) -> None:
    connection.execute(
        update(review_items)
        .where(
            review_items.c.job_id == row["job_id"],
            review_items.c.closed_at.is_(None),
            review_items.c.priority > row["priority"],
        )
        .values(reason=row["reason"], priority=row["priority"])
    )
