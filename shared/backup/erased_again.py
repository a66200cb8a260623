"""Erases again what was erased since a backup: people, conversations, datasets. It reads no text.

The list of what was erased names data keys and accounts. A conversation or dataset whose key is in it is
erased whole, as `shared.privacy.erasure` and `shared.training.erasing` do. Legal holds that came back with
a backup were lifted before the erasure, and count for nothing.
"""

import secrets
from collections.abc import Callable, Collection, Sequence

from sqlalchemy import ColumnElement, Connection, func, or_, select

from shared.audit import record
from shared.auth.erasing import erase_account
from shared.auth.passwords import UNUSABLE
from shared.backup.rows import batches
from shared.clock import Clock
from shared.conversations import ERASED, Conversations
from shared.db.tables import conversations, data_keys, users
from shared.db.tables_training import datasets
from shared.jobs.store import JobRules, JobStore
from shared.privacy.envelope import Envelope
from shared.privacy.erasure import Eraser
from shared.privacy.keyring import KEY_BYTES
from shared.training.dataset_files import folder_of
from shared.training.erasing import destroy_keys, erase_dataset
from shared.training.states import ERASED as DATASET_ERASED
from shared.training.states import GONE

#: The reason of the events; who reads the log sees which erasures are repeated ones.
REASON = "restored"
_IDS_AT_ONCE = 200
#: Of no master key: a restore reads no text, and who does it may not have the key.
_NO_VERSION = 0


def erase_again(
    connection: Connection,
    listed: Collection[str],
    *,
    clock: Clock,
    delete_files: Callable[[str], None],
) -> set[str]:
    """Erase whatever belongs to the listed ids and is not erased yet; returns the ids of destroyed keys.

    Args:
        listed: what `shared.privacy.erased.read_erased` found.
        delete_files: is given the folder of each erased dataset in the storage; it may raise OSError.
    """
    destroyed_before = destroyed_keys(connection)
    work = _Work(connection, clock)
    for step in (work.people, work.conversations, work.datasets, work.keys):
        for ids in batches(sorted(listed), _IDS_AT_ONCE):
            step(ids)
    for folder in work.folders:
        delete_files(folder)
    return destroyed_keys(connection) - destroyed_before


def destroyed_keys(connection: Connection) -> set[str]:
    """The ids of the data keys of which nothing is left."""
    return set(
        connection.execute(select(data_keys.c.key_id).where(data_keys.c.wrapped_key.is_(None))).scalars()
    )


class _Work:
    """One restore's erasures, in this order: a dataset of an erased conversation is withdrawn with it."""

    def __init__(self, connection: Connection, clock: Clock) -> None:
        self._connection, self._now = connection, clock.now(connection)
        self._jobs = JobStore(clock, JobRules())
        self._talk = Conversations(Envelope({_NO_VERSION: secrets.token_bytes(KEY_BYTES)}))
        #: Of datasets whose files have to go.
        self.folders: list[str] = []

    def people(self, ids: Sequence[str]) -> None:
        for user_id in self._found(users.c.id, users.c.id.in_(ids), users.c.password_hash != UNUSABLE):
            erase_account(
                self._connection,
                user_id,
                actor=record.OPERATOR_ACTOR,
                now=self._now,
                reason=REASON,
                again=True,
            )

    def conversations(self, ids: Sequence[str]) -> None:
        eraser = Eraser(self._jobs, self._talk)
        wanted = or_(conversations.c.key_id.in_(ids), conversations.c.user_id.in_(ids))
        for each in self._found(conversations.c.id, wanted, conversations.c.retention_class != ERASED):
            erased = eraser.erase(
                self._connection, each, actor=record.OPERATOR_ACTOR, now=self._now, reason=REASON, again=True
            )
            self.folders += map(folder_of, erased.datasets)

    def datasets(self, ids: Sequence[str]) -> None:
        left = func.coalesce(datasets.c.error, "").not_in(GONE)
        for each in self._found(datasets.c.id, datasets.c.key_id.in_(ids), left):
            erase_dataset(
                self._connection,
                self._jobs,
                self._talk,
                each,
                why=DATASET_ERASED,
                actor=record.OPERATOR_ACTOR,
                now=self._now,
            )
            self.folders.append(folder_of(each))

    def keys(self, ids: Sequence[str]) -> None:
        """Whatever else was listed."""
        destroy_keys(self._connection, data_keys.c.key_id.in_(ids), self._now)

    def _found(self, column: ColumnElement[str], *conditions: ColumnElement[bool]) -> list[str]:
        found = select(column).where(*conditions).order_by(column)
        return list(self._connection.execute(found).scalars())
