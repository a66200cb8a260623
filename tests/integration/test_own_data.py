"""Right of access: a person gets all that is kept about them, and nothing of anybody else."""

import base64
import io
import json
import re
import tracemalloc
import zipfile
from datetime import UTC, datetime
from html import unescape
from typing import Any

import httpx
import pytest
from sqlalchemy import insert, select

from services.api.export import to_html, to_json, zipped
from shared.audit import record
from shared.auth.roles import Role
from shared.db.tables import data_keys, jobs, sessions
from shared.db.tables_privacy import dataset_conversations
from shared.db.tables_review import saved_views
from shared.db.tables_training import adapters
from shared.guard.verdict import Action, Category, Severity, Side, Verdict
from shared.ids import new_id
from shared.privacy import own_data
from shared.privacy.keys import create_data_key
from shared.privacy.own_data import OwnData
from tests.drawn import colour_of, image
from tests.registry import add_adapter, sha_of
from tests.support import Api, Person, ask_async

HELD_BACK = Verdict(
    side=Side.ANSWER,
    action=Action.REPLACE,
    severity=Severity.HIGH,
    category=Category.DOSING,
    layer="rules",
    source="a rule",
)


@pytest.fixture
def dialect() -> str:
    return "sqlite"


def export(client: httpx.Client) -> tuple[dict[str, Any], str]:
    """`data.json`, parsed, and `data.html`."""
    answer = client.get("/v1/me/export")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/zip"
    assert "attachment" in answer.headers["content-disposition"]
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        return json.loads(archive.read("data.json")), archive.read("data.html").decode()


def judged_talk(api: Api, client: httpx.Client) -> str:
    """A conversation in which the guard replaced a sentence."""
    asked = ask_async(client, "May I take <b>twenty</b>?")
    job = api.claim()
    api.release(job, "Ask a pharmacist.", verdict=HELD_BACK, suppressed="Take all of them.")
    api.finish(job)
    return str(asked["conversation_id"])


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])
def test_a_person_gets_what_they_wrote_and_read_and_what_was_noted_about_it(api: Api) -> None:
    person = api.person()
    client = api.client(person)
    conversation = judged_talk(api, client)
    answer_id = client.get(f"/v1/conversations/{conversation}").json()["messages"][1]["id"]
    rated = {"rating": "down", "comment": "Too short."}
    client.put(f"/v1/messages/{answer_id}/feedback", json=rated).raise_for_status()
    client.post("/v1/api-keys", json={"name": "tablet", "scopes": ["ask"]}).raise_for_status()
    data, _ = export(client)
    assert data["account"]["name"] == person.name
    (talk,) = data["conversations"]
    question, answer = talk["messages"]
    assert (talk["title"], question["text"]) == ("May I take <b>twenty</b>?",) * 2
    assert answer["text"] == "Ask a pharmacist."
    assert [(each["action"], each["category"]) for each in answer["verdicts"]] == [("replace", "dosing")]
    assert (answer["feedback"]["rating"], answer["feedback"]["comment"]) == ("down", "Too short.")
    assert [job["state"] for job in data["jobs"]] == ["succeeded"]
    assert [key["name"] for key in data["api_keys"]] == ["tablet"]
    assert [log_in["kind"] for log_in in data["log_ins"]] == ["tokens"]
    done = [event["action"] for event in data["events_by_you"]]
    assert done == ["session.started", "question.asked", "feedback.given", "api_key.created", "data.exported"]
    noted = {event["action"] for event in data["events_about_you"]}
    assert "answer.given" in noted
    assert not noted & set(done)


def test_the_page_is_whole_by_itself_and_what_people_wrote_is_text_on_it(api: Api) -> None:
    client = api.log_in()
    judged_talk(api, client)
    _, page = export(client)
    assert "May I take <b>twenty</b>?" in unescape(page)
    assert "<b>twenty</b>" not in page
    assert not re.search(r"<script|<img|<link|<iframe|src=|href=|https?://|url\(", page)


def test_pictures_are_in_both_files(api: Api) -> None:
    client = api.log_in()
    ask_async(client, images=[image("red")])
    data, page = export(client)
    (kept,) = data["conversations"][0]["messages"][0]["images"]
    assert colour_of(base64.b64decode(kept["png"])) == (255, 0, 0)
    assert f'src="data:image/png;base64,{kept["png"]}"' in page
    assert "img-src data:" in page


def test_no_secret_and_nothing_that_the_guard_held_back_is_exported(api: Api) -> None:
    client = api.log_in()
    judged_talk(api, client)
    made = client.post("/v1/api-keys", json={"name": "tablet", "scopes": ["ask"]}).json()
    data, page = export(client)
    text = json.dumps(data) + page
    assert "Take all of them" not in text
    assert made["key"] not in text
    names = {name for name in re.findall(r'"(\w+)":', text) if re.search("hash|hmac|wrapped|token_", name)}
    assert not names


