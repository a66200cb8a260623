"""Erasure of conversations, people and datasets: nobody can read what is erased, and the log still holds."""

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import insert, select
from sqlalchemy.engine import make_url

from services.api import erasing
from services.api.retention import Retention
from shared.auth.passwords import check_password
from shared.auth.roles import Role
from shared.conversations import StoredVerdict
from shared.db.tables import (
    api_keys,
    conversations,
    data_keys,
    feedback,
    jobs,
    messages,
    released_sentences,
    sessions,
    users,
    verdicts,
)
from shared.db.tables_privacy import access_grants, dataset_conversations, search_pending, search_terms
from shared.db.tables_review import review_items, reviews, saved_views
from shared.db.tables_training import adapters, datasets
from shared.errors import LeaseLost
from shared.guard.verdict import Action, Category, Severity, Side, Verdict
from shared.ids import new_id
from shared.jobs.lifecycle import State, fold
from shared.jobs.store import snapshot
from shared.privacy.access_kinds import AccessKind
from shared.privacy.envelope import KeyDestroyed
from shared.privacy.erased import read_erased
from shared.privacy.keys import create_data_key
from shared.storage import Storage
from tests.conftest import MakeApi
from tests.registry import add_adapter, sha_of
from tests.support import PASSWORD, Api, Person, ask_async, sse_events
from tests.training import School
from tests.uploads import check, uploaded

HELD_BACK = Verdict(
    side=Side.ANSWER,
    action=Action.REPLACE,
    severity=Severity.HIGH,
    category=Category.DOSING,
    layer="rules",
    source="a rule",
)
PAST = datetime(2026, 1, 1, tzinfo=UTC)
ERASE = "/v1/conversations/{}/erase"
on_both = pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])


@pytest.fixture
def dialect() -> str:
    """Most of this is the same on both; where the SQL differs a test asks for both."""
    return "sqlite"


@pytest.fixture
def resting(make_api: MakeApi) -> Api:
    """A gateway whose own maintenance did its first round and rests."""
    api = make_api(reconcile_s=600)
    api.wait_for_maintenance()
    return api


def talk(api: Api, client: httpx.Client, question: str = "Is it gout?") -> str:
    """The id of a conversation with a question and its answer."""
    asked = ask_async(client, question)
    api.answer("Gout is likely.", " Ask a doctor.")
    return str(asked["conversation_id"])


def one(api: Api, statement: Any) -> Any:
    with api.gateway.database.read() as connection:
        return connection.execute(statement).one()


def rows_of(api: Api, table: Any, *conditions: Any) -> list[Any]:
    with api.gateway.database.read() as connection:
        return list(connection.execute(select(table).where(*conditions)).all())


def details_of(api: Api, action: str) -> dict[str, Any]:
    (event,) = api.audit(action)
    details: dict[str, Any] = json.loads(event.canonical_bytes)["details"]
    return details


def erase_all_keys(api: Api) -> set[str]:
    return {row.key_id for row in rows_of(api, data_keys, data_keys.c.destroyed_at.is_not(None))}


# -- a conversation


@on_both
def test_an_erased_conversation_can_be_read_by_nobody(api: Api) -> None:
    client = api.log_in()
    conversation, other = talk(api, client), talk(api, client)
    answer = client.post(ERASE.format(conversation))
    assert answer.status_code == 200, answer.text
    assert (answer.json()["conversations"], answer.json()["keys"]) == (1, 1)
    assert client.get(f"/v1/conversations/{conversation}").status_code == 404
    assert [each["id"] for each in client.get("/v1/conversations").json()["items"]] == [other]
    with api.gateway.database.read() as connection:
        with pytest.raises(KeyDestroyed):
            api.gateway.conversations.read_messages(connection, conversation)
        assert len(api.gateway.conversations.read_messages(connection, other)) == 2
    key = one(api, select(data_keys).where(data_keys.c.owner_id == conversation))
    assert key.wrapped_key is None
    assert key.destroyed_at is not None


