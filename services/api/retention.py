"""Erases what was kept for its period, and finishes erasures that were interrupted; part of maintenance.

A round does a bounded amount of work, once a minute, or at once again while there is more. What it purges is
erased as a person's own erasure would, with a record of ids and moments in the log, in the same transaction.
Jobs have no period: their rows hold no text, and the log is bound to them. What is held is passed over.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from sqlalchemy import Column, Connection, Select, delete, func, select
from sqlalchemy.exc import SQLAlchemyError

from services.api import erasing
from services.api.state import Gateway
from shared.audit import record
from shared.auth.erasing import half_erased
from shared.conversations import ERASED
from shared.db.tables import audit_events, conversations, data_keys, messages, refresh_tokens, sessions
from shared.db.tables_privacy import dataset_conversations
from shared.db.tables_training import datasets
from shared.errors import Conflict, MediChatError, NotFound
from shared.ids import is_id
from shared.logs import where
from shared.privacy.erased import note_erased, read_erased
from shared.privacy.erasure import clear_what_came_late
from shared.privacy.held import holds_since, note_holds
from shared.privacy.holds import is_held, is_held_dataset, is_held_person, repeat_for_new_conversations
from shared.storage import Storage
from shared.training.states import GONE, WITHDRAWN

log = logging.getLogger(__name__)

_EVERY = timedelta(minutes=1)
#: What was written beside an erasure is looked for this long, as is what was not listed.
_LATE = timedelta(hours=1)
#: At most so many in a round.
CONVERSATIONS, DATASETS, SESSIONS = 50, 5, 200


class Retention:
    """Does its rounds for the gateway that maintains; one thread at a time."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._due_at: datetime | None = None
        #: What was erased, and held, before that is listed outside of the database.
        self._listed_to: datetime | None = None
        self._holds_listed_to: datetime | None = None

    def round(self, now: datetime) -> None:
        """Work if it is time. What goes wrong with one kind is logged, and the others are done."""
        if self._due_at is not None and now < self._due_at:
            return
        steps: tuple[Callable[[datetime], bool], ...] = (
            self._finish_people,
            self._purge_conversations,
            self._purge_datasets,
            self._purge_sessions,
            self._withdraw_datasets,
            self._tidy,
            self._list_erased,
            self._list_holds,
        )
        more = False
        for step in steps:
            try:
                more |= step(now)
            except (SQLAlchemyError, OSError, MediChatError) as error:
                log.error("retention could not do its work: %s", where(error))
        self._due_at = now if more else now + _EVERY

    # -- each returns whether there is more to do at once

    def _finish_people(self, _now: datetime) -> bool:
        with self._gateway.database.read() as connection:
            left = half_erased(connection, CONVERSATIONS)
        if left:
            erasing.erase_conversations(self._gateway, left, actor=record.SYSTEM_ACTOR, reason="person")
        return len(left) == CONVERSATIONS

    def _purge_conversations(self, now: datetime) -> bool:
        days = self._gateway.settings.retention_conversations_days
        if not days:
            return False
        newest = select(func.max(messages.c.created_at)).where(
            messages.c.conversation_id == conversations.c.id
        )
        moment = func.coalesce(newest.scalar_subquery(), conversations.c.created_at)
        before = now - timedelta(days=days)
        due = (
            select(conversations.c.id, moment.label("moment"))
            .where(
                conversations.c.retention_class != ERASED,
                conversations.c.created_at < before,  # cheap, and none is left out by it
                moment < before,
                ~is_held(),
            )
            .order_by(conversations.c.id)
            .limit(CONVERSATIONS)
        )
        with self._gateway.database.read() as connection:
            ids = list(connection.execute(due).scalars())
        if not ids:
            return False
        done = erasing.erase_conversations(
            self._gateway,
            ids,
            actor=record.SYSTEM_ACTOR,
            reason="retention",
            agree=partial(self._still_due, "conversations", days, due, conversations.c.id, now),
        ).conversations
        if done:
            log.info("%d conversations were purged after %d days", len(done), days)
        return len(ids) == CONVERSATIONS and bool(done)

    def _purge_datasets(self, now: datetime) -> bool:
        days = self._gateway.settings.retention_datasets_days
        if not days:
            return False
        due = (
            select(datasets.c.id, datasets.c.hidden_at.label("moment"))
            .where(
                datasets.c.hidden_at < now - timedelta(days=days),
                func.coalesce(datasets.c.error, "").not_in(GONE),
                ~is_held_dataset(datasets.c.id),
            )
            .order_by(datasets.c.hidden_at)
            .limit(DATASETS)
        )
        with self._gateway.database.read() as connection:
            ids = list(connection.execute(due).scalars())
        agree = partial(self._still_due, "datasets", days, due, datasets.c.id, now)
        done = []
        for dataset_id in ids:
            with suppress(NotFound, Conflict):  # held or erased meanwhile
                done += erasing.erase_data(
                    self._gateway, dataset_id, actor=record.SYSTEM_ACTOR, agree=agree
                ).datasets
        if done:
            log.info("%d datasets were purged after %d days", len(done), days)
        return len(ids) == DATASETS and bool(done)

    def _purge_sessions(self, now: datetime) -> bool:
        days = self._gateway.settings.retention_sessions_days
        if not days:
            return False
        ended, later = func.coalesce(sessions.c.revoked_at, sessions.c.expires_at), sessions.alias("later")
        has_later = select(later.c.sid).where(
            later.c.user_id == sessions.c.user_id, later.c.sid > sessions.c.sid
        )
        due = (
            select(sessions.c.sid.label("id"), ended.label("moment"))
            .where(
                ended < now - timedelta(days=days),
                has_later.exists(),
                ~is_held_person(sessions.c.user_id),
            )
            .order_by(sessions.c.sid)
            .limit(SESSIONS)
        )
        with self._gateway.database.read() as connection:
            if connection.execute(due.limit(1)).first() is None:
                return False
        with self._gateway.database.write() as connection:
            found = connection.execute(due).all()
            ids = [row.id for row in found]
            connection.execute(delete(refresh_tokens).where(refresh_tokens.c.sid.in_(ids)))
            connection.execute(delete(sessions).where(sessions.c.sid.in_(ids)))
            self._record(connection, "sessions", days, found, now)
        log.info("%d sessions were purged after %d days", len(found), days)
        return len(found) == SESSIONS

    def _still_due(
        self,
        kind: str,
        days: int,
        due: Select[Any],
        column: Column[Any],
        now: datetime,
        connection: Connection,
        id: str,
    ) -> bool:
        """Whether this is due when its row is locked: then its record is written beside its erasure.

        A question asked meanwhile is waited for, and keeps its conversation.
        """
        connection.execute(select(column).where(column == id).with_for_update())
        row = connection.execute(due.where(column == id)).one_or_none()
        if row is None:
            return False
        self._record(connection, kind, days, [row], now)
        return True

    def _withdraw_datasets(self, _now: datetime) -> bool:
        """Withdraw what was made from a conversation at the very moment of its erasure."""
        due = (
            select(dataset_conversations.c.dataset_id)
            .join(conversations, conversations.c.id == dataset_conversations.c.conversation_id)
            .join(datasets, datasets.c.id == dataset_conversations.c.dataset_id)
            .where(
                conversations.c.retention_class == ERASED,
                func.coalesce(datasets.c.error, "").not_in(GONE),
            )
            .distinct()
            .limit(DATASETS)
        )
        with self._gateway.database.read() as connection:
            found = list(connection.execute(due).scalars())
        for dataset_id in found:
            erasing.erase_data(self._gateway, dataset_id, actor=record.SYSTEM_ACTOR, why=WITHDRAWN)
        return len(found) == DATASETS

    def _tidy(self, now: datetime) -> bool:
        """Take away what was written at the very moment of an erasure."""
        with self._gateway.database.read() as connection:
            lately = select(data_keys.c.key_id).where(data_keys.c.destroyed_at >= now - _LATE).limit(1)
            erased = connection.execute(lately).first() is not None
        with self._gateway.database.write() as connection:
            repeat_for_new_conversations(connection)
            if erased:
                clear_what_came_late(connection, now - _LATE, now)
        if erased:
            self._gateway.database.empty_write_ahead_log()
        return False

    def _list_erased(self, now: datetime) -> bool:
        """List destroyed keys and erased people outside of the database that an erasure could not."""
        destroyed = select(data_keys.c.key_id).where(data_keys.c.destroyed_at.is_not(None))
        people = select(audit_events.c.object).where(audit_events.c.action == "user.erased")
        if self._listed_to is not None:
            destroyed = destroyed.where(data_keys.c.destroyed_at >= self._listed_to)
            people = people.where(audit_events.c.occurred_at >= self._listed_to)
        with self._gateway.database.read() as connection:
            found = set(connection.execute(destroyed).scalars())
            found |= {who.removeprefix("user:") for who in connection.execute(people).scalars()}
        if found:
            place = Storage.of_checkpoints(self._gateway.settings)
            note_erased(place, sorted(set(filter(is_id, found)) - read_erased(place)))
        self._listed_to = now - _LATE
        return False

    def _list_holds(self, now: datetime) -> bool:
        """List legal holds outside of the database that could not be when they were placed or lifted."""
        with self._gateway.database.read() as connection:
            found = holds_since(connection, self._holds_listed_to)
        if found:
            note_holds(Storage.of_checkpoints(self._gateway.settings), found)
        self._holds_listed_to = now - _LATE
        return False

    @staticmethod
    def _record(connection: Connection, kind: str, days: int, purged: Sequence[Any], now: datetime) -> None:
        """The log's record of what a period ended."""
        if not purged:
            return
        moments = [row.moment for row in purged]
        record.append(
            connection,
            now=now,
            actor=record.SYSTEM_ACTOR,
            action="retention.purged",
            details={
                "kind": kind,
                "days": days,
                "count": len(purged),
                "oldest": min(moments).isoformat(),
                "newest": max(moments).isoformat(),
                "ids": [row.id for row in purged],
            },
        )