def test_of_others_a_person_learns_only_their_role(api: Api) -> None:
    person, auditor = api.person(), api.person(Role.AUDITOR)
    client, stranger = api.client(person), api.log_in()
    own, foreign = ask_async(client)["conversation_id"], ask_async(stranger, "A strange question")
    with api.gateway.database.write() as connection:
        for object in (f"conversation:{own}", f"conversation:{foreign['conversation_id']}"):
            record.append(
                connection,
                now=datetime.now(UTC),
                actor=record.Actor(auditor.id),
                action="conversation.read",
                object=object,
            )
    data, page = export(client)
    (read,) = [each for each in data["events_about_you"] if each["action"] == "conversation.read"]
    assert (read["by"], read["object"]) == ("auditor", f"conversation:{own}")
    for strange in (auditor.id, auditor.name, "strange question", foreign["conversation_id"]):
        assert strange not in json.dumps(data) + page


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])
def test_a_person_gets_what_others_made_of_their_conversations(api: Api) -> None:
    client, stranger = api.log_in(), api.log_in()
    auditor, admin = api.person(Role.AUDITOR), api.person(Role.ADMIN)
    conversation, foreign = judged_talk(api, client), judged_talk(api, stranger)
    for each in (conversation, foreign):
        review(api, api.client(auditor), each)
        made_from(api, admin, each)
        asked = {"conversation_id": each, "reason": "She fainted on the ward.", "minutes": 5}
        api.client(admin).post("/v1/break-glass", json=asked).raise_for_status()
    data, page = export(client)
    (judged,) = data["reviews_of_your_answers"]
    assert (judged["conversation_id"], judged["verdict"], judged["category"]) == (
        conversation,
        "unsafe",
        "dosing",
    )
    assert judged["given_at"] is not None
    (made,) = data["data_made_from_your_conversations"]
    assert made["conversations"] == [conversation]
    assert [(each["name"], each["sha256"]) for each in made["adapters"]] == [
        (conversation, sha_of(conversation))
    ]
    (read,) = data["unmasked_readings_of_your_conversations"]
    assert (read["by"], read["kind"], read["reason"]) == ("admin", "break_glass", "She fainted on the ward.")
    on_item = [each["action"] for each in data["events_about_you"] if each["object"].startswith("review:")]
    assert "review.given" in on_item
    for strange in (auditor.name, auditor.id, admin.name, admin.id, foreign, "A zebrafish", "A pharmacist"):
        assert strange not in json.dumps(data) + page


def test_who_works_with_others_conversations_gets_what_they_wrote_until_it_is_erased(api: Api) -> None:
    client, auditor, admin = api.log_in(), api.person(Role.AUDITOR), api.person(Role.ADMIN)
    conversation = judged_talk(api, client)
    review(api, api.client(auditor), conversation)
    asked = {"conversation_id": conversation, "reason": "She fainted on the ward.", "minutes": 5}
    api.client(admin).post("/v1/break-glass", json=asked).raise_for_status()

    def written() -> tuple[str | None, ...]:
        ((given,), (read,)) = (
            export(api.client(auditor))[0]["reviews_by_you"],
            export(api.client(admin))[0]["unmasked_readings_by_you"],
        )
        return given["verdict"], given["corrected"], given["note"], read["reason"]

    assert written() == ("unsafe", "A pharmacist says.", "A zebrafish.", "She fainted on the ward.")
    client.post(f"/v1/conversations/{conversation}/erase").raise_for_status()
    assert written() == ("unsafe", None, None, None)


def test_what_an_auditor_did_to_a_message_is_told(api: Api) -> None:
    client, auditor = api.log_in(), api.person(Role.AUDITOR)
    conversation = judged_talk(api, client)
    message = client.get(f"/v1/conversations/{conversation}").json()["messages"][0]["id"]
    with api.gateway.database.write() as connection:
        actor, now = record.Actor(auditor.id), datetime.now(UTC)
        record.append(connection, now=now, actor=actor, action="message.read", object=f"message:{message}")
    told = [(each["object"], each["by"]) for each in export(client)[0]["events_about_you"]]
    assert (f"message:{message}", "auditor") in told


def test_what_is_left_out_is_said_in_both_files(api: Api) -> None:
    data, page = export(api.log_in())
    assert {"what_the_guard_kept_back", "what_others_wrote", "what_must_be_kept"} <= set(data["left_out"])
    for reason in data["left_out"].values():
        assert reason in unescape(page)


def review(api: Api, auditor: httpx.Client, conversation: str) -> None:
    """Judge the answer of this conversation."""
    with api.gateway.database.read() as connection:
        of_it = select(jobs.c.id).where(jobs.c.conversation_id == conversation)
        job = connection.execute(of_it).scalar_one()
    item = auditor.post("/v1/reviews", json={"job_id": job}).json()["id"]
    draft = {
        "verdict": "unsafe",
        "category": "dosing",
        "guard_right": True,
        "corrected": "A pharmacist says.",
        "note": "A zebrafish.",
    }
    for answer in (
        auditor.put(f"/v1/reviews/{item}", json=draft),
        auditor.post(f"/v1/reviews/{item}/give"),
    ):
        assert answer.status_code == 200, answer.text