@on_both
def test_what_was_made_from_the_texts_is_cleared_and_counted_in_the_log(resting: Api) -> None:
    api = resting  # its maintenance would make the messages searchable meanwhile
    person = api.person()
    client = api.client(person)
    headers = {"Prefer": "respond-async", "Idempotency-Key": "a key"}
    asked = client.post("/predict", json={"query": "Is it gout?"}, headers=headers).json()
    conversation, job = asked["conversation_id"], api.claim()
    api.release(job, "Ask.", verdict=HELD_BACK, suppressed="Take it all.")
    api.finish(job)
    said = client.get(f"/v1/conversations/{conversation}").json()["messages"]
    rated = {"rating": "down", "comment": "It scared me."}
    client.put(f"/v1/messages/{said[-1]['id']}/feedback", json=rated).raise_for_status()
    derive(api, conversation, person, job.id)
    assert client.post(ERASE.format(conversation)).status_code == 200
    row = one(api, select(jobs).where(jobs.c.id == job.id))
    assert (row.idempotency_key, row.request_hmac, row.payload_ciphertext) == (None, None, None)
    assert {each.span_hmac for each in rows_of(api, verdicts)} == {None}
    assert not api.count(search_terms) + api.count(search_pending) + api.count(feedback)
    (review,) = rows_of(api, reviews)
    assert (review.corrected_ciphertext, review.note_ciphertext) == (None, None)
    assert one(api, select(review_items)).closed_at is not None
    (grant,) = rows_of(api, access_grants)
    assert grant.reason_ciphertext == b""
    assert grant.ended_at is not None
    assert one(api, select(conversations)).title_ciphertext is None
    counts = details_of(api, "conversation.erased")
    wanted = ("jobs", "verdicts", "search_terms", "search_pending", "feedback", "reviews", "access_grants")
    assert {name: counts[name] for name in wanted} == {**dict.fromkeys(wanted, 1), "search_pending": 2}


def derive(api: Api, conversation: str, person: Person, job: str) -> None:
    """What search, review and access in an emergency keep beside a conversation."""
    gateway, now = api.gateway, datetime.now(UTC)
    with gateway.database.write() as connection:
        key = gateway.conversations.key(connection, conversation)
        connection.execute(insert(search_terms).values(term=b"t" * 16, conversation_id=conversation))
        item = {"id": new_id(), "job_id": job, "conversation_id": conversation, "reason": "sample"}
        queued = {"priority": 6, "sampled": True, "wanted": 1, "created_at": now}
        connection.execute(insert(review_items).values(**item, **queued))
        connection.execute(
            insert(reviews).values(
                item_id=item["id"],
                reviewer_id=person.id,
                taken_at=now,
                changed_at=now,
                corrected_ciphertext=key.encrypt("Better.", place="p"),
                note_ciphertext=key.encrypt("A note.", place="p"),
                key_id=key.key_id,
            )
        )
        connection.execute(
            insert(access_grants).values(
                id=new_id(),
                kind=AccessKind.BREAK_GLASS,
                user_id=person.id,
                conversation_id=conversation,
                reason_ciphertext=key.encrypt("She is missing.", place="p"),
                key_id=key.key_id,
                granted_at=now,
                expires_at=now,
            )
        )


def test_the_rows_stay_to_which_the_log_is_bound(api: Api) -> None:
    client = api.log_in()
    conversation = talk(api, client)
    before = rows_of(api, messages), rows_of(api, released_sentences), rows_of(api, jobs)
    client.post(ERASE.format(conversation))
    after = rows_of(api, messages), rows_of(api, released_sentences), rows_of(api, jobs)
    assert after == before
    bound = [json.loads(event.canonical_bytes)["details"] for event in api.audit("question.asked")]
    bound += [json.loads(event.canonical_bytes)["details"] for event in api.audit("answer.given")]
    stored = {row.id: hashlib.sha256(row.ciphertext).hexdigest() for row in after[0]}
    assert {each["message"]: each["ciphertext_sha256"] for each in bound} == stored


