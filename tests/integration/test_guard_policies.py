"""Policies of the guard over HTTP: added when nothing is wrong with them, tried, activated, rolled back."""

from typing import Any

import httpx
import pytest
from sqlalchemy import select

from shared.auth.roles import Role
from shared.db.tables import audit_events, jobs, messages, verdicts
from shared.db.tables_guard import guard_activations, guard_policies
from shared.guard.policy import MOST_CHARS, packaged_policy, version_of
from shared.policies.store import PolicyStore
from tests.policies import DOSE, activate, add_bad_version, add_version, knobs, store_version
from tests.support import Api, Person

PACKAGED = version_of(packaged_policy())


@pytest.fixture
def admin(api: Api) -> Person:
    return api.person(Role.ADMIN)


@pytest.fixture
def client(api: Api, admin: Person) -> httpx.Client:
    return api.client(admin)


def listed(client: httpx.Client) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = client.get("/v1/guard/policies").json()["items"]
    return items


def try_out(client: httpx.Client, version: str, text: str, **body: Any) -> dict[str, Any]:
    response = client.post(f"/v1/guard/policies/{version}/try", json={"text": text, **body})
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def test_before_anything_was_stored_the_packaged_policy_counts(client: httpx.Client) -> None:
    state = client.get("/v1/guard").json()
    assert (state["active"], state["packaged"], state["shadow"], state["history"]) == (
        PACKAGED,
        PACKAGED,
        None,
        [],
    )
    (only,) = listed(client)
    assert (only["version"], only["packaged"], only["active"]) == (PACKAGED, True, True)
    assert client.get(f"/v1/guard/policies/{PACKAGED}").json()["texts"] == packaged_policy()


def test_a_version_holds_whole_files_and_judges_nothing_until_it_is_activated(
    api: Api, client: httpx.Client
) -> None:
    texts = knobs(refer="[dosing]")
    version = add_version(client, texts)
    found = client.get(f"/v1/guard/policies/{version}").json()
    assert found["texts"] == {**packaged_policy(), **texts}
    assert version == version_of(found["texts"])
    assert (found["active"], found["note"]) == (False, "A test.")
    assert api.gateway.guards.refresh().guard.policy_version == PACKAGED
    (event,) = api.audit("policy.added")
    assert event.object == f"policy:{version}"


def test_files_that_are_left_out_are_taken_from_the_version_that_is_named(client: httpx.Client) -> None:
    resources = packaged_policy()["resources.yaml"] + "# ours\n"
    first = add_version(client, {"resources.yaml": resources})
    body = {"base": first, "texts": knobs(refer="[dosing]"), "note": "On top."}
    second = client.post("/v1/guard/policies", json=body).json()["version"]
    assert client.get(f"/v1/guard/policies/{second}").json()["texts"]["resources.yaml"] == resources


def test_a_bad_file_is_refused_with_line_and_reason_and_nothing_is_stored(
    api: Api, client: httpx.Client
) -> None:
    text = packaged_policy()["policy.yaml"].replace("least_score: 0.0", "least_score: much", 1)
    refused = client.post("/v1/guard/policies", json={"texts": {"policy.yaml": text}, "note": "Bad."})
    assert (refused.status_code, refused.json()["type"]) == (422, "urn:medichat:problem:policy-refused")
    line = text[: text.index("least_score: much")].count("\n") + 1
    assert refused.json()["detail"].startswith(f"policy.yaml, line {line}: ")
    (where,) = refused.json()["errors"]
    assert where["field"] == f"policy.yaml:{line}"
    assert api.count(guard_policies) == 0


def test_the_same_policy_is_stored_once(client: httpx.Client) -> None:
    texts = knobs(refer="[dosing]")
    add_version(client, texts)
    again = client.post("/v1/guard/policies", json={"texts": texts, "note": "Again."})
    assert (again.status_code, "stored already" in again.json()["detail"]) == (409, True)
    packaged = {"texts": {"policy.yaml": packaged_policy()["policy.yaml"]}, "note": "Nothing."}
    assert client.post("/v1/guard/policies", json=packaged).status_code == 409


def test_a_policy_is_taken_with_every_file_as_long_as_it_may_be(client: httpx.Client) -> None:
    texts = {name: text.ljust(MOST_CHARS, "#") for name, text in packaged_policy().items()}
    assert client.get(f"/v1/guard/policies/{add_version(client, texts)}").json()["texts"] == texts


def test_a_file_that_is_longer_is_refused_by_its_name(client: httpx.Client) -> None:
    body = {"texts": {"lexicon.yaml": "#" * (MOST_CHARS + 1)}, "note": "Too long."}
    refused = client.post("/v1/guard/policies", json=body)
    assert refused.status_code == 422
    assert [each["field"] for each in refused.json()["errors"]] == ["body.texts.lexicon.yaml"]


def test_a_file_that_no_policy_has_is_refused(client: httpx.Client) -> None:
    body = {"texts": {"other.yaml": "x: y"}, "note": "What is this?"}
    assert client.post("/v1/guard/policies", json=body).status_code == 422


# -- trying