def made_from(api: Api, admin: Person, conversation: str) -> None:
    """A dataset with rows of this conversation, and an adapter that is called after it."""
    sha256 = sha_of(conversation)
    add_adapter(api, admin, sha256=sha256, name=conversation)
    with api.gateway.database.write() as connection:
        dataset = connection.execute(
            select(adapters.c.dataset_id).where(adapters.c.sha256 == sha256)
        ).scalar_one()
        row = {"dataset_id": dataset, "conversation_id": conversation}
        connection.execute(insert(dataset_conversations).values(**row))


def test_hidden_and_unfinished_things_are_exported_and_erased_ones_are_named(api: Api) -> None:
    client = api.log_in()
    hidden, erased = (ask_async(client)["conversation_id"] for _ in range(2))
    api.release(api.claim(), "Rest")
    job = api.claim()
    client.delete(f"/v1/conversations/{hidden}")
    client.post(f"/v1/conversations/{erased}/erase").raise_for_status()
    data, _ = export(client)
    assert [talk.get("erased", False) for talk in data["conversations"]] == [False, True]
    (first, _second) = data["conversations"]
    assert first["hidden_at"] is not None
    assert [answer["text"] for answer in first["unfinished_answers"]] == ["Rest"]
    assert job.conversation_id == erased


def test_the_views_that_an_auditor_keeps_are_exported(api: Api) -> None:
    auditor, now = api.person(Role.AUDITOR), datetime.now(UTC)
    gateway, view_id = api.gateway, new_id()
    with gateway.database.write() as connection:
        key = create_data_key(connection, gateway.envelope, scope="person", owner_id=auditor.id, now=now)
        sealed = key.encrypt(json.dumps({"name": "Gout", "filters": {}}), place=f"view:{view_id}")
        row = {"id": view_id, "user_id": auditor.id, "view_ciphertext": sealed, "key_id": key.key_id}
        connection.execute(insert(saved_views).values(**row, created_at=now))
    data, page = export(api.client(auditor))
    assert data["saved_views"][0]["view"] == {"name": "Gout", "filters": {}}
    assert "Gout" in page


def test_the_export_is_logged_before_anything_is_shown_and_asks_for_the_password(api: Api) -> None:
    person = api.person()
    client = api.client(person)
    assert client.get("/v1/me/export").status_code == 200
    (event,) = api.audit("data.exported")
    assert (event.actor, event.object) == (person.id, f"user:{person.id}")
    past = datetime(2026, 1, 1, tzinfo=UTC)
    api.set(sessions, sessions.c.user_id == person.id, reauthenticated_at=past)
    assert client.get("/v1/me/export").json()["type"].endswith("password-required")
    assert len(api.audit("data.exported")) == 1


def test_lists_are_read_by_page_and_none_is_lost_between_two(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    person = api.person()
    api.write_history(person, [f"Question {number}" for number in range(7)])
    monkeypatch.setattr(own_data, "PAGE", 3)
    data, _ = export(api.client(person))
    assert [talk["title"] for talk in data["conversations"]] == [f"Question {number}" for number in range(7)]


def test_an_export_needs_no_more_memory_for_more_data(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_data, "PAGE", 5)
    few, many = api.person(), api.person()
    text = "Is it gout? " * 1500
    api.write_history(few, [text] * 15)
    api.write_history(many, [text] * 60)
    export_of(api, few)  # what is imported and compiled once
    peaks = [export_of(api, person) for person in (few, many)]
    assert peaks[1] < peaks[0] + 20 * len(text)  # of 45 further conversations


def export_of(api: Api, person: Person) -> int:
    """The most memory that an export held, in bytes."""
    own = OwnData(api.gateway.database, api.gateway.envelope, person.id)
    tracemalloc.start()
    size = sum(len(piece) for piece in zipped(own))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert size
    return peak


def test_both_files_hold_the_same_conversations(api: Api) -> None:
    person = api.person()
    api.write_history(person, ["First?", "Second?"])
    own = OwnData(api.gateway.database, api.gateway.envelope, person.id)
    data, page = json.loads("".join(to_json(own))), "".join(to_html(own))
    assert [talk["title"] for talk in data["conversations"]] == re.findall("<h3>(.*?)</h3>", page)


def test_what_was_erased_while_it_is_exported_is_left_out(api: Api) -> None:
    person = api.person()
    (conversation,) = api.write_history(person, ["Is it gout?"])
    own = OwnData(api.gateway.database, api.gateway.envelope, person.id)
    pieces = to_json(own)
    next(pieces)
    api.set(data_keys, data_keys.c.owner_id == conversation, wrapped_key=None)
    assert json.loads("{" + "".join(pieces))["conversations"][0]["erased"] is True