def test_nothing_of_the_key_is_left_in_the_database_file(api: Api) -> None:
    client = api.log_in()
    conversation = talk(api, client)
    wrapped = one(api, select(data_keys).where(data_keys.c.owner_id == conversation)).wrapped_key
    path = Path(str(make_url(api.settings.database_url).database))

    def files() -> bytes:
        return b"".join(each.read_bytes() for each in path.parent.glob(f"{path.name}*"))

    assert wrapped in files()
    assert client.post(ERASE.format(conversation)).status_code == 200
    assert wrapped not in files()


def test_an_erasure_ends_the_answer_under_way_and_its_worker_can_write_nothing_more(api: Api) -> None:
    client = api.log_in()
    conversation = ask_async(client)["conversation_id"]
    job = api.claim()
    api.release(job, "A sentence.")
    assert client.post(ERASE.format(conversation)).status_code == 200
    with api.gateway.database.read() as connection:
        ended = api.gateway.jobs.get(connection, job.id)
        assert fold(api.gateway.jobs.events(connection, job.id)) == snapshot(ended)
    assert ended.state is State.CANCELLED
    with pytest.raises(LeaseLost):
        api.finish(job)
    assert api.count(released_sentences) == 1


def test_a_queued_question_is_cancelled_by_an_erasure(api: Api) -> None:
    client = api.log_in()
    asked = ask_async(client)
    client.post(ERASE.format(asked["conversation_id"])).raise_for_status()
    assert client.get(f"/v1/jobs/{asked['id']}").json()["state"] == "cancelled"


def test_a_key_that_was_read_just_before_seals_no_further_message(api: Api) -> None:
    client = api.log_in()
    conversation = talk(api, client)
    store = api.gateway.conversations
    with api.gateway.database.read() as connection:
        key = store.key(connection, conversation)
    client.post(ERASE.format(conversation)).raise_for_status()
    with api.gateway.database.write() as connection, pytest.raises(KeyDestroyed):
        store.add_message(
            connection, key, conversation_id=conversation, role="user", text="More.", now=datetime.now(UTC)
        )


def test_who_follows_an_erased_answer_gets_nothing_of_it(api: Api) -> None:
    client = api.log_in()
    asked = ask_async(client)
    api.answer("Gout is likely.")
    client.post(ERASE.format(asked["conversation_id"])).raise_for_status()
    with client.stream("GET", f"/v1/jobs/{asked['id']}/events") as followed:
        ((name, _id, data),) = sse_events(followed)
    assert (name, json.loads(data)["state"], json.loads(data)["answer"]) == ("end", "succeeded", None)


def test_a_conversation_is_erased_once_and_one_that_is_hidden_too(api: Api) -> None:
    client = api.log_in()
    conversation = talk(api, client)
    client.delete(f"/v1/conversations/{conversation}")
    statuses = [client.post(ERASE.format(conversation)).status_code for _ in range(2)]
    assert statuses == [200, 404]
    assert len(api.audit("conversation.erased")) == 1


@pytest.mark.parametrize("role", [Role.ADMIN, Role.AUDITOR])
def test_whose_it_is_may_erase_it_in_whatever_role_they_are_now(api: Api, role: Role) -> None:
    person = api.person()
    conversation = talk(api, api.client(person))
    api.set(users, users.c.id == person.id, role=role)
    assert api.client(person).post(ERASE.format(conversation)).status_code == 200
    assert len(erase_all_keys(api)) == 1


@pytest.mark.parametrize("role", [Role.ADMIN, Role.AUDITOR])
def test_neither_admin_nor_auditor_erases_anothers_conversation_and_the_attempt_is_logged(
    api: Api, role: Role
) -> None:
    conversation = talk(api, api.log_in())
    assert api.log_in(role).post(ERASE.format(conversation)).status_code == 404
    (denied,) = api.audit("access.denied")
    assert denied.object == f"conversation:{conversation}"
    assert not erase_all_keys(api)


@pytest.mark.parametrize(
    "path", ["/v1/conversations/{}/erase", "/v1/me/erase", "/v1/users/{}/erase", "/v1/datasets/{}/erase"]
)
def test_erasing_asks_for_the_password_again(api: Api, path: str) -> None:
    role = Role.ADMIN if "users" in path or "datasets" in path else Role.USER
    client = api.log_in(role)
    api.set(sessions, sessions.c.revoked_at.is_(None), reauthenticated_at=PAST)
    name = {} if "conversations" in path or "datasets" in path else {"json": {"name": "x"}}
    refused = client.post(path.format(new_id()), **name)
    assert (refused.status_code, refused.json()["type"].rpartition(":")[2]) in {
        (403, "password-required"),
    }


