"""Adapters over HTTP: promoted when they may be, rolled back, recalled, named in a question, compared."""

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from sqlalchemy import Connection, select, text
from sqlalchemy.exc import OperationalError

from services.worker_infer.adapters import ActiveAdapter
from shared.audit.record import Actor
from shared.auth.roles import Role
from shared.db.engine import open_database
from shared.db.tables import data_keys, jobs, workers
from shared.db.tables_training import adapters, comparisons, datasets, deployments
from shared.errors import AdapterRecalled
from shared.jobs.lifecycle import EventKind, Kind
from shared.jobs.store import Renewal
from shared.registration import Registration
from shared.training.adapters import AdapterStore, NewAdapter, active, find, hold_unrecalled
from shared.training.evaluations import EvaluationStore
from tests.conftest import MakeApi
from tests.registry import GOOD, add_adapter, add_evaluation, add_good_adapter, sha_of
from tests.support import Api, Person, ask_async, wait_until
from tests.training import add_dataset

A, B, C, D = (sha_of(name) for name in "abcd")
FAILED = {
    "figure": "perplexity",
    "limit": 12.0,
    "value": 15.5,
    "passed": False,
    "excess": 3.5,
    "message": "perplexity: the candidate's is 15.5, 3.5 above the limit of 12.",
}


@pytest.fixture
def admin(api: Api) -> Person:
    return api.person(Role.ADMIN)


@pytest.fixture
def client(api: Api, admin: Person) -> httpx.Client:
    return api.client(admin)


def promote(client: httpx.Client, sha256: str, **body: Any) -> httpx.Response:
    return client.post(f"/v1/adapters/{sha256}/promote", json=body)


def status(client: httpx.Client, sha256: str) -> str:
    return str(client.get(f"/v1/adapters/{sha256}").json()["status"])


def details_of(api: Api, action: str) -> dict[str, Any]:
    """Of the only event of this action."""
    (event,) = api.audit(action)
    details: dict[str, Any] = json.loads(event.canonical_bytes)["details"]
    return details


def answering(api: Api) -> str | None:
    with api.gateway.database.read() as connection:
        return active(connection, "demo")


def test_versions_count_by_name(api: Api, admin: Person, client: httpx.Client) -> None:
    for sha256, name in ((A, "doses"), (B, "doses"), (C, "rashes"), (A, "doses")):
        add_adapter(api, admin, sha256=sha256, name=name)
    found = {item["sha256"]: item["version"] for item in client.get("/v1/adapters").json()["items"]}
    assert found == {A: 1, B: 2, C: 1}


@pytest.mark.parametrize(("sha256", "version"), [(C, 3), (B, 2)])  # other weights, and the same
def test_two_runs_of_a_name_that_end_together_are_numbered_one_after_the_other(
    api: Api, admin: Person, sha256: str, version: int
) -> None:
    add_adapter(api, admin, sha256=A)
    store = AdapterStore(api.gateway.clock, api.gateway.envelope)
    with api.gateway.database.read() as connection:
        known = find(connection, A)
    named = {field.name: getattr(known, field.name) for field in fields(NewAdapter) if field.name != "card"}

    def add(connection: Connection, sha256: str) -> int:
        new = NewAdapter(**{**named, "sha256": sha256}, card="# A card")
        return store.add(connection, new, Actor(admin.id)).version

    def add_elsewhere() -> int:
        with closing(open_database(api.settings)) as database, database.write() as connection:
            return add(connection, sha256)

    with ThreadPoolExecutor() as pool:
        with api.gateway.database.write() as connection:
            assert add(connection, B) == 2
            second = pool.submit(add_elsewhere)
            if api.gateway.database.dialect == "postgresql":  # in SQLite one writes at a time
                waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
                wait_until(lambda: connection.execute(waiting).scalar(), what="for the second to wait")
        assert second.result(timeout=60) == version
    assert len(api.audit("adapter.added")) == version


def test_lists_come_in_pages(api: Api, admin: Person, client: httpx.Client) -> None:
    for sha256 in (A, B, C):
        add_good_adapter(api, admin, sha256)
        promote(client, sha256)
    for path in ("/v1/adapters", "/v1/deployments"):
        first = client.get(path, params={"limit": 2}).json()
        rest = client.get(path, params={"limit": 2, "cursor": first["next_cursor"]}).json()
        key = "sha256" if path == "/v1/adapters" else "adapter_sha256"
        assert [item[key] for item in first["items"] + rest["items"]] == [C, B, A]
        assert rest["next_cursor"] is None


def test_a_promotion_waits_for_a_verification(api: Api, admin: Person, client: httpx.Client) -> None:
    add_adapter(api, admin, sha256=A, checks=[])
    refused = promote(client, A, override_reason="I am in a hurry.")
    assert refused.status_code == 409
    assert "not verified" in refused.json()["detail"]
    add_adapter(api, admin, sha256=B, verification={**GOOD, "ok": False, "reason": "It changes nothing."})
    refused = promote(client, B, override_reason="I am in a hurry.")
    assert "It changes nothing." in refused.json()["detail"]
    assert answering(api) is None


def test_a_promotion_waits_for_an_evaluation(api: Api, admin: Person, client: httpx.Client) -> None:
    add_adapter(api, admin, sha256=A, verification=GOOD)
    assert "never evaluated" in promote(client, A).json()["detail"]


