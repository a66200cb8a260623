"""Which policy judges an answer, from one moment to the next; the shadow beside it; the stop switch."""

import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from services.worker_train.validate import load_task
from shared.audit.record import Actor
from shared.auth.roles import Role
from shared.conversations import join
from shared.db.tables import conversations, messages, verdicts
from shared.guard.policy import packaged_policy, version_of
from shared.guard.verdict import Action, Audience, Verdict
from shared.jobs.lifecycle import EventKind, Kind, State
from shared.policies.live import LiveGuard, Standing
from shared.policies.store import PolicyStore
from shared.registration import Registration
from tests.integration.test_worker import REFERRAL, SAFE, Begun, Clinic, clinic
from tests.policies import DOSE, activate, add_bad_version, add_version
from tests.support import ask_async, wait_until
from tests.uploads import uploaded

__all__ = ["clinic"]

PACKAGED = version_of(packaged_policy())


@pytest.fixture
def admin(clinic: Clinic) -> httpx.Client:
    return clinic.api.log_in(Role.ADMIN)


@pytest.fixture
def shadowed(clinic: Clinic, admin: httpx.Client) -> Iterator[str]:
    """A version in the shadow that lets a dose through."""
    version = add_version(admin, ignore="[dosing]")
    assert admin.post(f"/v1/guard/policies/{version}/shadow").json()["shadow"] == version
    clinic.shadow.start()
    yield version
    clinic.shadow.close()


def shadow_rows(clinic: Clinic, job_id: str, count: int) -> list[Any]:
    """What the shadow said of an answer, once it has said it all."""
    wanted = select(verdicts).where(verdicts.c.job_id == job_id, verdicts.c.shadow.is_(True))

    def look() -> list[Any]:
        with clinic.api.gateway.database.read() as connection:
            rows = list(connection.execute(wanted.order_by(verdicts.c.sentence_seq)))
        return rows if len(rows) == count else []

    found: list[Any] = wait_until(look, 10, "for the shadow's verdicts")
    return found


def told(clinic: Clinic, job_id: str) -> str:
    job = clinic.job(job_id)
    assert job.conversation_id is not None
    with clinic.api.gateway.database.read() as connection:
        talk = clinic.api.gateway.conversations
        return join(talk.read_sentences(connection, job.conversation_id, job_id))


# -- which policy counts


def test_a_changed_policy_counts_for_the_next_answer_and_not_for_the_one_under_way(
    clinic: Clinic, admin: httpx.Client
) -> None:
    version = add_version(admin, refer="[dosing]")
    clinic.engine.script += [SAFE + DOSE, SAFE + DOSE]
    clinic.engine.on_submit = lambda: activate(admin, version)
    before = clinic.answered(clinic.ask())
    clinic.engine.on_submit = lambda: None
    after = clinic.answered(clinic.ask())
    assert (before.policy_version, after.policy_version) == (PACKAGED, version)
    assert "as many of these" not in told(clinic, before.id)
    assert "as many of these" in told(clinic, after.id)
    assert told(clinic, after.id).endswith(clinic.api.gateway.guard.responses().referral)
    with clinic.api.gateway.database.read() as connection:
        rows = connection.execute(select(verdicts.c.job_id, verdicts.c.policy_version)).all()
    assert set(map(tuple, rows)) == {(before.id, PACKAGED), (after.id, version)}


def test_an_answer_goes_on_after_a_sentence_that_was_shown_with_a_referral(
    clinic: Clinic, admin: httpx.Client
) -> None:
    activate(admin, add_version(admin, refer="[dosing]"))
    job_id, api = clinic.ask(), clinic.api
    claimed = api.claim()
    verdict = api.gateway.guard.judge_answer(DOSE)
    assert verdict.action is Action.APPEND
    api.release(claimed, DOSE, verdict=verdict)
    with api.gateway.database.write() as connection:
        api.gateway.jobs.drain(connection, claimed.claim)
    clinic.engine.script += [SAFE.rstrip()]
    assert clinic.answered(job_id).state is State.SUCCEEDED
    assert told(clinic, job_id) == DOSE + SAFE + api.gateway.guard.responses().referral


def test_a_process_takes_a_change_up_within_ten_seconds(clinic: Clinic, admin: httpx.Client) -> None:
    version = add_version(admin, refer="[dosing]")
    with closing(LiveGuard(clinic.api.gateway.database)) as live:
        live.start()
        wait_until(lambda: live.stats()["policy_version"] == PACKAGED, 10, "for the first look")
        activate(admin, version)
        wait_until(lambda: live.now.guard.policy_version == version, 10, "for the new policy")
        admin.post("/v1/guard/stop", json={"reason": "A test."})
        wait_until(lambda: live.now.stopped, 10, "for the switch")


