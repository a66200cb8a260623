"""Erases conversations, people and datasets for whoever may ask for it, and does what follows the commit.

It knows no route, and does not ask who may. After the commit the erasure holds, whatever follows: that
its ids are listed outside of the database may fail here, and `services.api.retention` makes up for it;
files that stay say nothing without their key, and a worker that was not told finds its job lost.
"""

import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field

from sqlalchemy import Connection, select
from sqlalchemy.exc import DBAPIError

from services.api.state import Gateway
from shared.audit import record
from shared.auth.erasing import conversations_left, erase_account
from shared.db.tables import conversations
from shared.db.tables_privacy import dataset_conversations
from shared.db.tables_training import training_runs
from shared.errors import NotFound, OnHold
from shared.jobs.records import Job
from shared.logs import where
from shared.privacy.erased import note_erased
from shared.privacy.erasure import Erased, Eraser
from shared.storage import Storage
from shared.training.erasing import AdapterSeen, adapters_trained_on, erase_dataset, made_from
from shared.training.runs import folder_of
from shared.training.states import ERASED

log = logging.getLogger(__name__)

#: Conversations that are erased while the caller waits; maintenance goes on with the rest.
AT_ONCE = 200

#: Called first in the transaction that erases what has this id; without a yes nothing is erased.
Agree = Callable[[Connection, str], bool]


@dataclass(kw_only=True)
class Outcome:
    """What was erased, for whoever asked for it."""

    #: The ids of conversations that were erased, and how many of a person's are still to be.
    conversations: list[str] = field(default_factory=list)
    conversations_left: int = 0
    datasets: list[str] = field(default_factory=list)
    adapters: list[AdapterSeen] = field(default_factory=list)
    key_ids: list[str] = field(default_factory=list)


def erase_conversation(gateway: Gateway, conversation_id: str, *, actor: record.Actor) -> Outcome:
    """Erase one conversation. Raises NotFound or OnHold."""
    outcome = Outcome()
    _erase_one(gateway, conversation_id, outcome, actor=actor, reason=None)
    settle(gateway, outcome.key_ids, outcome.datasets)
    return outcome


def erase_conversations(
    gateway: Gateway,
    conversation_ids: Iterable[str],
    *,
    actor: record.Actor,
    reason: str,
    agree: Agree | None = None,
) -> Outcome:
    """Erase each in a transaction of its own; passes over what is held or was erased meanwhile."""
    outcome = Outcome()
    try:
        for conversation_id in conversation_ids:
            with suppress(NotFound, OnHold):
                _erase_one(gateway, conversation_id, outcome, actor=actor, reason=reason, agree=agree)
    finally:
        settle(gateway, outcome.key_ids, outcome.datasets)
    return outcome


def erase_person(gateway: Gateway, user_id: str, *, actor: record.Actor) -> Outcome:
    """Erase an account and then, one by one, all conversations. Raises NotFound, Conflict or OnHold."""
    own = select(conversations.c.id).where(conversations.c.user_id == user_id)
    with gateway.database.write() as connection:
        now = gateway.clock.now(connection)
        key_ids = erase_account(connection, user_id, actor=actor, now=now)
        seen = adapters_trained_on(connection, made_from(dataset_conversations.c.conversation_id.in_(own)))
        left = conversations_left(connection, user_id)
    outcome = erase_conversations(gateway, left[:AT_ONCE], actor=actor, reason="person")
    settle(gateway, [*key_ids, user_id], [])
    outcome.adapters = seen
    outcome.key_ids += key_ids
    with gateway.database.read() as connection:
        still = set(conversations_left(connection, user_id))
    outcome.conversations = [each for each in left if each not in still]  # maintenance may have helped
    outcome.conversations_left = len(still)
    return outcome


def erase_data(
    gateway: Gateway,
    dataset_id: str,
    *,
    actor: record.Actor,
    why: str = ERASED,
    agree: Agree | None = None,
) -> Outcome:
    """Erase a dataset: its key, then its files. Raises NotFound, Conflict or OnHold."""
    with gateway.database.write() as connection:
        if agree is not None and not agree(connection, dataset_id):
            return Outcome()
        now = gateway.clock.now(connection)
        gone = erase_dataset(
            connection, gateway.jobs, gateway.conversations, dataset_id, why=why, actor=actor, now=now
        )
    _stop_workers(gateway, gone.jobs)
    settle(gateway, gone.key_ids, [dataset_id])
    return Outcome(datasets=[dataset_id], adapters=gone.adapters, key_ids=gone.key_ids)


def settle(gateway: Gateway, erased_ids: Iterable[str], dataset_ids: Iterable[str]) -> None:
    """After the commit: let nothing of the keys and files be found any more, as far as that is possible.

    `erased_ids` are of destroyed keys and of people, for the list outside of the database.
    """
    try:
        note_erased(Storage.of_checkpoints(gateway.settings), erased_ids)
    except OSError as error:
        log.error("what was erased could not be listed yet, see MEDICHAT_CHECKPOINT_URL: %s", where(error))
    for dataset_id in dataset_ids:
        try:
            _delete_files(gateway, dataset_id)
        except (OSError, DBAPIError) as error:  # what is erased is erased
            log.error("files of the erased dataset %s could not be removed: %s", dataset_id, where(error))
    if not gateway.database.empty_write_ahead_log():
        log.warning("a reader kept the write-ahead log from being emptied after an erasure")


def _delete_files(gateway: Gateway, dataset_id: str) -> None:
    """Of the dataset, and of runs on it: checkpoints are weights that learnt its rows.

    A worker that is just writing one removes it when it finds its run lost.
    """
    gateway.datasets.delete_files(dataset_id)
    with gateway.database.read() as connection:
        found = select(training_runs.c.id).where(training_runs.c.dataset_id == dataset_id)
        run_ids = connection.execute(found).scalars().all()
    for run_id in run_ids:
        gateway.datasets.storage.delete(folder_of(run_id))


def _erase_one(
    gateway: Gateway,
    conversation_id: str,
    outcome: Outcome,
    *,
    actor: record.Actor,
    reason: str | None,
    agree: Agree | None = None,
) -> None:
    with gateway.database.write() as connection:
        if agree is not None and not agree(connection, conversation_id):
            return
        now = gateway.clock.now(connection)
        eraser = Eraser(gateway.jobs, gateway.conversations)
        erased = eraser.erase(connection, conversation_id, actor=actor, now=now, reason=reason)
    _stop_workers(gateway, erased.jobs)
    _add(outcome, conversation_id, erased)


def _add(outcome: Outcome, conversation_id: str, erased: Erased) -> None:
    outcome.conversations.append(conversation_id)
    outcome.key_ids += erased.key_ids
    outcome.datasets += erased.datasets
    known = {each.sha256 for each in outcome.adapters}
    outcome.adapters += [each for each in erased.adapters if each.sha256 not in known]


def _stop_workers(gateway: Gateway, ended: Iterable[Job]) -> None:
    for job in ended:
        gateway.bell.cancel(job.id)
        gateway.bell.news(job.id)