def test_a_failed_gate_names_the_figure_and_by_how_much(
    api: Api, admin: Person, client: httpx.Client
) -> None:
    add_adapter(api, admin, sha256=A, verification=GOOD, checks=[FAILED])
    refused = promote(client, A)
    assert refused.status_code == 409
    assert "perplexity: the candidate's is 15.5, 3.5 above the limit of 12." in refused.json()["detail"]
    assert client.get(f"/v1/adapters/{A}").json()["gate"] == {
        "passed": False,
        "failures": [{"figure": "perplexity", "limit": 12.0, "value": 15.5}],
    }
    assert api.count(deployments) == 0


def test_only_its_own_held_out_rows_decide_whether_an_adapter_may_be_promoted(
    api: Api, admin: Person, client: httpx.Client
) -> None:
    add_adapter(api, admin, sha256=A, verification=GOOD, checks=[FAILED])
    easy = add_dataset(api, admin)
    add_evaluation(api, admin, A, dataset_id=easy, checks=[], after_s=2)
    assert "gate failed" in promote(client, A).json()["detail"]
    assert client.post(f"/v1/adapters/{A}/approve").status_code == 409
    seen = client.get(f"/v1/adapters/{A}").json()
    assert seen["gate"]["passed"] is False
    shown = [(each["dataset_id"], each["counts"], each["gate"]["passed"]) for each in seen["evaluations"]]
    assert shown == [(easy, False, True), (seen["dataset_id"], True, False)]
    add_evaluation(api, admin, A, dataset_id=seen["dataset_id"], checks=[], after_s=3)
    add_evaluation(api, admin, A, dataset_id=easy, checks=[FAILED], after_s=4)
    assert promote(client, A).status_code == 200


def test_an_adapter_measured_on_other_rows_alone_was_never_evaluated(
    api: Api, admin: Person, client: httpx.Client
) -> None:
    add_adapter(api, admin, sha256=A, verification=GOOD)
    api.set(datasets, datasets.c.name == "rows", rows_validation=5)
    add_evaluation(api, admin, A, dataset_id=add_dataset(api, admin), checks=[], after_s=1)
    refused = promote(client, A)
    assert (refused.status_code, client.get(f"/v1/adapters/{A}").json()["gate"]) == (409, None)
    assert "held out of its own dataset; evaluate it first, or override with a reason" in refused.text


@pytest.mark.parametrize("erased", [False, True])
def test_an_adapter_whose_own_rows_are_not_there_needs_an_override(
    api: Api, admin: Person, client: httpx.Client, erased: bool
) -> None:
    add_adapter(api, admin, sha256=A, verification=GOOD)
    api.set(datasets, datasets.c.name == "rows", rows_validation=5 if erased else 0)
    if erased:
        api.set(data_keys, data_keys.c.scope == "dataset", wrapped_key=None)
    why = "that dataset was erased" if erased else "that dataset has no held-out rows"
    told = promote(client, A).json()["detail"]
    assert f"{why}. Override with a reason." in told
    asked = client.post(f"/v1/adapters/{A}/evaluate")
    assert asked.status_code == 409
    assert f"{why}. Promote it by an override with a reason" in asked.json()["detail"]
    assert promote(client, A, override_reason="Its rows are gone.").status_code == 200


def test_an_override_promotes_and_is_audited_without_its_words(
    api: Api, admin: Person, client: httpx.Client
) -> None:
    add_adapter(api, admin, sha256=A, verification=GOOD, checks=[FAILED])
    assert promote(client, A, override_reason="Zebrafinch needs it today.").json()["status"] == "active"
    (deployed,) = client.get("/v1/deployments", params={"base_model": "demo"}).json()["items"]
    assert deployed["override_reason"] == "Zebrafinch needs it today."
    events = api.audit("adapter.promoted") + api.audit("adapter.approved")
    assert all(b'"overridden":true' in event.canonical_bytes for event in events)
    assert not any(b"ebrafinch" in event.canonical_bytes for event in api.audit())


def test_the_log_holds_a_fingerprint_of_every_reason_so_that_a_changed_one_can_be_told(
    api: Api, admin: Person, client: httpx.Client
) -> None:
    add_adapter(api, admin, sha256=A, verification=GOOD, checks=[FAILED])
    promote(client, A, override_reason="Zebrafinch needs it today.")
    client.post(f"/v1/adapters/{A}/recall", json={"reason": "It gives wrong doses."})
    logged = [details_of(api, action)["reason_hmac"] for action in ("adapter.promoted", "adapter.recalled")]
    assert logged == [
        api.gateway.envelope.fingerprint(reason)
        for reason in ("Zebrafinch needs it today.", "It gives wrong doses.")
    ]


def test_a_promotion_within_the_limits_needs_no_reason_and_keeps_none(
    api: Api, admin: Person, client: httpx.Client
) -> None:
    add_good_adapter(api, admin, A)
    promote(client, A, override_reason="Zebrafinch needs it today.")
    assert details_of(api, "adapter.promoted")["reason_hmac"] is None
    assert client.get("/v1/deployments").json()["items"][0]["override_reason"] is None


def test_auditors_read_which_adapter_answered_since_when_and_why(
    api: Api, admin: Person, client: httpx.Client
) -> None:
    add_adapter(api, admin, sha256=A, verification=GOOD, checks=[FAILED])
    promote(client, A, override_reason="Zebrafinch needs it today.")
    client.post(f"/v1/adapters/{A}/recall", json={"reason": "It gives wrong doses."})
    auditor = api.log_in(Role.AUDITOR)
    history = auditor.get("/v1/deployments").json()["items"]
    assert [each["override_reason"] for each in history] == [None, "Zebrafinch needs it today."]
    (listed,) = auditor.get("/v1/adapters").json()["items"]
    shown = auditor.get(f"/v1/adapters/{A}").json()
    assert {listed["recalled_reason"], shown["recalled_reason"]} == {"It gives wrong doses."}