# -- the list outside of the database


def test_the_ids_of_destroyed_keys_are_listed_outside_of_the_database(api: Api) -> None:
    client = api.log_in()
    client.post(ERASE.format(talk(api, client))).raise_for_status()
    assert read_erased(Storage.of_checkpoints(api.settings)) == erase_all_keys(api)


def test_a_list_that_cannot_be_written_hinders_no_erasure_and_is_written_later(
    make_api: MakeApi, tmp_path: Path
) -> None:
    in_the_way = tmp_path / "checkpoints"
    in_the_way.write_text("a file where the folder should be")
    api = make_api(reconcile_s=600)
    api.wait_for_maintenance()
    client = api.log_in()
    conversation = talk(api, client)
    assert client.post(ERASE.format(conversation)).status_code == 200
    retention, now = Retention(api.gateway), datetime.now(UTC)
    retention.round(now)
    in_the_way.unlink()
    Retention(api.gateway).round(now)
    assert read_erased(Storage.of_checkpoints(api.settings)) == erase_all_keys(api) != set()


def test_an_erased_person_is_listed_too_at_once_or_later(make_api: MakeApi, tmp_path: Path) -> None:
    api = make_api(reconcile_s=600)
    api.wait_for_maintenance()
    first, second = api.person(), api.person()
    assert erase_person(api, first).status_code == 200
    place = Storage.of_checkpoints(api.settings)
    assert read_erased(place) == {first.id}
    (tmp_path / "checkpoints/erased").rename(tmp_path / "away")
    (tmp_path / "checkpoints/erased").write_text("a file where the folder should be")
    assert erase_person(api, second).status_code == 200
    (tmp_path / "checkpoints/erased").unlink()
    Retention(api.gateway).round(datetime.now(UTC))
    assert read_erased(place) == {first.id, second.id}


def test_what_was_written_at_the_very_moment_of_an_erasure_is_cleared_afterwards(resting: Api) -> None:
    client = resting.log_in()
    conversation = talk(resting, client)
    client.post(ERASE.format(conversation)).raise_for_status()
    (job,) = rows_of(resting, jobs)
    stored = StoredVerdict(verdict=Verdict.ALLOWED, policy_version="1", text="Gout is likely.", shadow_of=1)
    now = datetime.now(UTC)
    with resting.gateway.database.write() as connection:
        resting.gateway.conversations.store_verdict(connection, job_id=job.id, stored=stored, now=now)
    Retention(resting.gateway).round(now)
    (verdict,) = rows_of(resting, verdicts)
    assert verdict.span_hmac is None


# -- data to train on


def from_conversation(api: Api, dataset: str, conversation: str) -> None:
    with api.gateway.database.write() as connection:
        row = {"dataset_id": dataset, "conversation_id": conversation}
        connection.execute(insert(dataset_conversations).values(**row))


def test_a_dataset_with_rows_of_an_erased_conversation_is_withdrawn_and_cannot_be_used(api: Api) -> None:
    client, school = api.log_in(), School(api)
    conversation = talk(api, client)
    dataset = uploaded(school.client)
    check(api)
    from_conversation(api, dataset, conversation)
    school.dataset_id = dataset
    run = school.submit()
    erased = client.post(ERASE.format(conversation)).json()
    assert erased["datasets"] == [dataset]
    shown = school.client.get(f"/v1/datasets/{dataset}").json()
    assert (shown["state"], shown["error"]["code"]) == ("rejected", "withdrawn")
    assert school.run(run["id"])["state"] == "cancelled"
    wish = {"name": "again", "dataset_id": dataset, "preset": "quick"}
    acts = [
        school.client.post("/v1/training-runs", json=wish),
        school.client.post(f"/v1/datasets/{dataset}/validate", json={}),
        school.client.get(f"/v1/datasets/{dataset}/rows"),
    ]
    for act in acts:
        assert (act.status_code, act.json()["detail"]) == (409, shown["error"]["detail"])
    assert not api.gateway.datasets.storage.list(f"datasets/{dataset}")


