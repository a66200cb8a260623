"""Answers judged again under another version: the program, its worker, who may see what of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest
from sqlalchemy import update

from services.worker_train.worker import Worker
from shared.auth.roles import Role
from shared.db.tables import data_keys
from shared.guard.layers import JUDGE_LAYER
from shared.guard.verdict import Side
from shared.jobs.lifecycle import EventKind, Kind
from shared.policies.replays import ReplayStore
from shared.privacy.own_data import OwnData
from tests.policies import DOSE, add_version
from tests.support import Api, ask_async
from tests.training import environment_of

SAFE = "Asthma narrows the airways. "


@pytest.fixture
def admin(api: Api) -> httpx.Client:
    return api.log_in(Role.ADMIN)


@contextmanager
def worker(api: Api, monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    """A training worker with its real programs, which works when it is told to."""
    for name, value in environment_of(api.settings).items():
        monkeypatch.setenv(name, value)
    made = Worker(api.settings)
    made.keeper.start()
    try:
        yield made
    finally:
        made.close()


def replayed(
    api: Api, admin: httpx.Client, version: str, monkeypatch: pytest.MonkeyPatch, answers: int = 10
) -> dict[str, Any]:
    """A replay under the version, carried out."""
    response = admin.post(f"/v1/guard/policies/{version}/replays", json={"answers": answers})
    assert response.status_code == 202, response.text
    with worker(api, monkeypatch) as made:
        assert made.work_next(Kind.REPLAY)
    found: dict[str, Any] = admin.get(f"/v1/guard/replays/{response.json()['id']}").json()
    return found


def answered(api: Api, client: httpx.Client, text: str = SAFE + DOSE) -> dict[str, Any]:
    """An answer as the gate lets it out; of the usual one the second sentence is replaced."""
    guard = api.gateway.guard
    asked = ask_async(client)
    job = api.claim()
    gate = guard.gate(job.audience)
    for seq, release in enumerate([*gate.feed(text), *gate.close()], start=1):
        api.release(job, release.text, seq, verdict=release.verdict, suppressed=release.suppressed or "")
    api.finish(job)
    return asked


def test_a_replay_counts_by_category_what_is_judged_otherwise(
    api: Api, admin: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = api.log_in()
    answered(api, client)
    client.post("/predict", json={"query": "I want to end my life tonight."})
    found = replayed(api, admin, add_version(admin, ignore="[dosing]"), monkeypatch)
    assert (found["state"], found["error"]) == ("succeeded", None)
    assert [event.actor for event in api.audit("replay.succeeded")] == ["system"]
    assert found["counts"] == {
        "answers": 2,
        "sentences": 2,
        "questions": 2,
        "erased": 0,
        "by_model": 0,
        "changed": {"dosing": 1},
        "newly_stopped": {},
        "newly_released": {"dosing": 1},
    }
    assert admin.get("/v1/guard/replays").json()["items"][0] == found


def test_under_the_policy_of_then_nothing_is_judged_otherwise(
    api: Api, admin: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = api.log_in()
    answered(api, client)
    answered(api, client, SAFE.strip())  # the gate adds a referral, which no model wrote
    packaged = admin.get("/v1/guard").json()["packaged"]
    counts = replayed(api, admin, packaged, monkeypatch)["counts"]
    assert (counts["changed"], counts["sentences"]) == ({}, 3)


def test_what_the_model_judged_then_is_left_out_and_counted_apart(
    api: Api, admin: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = api.gateway.guard.judge_answer(DOSE)
    ask_async(api.log_in())
    job = api.claim()
    api.release(job, SAFE)
    stopped = replace(found, layer=JUDGE_LAYER, source="judge-given")
    api.release(job, "A safe sentence.", 2, verdict=stopped, suppressed="Rest well.")
    api.finish(job)
    packaged = admin.get("/v1/guard").json()["packaged"]
    counts = replayed(api, admin, packaged, monkeypatch)["counts"]
    assert (counts["changed"], counts["newly_released"]) == ({}, {})
    assert (counts["sentences"], counts["by_model"]) == (1, 1)


def test_what_would_newly_be_stopped_is_counted_too(
    api: Api, admin: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask_async(api.log_in())
    job = api.claim()
    api.release(job, DOSE)
    api.finish(job)
    packaged = admin.get("/v1/guard").json()["packaged"]
    counts = replayed(api, admin, packaged, monkeypatch)["counts"]
    assert (counts["newly_stopped"], counts["newly_released"]) == ({"dosing": 1}, {})


def test_only_the_newest_answers_are_judged(
    api: Api, admin: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = api.log_in()
    for _ in range(3):
        answered(api, client)
    version = add_version(admin, ignore="[dosing]")
    assert replayed(api, admin, version, monkeypatch, answers=2)["counts"]["answers"] == 2


def test_the_texts_are_for_auditors_and_each_look_is_logged(
    api: Api, admin: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = answered(api, api.log_in())
    found = replayed(api, admin, add_version(admin, ignore="[dosing]"), monkeypatch)
    assert admin.get(f"/v1/guard/replays/{found['id']}/texts").status_code == 403
    seen = api.log_in(Role.AUDITOR).get(f"/v1/guard/replays/{found['id']}/texts").json()
    assert seen == {
        "items": [
            {
                "job_id": job["id"],
                "conversation_id": job["conversation_id"],
                "side": "answer",
                "seq": 2,
                "before": ["replace", "dosing"],
                "after": ["allow", None],
                "text": DOSE.strip(),
            }
        ],
        "total": 1,
    }
    (event,) = api.audit("replay.texts_read")
    assert event.object == f"replay:{found['id']}"
    assert not any(b"upper limit" in each.canonical_bytes for each in api.audit())


def found_by_hand(api: Api, admin: httpx.Client, *changed: tuple[str, Side, int]) -> str:
    """The path to the texts of a replay that found these judged otherwise: job, side and number of each."""
    version = admin.get("/v1/guard").json()["packaged"]
    made = admin.post(f"/v1/guard/policies/{version}/replays", json={"answers": 5}).json()
    judged = {"before": ["allow", None], "after": ["replace", "dosing"]}
    gateway = api.gateway
    job = api.claim(kind=Kind.REPLAY)
    with gateway.database.write() as connection:
        changes = [{"job": of, "side": side, "seq": seq, **judged} for of, side, seq in changed]
        ReplayStore(gateway.jobs).record_end(connection, job.claim, counts={}, changes=changes)
        gateway.jobs.finish(connection, job.claim, EventKind.SUCCEEDED)
    return f"/v1/guard/replays/{made['id']}/texts"


def test_names_in_the_texts_are_masked_also_those_that_only_the_question_gives_away(
    api: Api, admin: httpx.Client
) -> None:
    asked = ask_async(api.log_in(), "I am Maria Gonzalez. What is asthma?")
    job = api.claim()
    api.release(
        job, "A safe one.", verdict=api.gateway.guard.judge_answer(DOSE), suppressed="Gonzalez may rest."
    )
    api.finish(job)
    path = found_by_hand(api, admin, (asked["id"], Side.QUESTION, 0), (asked["id"], Side.ANSWER, 1))
    items = api.log_in(Role.AUDITOR).get(path).json()["items"]
    assert [item["text"] for item in items] == ["I am [NAME]. What is asthma?", "[NAME] may rest."]


def test_a_look_at_the_texts_is_logged_for_each_conversation_shown_and_its_owner_is_told(
    api: Api, admin: httpx.Client
) -> None:
    person, auditor = api.person(), api.person(Role.AUDITOR)
    asked = []
    for _ in range(2):
        asked.append(ask_async(api.client(person)))
        api.answer("It narrows the airways.", "It lasts.")
    first, second = asked
    path = found_by_hand(
        api,
        admin,
        (first["id"], Side.ANSWER, 1),
        (first["id"], Side.ANSWER, 2),
        (second["id"], Side.ANSWER, 1),
    )
    client = api.client(auditor)
    pages = [client.get(path, params={"offset": offset, "limit": 2}).json()["items"] for offset in (0, 2)]
    assert [len(page) for page in pages] == [2, 1]
    looks = [(event.actor, event.object) for event in api.audit("conversation.texts_read")]
    assert looks == [(auditor.id, f"conversation:{each['conversation_id']}") for each in asked]
    own = dict(OwnData(api.gateway.database, api.gateway.envelope, person.id).sections())
    told = [each["object"] for each in own["events_about_you"] if each["action"] == "conversation.texts_read"]
    assert told == [object for _, object in looks]


def test_an_erased_answer_is_left_out_and_its_text_is_gone(
    api: Api, admin: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered(api, api.log_in())
    version = add_version(admin, ignore="[dosing]")
    before = replayed(api, admin, version, monkeypatch)
    with api.gateway.database.write() as connection:
        connection.execute(update(data_keys).values(wrapped_key=None))
    (item,) = api.log_in(Role.AUDITOR).get(f"/v1/guard/replays/{before['id']}/texts").json()["items"]
    assert (item["text"], item["conversation_id"]) == (None, None)
    assert not api.audit("conversation.texts_read"), "nothing of it was shown"
    after = replayed(api, admin, version, monkeypatch)["counts"]
    assert (after["answers"], after["erased"], after["sentences"]) == (0, 1, 0)


def test_a_replay_leaves_no_text_behind_in_files(
    api: Api, admin: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered(api, api.log_in())
    replayed(api, admin, add_version(admin, ignore="[dosing]"), monkeypatch)
    left = [path for path in api.settings.state_dir.rglob("*") if path.is_file()]
    assert not any(b"upper limit" in path.read_bytes() for path in left)
