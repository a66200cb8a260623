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
from shared.jobs.lifecycle import Kind
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


def test_an_erased_answer_is_left_out_and_its_text_is_gone(
    api: Api, admin: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered(api, api.log_in())
    version = add_version(admin, ignore="[dosing]")
    before = replayed(api, admin, version, monkeypatch)
    with api.gateway.database.write() as connection:
        connection.execute(update(data_keys).values(wrapped_key=None))
    (item,) = api.log_in(Role.AUDITOR).get(f"/v1/guard/replays/{before['id']}/texts").json()["items"]
    assert item["text"] is None
    after = replayed(api, admin, version, monkeypatch)["counts"]
    assert (after["answers"], after["erased"], after["sentences"]) == (0, 1, 0)


def test_a_replay_leaves_no_text_behind_in_files(
    api: Api, admin: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered(api, api.log_in())
    replayed(api, admin, add_version(admin, ignore="[dosing]"), monkeypatch)
    left = [path for path in api.settings.state_dir.rglob("*") if path.is_file()]
    assert not any(b"upper limit" in path.read_bytes() for path in left)