def test_what_is_refused_leaves_an_event_that_says_why_without_words(
    api: Api, admin: Person, client: httpx.Client
) -> None:
    add_adapter(api, admin, sha256=A)
    add_adapter(api, admin, sha256=B, verification=GOOD, checks=[FAILED])
    add_adapter(api, admin, sha256=C, verification={**GOOD, "ok": False, "reason": "It changes nothing."})
    promote(client, A, override_reason="Zebrafinch is in a hurry.")
    client.post(f"/v1/adapters/{B}/approve")
    promote(client, B)
    promote(client, C)
    client.post("/v1/adapters/roll-back", json={"base_model": "zebrafinch"})
    for _ in range(2):
        client.post(f"/v1/adapters/{A}/recall", json={"reason": "Zebrafinch gives wrong doses."})
    client.post(f"/v1/adapters/{sha_of('unknown')}/recall", json={"reason": "There is none."})
    failed = [event for event in api.audit() if event.outcome == "failed"]
    assert [(event.action, event.object, event.reason) for event in failed] == [
        ("adapter.promoted", f"adapter:{A}", "not-verified"),
        ("adapter.approved", f"adapter:{B}", "gate-failed"),
        ("adapter.promoted", f"adapter:{B}", "gate-failed"),
        ("adapter.promoted", f"adapter:{C}", "verification-failed"),
        ("adapter.rolled_back", None, "nothing-before"),
        ("adapter.recalled", f"adapter:{A}", "is-recalled"),
    ]
    assert {event.actor for event in failed} == {admin.id}
    assert not any(b"ebrafinch" in event.canonical_bytes for event in api.audit())


def test_an_approved_adapter_may_be_named_and_answers_nobody_else(
    api: Api, admin: Person, client: httpx.Client
) -> None:
    add_good_adapter(api, admin, A)
    assert client.post(f"/v1/adapters/{A}/approve").json()["status"] == "approved"
    asked = api.log_in().post(
        "/predict", json={"query": "What is asthma?", "adapter": A}, headers={"Prefer": "respond-async"}
    )
    assert (asked.status_code, answering(api)) == (202, None)
    assert client.post(f"/v1/adapters/{A}/approve").status_code == 409
    event, refused = api.audit("adapter.approved")
    assert b'"overridden":false' in event.canonical_bytes
    assert (refused.outcome, refused.reason) == ("failed", "is-approved")
    assert promote(client, A).json()["status"] == "active"


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_a_question_sent_again_is_its_job_though_its_adapter_was_recalled_since(
    api: Api, admin: Person, client: httpx.Client
) -> None:
    add_good_adapter(api, admin, A)
    client.post(f"/v1/adapters/{A}/approve")
    asker, body = api.log_in(), {"query": "What is asthma?", "adapter": A}
    headers = {"Prefer": "respond-async", "Idempotency-Key": "k"}
    job = asker.post("/predict", json=body, headers=headers).json()
    client.post(f"/v1/adapters/{A}/recall", json={"reason": "It gives wrong doses."})
    again = asker.post("/predict", json=body, headers=headers)
    assert (again.status_code, again.json()["id"]) == (202, job["id"])
    another = asker.post("/predict", json=body, headers={**headers, "Idempotency-Key": "another"})
    assert another.status_code == 422


def test_an_approval_waits_for_a_gate_that_passes(api: Api, admin: Person, client: httpx.Client) -> None:
    add_adapter(api, admin, sha256=A, verification=GOOD, checks=[FAILED])
    refused = client.post(f"/v1/adapters/{A}/approve")
    assert (refused.status_code, status(client, A)) == (409, "candidate")
    assert "3.5 above the limit" in refused.json()["detail"]


def test_a_promotion_counts_within_ten_seconds_where_the_base_answered(
    api: Api, admin: Person, client: httpx.Client
) -> None:
    add_good_adapter(api, admin, A)
    chosen = ActiveAdapter("demo")
    ask_async(api.log_in())
    job = api.claim()

    def choose() -> str | None:
        with api.gateway.database.read() as connection:
            return chosen.choose(connection, job)

    assert choose() is None
    assert promote(client, A).status_code == 200
    wait_until(lambda: choose() == A, 10, "for the promotion to count")
    client.post("/v1/adapters/roll-back", json={"base_model": "demo", "answering": A})
    assert choose() is None  # at once


def test_a_promotion_archives_the_one_before(api: Api, admin: Person, client: httpx.Client) -> None:
    for sha256 in (A, B):
        add_good_adapter(api, admin, sha256)
        assert promote(client, sha256).status_code == 200
    assert (status(client, A), status(client, B), answering(api)) == ("archived", "active", B)
    assert promote(client, B).status_code == 409


def test_rolling_back_goes_back_step_by_step_to_the_base(
    api: Api, admin: Person, client: httpx.Client
) -> None:
    for sha256 in (A, B, C):
        add_good_adapter(api, admin, sha256)
        promote(client, sha256)
    seen = [client.post("/v1/adapters/roll-back", json={"base_model": "demo"}) for _ in range(4)]
    assert [answer.json().get("adapter_sha256") for answer in seen[:3]] == [B, A, None]
    assert seen[3].status_code == 409
    assert {status(client, sha256) for sha256 in (A, B, C)} == {"archived"}
    assert [event.outcome for event in api.audit("adapter.rolled_back")] == [*["done"] * 3, "failed"]


