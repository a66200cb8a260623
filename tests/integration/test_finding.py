"""Auditors find conversations by words and by what is known of them; the index, saved views and exports."""

import csv
import io
import json
import threading
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from fhir.resources.R4B.auditevent import AuditEvent
from sqlalchemy import select, update

import shared.finding
from services.api import exporting
from shared.auth.roles import Role
from shared.db.tables import conversations, data_keys, messages, sessions
from shared.db.tables_privacy import search_pending, search_terms
from shared.db.tables_review import review_items, reviews, saved_views
from shared.guard.verdict import Action, Category, Severity, Side, Verdict
from shared.ids import new_id
from shared.privacy.search_index import forget, index_waiting
from tests.conftest import MakeApi
from tests.support import Api, ask_async, wait_until

PAST = datetime(2026, 1, 1, tzinfo=UTC)
#: Where the statements are the same on both, or none differs.
on_sqlite = pytest.mark.parametrize("dialect", ["sqlite"])
DOSING = Verdict(
    side=Side.ANSWER,
    action=Action.REPLACE,
    category=Category.DOSING,
    severity=Severity.HIGH,
    source="dosing.x",
)


@pytest.fixture
def api(make_api: MakeApi) -> Api:
    """Its maintenance did its first round and rests, so that messages wait until a test indexes them."""
    api = make_api(reconcile_s=600)
    api.wait_for_maintenance()
    return api


def index(api: Api, **bounds: int) -> int:
    gateway = api.gateway
    return index_waiting(gateway.database, gateway.envelope, gateway.clock, **bounds)


def search(auditor: httpx.Client, words: str | None = None, **filters: Any) -> dict[str, Any]:
    body = {**filters, **({"words": words} if words else {})}
    response = auditor.post("/v1/audit/conversations/search", json=body)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def ids(page: dict[str, Any]) -> list[str]:
    return [item["id"] for item in page["items"]]