def test_nothing_is_compiled_again_while_nothing_changes(clinic: Clinic, admin: httpx.Client) -> None:
    activate(admin, add_version(admin, refer="[dosing]"))
    live = LiveGuard(clinic.api.gateway.database)
    assert live.refresh() is live.refresh()
    guard = live.now.guard
    admin.post("/v1/guard/stop", json={"reason": "A test."})
    assert live.refresh().guard is guard


def test_a_policy_that_cannot_be_compiled_changes_nothing_and_is_told(
    clinic: Clinic, admin: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    good = add_version(admin, refer="[dosing]")
    activate(admin, good)
    api, person = clinic.api, clinic.api.person(Role.ADMIN)
    bad = add_bad_version(api, person)
    with api.gateway.database.write() as connection:
        PolicyStore(api.gateway.clock).activate(connection, bad, Actor(person.id))
    assert "medichat_policy_refused 0.0" in api.client().get("/metrics").text
    standing = api.gateway.guards.refresh()
    assert (standing.guard.policy_version, standing.refused) == (good, bad)
    assert bad in caplog.text
    assert "medichat_policy_refused 1.0" in api.client().get("/metrics").text
    (process,) = admin.get("/v1/guard").json()["processes"]
    assert (process["policy_version"], process["refused"]) == (good, bad)


def test_a_process_that_starts_with_a_policy_it_cannot_compile_judges_under_the_packaged_one(
    clinic: Clinic,
) -> None:
    api, person = clinic.api, clinic.api.person(Role.ADMIN)
    bad = add_bad_version(api, person)
    with api.gateway.database.write() as connection:
        PolicyStore(api.gateway.clock).activate(connection, bad, Actor(person.id))
    standing = LiveGuard(api.gateway.database).now
    assert (standing.guard.policy_version, standing.refused) == (PACKAGED, bad)


def test_a_shadow_that_cannot_be_compiled_is_told_apart_from_the_policy_that_counts(
    clinic: Clinic, admin: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    api, person = clinic.api, clinic.api.person(Role.ADMIN)
    bad = add_bad_version(api, person)
    with api.gateway.database.write() as connection:
        PolicyStore(api.gateway.clock).set_shadow(connection, bad, Actor(person.id))
    standing = api.gateway.guards.refresh()
    assert (standing.guard.policy_version, standing.shadow) == (PACKAGED, None)
    assert (standing.refused, standing.shadow_refused) == (None, bad)
    assert bad in caplog.text
    (process,) = admin.get("/v1/guard").json()["processes"]
    assert (process["refused"], process["shadow_refused"]) == (None, bad)
    metrics = api.client().get("/metrics").text
    assert "medichat_policy_refused 0.0" in metrics
    assert "medichat_shadow_refused 1.0" in metrics


# -- the shadow


def test_what_the_shadow_says_is_kept_apart_and_shown_to_nobody(
    clinic: Clinic, shadowed: str, admin: httpx.Client
) -> None:
    clinic.engine.script += [SAFE + DOSE]
    job = clinic.answered(clinic.ask())
    safe, dose = shadow_rows(clinic, job.id, 2)
    assert (safe.action, safe.sentence_seq, safe.policy_version) == (Action.ALLOW, 1, shadowed)
    assert (dose.action, dose.sentence_seq, dose.policy_version) == (Action.ALLOW, 2, shadowed)
    assert job.policy_version == PACKAGED
    conversation = clinic.client.get(f"/v1/conversations/{job.conversation_id}").json()
    assert conversation["messages"][-1]["guard"]["action"] == "replace"
    counts = admin.get("/v1/guard/shadow").json()
    assert counts == {
        "version": shadowed,
        "sentences": 2,
        "newly_stopped": {},
        "newly_released": {"dosing": 1},
    }


def test_what_only_the_shadow_would_stop_is_shown_as_if_it_were_not_there(
    clinic: Clinic, admin: httpx.Client
) -> None:
    activate(admin, add_version(admin, ignore="[dosing]"))
    admin.post(f"/v1/guard/policies/{PACKAGED}/shadow")
    clinic.shadow.start()
    clinic.engine.script += [DOSE + REFERRAL]
    job = clinic.answered(clinic.ask())
    dose, _ = shadow_rows(clinic, job.id, 2)
    clinic.shadow.close()
    assert (dose.action, dose.category) == (Action.REPLACE, "dosing")
    conversation = clinic.client.get(f"/v1/conversations/{job.conversation_id}").json()
    assert conversation["messages"][-1]["text"] == (DOSE + REFERRAL).strip()
    assert conversation["messages"][-1]["guard"]["action"] == "allow"
    assert admin.get("/v1/guard/shadow").json()["newly_stopped"] == {"dosing": 1}


class BrokenGuard:
    """A shadow policy with a bug."""

    policy_version = "broken"

    def judge_answer(self, text: str, _context: str, _audience: Audience) -> Verdict:
        raise RuntimeError(text)


def test_a_shadow_that_fails_or_never_ends_does_not_touch_the_answer(
    clinic: Clinic, caplog: pytest.LogCaptureFixture
) -> None:
    now = clinic.api.gateway.guards.now
    clinic.api.judge_with(Standing(guard=now.guard, shadow=BrokenGuard()))  # type: ignore[arg-type]
    clinic.engine.script += [SAFE + REFERRAL, SAFE + REFERRAL]
    # its thread does not run: as slow as can be
    job = clinic.answered(clinic.ask())
    assert (job.state, told(clinic, job.id)) == (State.SUCCEEDED, SAFE + REFERRAL)
    clinic.shadow.start()
    rows = shadow_rows(clinic, job.id, 2)
    clinic.shadow.close()
    assert {row.source for row in rows} == {"guard_failure"}
    assert "airways" not in caplog.text


def test_how_many_sentences_the_shadow_left_out_is_told(clinic: Clinic, admin: httpx.Client) -> None:
    gateway = clinic.api.gateway
    worker = Registration(gateway.database, gateway.clock, "infer@host:1")
    worker.enter(Kind.INFER, "demo", {})
    worker.report({**gateway.guards.stats(), "shadow_left_out": 3})
    here, there = admin.get("/v1/guard").json()["processes"]
    assert (here["shadow_left_out"], there["shadow_left_out"]) == (None, 3)
    assert "medichat_shadow_left_out 3.0" in clinic.api.client().get("/metrics").text


# -- the stop switch


def stop(admin: httpx.Client) -> dict[str, Any]:
    response = admin.post("/v1/guard/stop", json={"reason": "Zebrafinch gives wrong doses."})
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def test_while_answers_are_stopped_a_question_is_refused_and_nothing_is_stored(
    clinic: Clinic, admin: httpx.Client
) -> None:
    stop(admin)
    refused = clinic.client.post("/predict", json={"query": "What is asthma?"})
    assert (refused.status_code, refused.json()["type"]) == (503, "urn:medichat:problem:answers-stopped")
    assert "stopped all answers" in refused.json()["detail"]
    assert "Zebrafinch" not in refused.text
    assert clinic.api.count(messages) == clinic.api.count(conversations) == 0
    assert clinic.client.get("/v1/me").json()["answers_stopped"] is True
    assert "medichat_answers_stopped 1.0" in clinic.api.client().get("/metrics").text


def test_a_person_in_need_is_helped_while_answers_are_stopped(clinic: Clinic, admin: httpx.Client) -> None:
    stop(admin)
    for query, category in (
        ("I want to end my life tonight.", "crisis"),
        ("My husband collapsed and is not breathing", "emergency"),
    ):
        answer = clinic.client.post("/predict", json={"query": query})
        assert answer.status_code == 200
        assert answer.json()["guard"]["category"] == category


#: What no rule knows, and the classifier is sure of.
UNKNOWN_CRISIS = "I bought the rope today, everybody will finally be free of me."


def test_while_answers_are_stopped_whoever_is_refused_is_told_where_help_is(
    clinic: Clinic, admin: httpx.Client
) -> None:
    guard, help_line = clinic.api.gateway.guard, clinic.api.gateway.help_line
    assert guard.screen_at_once(UNKNOWN_CRISIS).allowed
    stop(admin)
    refused = clinic.client.post("/predict", json={"query": UNKNOWN_CRISIS})
    assert refused.json()["type"] == "urn:medichat:problem:answers-stopped"
    assert refused.json()["detail"].endswith(help_line)
    assert "crisis line" in help_line
    assert "local emergency number" in help_line


def test_a_question_that_waited_when_answers_were_stopped_is_told_where_help_is(
    clinic: Clinic, admin: httpx.Client
) -> None:
    job_id = clinic.ask(UNKNOWN_CRISIS)
    stop(admin)
    job = clinic.client.get(f"/v1/jobs/{job_id}").json()
    assert job["error"]["code"] == "answers-stopped"
    assert job["error"]["detail"].endswith(f" {clinic.api.gateway.help_line}")
    talk = clinic.client.get(f"/v1/conversations/{job['conversation_id']}").json()
    assert talk["job"]["error"] == job["error"]


def test_regenerating_is_refused_too(clinic: Clinic, admin: httpx.Client) -> None:
    clinic.engine.script += [SAFE + REFERRAL]
    job = clinic.answered(clinic.ask())
    stop(admin)
    again = clinic.client.post(f"/v1/conversations/{job.conversation_id}/regenerate")
    assert (again.status_code, again.json()["type"]) == (503, "urn:medichat:problem:answers-stopped")


def test_an_answer_under_way_ends_and_says_why(clinic: Clinic, admin: httpx.Client) -> None:
    clinic.engine.script += [SAFE + REFERRAL]
    clinic.engine.on_submit = lambda: stop(admin)
    job = clinic.answered(clinic.ask())
    assert (job.state, job.error) == (State.FAILED, "answers-stopped")
    assert "stopped all answers" in str(job.error_detail)
    assert told(clinic, job.id) == ""
    assert clinic.engine.cancelled == [f"{job.id}:1"]


def test_an_answer_half_written_ends_and_keeps_what_was_shown(clinic: Clinic, admin: httpx.Client) -> None:
    clinic.engine.script += [Begun(SAFE + "It may")]
    job_id = clinic.ask()
    worker = threading.Thread(target=clinic.worker.answer_next)
    worker.start()
    wait_until(lambda: told(clinic, job_id) == SAFE.strip(), 10, "for the first sentence")
    stop(admin)
    worker.join(timeout=10)
    assert not worker.is_alive()
    job = clinic.job(job_id)
    assert (job.state, job.error) == (State.FAILED, "answers-stopped")
    assert told(clinic, job_id) == SAFE.strip()


def test_questions_that_wait_fail_at_once_and_say_why(clinic: Clinic, admin: httpx.Client) -> None:
    waiting = [clinic.ask(), clinic.ask()]
    assert stop(admin)["failed"] == 2
    for job_id in waiting:
        job = clinic.job(job_id)
        assert (job.state, job.error) == (State.FAILED, "answers-stopped")
        assert clinic.events(job_id) == [EventKind.SUBMITTED, EventKind.FAILED]
    assert len(clinic.api.audit("answer.failed")) == 2
    assert clinic.worker.answer_next() is False


def test_a_question_that_slipped_in_is_failed_by_the_worker(clinic: Clinic, admin: httpx.Client) -> None:
    stop(admin)
    stopped = clinic.api.gateway.guards.now
    clinic.api.judge_with(Standing(guard=stopped.guard))
    job_id = clinic.ask()
    clinic.api.judge_with(stopped)
    job = clinic.answered(job_id)
    assert (job.state, job.error) == (State.FAILED, "answers-stopped")
    assert clinic.engine.requests == []


def test_answers_are_given_again_once_they_are_started(clinic: Clinic, admin: httpx.Client) -> None:
    stop(admin)
    assert admin.post("/v1/guard/start").json()["stopped"] is False
    clinic.engine.script += [SAFE + REFERRAL]
    assert clinic.answered(ask_async(clinic.client)["id"]).state is State.SUCCEEDED


def test_a_worker_that_has_not_heard_of_the_start_yet_does_not_fail_a_new_question(
    clinic: Clinic, admin: httpx.Client
) -> None:
    stop(admin)
    behind = LiveGuard(clinic.api.gateway.database)
    clinic.worker._tools = replace(clinic.worker._tools, guards=behind)
    assert behind.now.stopped
    admin.post("/v1/guard/start")
    clinic.engine.script += [SAFE + REFERRAL]
    assert clinic.answered(clinic.ask()).state is State.SUCCEEDED


def test_the_switch_is_audited_without_the_words_and_turned_once(clinic: Clinic, admin: httpx.Client) -> None:
    stop(admin)
    assert admin.post("/v1/guard/stop", json={"reason": "Again."}).status_code == 409
    assert admin.get("/v1/guard").json()["switch"]["reason"] == "Zebrafinch gives wrong doses."
    admin.post("/v1/guard/start")
    assert admin.post("/v1/guard/start").status_code == 409
    assert len(clinic.api.audit("answers.stopped")) == len(clinic.api.audit("answers.started")) == 1
    assert not any(b"ebrafinch" in event.canonical_bytes for event in clinic.api.audit())


# -- training


def test_a_dataset_is_checked_under_the_policy_that_counts_when_the_check_begins(
    clinic: Clinic, admin: httpx.Client
) -> None:
    version = add_version(admin, ignore="[dosing]")
    dataset_id = uploaded(admin)
    assert load_task(clinic.api.settings, dataset_id, "a").guard.policy_version == PACKAGED
    activate(admin, version)
    assert load_task(clinic.api.settings, dataset_id, "a").guard.policy_version == version