def test_a_sentence_is_tried_under_a_version_and_nothing_of_it_is_kept(
    api: Api, client: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    texts = knobs(refer="[dosing, medication_change]")
    # for patients, and no more for clinicians
    head, _, tail = texts["policy.yaml"].rpartition("refer: [dosing, medication_change]")
    version = add_version(client, {"policy.yaml": f"{head}refer: []{tail}"})
    before = api.count(audit_events)
    text = DOSE.strip() + " Zebrafinch."
    found = try_out(client, PACKAGED, text)
    assert found["verdict"] == {
        "action": "replace",
        "category": "dosing",
        "severity": "high",
        "layer": "rules",
        "source": "dosing.no_limit",
        "score": 0.8,
        "span": found["verdict"]["span"],
    }
    start, end = found["verdict"]["span"]
    assert "as many of these" in text[start:end]
    assert found["layers"]["rules"] == found["verdict"]
    assert found["instead"] == api.gateway.guard.responses().replacement("dosing")  # type: ignore[arg-type]
    shown = try_out(client, version, text)
    assert (shown["verdict"]["action"], shown["instead"]) == ("append", None)
    assert try_out(client, version, text, audience="clinician")["verdict"]["action"] == "replace"
    assert try_out(client, PACKAGED, text, audience="clinician")["verdict"]["action"] == "append"
    assert api.count(audit_events) == before
    assert api.count(messages) == api.count(verdicts) == api.count(jobs) == 0
    assert "ebrafinch" not in caplog.text


def test_a_sentence_is_tried_with_what_stands_before_it(client: httpx.Client) -> None:
    text = "One evening without is fine."
    assert try_out(client, PACKAGED, text)["verdict"]["action"] == "allow"
    assert try_out(client, PACKAGED, text, context="You are on insulin.")["verdict"]["action"] == "replace"


def test_a_sentence_that_is_only_flagged_has_nothing_said_instead(client: httpx.Client) -> None:
    found = try_out(client, PACKAGED, "That one can go.", context="You take metoprolol.")
    assert (found["verdict"]["action"], found["instead"]) == ("escalate", None), "it is shown, and flagged"


def test_a_question_is_tried_too(api: Api, client: httpx.Client) -> None:
    found = try_out(client, PACKAGED, "I want to end my life tonight.", side="question")
    assert (found["verdict"]["action"], found["verdict"]["category"]) == ("crisis", "crisis")
    assert found["instead"] == api.gateway.guard.responses().crisis


# -- which one counts


def test_an_activated_version_counts_and_is_audited(api: Api, client: httpx.Client) -> None:
    version = add_version(client, refer="[dosing]")
    state = activate(client, version)
    assert (state["active"], state["processes"][0]["policy_version"]) == (version, version)
    assert [item["active"] for item in listed(client)] == [True, False]
    assert client.post(f"/v1/guard/policies/{version}/activate").status_code == 409
    (event,) = api.audit("policy.activated")
    assert event.object == f"policy:{version}"
    assert version.encode() in event.canonical_bytes


def test_what_this_release_cannot_compile_is_not_activated(
    api: Api, admin: Person, client: httpx.Client
) -> None:
    bad = add_bad_version(api, admin)
    for act in ("activate", "shadow"):
        refused = client.post(f"/v1/guard/policies/{bad}/{act}")
        assert refused.json()["type"] == "urn:medichat:problem:policy-refused"
    assert api.count(guard_activations) == 0


def test_what_cannot_be_compiled_is_refused_with_the_place_that_is_wrong(
    api: Api, admin: Person, client: httpx.Client
) -> None:
    resources = packaged_policy()["resources.yaml"].replace("default: intl", "default: mars")
    bad = store_version(api, admin, {"resources.yaml": resources})
    refused = client.post(f"/v1/guard/policies/{bad}/activate").json()
    line = resources[: resources.index("default: mars")].count("\n") + 1
    assert refused["detail"] == f"resources.yaml, line {line}: this is none of the locales."


def test_what_cannot_be_compiled_for_no_reason_that_is_known_names_no_place(
    api: Api, admin: Person, client: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    text = "%YAML 1.3\n---\n" + packaged_policy()["policy.yaml"]  # one of two parsers reads that
    bad = store_version(api, admin, {"policy.yaml": text})
    refused = client.post(f"/v1/guard/policies/{bad}/activate")
    assert (refused.status_code, refused.json()["type"]) == (422, "urn:medichat:problem:policy-refused")
    assert "errors" not in refused.json()
    assert "line" not in refused.json()["detail"]
    assert bad in caplog.text


def test_a_version_that_lacks_a_file_of_today_judges_under_its_own_name(
    api: Api, admin: Person, client: httpx.Client
) -> None:
    texts = packaged_policy() | knobs(refer="[dosing]")
    del texts["facts.yaml"]
    version = store_version(api, admin, texts)
    assert client.post(f"/v1/guard/policies/{version}/shadow").status_code == 200
    assert api.gateway.guards.stats()["shadow_version"] == version
    state = activate(client, version)
    assert (state["active"], state["processes"][0]["policy_version"]) == (version, version)


def test_rolling_back_goes_back_step_by_step_to_the_packaged_policy(client: httpx.Client) -> None:
    first, second = add_version(client, refer="[dosing]"), add_version(client, ignore="[dosing]")
    activate(client, first)
    activate(client, second)
    assert client.post("/v1/guard/roll-back").json()["active"] == first
    assert client.post("/v1/guard/roll-back").json()["active"] == PACKAGED
    assert client.post("/v1/guard/roll-back").status_code == 409
    activate(client, second)
    state = client.post("/v1/guard/roll-back").json()
    assert state["active"] == PACKAGED
    assert state["before"] is None
    kinds = [each["kind"] for each in state["history"]]
    assert kinds == ["roll_back", "activate", "roll_back", "roll_back", "activate", "activate"]


def test_the_packaged_policy_can_be_activated_again(api: Api, client: httpx.Client) -> None:
    activate(client, add_version(client, refer="[dosing]"))
    assert activate(client, PACKAGED)["active"] == PACKAGED
    with api.gateway.database.read() as connection:
        newest = connection.execute(
            select(guard_activations.c.version).order_by(guard_activations.c.seq.desc())
        ).scalars()
        assert next(newest) is None  # whatever a later release packages


def test_the_policy_of_an_earlier_release_can_still_be_read_and_activated(
    api: Api, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = packaged_policy() | knobs(refer="[dosing]")
    policies = PolicyStore(api.gateway.clock)
    with monkeypatch.context() as patch, api.gateway.database.write() as connection:
        patch.setattr("shared.policies.store.packaged_policy", lambda: earlier)
        assert policies.keep_packaged(connection)
    with api.gateway.database.write() as connection:
        assert policies.keep_packaged(connection)
        assert not policies.keep_packaged(connection), "once is enough"
    version = version_of(earlier)
    found = client.get(f"/v1/guard/policies/{version}").json()
    assert (found["texts"], found["created_by"], found["packaged"]) == (earlier, None, False)
    assert {each["version"]: each["packaged"] for each in listed(client)} == {version: False, PACKAGED: True}
    assert activate(client, version)["active"] == version
    assert [event.object for event in api.audit("policy.packaged")] == [
        f"policy:{version}",
        f"policy:{PACKAGED}",
    ]


def test_the_history_does_not_call_an_earlier_packaged_policy_by_the_name_of_todays(
    client: httpx.Client,
) -> None:
    activate(client, add_version(client, refer="[dosing]"))
    assert activate(client, PACKAGED)["history"][0]["version"] is None


def test_after_the_packaged_policy_was_activated_the_one_before_it_can_come_back(
    client: httpx.Client,
) -> None:
    version = add_version(client, refer="[dosing]")
    activate(client, version)
    assert activate(client, PACKAGED)["before"] == version
    state = client.post("/v1/guard/roll-back").json()
    assert (state["active"], state["before"]) == (version, PACKAGED)


def test_the_packaged_policy_casts_no_shadow_after_a_roll_back_to_it(client: httpx.Client) -> None:
    activate(client, add_version(client, refer="[dosing]"))
    assert client.post(f"/v1/guard/policies/{PACKAGED}/shadow").json()["shadow"] == PACKAGED
    state = client.post("/v1/guard/roll-back").json()
    assert (state["active"], state["shadow"]) == (PACKAGED, None)


def test_a_shadow_begins_and_ends(api: Api, client: httpx.Client) -> None:
    version = add_version(client, refer="[dosing]")
    assert client.post(f"/v1/guard/policies/{version}/shadow").json()["shadow"] == version
    assert client.post(f"/v1/guard/policies/{version}/shadow").status_code == 409
    assert client.post(f"/v1/guard/policies/{PACKAGED}/shadow").status_code == 409
    assert client.request("DELETE", "/v1/guard/shadow").json()["shadow"] is None
    assert client.request("DELETE", "/v1/guard/shadow").status_code == 409
    assert len(api.audit("policy.shadowed")) == 2


def test_a_shadow_that_is_activated_casts_none_any_more(client: httpx.Client) -> None:
    version = add_version(client, refer="[dosing]")
    client.post(f"/v1/guard/policies/{version}/shadow")
    state = activate(client, version)
    assert (state["active"], state["shadow"]) == (version, None)


@pytest.mark.parametrize("act", ["activate", "shadow", "try", "replays"])
def test_a_version_that_is_not_there_is_not_found(client: httpx.Client, act: str) -> None:
    body = {"try": {"text": "Rest well."}, "replays": {"answers": 5}}.get(act)
    assert client.post(f"/v1/guard/policies/0000/{act}", json=body).status_code == 404


def test_auditors_read_and_change_nothing(api: Api, client: httpx.Client) -> None:
    auditor = api.log_in(Role.AUDITOR)
    version = add_version(client, refer="[dosing]")
    for path in ("", "/policies", f"/policies/{version}", "/shadow", "/replays"):
        assert auditor.get(f"/v1/guard{path}").status_code == 200, path
    for path in ("/stop", "/start", "/roll-back", f"/policies/{version}/activate"):
        assert auditor.post(f"/v1/guard{path}", json={"reason": "No."}).status_code == 403, path
