"""Periods of retention: what was kept for its time is erased, and the log says so; what is held stays."""

import json
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select

from services.api import erasing
from services.api import retention as module
from services.api.maintenance import Maintenance
from services.api.retention import Retention
from shared.audit.record import Actor
from shared.auth.roles import Role
from shared.db.tables import conversations, data_keys, leases, messages, refresh_tokens, sessions
from shared.db.tables_privacy import dataset_conversations
from shared.db.tables_training import datasets
from shared.privacy import holds
from shared.privacy.erased import read_erased
from shared.privacy.erasure import Eraser
from shared.storage import Storage
from tests.conftest import MakeApi
from tests.support import Api, wait_until
from tests.training import School
from tests.uploads import check, uploaded

DAYS = 30
on_both = pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])


@pytest.fixture
def dialect() -> str:
    return "sqlite"


@pytest.fixture
def keeping(make_api: MakeApi) -> Api:
    """A gateway with periods of 30 days, whose own maintenance did its first round and rests."""
    api = make_api(
        reconcile_s=600,
        retention_conversations_days=DAYS,
        retention_datasets_days=DAYS,
        retention_sessions_days=DAYS,
    )
    api.wait_for_maintenance()
    return api


def ago(days: float) -> datetime:
    return datetime.now(UTC) - timedelta(days=days)


def age(api: Api, conversation: str, days: float) -> None:
    """As if its last message had been written so long ago."""
    api.set(conversations, conversations.c.id == conversation, created_at=ago(days))
    api.set(messages, messages.c.conversation_id == conversation, created_at=ago(days))


def erased(api: Api) -> set[str]:
    with api.gateway.database.read() as connection:
        found = connection.execute(select(data_keys.c.owner_id).where(data_keys.c.destroyed_at.is_not(None)))
        return set(found.scalars())


def purged(api: Api) -> list[dict[str, Any]]:
    return [json.loads(event.canonical_bytes)["details"] for event in api.audit("retention.purged")]


@on_both
def test_conversations_are_erased_so_long_after_their_last_message(keeping: Api) -> None:
    old, answered, renamed = keeping.write_history(keeping.person(), ["Gout?", "Flu?", "A cold?"])
    for conversation in (old, answered, renamed):
        age(keeping, conversation, DAYS + 1)
    keeping.set(messages, messages.c.conversation_id == answered, created_at=ago(DAYS - 1))
    keeping.set(conversations, conversations.c.id == renamed, updated_at=ago(0), hidden_at=ago(0))
    Retention(keeping.gateway).round(datetime.now(UTC))
    assert erased(keeping) == {old, renamed}
    assert {event.reason for event in keeping.audit("conversation.erased")} == {"retention"}
    told = purged(keeping)
    assert [(each["kind"], each["count"], each["days"]) for each in told] == [("conversations", 1, DAYS)] * 2
    assert [each["ids"] for each in told] == [[old], [renamed]]
    assert all(each["oldest"] == each["newest"] < ago(DAYS).isoformat() for each in told)