def test_a_roll_back_that_is_sent_twice_goes_back_once(api: Api, admin: Person, client: httpx.Client) -> None:
    for sha256 in (A, B, C):
        add_good_adapter(api, admin, sha256)
        promote(client, sha256)
    body = {"base_model": "demo", "answering": C}
    sent = [client.post("/v1/adapters/roll-back", json=body) for _ in range(2)]
    assert ([answer.status_code for answer in sent], answering(api)) == ([200, 409], B)
    assert "Another adapter answers by now" in sent[1].json()["detail"]
    assert [event.reason for event in api.audit("adapter.rolled_back")] == [None, "another-answers"]
    assert client.post("/v1/adapters/roll-back", json={**body, "answering": None}).status_code == 409


@pytest.mark.parametrize("dialect", ["postgresql"], indirect=True)  # writers of SQLite take turns
def test_of_two_roll_backs_from_the_same_adapter_that_meet_one_goes_back(
    api: Api, admin: Person, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    for sha256 in (A, B, C):
        add_good_adapter(api, admin, sha256)
        promote(client, sha256)
    roll_back, body = AdapterStore.roll_back, {"base_model": "demo", "answering": C}
    sent: list[int] = []

    def let_another_in(*args: Any, **rest: Any) -> str | None:
        monkeypatch.setattr(AdapterStore, "roll_back", roll_back)
        sent.append(client.post("/v1/adapters/roll-back", json=body).status_code)
        return roll_back(*args, **rest)

    monkeypatch.setattr(AdapterStore, "roll_back", let_another_in)
    sent.append(client.post("/v1/adapters/roll-back", json=body).status_code)
    assert (sent, answering(api)) == ([200, 409], B)


@pytest.mark.parametrize("dialect", ["postgresql"], indirect=True)
def test_of_two_promotions_over_the_base_model_that_meet_one_counts(
    api: Api, admin: Person, client: httpx.Client
) -> None:
    for sha256 in (A, B):
        add_good_adapter(api, admin, sha256)
    with ThreadPoolExecutor(2) as pool:
        with api.gateway.database.write() as connection:
            connection.execute(select(adapters).where(adapters.c.sha256 == A).with_for_update())
            first = pool.submit(promote, client, A, answering=None)
            wait_until(api.waits_for_lock)
            second = pool.submit(promote, client, B, answering=None)
            wait_until(lambda: api.waits_for_lock(2))
        assert sorted(each.result().status_code for each in (first, second)) == [200, 409]
    assert sorted(status(client, sha256) for sha256 in (A, B)) == ["active", "candidate"]
    assert api.audit("adapter.promoted")[-1].reason == "another-answers"


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_a_promotion_is_refused_to_who_knows_not_what_answers_by_now(
    api: Api, admin: Person, client: httpx.Client
) -> None:
    for sha256 in (A, B):
        add_good_adapter(api, admin, sha256)
    promote(client, A)
    refused = promote(client, B, answering=None)
    assert (refused.status_code, answering(api)) == (409, A)
    assert "Another adapter answers by now" in refused.json()["detail"]
    assert api.audit("adapter.promoted")[-1].reason == "another-answers"
    assert promote(client, B, answering=A).status_code == 200


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_an_adapter_tells_that_what_it_was_trained_on_was_erased(
    api: Api, admin: Person, client: httpx.Client
) -> None:
    for sha256 in (A, B):
        add_adapter(api, admin, sha256=sha256)
    dataset_id = client.get(f"/v1/adapters/{A}").json()["dataset_id"]
    client.post(f"/v1/datasets/{dataset_id}/erase").raise_for_status()
    listed = api.log_in(Role.AUDITOR).get("/v1/adapters").json()["items"]
    assert {each["sha256"]: each["dataset_gone"] for each in listed} == {A: True, B: False}


def test_a_recall_puts_the_one_before_in_its_place(api: Api, admin: Person, client: httpx.Client) -> None:
    for sha256 in (A, B, C):
        add_good_adapter(api, admin, sha256)
        promote(client, sha256)
    client.post(f"/v1/adapters/{B}/recall", json={"reason": "It gives wrong doses."})
    recalled = client.post(f"/v1/adapters/{C}/recall", json={"reason": "It gives wrong doses too."}).json()
    assert (recalled["status"], recalled["recalled_reason"]) == ("recalled", "It gives wrong doses too.")
    assert (answering(api), status(client, A)) == (A, "active")
    assert promote(client, C, override_reason="please").status_code == 409
    assert client.post(f"/v1/adapters/{C}/recall", json={"reason": "again"}).status_code == 409


@pytest.mark.parametrize("dialect", ["postgresql"], indirect=True)  # writers of SQLite take turns
def test_a_recall_and_a_roll_back_of_what_answers_take_turns_and_both_count(
    api: Api, admin: Person, client: httpx.Client
) -> None:
    for sha256 in (A, B):
        add_good_adapter(api, admin, sha256)
        promote(client, sha256)
    with ThreadPoolExecutor(2) as pool:
        with api.gateway.database.write() as connection:
            connection.execute(select(adapters).where(adapters.c.sha256 == A).with_for_update())
            back = pool.submit(client.post, "/v1/adapters/roll-back", json={"base_model": "demo"})
            wait_until(api.waits_for_lock)
            recall = pool.submit(client.post, f"/v1/adapters/{B}/recall", json={"reason": "Wrong doses."})
            wait_until(lambda: api.waits_for_lock(2))
        assert (back.result().status_code, recall.result().status_code) == (200, 200)
    assert (answering(api), status(client, A), status(client, B)) == (A, "active", "recalled")


@pytest.mark.parametrize("act", ["roll-back", "recall"])
def test_one_whose_later_verification_failed_is_not_gone_back_to(
    api: Api, admin: Person, client: httpx.Client, act: str
) -> None:
    for sha256 in (A, B, C):
        add_good_adapter(api, admin, sha256)
        promote(client, sha256)
    api.set(adapters, adapters.c.sha256 == B, verification={**GOOD, "ok": False})
    if act == "recall":
        client.post(f"/v1/adapters/{C}/recall", json={"reason": "It gives wrong doses."})
    else:
        client.post("/v1/adapters/roll-back", json={"base_model": "demo"})
    assert (answering(api), status(client, A), status(client, B)) == (A, "active", "archived")


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_one_of_an_earlier_release_that_was_not_verified_again_is_neither_promoted_nor_gone_back_to(
    api: Api, admin: Person, client: httpx.Client
) -> None:
    for sha256 in (A, B, C):
        add_good_adapter(api, admin, sha256)
        promote(client, sha256)
    assert client.get(f"/v1/adapters/{B}").json()["has_files_hash"] is True
    api.set(adapters, adapters.c.sha256 == B, files_sha256=None)
    assert client.get(f"/v1/adapters/{B}").json()["has_files_hash"] is False
    refused = promote(client, B, override_reason="It was good before.")
    assert (refused.status_code, "verify it again" in refused.json()["detail"]) == (409, True)
    client.post("/v1/adapters/roll-back", json={"base_model": "demo"})
    assert answering(api) == A


class _Serving:
    """A worker that answers on some weights of the demo model, which add_adapter's are not trained on."""

    def __init__(self, api: Api, revision: str) -> None:
        self._api = api
        self._entry = Registration(api.gateway.database, api.gateway.clock, f"infer@host:{revision[:8]}")
        stats = {"base_model": "demo", "model_revision": revision}
        self._entry.enter(Kind.INFER, "demo", {}, stats)

    def fall_silent(self) -> None:
        self._api.set(workers, workers.c.kind == "infer", last_seen_at=datetime(2026, 1, 1, tzinfo=UTC))


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_an_adapter_of_weights_that_are_served_no_more_is_not_promoted_with_a_reason_either(
    api: Api, admin: Person, client: httpx.Client
) -> None:
    add_good_adapter(api, admin, A)
    assert client.get(f"/v1/adapters/{A}").json()["base_served"] is None
    after = _Serving(api, "b" * 64)
    for body in ({}, {"override_reason": "It was good before."}):
        refused = promote(client, A, **body)
        assert (refused.status_code, answering(api)) == (409, None)
        assert "other weights under the name demo" in refused.json()["detail"]
    assert client.post(f"/v1/adapters/{A}/approve").status_code == 409
    assert {event.reason for event in api.audit("adapter.promoted")} == {"other-base"}
    assert client.get(f"/v1/adapters/{A}").json()["base_served"] is False
    after.fall_silent()  # nobody can tell then
    assert promote(client, A).status_code == 200


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_an_adapter_is_promoted_while_any_worker_serves_its_weights(
    api: Api, admin: Person, client: httpx.Client
) -> None:
    add_good_adapter(api, admin, A)
    for revision in ("b" * 64, "a" * 64):
        _Serving(api, revision)
    assert client.get(f"/v1/adapters/{A}").json()["base_served"] is True
    assert promote(client, A).status_code == 200


@pytest.mark.parametrize("dialect", ["sqlite"])
@pytest.mark.parametrize("act", ["roll-back", "recall"])
def test_one_of_weights_that_are_served_no_more_is_not_gone_back_to(
    api: Api, admin: Person, client: httpx.Client, act: str
) -> None:
    for sha256, revision in ((A, "b"), (B, "a"), (C, "b")):
        add_good_adapter(api, admin, sha256, base_revision=revision * 64)
        assert promote(client, sha256).status_code == 200
    _Serving(api, "b" * 64)
    if act == "recall":
        client.post(f"/v1/adapters/{C}/recall", json={"reason": "It gives wrong doses."})
    else:
        client.post("/v1/adapters/roll-back", json={"base_model": "demo"})
    assert (answering(api), status(client, A), status(client, B)) == (A, "active", "archived")


@pytest.mark.parametrize("dialect", ["postgresql"], indirect=True)  # in SQLite one writes at a time
def test_a_recall_waits_for_what_is_being_released(api: Api, admin: Person) -> None:
    add_good_adapter(api, admin, A)
    database = api.gateway.database

    def recall() -> None:
        store = AdapterStore(api.gateway.clock, api.gateway.envelope)
        with database.write() as recalling:
            recalling.execute(text("SET LOCAL lock_timeout = '100ms'"))
            store.recall(recalling, A, Actor(admin.id), reason="It gives wrong doses.")

    with database.write() as releasing, database.write() as too:
        for each in (releasing, too):
            hold_unrecalled(each, A)
        with pytest.raises(OperationalError, match="lock timeout"):
            recall()
    recall()
    with pytest.raises(AdapterRecalled), database.write() as releasing:
        hold_unrecalled(releasing, A)


def evaluate(api: Api, client: httpx.Client, sha256: str, **body: Any) -> str:
    """The id of a new evaluation."""
    api.set(datasets, datasets.c.state == "ready", rows_validation=5)
    return str(client.post(f"/v1/adapters/{sha256}/evaluate", json=body).json()["id"])


def cancel(client: httpx.Client, evaluation_id: str) -> str:
    """How the evaluation is then."""
    told = client.post(f"/v1/evaluations/{evaluation_id}/cancel")
    assert told.status_code == 202, told.text
    return str(told.json()["state"])


def test_a_waiting_evaluation_is_cancelled_at_once_by_any_admin_and_logged(
    api: Api, admin: Person, client: httpx.Client
) -> None:
    add_adapter(api, admin, sha256=A)
    asked = evaluate(api, client, A)
    assert api.log_in().post(f"/v1/evaluations/{asked}/cancel").status_code == 403
    other = api.log_in(Role.ADMIN)
    assert cancel(other, asked) == "cancelled"
    (event,) = api.audit("evaluation.cancel_asked")
    assert event.object == f"evaluation:{asked}"
    assert len(api.audit("evaluate.cancelled")) == 1
    assert cancel(other, asked) == "cancelled", "an ended one stays as it is"
    assert len(api.audit("evaluation.cancel_asked")) == 1
    assert other.post("/v1/evaluations/nobodys/cancel").status_code == 404


@pytest.mark.parametrize("dialect", ["postgresql"])  # writers of SQLite take turns
def test_an_evaluation_that_two_cancel_at_the_same_moment_ends_once(make_api: MakeApi, dialect: str) -> None:
    api = make_api(reconcile_s=600)
    admin, gateway = api.person(Role.ADMIN), api.gateway
    client = api.client(admin)
    add_adapter(api, admin, sha256=A)
    asked = evaluate(api, client, A)
    job_id = client.get(f"/v1/evaluations/{asked}").json()["job_id"]
    with ThreadPoolExecutor(1) as pool:
        with gateway.database.write() as connection:
            assert gateway.jobs.cancel(connection, job_id) is not None
            other = pool.submit(cancel, client, asked)
            wait_until(api.waits_for_lock)
        assert other.result() == "cancelled"
    assert not api.audit("evaluation.cancel_asked")
    assert not api.audit("evaluate.cancelled")


def test_a_running_evaluation_is_asked_to_end(api: Api, admin: Person, client: httpx.Client) -> None:
    add_adapter(api, admin, sha256=A)
    asked = evaluate(api, client, A)
    job = api.claim(kind=Kind.EVALUATE)
    assert cancel(client, asked) == "cancelling"
    with api.gateway.database.write() as connection:
        assert api.gateway.jobs.renew(connection, job.claim) is Renewal.CANCEL


def test_an_adapter_is_measured_once_at_a_time_on_the_same_rows(
    api: Api, admin: Person, client: httpx.Client
) -> None:
    add_adapter(api, admin, sha256=A)
    asked = evaluate(api, client, A)
    again = client.post(f"/v1/adapters/{A}/evaluate")
    assert again.status_code == 409
    assert "on these rows already; wait for it, or cancel it" in again.json()["detail"]
    assert len(api.audit("evaluation.submitted")) == 1
    evaluate(api, client, A, dataset_id=add_dataset(api, admin))
    assert api.count(jobs, jobs.c.kind == Kind.EVALUATE) == 2
    cancel(client, asked)
    assert client.post(f"/v1/adapters/{A}/evaluate").status_code == 202


@pytest.mark.parametrize("dialect", ["postgresql"], indirect=True)  # writers of SQLite take turns
def test_of_two_who_ask_for_a_measuring_at_the_same_moment_one_is_refused(
    api: Api, admin: Person, client: httpx.Client
) -> None:
    add_adapter(api, admin, sha256=A)
    api.set(datasets, datasets.c.name == "rows", rows_validation=5)
    gateway = api.gateway
    with ThreadPoolExecutor(1) as pool:
        with gateway.database.write() as connection:
            EvaluationStore(gateway.jobs, gateway.envelope).submit(
                connection,
                adapter_sha256=A,
                dataset_id=None,
                user_id=admin.id,
                actor=Actor(admin.id),
                now=gateway.clock.now(connection),
            )
            other = pool.submit(client.post, f"/v1/adapters/{A}/evaluate")
            wait_until(api.waits_for_lock)
        assert other.result().status_code == 409
    assert api.count(jobs, jobs.c.kind == Kind.EVALUATE) == 1


def test_a_recall_cancels_the_evaluations_of_its_adapter_alone(
    api: Api, admin: Person, client: httpx.Client
) -> None:
    for sha256 in (A, B):
        add_adapter(api, admin, sha256=sha256)
    running = evaluate(api, client, A)
    api.claim(kind=Kind.EVALUATE)
    others = evaluate(api, client, B)
    waiting = evaluate(api, client, A, dataset_id=add_dataset(api, admin))
    client.post(f"/v1/adapters/{A}/recall", json={"reason": "It gives wrong doses."}).raise_for_status()
    found = {
        each: client.get(f"/v1/evaluations/{each}").json()["state"] for each in (running, waiting, others)
    }
    assert found == {running: "cancelling", waiting: "cancelled", others: "queued"}
    assert len(api.audit("evaluation.cancel_asked")) == 2


def test_another_base_model_has_its_own_history(api: Api, admin: Person, client: httpx.Client) -> None:
    add_good_adapter(api, admin, A)
    add_good_adapter(api, admin, B, base_model="medgemma-4b")
    for sha256 in (A, B):
        promote(client, sha256)
    assert (status(client, A), status(client, B)) == ("active", "active")
    client.post("/v1/adapters/roll-back", json={"base_model": "medgemma-4b"})
    assert answering(api) == A


def test_a_question_may_name_an_adapter(api: Api, admin: Person, client: httpx.Client) -> None:
    add_good_adapter(api, admin, A)
    promote(client, A)
    asker = api.log_in()
    assert ask_async(asker, adapter=A)["adapter_sha256"] == A
    assert api.claim().adapter_sha256 == A
    talk = ask_async(asker)["conversation_id"]
    api.answer("Yes.")
    asked = asker.post(
        f"/v1/conversations/{talk}/messages",
        json={"query": "And now?", "adapter": A},
        headers={"Prefer": "respond-async"},
    )
    assert asked.json()["adapter_sha256"] == A


@pytest.mark.parametrize(
    ("adapter", "code", "message"),
    [
        (sha_of("unknown"), 404, "no adapter of this name"),
        (A, 422, "was recalled"),
        (B, 422, "changes the model medgemma-4b, and demo is served"),
        (C, 422, "could not verify"),
        (D, 422, "not promoted yet"),
        ("nonsense", 422, "see `errors`"),
    ],
)
def test_an_adapter_that_must_not_answer_cannot_be_named(
    api: Api, admin: Person, client: httpx.Client, adapter: str, code: int, message: str
) -> None:
    add_adapter(api, admin, sha256=A)
    client.post(f"/v1/adapters/{A}/recall", json={"reason": "It gives wrong doses."})
    add_adapter(api, admin, sha256=B, base_model="medgemma-4b")
    add_adapter(api, admin, sha256=C, verification={**GOOD, "ok": False})
    add_good_adapter(api, admin, D)
    answer = api.log_in().post("/predict", json={"query": "What is asthma?", "adapter": adapter})
    assert answer.status_code == code
    assert message in answer.json()["detail"]
    assert api.count(jobs, jobs.c.kind == Kind.INFER) == 0


def test_an_answer_says_which_adapter_gave_it_and_a_recall_lists_it(
    api: Api, admin: Person, client: httpx.Client
) -> None:
    add_good_adapter(api, admin, A)
    promote(client, A)
    asker = api.log_in()
    job = ask_async(asker, adapter=A)
    ask_async(asker, adapter="base")
    api.answer("Asthma is a disease of the airways.")
    api.answer("Asthma is a disease.")
    ask_async(asker, "And copd?", adapter=A)  # waits: nobody saw a word of it
    end = asker.get(f"/v1/jobs/{job['id']}/events").text
    assert end.count(A) == 2  # in the job and in the answer's model
    client.post(f"/v1/adapters/{A}/recall", json={"reason": "It gives wrong doses."})
    for reader in (client, api.log_in(Role.AUDITOR)):
        listed = reader.get(f"/v1/adapters/{A}/answers").json()["items"]
        assert [item["job_id"] for item in listed] == [job["id"]]
        assert set(listed[0]) == {"job_id", "conversation_id", "created_at", "finished_at"}
    assert len(api.audit("adapter.answers_listed")) == 2


def test_a_crisis_is_no_answer_of_the_adapter(api: Api, admin: Person, client: httpx.Client) -> None:
    add_good_adapter(api, admin, A)
    promote(client, A)
    answer = api.log_in().post("/predict", json={"query": "I want to kill myself.", "adapter": A})
    assert answer.json()["model"]["adapter_sha256"] is None
    assert client.get(f"/v1/adapters/{A}/answers").json()["items"] == []


def test_a_verification_is_a_job_of_its_own_and_one_at_a_time(
    api: Api, admin: Person, client: httpx.Client
) -> None:
    add_adapter(api, admin, sha256=A)
    job = client.post(f"/v1/adapters/{A}/verify")
    assert job.status_code == 202
    assert (job.json()["kind"], job.json()["adapter_sha256"]) == ("verify", A)
    assert client.get(f"/v1/adapters/{A}").json()["verify_job_id"] == job.json()["id"]
    assert client.post(f"/v1/adapters/{A}/verify").status_code == 409


# -- comparisons


def compare(client: httpx.Client, **body: Any) -> dict[str, Any]:
    asked = {"question": "What is asthma?", "left": None, "right": A, **body}
    answer = client.post("/v1/comparisons", json=asked)
    assert answer.status_code == 202, answer.text
    view: dict[str, Any] = answer.json()
    return view


def test_a_comparison_asks_both_and_shows_both_answers(api: Api, admin: Person, client: httpx.Client) -> None:
    add_adapter(api, admin, sha256=A)
    begun = compare(client)
    assert (begun["state"], begun["adapter_left"], begun["adapter_right"]) == ("running", None, A)
    taken = [api.claim(), api.claim()]
    assert {job.adapter_sha256 for job in taken} == {"base", A}
    assert len({(job.seed, job.conversation_id is None) for job in taken}) == 1
    for job in taken:
        api.release(job, f"As {job.adapter_sha256}.")
        api.finish(job)
    done = client.get(f"/v1/comparisons/{begun['id']}").json()
    assert (done["state"], done["question"]) == ("done", "What is asthma?")
    assert (done["left"]["answer"], done["right"]["answer"]) == ("As base.", f"As {A}.")


def test_a_blind_one_tells_which_is_which_only_after_the_vote(
    api: Api, admin: Person, client: httpx.Client
) -> None:
    add_adapter(api, admin, sha256=A)
    begun = compare(client, blind=True)
    path = f"/v1/comparisons/{begun['id']}"
    assert client.post(f"{path}/vote", json={"vote": "left"}).status_code == 409
    for _ in range(2):
        api.answer("An answer.")
    blind = client.get(path)
    assert A not in blind.text
    assert A not in client.get("/v1/comparisons").text
    assert not blind.json()["told"]
    told = client.post(f"{path}/vote", json={"vote": "left"}).json()
    assert told["told"]
    assert {told["adapter_left"], told["adapter_right"]} == {None, A}
    assert client.post(f"{path}/vote", json={"vote": "right"}).status_code == 409
    (total,) = client.get("/v1/comparisons").json()["totals"]
    assert (total["first_wins"], total["second_wins"]) == ((1, 0) if told["adapter_left"] is None else (0, 1))


def test_a_side_without_an_answer_leaves_nothing_to_vote_on(
    api: Api, admin: Person, client: httpx.Client
) -> None:
    add_adapter(api, admin, sha256=A)
    path = f"/v1/comparisons/{compare(client)['id']}"
    api.answer("An answer.")
    api.finish(api.claim(), EventKind.FAILED, error="no-model", error_detail="No worker could load it.")
    assert client.get(path).json()["state"] == "done"
    refused = client.post(f"{path}/vote", json={"vote": "left"})
    assert refused.status_code == 409
    assert "no answer" in refused.json()["detail"]
    assert client.get("/v1/comparisons").json()["totals"] == []


def test_a_comparison_is_erased_side_by_side_and_there_is_no_vote_on_what_is_left(
    api: Api, admin: Person, client: httpx.Client
) -> None:
    add_adapter(api, admin, sha256=A)
    begun = compare(client)
    path, (first, second) = f"/v1/comparisons/{begun['id']}", begun["conversation_ids"]
    for _ in range(2):
        api.answer("An answer.")
    client.post(f"/v1/conversations/{first}/erase").raise_for_status()
    half = client.get(path).json()
    assert (half["question"], half["conversation_ids"]) == ("What is asthma?", [second])
    assert {half["left"]["answer"], half["right"]["answer"]} == {None, "An answer."}
    refused = client.post(f"{path}/vote", json={"vote": "left"})
    assert (refused.status_code, "It was erased" in refused.json()["detail"]) == (409, True)
    client.post(f"/v1/conversations/{second}/erase").raise_for_status()
    gone = client.get(path).json()
    assert (gone["question"], gone["left"]["answer"], gone["conversation_ids"]) == (None, None, [])


def test_blind_sides_are_shuffled(api: Api, admin: Person, client: httpx.Client) -> None:
    add_adapter(api, admin, sha256=A)
    for _ in range(16):  # all on one side by chance: once in 32,768 runs
        compare(client, blind=True)
    assert api.count(comparisons, comparisons.c.adapter_left == A)
    assert api.count(comparisons, comparisons.c.adapter_right == A)


def test_the_guard_answers_in_a_comparison_too(api: Api, admin: Person, client: httpx.Client) -> None:
    add_adapter(api, admin, sha256=A)
    begun = compare(client, question="I want to kill myself.")
    assert begun["state"] == "done"
    assert begun["left"]["answer"] == begun["right"]["answer"] != ""
    assert begun["left"]["by_guard"]
    assert begun["right"]["by_guard"]
    refused = client.post(f"/v1/comparisons/{begun['id']}/vote", json={"vote": "left"})
    assert (refused.status_code, client.get("/v1/comparisons").json()["totals"]) == (409, [])
    assert "The guard answered this itself; ask another question." in refused.json()["detail"]


def test_a_comparison_is_its_askers_alone(api: Api, admin: Person, client: httpx.Client) -> None:
    add_adapter(api, admin, sha256=A)
    begun = compare(client)
    other = api.log_in(Role.ADMIN)
    assert other.get(f"/v1/comparisons/{begun['id']}").status_code == 404
    assert other.post(f"/v1/comparisons/{begun['id']}/vote", json={"vote": "tie"}).status_code == 404
    assert other.get("/v1/comparisons").json()["newest"] == []


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_one_that_must_be_verified_again_is_not_compared_and_that_is_said(
    api: Api, admin: Person, client: httpx.Client
) -> None:
    add_adapter(api, admin, sha256=A)
    api.set(adapters, adapters.c.sha256 == A, files_sha256=None)
    refused = client.post("/v1/comparisons", json={"question": "Why?", "left": None, "right": A})
    assert (refused.status_code, "Verify it again." in refused.json()["detail"]) == (422, True)
    assert api.count(jobs, jobs.c.kind == Kind.INFER) == 0


def test_one_adapter_cannot_be_compared_with_itself_or_a_recalled_one(
    api: Api, admin: Person, client: httpx.Client
) -> None:
    add_adapter(api, admin, sha256=A)
    same = client.post("/v1/comparisons", json={"question": "Why?", "left": A, "right": A})
    assert same.status_code == 422
    client.post(f"/v1/adapters/{A}/recall", json={"reason": "It gives wrong doses."})
    recalled = client.post("/v1/comparisons", json={"question": "Why?", "left": None, "right": A})
    assert recalled.status_code == 422
    assert api.count(jobs, jobs.c.kind == Kind.INFER) == 0