def test_a_dataset_made_at_the_very_moment_of_an_erasure_is_withdrawn_afterwards(resting: Api) -> None:
    client, school = resting.log_in(), School(resting)
    conversation = talk(resting, client)
    client.post(ERASE.format(conversation)).raise_for_status()
    from_conversation(resting, school.dataset_id, conversation)
    Retention(resting.gateway).round(datetime.now(UTC))
    assert one(resting, select(datasets)).error == "withdrawn"


def test_adapters_that_saw_an_erased_conversation_are_listed_and_stay(api: Api) -> None:
    client, admin = api.log_in(), api.person(Role.ADMIN)
    conversation = talk(api, client)
    saw, other = sha_of("saw"), sha_of("other")
    for sha256 in (saw, other):
        add_adapter(api, admin, sha256=sha256, name=sha256[:8])
    dataset = one(api, select(adapters).where(adapters.c.sha256 == saw)).dataset_id
    from_conversation(api, dataset, conversation)
    erased = client.post(ERASE.format(conversation)).json()
    assert [each["sha256"] for each in erased["adapters"]] == [saw]
    assert details_of(api, "conversation.erased")["adapters"] == [saw]
    assert api.count(adapters) == 2


@on_both
def test_an_admin_erases_a_dataset_with_its_files_and_the_work_on_it(api: Api) -> None:
    school = School(api)
    dataset = school.dataset_id = uploaded(school.client)
    check(api)
    other = uploaded(school.client)
    run = school.submit()
    checkpoint = f"runs/{run['id']}/checkpoints/1/checkpoint-10/WHOLE"
    with api.gateway.datasets.storage.create(checkpoint) as file:
        file.write(b"weights")
    erased = school.client.post(f"/v1/datasets/{dataset}/erase")
    assert (erased.status_code, erased.json()["datasets"]) == (200, [dataset])
    assert school.run(run["id"])["state"] == "cancelled"
    assert not api.gateway.datasets.storage.list(f"datasets/{dataset}")
    assert api.gateway.datasets.storage.list(f"datasets/{other}")
    assert not api.gateway.datasets.storage.exists(checkpoint)
    row = one(api, select(datasets).where(datasets.c.id == dataset))
    assert (row.report_ciphertext, row.source_name_ciphertext, row.sha256) == (None, None, None)
    assert one(api, select(data_keys).where(data_keys.c.key_id == row.key_id)).wrapped_key is None
    assert school.client.post(f"/v1/datasets/{dataset}/erase").status_code == 409
    assert details_of(api, "dataset.erased")["keys"] == [row.key_id]


# -- a person


def erase_person(api: Api, person: Person) -> httpx.Response:
    admin = api.log_in(Role.ADMIN)
    return admin.post(f"/v1/users/{person.id}/erase", json={"name": person.name})


@on_both
def test_an_erased_person_is_gone_with_every_conversation_and_nobody_else_is(api: Api) -> None:
    person, other = api.person(), api.log_in()
    client = api.client(person)
    own, foreign = [talk(api, client), talk(api, client)], talk(api, other)
    client.post("/v1/api-keys", json={"name": "my mother's tablet", "scopes": ["ask"]}).raise_for_status()
    erased = erase_person(api, person)
    assert erased.status_code == 200, erased.text
    assert (erased.json()["conversations"], erased.json()["conversations_left"]) == (2, 0)
    assert {event.object for event in api.audit("conversation.erased")} == {
        f"conversation:{id}" for id in own
    }
    assert client.get("/v1/me").status_code == 401
    row = one(api, select(users).where(users.c.id == person.id))
    assert (row.name, row.status) == (f"erased-{person.id[:8]}", "disabled")
    assert not check_password(PASSWORD, row.password_hash)
    assert one(api, select(api_keys)).name == "erased"
    assert other.get(f"/v1/conversations/{foreign}").status_code == 200
    assert details_of(api, "user.erased")["conversations"] == 2