def test_what_was_purged_before_a_round_broke_off_is_in_its_record(
    keeping: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = keeping.write_history(keeping.person(), ["Gout?", "Flu?"])
    for conversation in (first, second):
        age(keeping, conversation, DAYS + 1)
    begin = Eraser.erase

    def break_at_the_second(self: Eraser, connection: Any, conversation_id: str, **rest: Any) -> Any:
        done = begin(self, connection, conversation_id, **rest)
        if conversation_id == second:
            raise SystemExit  # as if the process ended before the commit
        return done

    with monkeypatch.context() as patch:
        patch.setattr(Eraser, "erase", break_at_the_second)
        with pytest.raises(SystemExit):
            Retention(keeping.gateway).round(datetime.now(UTC))
    assert (erased(keeping), [each["ids"] for each in purged(keeping)]) == ({first}, [[first]])
    assert len(read_erased(Storage.of_checkpoints(keeping.settings))) == 1
    Retention(keeping.gateway).round(datetime.now(UTC))
    assert [each["ids"] for each in purged(keeping)] == [[first], [second]]


def test_datasets_that_were_purged_before_a_round_broke_off_are_in_its_record(
    keeping: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    school = School(keeping)
    first, second = (removed_dataset(keeping, school, DAYS + 2 - number) for number in range(2))
    begin = erasing.erase_dataset

    def break_at_the_second(connection: Any, store: Any, talk: Any, dataset_id: str, **rest: Any) -> Any:
        if dataset_id == second:
            raise SystemExit
        return begin(connection, store, talk, dataset_id, **rest)

    monkeypatch.setattr(erasing, "erase_dataset", break_at_the_second)
    with pytest.raises(SystemExit):
        Retention(keeping.gateway).round(datetime.now(UTC))
    assert (erased(keeping), [each["ids"] for each in purged(keeping)]) == ({first}, [[first]])


@pytest.mark.parametrize("dialect", ["postgresql"])
def test_a_question_that_is_asked_while_its_conversation_is_due_keeps_it(keeping: Api) -> None:
    gateway = keeping.gateway
    old, asked = keeping.write_history(keeping.person(), ["Gout?", "Flu?"])
    for conversation in (old, asked):
        age(keeping, conversation, DAYS + 1)
    purging = threading.Thread(target=Retention(gateway).round, args=[datetime.now(UTC)])
    with gateway.database.write() as connection:
        key = gateway.conversations.key(connection, asked)
        said = {"role": "user", "text": "And now?", "now": datetime.now(UTC)}
        gateway.conversations.add_message(connection, key, conversation_id=asked, **said)
        purging.start()
        wait_until(keeping.waits_for_lock, 10, "for the round to meet the question")
    purging.join()
    assert (erased(keeping), [each["ids"] for each in purged(keeping)]) == ({old}, [[old]])


def test_nothing_is_erased_where_no_period_is_set(make_api: MakeApi) -> None:
    api = make_api(reconcile_s=600)
    api.wait_for_maintenance()
    (old,) = api.write_history(api.person(), ["Gout?"])
    age(api, old, 10_000)
    Retention(api.gateway).round(datetime.now(UTC))
    assert not erased(api)


@on_both
def test_what_is_held_stays_and_stands_in_nobodys_way(keeping: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CONVERSATIONS", 1)
    person, other = keeping.person(), keeping.person()
    ids = [*keeping.write_history(person, ["Gout?"]), *keeping.write_history(other, ["Flu?", "A cold?"])]
    for conversation in ids:
        age(keeping, conversation, DAYS + 1)
    admin = keeping.log_in(Role.ADMIN)
    for subject in (f"user:{person.id}", f"conversation:{ids[1]}"):
        admin.post("/v1/holds", json={"subject": subject, "reference": "1"}).raise_for_status()
    Retention(keeping.gateway).round(datetime.now(UTC))
    assert erased(keeping) == {ids[2]}


def test_a_conversation_that_a_held_person_begins_later_is_marked_as_held(keeping: Api) -> None:
    person, admin = keeping.person(), keeping.person(Role.ADMIN)
    with keeping.gateway.database.write() as connection:
        holds.place(connection, kind="user", id=person.id, reference="1", actor=Actor(admin.id), now=ago(0))
    keeping.write_history(person, ["Gout?"])
    Retention(keeping.gateway).round(datetime.now(UTC))
    assert keeping.count(conversations, conversations.c.legal_hold.is_(True)) == 1


def removed_dataset(api: Api, school: School, days: float) -> str:
    """A dataset that was removed so long ago."""
    dataset = uploaded(school.client)
    check(api)
    school.client.delete(f"/v1/datasets/{dataset}").raise_for_status()
    api.set(datasets, datasets.c.id == dataset, hidden_at=ago(days))
    return dataset


@on_both
def test_a_dataset_with_rows_of_what_is_held_stays_and_stands_in_nobodys_way(
    keeping: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DATASETS", 1)
    school, person = School(keeping), keeping.person()
    (conversation,) = keeping.write_history(person, ["Gout?"])
    held, free = (removed_dataset(keeping, school, DAYS + 2 - number) for number in range(2))
    with keeping.gateway.database.write() as connection:
        row = {"dataset_id": held, "conversation_id": conversation}
        connection.execute(dataset_conversations.insert().values(**row))
    placed = {"subject": f"user:{person.id}", "reference": "1"}
    school.client.post("/v1/holds", json=placed).raise_for_status()
    Retention(keeping.gateway).round(datetime.now(UTC))
    assert erased(keeping) == {free}


def test_log_ins_of_a_person_who_is_held_stay(keeping: Api) -> None:
    person, other, admin = keeping.person(), keeping.person(), keeping.log_in(Role.ADMIN)
    for each in (person, other):
        for _ in range(2):
            keeping.token(each)
    keeping.set(sessions, sessions.c.user_id.in_([person.id, other.id]), revoked_at=ago(DAYS + 1))
    admin.post("/v1/holds", json={"subject": f"user:{person.id}", "reference": "1"}).raise_for_status()
    Retention(keeping.gateway).round(datetime.now(UTC))
    left = [keeping.count(sessions, sessions.c.user_id == each.id) for each in (person, other)]
    assert left == [2, 1]


def test_a_dataset_is_erased_so_long_after_it_was_removed(keeping: Api) -> None:
    school = School(keeping)
    kept, lately, gone = (uploaded(school.client) for _ in range(3))
    for _ in range(3):
        check(keeping)
    for dataset, days in ((lately, DAYS - 1), (gone, DAYS + 1)):
        school.client.delete(f"/v1/datasets/{dataset}").raise_for_status()
        keeping.set(datasets, datasets.c.id == dataset, hidden_at=ago(days))
    Retention(keeping.gateway).round(datetime.now(UTC))
    assert erased(keeping) == {gone}
    storage = keeping.gateway.datasets.storage
    assert [bool(storage.list(f"datasets/{each}")) for each in (kept, lately, gone)] == [True, True, False]
    assert [(each["kind"], each["ids"]) for each in purged(keeping)] == [("datasets", [gone])]


@on_both
def test_ended_log_ins_go_with_their_tokens_and_each_persons_newest_stays(keeping: Api) -> None:
    person = keeping.person()
    for _ in range(3):
        keeping.token(person)
    with keeping.gateway.database.read() as connection:
        sids = list(connection.execute(select(sessions.c.sid).order_by(sessions.c.sid)).scalars())
    keeping.set(sessions, sessions.c.sid == sids[0], revoked_at=ago(DAYS + 1))
    keeping.set(sessions, sessions.c.sid == sids[1], revoked_at=ago(DAYS - 1))
    keeping.set(sessions, sessions.c.sid == sids[2], revoked_at=ago(DAYS + 1))
    Retention(keeping.gateway).round(datetime.now(UTC))
    assert keeping.count(sessions, sessions.c.sid == sids[0]) == 0
    assert (keeping.count(sessions), keeping.count(refresh_tokens)) == (2, 2)
    assert [(each["kind"], each["ids"]) for each in purged(keeping)] == [("sessions", [sids[0]])]


def test_a_round_is_bounded_and_the_next_one_comes_at_once(
    keeping: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CONVERSATIONS", 2)
    for conversation in keeping.write_history(keeping.person(), ["Gout?", "Flu?", "A cold?"]):
        age(keeping, conversation, DAYS + 1)
    retention, now = Retention(keeping.gateway), datetime.now(UTC)
    seen = []
    for _ in range(2):
        retention.round(now)
        seen.append(len(erased(keeping)))
    assert seen == [2, 3]
    (late,) = keeping.write_history(keeping.person(), ["Measles?"])
    age(keeping, late, DAYS + 1)
    retention.round(now + timedelta(seconds=30))
    assert late not in erased(keeping)
    retention.round(now + timedelta(seconds=61))
    assert late in erased(keeping)


def test_the_maintenance_of_a_gateway_does_it(keeping: Api) -> None:
    (old,) = keeping.write_history(keeping.person(), ["Gout?"])
    age(keeping, old, DAYS + 1)
    keeping.set(leases, leases.c.holder != "", expires_at=ago(1))
    Maintenance(keeping.gateway).round()
    assert erased(keeping) == {old}