def details(event: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(event.canonical_bytes)["details"]
    return found


# -- words


def test_conversations_are_found_by_words_of_questions_and_answers_newest_first(api: Api) -> None:
    person, auditor = api.person(), api.log_in(Role.AUDITOR)
    first, second, third = api.write_history(
        person, ["Is WARFARIN safe with milk?", "Warfarin at night", "What is asthma?"]
    )
    ask_async(api.client(person), "Why?", conversation_id=third)
    api.answer("Ask about warfarin.")
    index(api)
    assert ids(search(auditor, "warfarin")) == [third, second, first]
    assert ids(search(auditor, "milk Warfarin!")) == [first]
    assert ids(search(auditor, "why warfarin asthma")) == [third], "words of several messages"
    assert ids(search(auditor, "warfari")) == [], "whole words only"
    assert ids(search(auditor, "warfarin nonsense")) == []
    assert ids(search(auditor, "milk night")) == [], "each in another conversation"


def test_a_phrase_stands_within_one_message(api: Api) -> None:
    person, auditor = api.person(), api.log_in(Role.AUDITOR)
    stands, apart = api.write_history(person, ["I left it off tonight", "It left. Off I go"])
    ask_async(api.client(person), "Why left it", conversation_id=apart)
    api.answer("Off.")
    index(api)
    assert set(ids(search(auditor, "left it off"))) == {stands, apart}
    assert ids(search(auditor, '"left it off"')) == [stands]
    assert ids(search(auditor, '"left it off" tonight')) == [stands]


def test_a_search_comes_in_pages_that_miss_and_repeat_nothing(api: Api) -> None:
    person, auditor = api.person(), api.log_in(Role.AUDITOR)
    written = api.write_history(person, [f"Warfarin on day {number}" for number in range(5)])
    index(api)
    found: list[str] = []
    cursor = None
    while True:
        page = search(auditor, "warfarin", limit=2, **({"cursor": cursor} if cursor else {}))
        found += ids(page)
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert found == written[::-1]


@on_sqlite
def test_a_search_for_a_phrase_says_where_it_stopped(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared.finding, "PHRASE_LOOKS", 2)
    person, auditor = api.person(), api.log_in(Role.AUDITOR)
    oldest, *_ = api.write_history(person, ["left it off", "off left it", "it left off", "off it left"])
    index(api)
    page = search(auditor, '"left it off"')
    assert (page["items"], page["stopped"]) == ([], True)
    further = search(auditor, '"left it off"', cursor=page["next_cursor"])
    assert (ids(further), further["stopped"], further["next_cursor"]) == ([oldest], False, None)


@on_sqlite
def test_words_are_taken_in_a_body_only(api: Api) -> None:
    auditor = api.log_in(Role.AUDITOR)
    for name in ("words", "q"):
        assert auditor.get("/v1/audit/conversations", params={name: "warfarin"}).status_code == 422
    assert auditor.post("/v1/audit/conversations/search", json={"words": "?!"}).status_code == 422


@on_sqlite
def test_neither_the_index_nor_the_log_holds_a_word(api: Api) -> None:
    person, auditor = api.person(), api.log_in(Role.AUDITOR)
    api.write_history(person, ["Quetiapine and Hedwig"])
    index(api)
    assert len(search(auditor, "hedwig", person=person.name)["items"]) == 1
    with api.gateway.database.read() as connection:
        terms = connection.execute(select(search_terms.c.term)).scalars().all()
    assert {len(term) for term in terms} == {12}
    (event,) = api.audit("conversations.searched")
    written = event.canonical_bytes.decode().lower()
    assert "hedwig" not in written
    assert person.name not in written
    fingerprint = api.gateway.envelope.fingerprint
    assert details(event)["words_hmac"] == fingerprint("hedwig")
    assert details(event)["person_hmac"] == fingerprint(person.name)


@on_sqlite
def test_how_many_messages_cannot_be_found_yet_is_said_and_measured(api: Api) -> None:
    person, auditor = api.person(), api.log_in(Role.AUDITOR)
    api.write_history(person, ["Warfarin", "Asthma"])
    assert search(auditor, "warfarin")["not_searchable_yet"] == 2
    assert "medichat_search_pending 2.0" in api.client().get("/metrics").text
    index(api)
    assert search(auditor, "warfarin")["not_searchable_yet"] == 0


# -- the index


@on_sqlite
def test_the_maintenance_makes_messages_searchable(make_api: MakeApi) -> None:
    api = make_api()
    api.write_history(api.person(), ["Warfarin"])
    wait_until(lambda: api.count(search_terms), 20, "for the index")


@on_sqlite
def test_a_round_of_indexing_is_bounded_and_the_oldest_go_first(api: Api) -> None:
    api.write_history(api.person(), [f"Word{number}" for number in range(5)])
    assert index(api, batch=2, batches=2) == 4
    assert ids(search(api.log_in(Role.AUDITOR), "word3"))
    assert not ids(search(api.log_in(Role.AUDITOR), "word4"))
    assert index(api) == 1
    assert index(api) == 0


def test_two_indexers_at_once_share_the_work_and_one_key(api: Api) -> None:
    api.write_history(api.person(), [f"warfarin word{number}" for number in range(30)])
    done: list[int] = []
    barrier = threading.Barrier(4)

    def work() -> None:
        barrier.wait()
        done.append(index(api, batch=10, batches=10))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(done) == 30
    assert api.count(data_keys, data_keys.c.scope == "search") == 1
    assert api.count(search_pending) == 0
    assert api.count(search_terms) == 60
    assert len(search(api.log_in(Role.AUDITOR), "warfarin", limit=100)["items"]) == 30


@on_sqlite
@pytest.mark.parametrize("harm", ["key destroyed", "text broken"])
def test_what_was_erased_or_cannot_be_read_leaves_the_queue_without_words(api: Api, harm: str) -> None:
    lost, kept = api.write_history(api.person(), ["Warfarin lost", "Warfarin kept"])
    if harm == "key destroyed":
        api.set(data_keys, data_keys.c.owner_id == lost, wrapped_key=None, destroyed_at=PAST)
    else:
        api.set(messages, messages.c.conversation_id == lost, ciphertext=b"broken")
    assert index(api) == 2
    assert ids(search(api.log_in(Role.AUDITOR), "warfarin")) == [kept]


@on_sqlite
def test_what_is_erased_while_it_is_indexed_gets_no_words(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    (lost,) = api.write_history(api.person(), ["Warfarin lost"])
    hash_terms = shared.privacy.search_index.terms_of

    def erase_meanwhile(key: bytes, words: Any) -> list[bytes]:
        api.set(data_keys, data_keys.c.owner_id == lost, wrapped_key=None, destroyed_at=PAST)
        return hash_terms(key, words)

    monkeypatch.setattr(shared.privacy.search_index, "terms_of", erase_meanwhile)
    assert index(api) == 1
    assert api.count(search_terms) == 0


@pytest.mark.parametrize("dialect", ["postgresql"])
def test_a_message_that_is_being_erased_is_left_for_later_and_then_gets_no_words(api: Api) -> None:
    (lost,) = api.write_history(api.person(), ["Warfarin lost"])
    with api.gateway.database.write() as connection:
        theirs = update(data_keys).where(data_keys.c.owner_id == lost)
        connection.execute(theirs.values(wrapped_key=None, destroyed_at=PAST))
        assert index(api) == 0
        assert api.count(search_pending) == 1
    assert index(api) == 1
    assert api.count(search_terms) == 0


@pytest.mark.parametrize("dialect", ["postgresql"])
def test_indexing_waits_for_no_erasure_that_would_wait_for_it(api: Api) -> None:
    """An erasure locks the conversation first and wants its key afterwards."""
    api.write_history(api.person(), ["My warfarin"])
    gateway, done = api.gateway, []
    indexing = threading.Thread(target=lambda: done.append(index(api)))
    with gateway.database.write() as connection:
        connection.execute(select(conversations.c.id).with_for_update())
        indexing.start()
        indexing.join(5)
        held_up = indexing.is_alive()
    indexing.join()
    assert (held_up, done) == (False, [0])
    assert index(api) == 1


def test_a_conversation_can_be_taken_out_of_the_index(api: Api) -> None:
    person = api.person()
    lost, kept = api.write_history(person, ["Warfarin lost", "Warfarin kept"])
    index(api)
    ask_async(api.client(person), "Warfarin again", conversation_id=lost)
    with api.gateway.database.write() as connection:
        forget(connection, [lost])
    assert (api.count(search_pending), index(api)) == (0, 0)
    assert ids(search(api.log_in(Role.AUDITOR), "warfarin")) == [kept]


# -- what is known of conversations


def test_conversations_are_found_by_what_is_known_of_them(api: Api) -> None:
    person, other, auditor = api.person(), api.person(), api.log_in(Role.AUDITOR)
    client = api.client(person)
    asked = ask_async(client, "How much?")
    job = api.claim()
    api.release(job, "A safe sentence.", verdict=DOSING, suppressed="Take ten.")
    api.finish(job, model_id="demo", adapter_sha256="a" * 64)
    flagged = asked["conversation_id"]
    (quiet,) = api.write_history(other, ["What is asthma?"])
    answer = client.get(f"/v1/conversations/{flagged}").json()["messages"][-1]["id"]
    client.put(f"/v1/messages/{answer}/feedback", json={"rating": "down"})
    now = datetime.now(UTC)
    with api.gateway.database.write() as connection:
        item, reviewer = new_id(), person.id
        connection.execute(
            review_items.insert().values(
                id=item,
                job_id=job.id,
                conversation_id=flagged,
                reason="x",
                priority=0,
                sampled=False,
                wanted=1,
                created_at=now,
            )
        )
        key = connection.execute(select(data_keys.c.key_id).limit(1)).scalar_one()
        connection.execute(
            reviews.insert().values(
                item_id=item, reviewer_id=reviewer, taken_at=now, key_id=key, changed_at=now, given_at=now
            )
        )
    for filters in (
        {"person": person.id},
        {"person": person.name.upper()},
        {"adapter": "a" * 64},
        {"model": "demo"},
        {"action": "replace"},
        {"category": "dosing"},
        {"flagged": True},
        {"thumbs_down": True},
        {"reviewed": True},
        {"category": "dosing", "action": "replace", "person": person.id},
    ):
        assert ids(search(auditor, **filters)) == [flagged], filters
        sent = auditor.get("/v1/audit/conversations", params=filters)
        assert [item["id"] for item in sent.json()["items"]] == [flagged], filters
    for filters in ({"flagged": False}, {"thumbs_down": False}, {"reviewed": False}, {"person": other.id}):
        assert ids(search(auditor, **filters)) == [quiet], filters
    assert ids(search(auditor)) == [quiet, flagged]
    assert ids(search(auditor, since="2090-01-01T00:00:00Z")) == []
    assert ids(search(auditor, until="2020-01-01T00:00:00Z")) == []
    (item,) = search(auditor, flagged=True)["items"]
    assert {name: item[name] for name in ("user_id", "user_name", "message_count", "action", "category")} == {
        "user_id": person.id,
        "user_name": person.name,
        "message_count": 2,
        "action": "replace",
        "category": "dosing",
    }
    assert (item["adapters"], item["models"]) == (["a" * 64], ["demo"])
    assert (item["thumbs_down"], item["reviewed"], item["severity"]) == (1, True, "high")


@on_sqlite
def test_a_search_is_logged_before_it_answers_with_its_harmless_filters(api: Api) -> None:
    person = api.person()
    auditor = api.person(Role.AUDITOR)
    client = api.client(auditor)
    client.get("/v1/audit/conversations", params={"person": person.id, "category": "dosing", "flagged": True})
    (event,) = api.audit("conversations.searched")
    assert event.actor == auditor.id
    told = {"person": person.id, "category": "dosing", "flagged": True, "limit": 20, "further": False}
    assert details(event) == told


@on_sqlite
def test_what_a_person_took_out_of_their_list_is_found_still(api: Api) -> None:
    person = api.person()
    (hidden,) = api.write_history(person, ["Warfarin"])
    api.client(person).delete(f"/v1/conversations/{hidden}").raise_for_status()
    (item,) = search(api.log_in(Role.AUDITOR))["items"]
    assert (item["id"], item["hidden"]) == (hidden, True)


# -- saved views


def test_a_view_is_kept_sealed_for_its_owner_alone_and_can_be_deleted(api: Api) -> None:
    owner, other = api.log_in(Role.AUDITOR), api.log_in(Role.AUDITOR)
    body = {"name": "Hedwig's doses", "filters": {"words": "warfarin", "flagged": True}}
    made = owner.post("/v1/audit/views", json=body)
    assert made.status_code == 201
    view = made.json()
    assert owner.get("/v1/audit/views").json()["items"] == [view]
    assert (view["name"], view["filters"]) == (body["name"], body["filters"])
    assert other.get("/v1/audit/views").json()["items"] == []
    path = f"/v1/audit/views/{view['id']}"
    assert other.delete(path).status_code == 404
    with api.gateway.database.read() as connection:
        (sealed,) = connection.execute(select(saved_views.c.view_ciphertext)).scalars()
    assert b"Hedwig" not in sealed
    assert b"warfarin" not in sealed
    assert owner.delete(path).status_code == 204
    assert owner.delete(path).status_code == 404
    assert owner.get("/v1/audit/views").json()["items"] == []
    objects = [(event.action, event.object) for event in api.audit() if event.action.startswith("view.")]
    assert objects == [("view.saved", f"view:{view['id']}"), ("view.removed", f"view:{view['id']}")]
    (denied,) = api.audit("access.denied")
    assert denied.object == f"view:{view['id']}"


@on_sqlite
def test_views_of_one_person_have_one_key_and_an_end(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.saved_views.MOST_VIEWS", 2)
    client = api.log_in(Role.AUDITOR)
    sent = [client.post("/v1/audit/views", json={"name": name, "filters": {}}) for name in ("b", "a", "c")]
    assert [each.status_code for each in sent] == [201, 201, 409]
    assert [view["name"] for view in client.get("/v1/audit/views").json()["items"]] == ["a", "b"]
    assert api.count(data_keys, data_keys.c.scope == "person") == 1


@on_sqlite
def test_a_view_whose_key_was_destroyed_is_left_out(api: Api) -> None:
    client = api.log_in(Role.AUDITOR)
    client.post("/v1/audit/views", json={"name": "a", "filters": {}})
    api.set(data_keys, data_keys.c.scope == "person", wrapped_key=None)
    assert client.get("/v1/audit/views").json()["items"] == []
    assert client.post("/v1/audit/views", json={"name": "b", "filters": {}}).status_code == 201
    assert len(client.get("/v1/audit/views").json()["items"]) == 1


# -- exports


def export(client: httpx.Client, **body: Any) -> httpx.Response:
    response = client.post("/v1/audit/export", json=body)
    assert response.status_code == 200, response.text
    return response


def test_an_export_is_logged_first_and_streams_every_event_in_parts(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "_PART", 3)
    person, auditor = api.person(), api.log_in(Role.AUDITOR)
    for _ in range(4):
        ask_async(api.client(person))
        api.answer("Done.")
    sent = export(auditor, what="events", format="jsonl", events={"actor": person.id})
    assert sent.headers["content-type"] == "application/x-ndjson"
    assert 'filename="medichat-events-' in sent.headers["content-disposition"]
    lines = [json.loads(line) for line in sent.text.splitlines()]
    expected = [event.id for event in api.audit() if event.actor == person.id]
    assert [line["id"] for line in lines] == expected[::-1]
    assert len(lines) > 3
    (event,) = api.audit("log.exported")
    told = details(event)
    assert (told["what"], told["format"], told["actor"]) == ("events", "jsonl", person.id)
    whole = export(auditor, what="events", format="jsonl").text
    assert '"action":"log.exported"' in whole.splitlines()[0]


@on_sqlite
def test_an_export_has_at_most_so_many_rows(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "MOST_ROWS", 2)
    auditor = api.log_in(Role.AUDITOR)
    for _ in range(3):
        search(auditor)
    assert len(export(auditor, what="events", format="jsonl").text.splitlines()) == 2


@on_sqlite
def test_a_list_of_conversations_is_exported_by_words_without_texts(api: Api) -> None:
    person, auditor = api.person(), api.log_in(Role.AUDITOR)
    found, _ = api.write_history(person, ["Warfarin and Hedwig", "Asthma"])
    index(api)
    sent = export(auditor, what="conversations", format="csv", conversations={"words": "warfarin"})
    (row,) = csv.DictReader(io.StringIO(sent.text))
    assert (row["id"], row["user_name"]) == (found, person.name)
    assert "hedwig" not in sent.text.lower()
    (event,) = api.audit("log.exported")
    assert "warfarin" not in event.canonical_bytes.decode().lower()


@on_sqlite
def test_a_spreadsheet_finds_no_formula_in_the_csv(api: Api) -> None:
    admin, auditor = api.person(Role.ADMIN), api.log_in(Role.AUDITOR)
    made = api.client(admin).post("/v1/users", json={"name": "-cmd", "role": "user"})
    made = (
        made
        if made.status_code == 201
        else api.client(admin).post("/v1/users", json={"name": "@cmd", "role": "user"})
    )
    assert made.status_code == 201, made.text
    form = {"username": made.json()["name"], "password": made.json()["password"]}
    api.client().post("/v1/auth/token", data=form).raise_for_status()
    sent = export(auditor, what="events", format="csv", events={"actor": made.json()["id"]})
    rows = list(csv.DictReader(io.StringIO(sent.text)))
    assert rows
    assert {row["actor_name"] for row in rows} == {"'" + made.json()["name"]}


@on_sqlite
def test_the_log_is_exported_as_fhir(api: Api) -> None:
    person, auditor = api.person(), api.log_in(Role.AUDITOR)
    ask_async(api.client(person), "Is Hedwig well?")
    job = api.claim()
    api.release(job, "Hedwig is well.")
    api.finish(job, model_id="demo", adapter_sha256="a" * 64)
    sent = export(auditor, what="events", format="fhir")
    assert sent.headers["content-type"] == "application/fhir+ndjson"
    assert "Hedwig" not in sent.text
    resources = [json.loads(line) for line in sent.text.splitlines()]
    for resource in resources:
        AuditEvent.model_validate(resource)
    (answer,) = [each for each in resources if each["subtype"][0]["code"] == "answer.given"]
    agents = [agent["who"]["identifier"]["value"] for agent in answer["agent"]]
    assert agents == [person.id, "system", "demo", "a" * 64]
    assert any("securityLabel" in entity for entity in answer["entity"])


@on_sqlite
def test_an_export_asks_for_the_password_again(api: Api) -> None:
    auditor = api.person(Role.AUDITOR)
    client = api.client(auditor)
    api.set(sessions, sessions.c.user_id == auditor.id, reauthenticated_at=PAST)
    refused = client.post("/v1/audit/export", json={"what": "events", "format": "csv"})
    assert (refused.status_code, refused.json()["type"]) == (403, "urn:medichat:problem:password-required")
    assert not api.audit("log.exported")


@on_sqlite
@pytest.mark.parametrize(
    "body",
    [
        {"what": "conversations", "format": "fhir"},
        {"what": "events", "format": "csv", "conversations": {}},
        {"what": "conversations", "format": "csv", "events": {}},
        {"what": "conversations", "format": "csv", "conversations": {"words": "?!"}},
    ],
)
def test_an_export_that_makes_no_sense_is_refused(api: Api, body: dict[str, Any]) -> None:
    assert api.log_in(Role.AUDITOR).post("/v1/audit/export", json=body).status_code == 422
    assert not api.audit("log.exported")
