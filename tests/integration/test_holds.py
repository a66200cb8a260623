"""Legal holds: what is held is erased by nobody, and no period ends it."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from services.api.retention import Retention
from shared.auth.roles import Role
from shared.db.tables import conversations, data_keys, feedback
from shared.db.tables_privacy import dataset_conversations
from shared.privacy.held import read_holds
from shared.storage import Storage
from tests.conftest import MakeApi
from tests.support import Api, Person, ask_async
from tests.training import School
from tests.uploads import check, uploaded

CASE = "2026-C-0417"
on_both = pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])


@pytest.fixture
def dialect() -> str:
    return "sqlite"


def hold(client: httpx.Client, subject: str, reference: str = CASE) -> httpx.Response:
    return client.post("/v1/holds", json={"subject": subject, "reference": reference})


def held(client: httpx.Client, subject: str, reference: str = CASE) -> str:
    """The id of a hold that was just placed."""
    answer = hold(client, subject, reference)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def flags(api: Api) -> dict[str, bool]:
    """`conversations.legal_hold` of each conversation."""
    with api.gateway.database.read() as connection:
        found = connection.execute(select(conversations.c.id, conversations.c.legal_hold))
        return {row.id: row.legal_hold for row in found}


def erase(api: Api, person: Person) -> httpx.Response:
    return api.log_in(Role.ADMIN).post(f"/v1/users/{person.id}/erase", json={"name": person.name})


@on_both
def test_a_held_conversation_is_not_erased_and_its_owner_is_not_told_why(api: Api) -> None:
    person = api.person()
    conversation, other = api.write_history(person, ["Is it gout?", "Is it flu?"])
    hold_id = held(api.log_in(Role.AUDITOR), f"conversation:{conversation}")
    client = api.client(person)
    refused = client.post(f"/v1/conversations/{conversation}/erase")
    assert refused.status_code == 409
    assert "cannot be erased now. Ask your admin" in refused.json()["detail"]
    assert not {hold_id, CASE} & set(refused.text.replace('"', " ").split())
    assert not api.count(data_keys, data_keys.c.destroyed_at.is_not(None))
    assert client.post(f"/v1/conversations/{other}/erase").status_code == 200
    (denied,) = api.audit("access.denied")
    assert (denied.object, denied.reason) == (f"conversation:{conversation}", "legal hold")


@on_both
@pytest.mark.parametrize("kind", ["user", "conversation"])
def test_a_person_who_is_held_or_whose_conversation_is_stays(api: Api, kind: str) -> None:
    person = api.person()
    (conversation,) = api.write_history(person, ["Is it gout?"])
    subject = f"user:{person.id}" if kind == "user" else f"conversation:{conversation}"
    hold_id = held(api.log_in(Role.ADMIN), subject)
    refused = erase(api, person)
    assert (refused.status_code, hold_id in refused.json()["detail"]) == (409, True)
    own = api.client(person).post("/v1/me/erase", json={"name": person.name})
    assert (own.status_code, hold_id in own.json()["detail"]) == (409, False)
    assert not api.audit("user.erased")


def test_a_hold_on_a_person_holds_each_conversation_of_theirs(api: Api) -> None:
    person = api.person()
    first, second = api.write_history(person, ["Is it gout?", "Is it flu?"])
    (foreign,) = api.write_history(api.person(), ["Is it a cold?"])
    held(api.log_in(Role.ADMIN), f"user:{person.id}")
    assert flags(api) == {first: True, second: True, foreign: False}
    assert api.client(person).post(f"/v1/conversations/{first}/erase").status_code == 409


def test_what_is_held_twice_is_free_once_both_are_lifted(api: Api) -> None:
    person, admin = api.person(), api.log_in(Role.ADMIN)
    (conversation,) = api.write_history(person, ["Is it gout?"])
    holds = [held(admin, f"user:{person.id}"), held(admin, f"conversation:{conversation}", "another")]
    states = []
    for hold_id in holds:
        assert admin.post(f"/v1/holds/{hold_id}/lift").status_code == 200
        states.append(flags(api)[conversation])
    assert states == [True, False]
    assert admin.post(f"/v1/holds/{holds[0]}/lift").status_code == 409
    assert api.client(person).post(f"/v1/conversations/{conversation}/erase").status_code == 200


def test_holds_are_listed_and_placing_lifting_and_reading_them_is_logged(api: Api) -> None:
    person, auditor = api.person(), api.person(Role.AUDITOR)
    client = api.client(auditor)
    first = held(client, f"user:{person.id}")
    second = held(client, f"user:{person.id}", "another")
    client.post(f"/v1/holds/{first}/lift").raise_for_status()
    listed = client.get("/v1/holds").json()["items"]
    assert [(each["id"], each["lifted_by"]) for each in listed] == [(second, None), (first, auditor.name)]
    assert {(each["subject_name"], each["placed_by"]) for each in listed} == {(person.name, auditor.name)}
    page = client.get("/v1/holds", params={"limit": 1}).json()
    assert [each["id"] for each in page["items"]] == [second]
    further = client.get("/v1/holds", params={"limit": 1, "cursor": page["next_cursor"]}).json()
    assert [each["id"] for each in further["items"]] == [first]
    assert [each["id"] for each in client.get("/v1/holds?active=true").json()["items"]] == [second]
    actions = [event.action for event in api.audit() if event.action.startswith("hold.")]
    assert actions == ["hold.placed"] * 2 + ["hold.lifted"] + ["hold.read"] * 4
    details: dict[str, Any] = json.loads(api.audit("hold.placed")[0].canonical_bytes)["details"]
    assert details == {"subject": f"user:{person.id}", "reference": CASE}


def test_only_what_is_there_can_be_held_and_once_for_each_case(api: Api) -> None:
    admin, person = api.log_in(Role.ADMIN), api.person()
    (conversation,) = api.write_history(person, ["Is it gout?"])
    nobody = "01a20ced-32e0-731b-806d-a95e481a1022"
    assert [hold(admin, f"{kind}:{nobody}").status_code for kind in ("user", "conversation")] == [404, 404]
    assert hold(admin, f"user:{person.id}", "a case with a name in it").status_code == 422
    assert hold(admin, f"dataset:{nobody}").status_code == 422
    assert [hold(admin, f"user:{person.id}").status_code for _ in range(2)] == [201, 409]
    other = api.person()
    (gone,) = api.write_history(other, ["Is it flu?"])
    api.client(other).post(f"/v1/conversations/{gone}/erase").raise_for_status()
    assert hold(admin, f"conversation:{gone}").status_code == 409
    assert hold(admin, f"conversation:{conversation}").status_code == 201


def test_holds_are_listed_beside_the_checkpoints_at_once_or_later(make_api: MakeApi, tmp_path: Path) -> None:
    api = make_api(reconcile_s=600)
    api.wait_for_maintenance()
    place, admin = Storage.of_checkpoints(api.settings), api.log_in(Role.ADMIN)
    subjects = [f"conversation:{each}" for each in api.write_history(api.person(), ["Gout?", "Flu?"])]
    first = held(admin, subjects[0])
    assert [(hold.id, hold.subject, hold.lifted) for hold in read_holds(place)] == [
        (first, subjects[0], False)
    ]
    (tmp_path / "checkpoints/holds").rename(tmp_path / "away")
    in_the_way = tmp_path / "checkpoints/holds"
    in_the_way.write_text("a file where the folder should be")
    second = held(admin, subjects[1])
    admin.post(f"/v1/holds/{first}/lift").raise_for_status()
    in_the_way.unlink()
    Retention(api.gateway).round(datetime.now(UTC))
    assert [(hold.id, hold.lifted) for hold in read_holds(place)] == [(first, True), (second, False)]


def ratings(api: Api) -> list[Any]:
    with api.gateway.database.read() as connection:
        return list(connection.execute(select(feedback)).all())


@pytest.mark.parametrize("kind", ["user", "conversation"])
def test_what_a_person_noted_on_a_held_answer_is_neither_replaced_nor_taken_back(api: Api, kind: str) -> None:
    person = api.person()
    client = api.client(person)
    conversation = ask_async(client)["conversation_id"]
    api.answer("Gout is likely.")
    answer = client.get(f"/v1/conversations/{conversation}").json()["messages"][-1]["id"]
    path = f"/v1/messages/{answer}/feedback"
    subject = f"user:{person.id}" if kind == "user" else f"conversation:{conversation}"
    hold_id = held(api.log_in(Role.ADMIN), subject)
    rated = client.put(path, json={"rating": "down", "comment": "It scared me."})
    assert rated.status_code == 204  # nothing is lost by a first one
    before = ratings(api)
    refused = [client.put(path, json={"rating": "up"}), client.delete(path)]
    assert [each.status_code for each in refused] == [409, 409]
    for each in refused:
        assert "Ask your admin" in each.json()["detail"]
        assert hold_id not in each.text
    assert ratings(api) == before
    denied = [(event.object, event.reason) for event in api.audit("access.denied")]
    assert denied == [(f"message:{answer}", "legal hold")] * 2


@pytest.mark.parametrize("kind", ["user", "conversation"])
def test_the_title_of_a_held_conversation_stays(api: Api, kind: str) -> None:
    person = api.person()
    (conversation,) = api.write_history(person, ["Is it gout?"])
    client, path = api.client(person), f"/v1/conversations/{conversation}"
    hold_id = held(api.log_in(Role.ADMIN), f"{kind}:{person.id if kind == 'user' else conversation}")
    refused = client.patch(path, json={"title": "Nothing"})
    assert (refused.status_code, hold_id in refused.text) == (409, False)
    assert "Ask your admin" in refused.json()["detail"]
    assert client.get(path).json()["title"] == "Is it gout?"
    (denied,) = api.audit("access.denied")
    assert (denied.object, denied.reason) == (f"conversation:{conversation}", "legal hold")


@on_both
def test_a_dataset_with_rows_of_a_held_conversation_is_erased_once_the_hold_is_lifted(api: Api) -> None:
    school, person = School(api), api.person()
    (conversation,) = api.write_history(person, ["Is it gout?"])
    dataset = uploaded(school.client)
    check(api)
    with api.gateway.database.write() as connection:
        row = {"dataset_id": dataset, "conversation_id": conversation}
        connection.execute(dataset_conversations.insert().values(**row))
    hold_id = held(school.client, f"user:{person.id}")
    refused = school.client.post(f"/v1/datasets/{dataset}/erase")
    assert (refused.status_code, hold_id in refused.json()["detail"]) == (409, True)
    assert not api.count(data_keys, data_keys.c.destroyed_at.is_not(None))
    (denied,) = api.audit("access.denied")
    assert (denied.object, denied.reason) == (f"dataset:{dataset}", "legal hold")
    school.client.post(f"/v1/holds/{hold_id}/lift").raise_for_status()
    assert school.client.post(f"/v1/datasets/{dataset}/erase").status_code == 200