def test_what_maintenance_erases_of_a_person_meanwhile_is_counted(
    resting: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    person = resting.person()
    resting.write_history(person, ["Gout?", "Flu?"])
    goes_on = erasing.erase_conversations

    def maintain_first(*arguments: Any, **named: Any) -> Any:
        monkeypatch.setattr(erasing, "erase_conversations", goes_on)
        Retention(resting.gateway).round(datetime.now(UTC))
        return goes_on(*arguments, **named)

    monkeypatch.setattr(erasing, "erase_conversations", maintain_first)
    erased = erase_person(resting, person).json()
    assert (erased["conversations"], erased["conversations_left"]) == (2, 0)


def test_a_person_erases_their_own_account_by_its_name(api: Api) -> None:
    person = api.person()
    client = api.client(person)
    talk(api, client)
    assert client.post("/v1/me/erase", json={"name": "somebody"}).status_code == 422
    assert client.get("/v1/me").status_code == 200
    assert client.post("/v1/me/erase", json={"name": person.name.upper()}).json()["conversations"] == 1
    form = {"username": person.name, "password": PASSWORD}
    assert api.client().post("/v1/auth/token", data=form).status_code == 401


def test_two_people_who_came_in_the_same_minute_can_both_be_erased(api: Api) -> None:
    people = [api.person(), api.person()]
    assert [erase_person(api, person).status_code for person in people] == [200, 200]
    names = {row.name for row in rows_of(api, users) if row.name.startswith("erased")}
    assert names == {f"erased-{people[0].id[:8]}", f"erased-{people[1].id}"}


def test_nobody_logs_in_as_erased_and_no_admin_brings_the_account_back(api: Api) -> None:
    person = api.person()
    erase_person(api, person)
    form = {"username": f"erased-{person.id[:8]}", "password": "!"}
    assert api.client().post("/v1/auth/token", data=form).status_code == 401
    admin = api.log_in(Role.ADMIN)
    acts = [
        admin.patch(f"/v1/users/{person.id}", json={"status": "active"}),
        admin.post(f"/v1/users/{person.id}/password"),
    ]
    assert [act.status_code for act in acts] == [409, 409]


@pytest.mark.parametrize("role", [Role.ADMIN, Role.AUDITOR])
def test_the_last_admin_and_the_last_auditor_stay(api: Api, role: Role) -> None:
    last = api.person(role)
    client = api.client(last)
    refused = client.post("/v1/me/erase", json={"name": last.name})
    assert (refused.status_code, "last active" in refused.json()["detail"]) == (409, True)
    api.person(role)
    assert client.post("/v1/me/erase", json={"name": last.name}).status_code == 200


def test_what_an_erased_admin_uploaded_stays_and_their_saved_views_do_not(api: Api) -> None:
    school = School(api)
    gateway, now = api.gateway, datetime.now(UTC)
    with gateway.database.write() as connection:
        key = create_data_key(connection, gateway.envelope, scope="person", owner_id=school.admin.id, now=now)
        sealed = key.encrypt("patients named Kim", place="p")
        view = {"id": new_id(), "user_id": school.admin.id, "view_ciphertext": sealed, "key_id": key.key_id}
        connection.execute(insert(saved_views).values(**view, created_at=now))
    assert erase_person(api, school.admin).status_code == 200
    assert one(api, select(datasets)).error is None
    assert not api.count(saved_views)
    assert erase_all_keys(api) == {key.key_id}


def test_an_erasure_of_a_person_that_was_interrupted_is_finished_by_the_maintenance(
    resting: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    person = resting.person()
    resting.write_history(person, ["Is it gout?", "Is it asthma?", "Is it flu?"])
    monkeypatch.setattr(erasing, "AT_ONCE", 1)
    told = erase_person(resting, person).json()
    assert (told["conversations"], told["conversations_left"]) == (1, 2)
    Retention(resting.gateway).round(datetime.now(UTC))
    assert len(erase_all_keys(resting)) == 3
    assert [event.actor for event in resting.audit("conversation.erased")][1:] == ["system"] * 2
