"""Training runs over HTTP: what can be asked for, what is refused, and what is told."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select

from shared.auth.roles import Role
from shared.db.tables import jobs
from shared.db.tables_training import training_runs
from shared.jobs.lifecycle import EventKind, Kind
from shared.training.progress import StepReport, record_steps
from shared.training.runs import RunStore
from shared.training.states import DatasetState
from tests.conftest import MakeApi
from tests.support import Api, RedisServer, wait_until
from tests.training import School, add_dataset, claim_run
from tests.uploads import check, upload


@pytest.fixture
def dialect() -> str:
    """What is asked and told does not depend on the database; the tests of the worker run on both."""
    return "sqlite"


@pytest.fixture
def school(api: Api) -> School:
    return School(api)


def wanted(school: School, **changes: Any) -> dict[str, Any]:
    return {"name": "asthma", "dataset_id": school.dataset_id, "preset": "quick", **changes}


def test_every_knob_of_every_preset_says_what_it_costs(school: School) -> None:
    recipes = school.client.get("/v1/recipes").json()
    assert [preset["name"] for preset in recipes["presets"]] == ["quick", "qlora", "lora-bf16", "multi-gpu"]
    assert all(knob["doc"] for knob in recipes["knobs"])
    for preset in recipes["presets"]:
        assert {knob["name"] for knob in recipes["knobs"]} <= set(preset["recipe"])


def test_a_submitted_run_is_queued_under_the_recipe_asked_for(school: School) -> None:
    response = school.client.post("/v1/training-runs", json=wanted(school, changes={"r": 8}))
    assert response.status_code == 202
    run = response.json()
    assert response.headers["Location"] == f"/v1/training-runs/{run['id']}"
    assert (run["state"], run["percent"], run["step"], run["eta_s"]) == ("queued", 0.0, 0, None)
    assert (run["recipe"]["r"], run["base_model"], run["dataset_name"]) == (8, "demo", "questions")
    assert run["recipe"]["data"]["train"] == f"medichat:{school.dataset_id}"
    assert school.run(run["id"]) == run
    (event,) = school.api.audit("training.submitted")
    assert (event.object, event.actor) == (f"training_run:{run['id']}", school.admin.id)
    assert school.api.count(jobs, jobs.c.kind == "train", jobs.c.max_attempts == 5) == 1


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"r": 0}, "r:"),
        ({"nonsense": 1}, "no knob"),
        ({"data": "/etc/passwd"}, "no knob"),
        ({"dora": True, "quantisation": "nf4"}, "dora"),
    ],
)
def test_a_recipe_that_cannot_be_used_is_refused_by_name(
    school: School, changes: dict[str, Any], named: str
) -> None:
    response = school.client.post("/v1/training-runs", json=wanted(school, changes=changes))
    assert response.status_code == 422
    assert named in response.json()["detail"]
    assert school.api.count(training_runs) == 0


def test_the_demo_models_recipe_is_neither_default_nor_taken_as_it_is_for_another_model(
    make_api: MakeApi,
) -> None:
    school = School(make_api(model="medgemma-4b"))
    assert school.client.get("/v1/recipes").json()["default"] == "lora-bf16"
    wish = {name: value for name, value in wanted(school).items() if name != "preset"}
    recipe = school.client.post("/v1/training-runs", json=wish).json()["recipe"]
    assert (recipe["preset"], recipe["model"], recipe["learning_rate"]) == ("lora-bf16", "medgemma-4b", 2e-4)
    refused = school.client.post("/v1/training-runs", json=wanted(school))
    assert refused.status_code == 422
    assert "choose qlora or lora-bf16, or set learning_rate" in refused.json()["detail"]
    run = school.submit(changes={"learning_rate": 2e-4})
    assert (run["recipe"]["preset"], run["recipe"]["learning_rate"]) == ("quick", 2e-4)


@pytest.mark.parametrize(("longest", "told"), [(1025, True), (1024, False), (5000, True)])
def test_a_run_is_told_of_rows_that_its_recipe_is_too_short_for(
    school: School, longest: int, told: bool
) -> None:
    upload(school.client)
    dataset, _ = check(school.api, report={"longest_tokens": longest, "max_tokens": 2048})
    response = school.client.post("/v1/training-runs", json=wanted(school, dataset_id=dataset.id))
    assert response.status_code == 202
    expected = f"takes about {min(longest, 2048):,} tokens, and max_tokens is 1,024"
    assert [expected in note["text"] for note in response.json()["notes"]] == ([True] if told else [])


def test_a_run_is_no_job_of_the_admin_who_began_it_once_they_are_a_user(school: School) -> None:
    api, run_id = school.api, school.submit()["id"]
    with api.gateway.database.read() as connection:
        job_id = connection.execute(select(jobs.c.id).where(jobs.c.kind == Kind.TRAIN)).scalar_one()
    admin = api.log_in(Role.ADMIN)
    admin.patch(f"/v1/users/{school.admin.id}", json={"role": "user"}).raise_for_status()
    person, path = api.client(school.admin), f"/v1/jobs/{job_id}"
    assert person.get("/v1/jobs").json()["items"] == []
    asked = [person.get(path), person.post(f"{path}/cancel"), person.get(f"{path}/events")]
    assert [answer.status_code for answer in asked] == [404, 404, 404]
    assert admin.get(f"/v1/training-runs/{run_id}").json()["state"] == "queued"
    assert not api.audit("job.cancel_asked")


def test_a_late_look_at_the_held_out_rows_keeps_the_steps_loss(school: School) -> None:
    run_id, gateway = school.submit()["id"], school.api.gateway
    with gateway.database.write() as connection:
        now = gateway.clock.now(connection)
        trained = [StepReport(step, now, {"loss": 1.0}) for step in (1, 2, 3)]
        record_steps(connection, run_id, trained, starting=True)
        record_steps(connection, run_id, [StepReport(2, now, {"eval_loss": 2.0})], starting=True)
    found = [(step["step"], step["loss"], step["eval_loss"]) for step in school.steps(run_id)]
    assert found == [(1, 1.0, None), (2, 1.0, 2.0)]


def test_a_step_that_is_told_of_again_is_as_of_then_and_a_look_changes_no_time(school: School) -> None:
    run_id, gateway = school.submit()["id"], school.api.gateway
    moments = [datetime(2026, 1, 1, 12, minute, tzinfo=UTC) for minute in range(3)]
    told = ({"loss": 1.0}, {"loss": 0.9}, {"eval_loss": 2.0})
    with gateway.database.write() as connection:
        for at, figures in zip(moments, told, strict=True):
            record_steps(connection, run_id, [StepReport(1, at, figures)], starting=False)
    (step,) = school.steps(run_id)
    assert (step["loss"], step["eval_loss"]) == (0.9, 2.0)
    assert datetime.fromisoformat(step["at"]) == moments[1]


def test_steps_that_were_told_of_at_once_say_nothing_of_the_time_left(school: School) -> None:
    run_id, gateway = school.submit()["id"], school.api.gateway
    claim_run(school.api)
    school.api.set(training_runs, training_runs.c.id == run_id, total_steps=30)
    told = datetime(2026, 1, 1, tzinfo=UTC)
    with gateway.database.write() as connection:
        at_once = [StepReport(step, told, {"loss": 1.0}) for step in range(1, 26)]
        record_steps(connection, run_id, at_once, starting=True)
    assert school.run(run_id)["eta_s"] is None
    with gateway.database.write() as connection:
        next_step = StepReport(26, told + timedelta(seconds=10), {"loss": 1.0})
        record_steps(connection, run_id, [next_step], starting=True)
    assert school.run(run_id)["eta_s"] == 40


def test_looks_at_the_held_out_rows_are_in_the_time_left(school: School) -> None:
    run_id, gateway = school.submit(changes={"eval_steps": 25})["id"], school.api.gateway
    claim_run(school.api)
    school.api.set(training_runs, training_runs.c.id == run_id, total_steps=110)
    at, told = datetime(2026, 1, 1, tzinfo=UTC), []
    for step in range(1, 49):
        told.append(StepReport(step, at, {"loss": 1.0} | ({"eval_loss": 2.0} if step == 25 else {})))
        at += timedelta(seconds=10 + (300 if step == 25 else 0))
    with gateway.database.write() as connection:
        record_steps(connection, run_id, told, starting=True)
    # after steps 50, 75 and 100, and after the last
    assert school.run(run_id)["eta_s"] == 62 * 10 + 4 * 300


def test_where_every_step_has_a_look_the_time_left_is_by_their_pauses(school: School) -> None:
    run_id, gateway = school.submit(changes={"eval_steps": 1})["id"], school.api.gateway
    claim_run(school.api)
    school.api.set(training_runs, training_runs.c.id == run_id, total_steps=30)
    at = datetime(2026, 1, 1, tzinfo=UTC)
    told = [
        StepReport(step, at + timedelta(seconds=40 * step), {"loss": 1.0, "eval_loss": 2.0})
        for step in range(1, 11)
    ]
    with gateway.database.write() as connection:
        record_steps(connection, run_id, told, starting=True)
    assert school.run(run_id)["eta_s"] == 20 * 40


@pytest.mark.parametrize("after", ["-1", "x", "1.5", str(2**31)])
def test_a_step_that_cannot_be_is_refused_by_name(school: School, after: str) -> None:
    place = f"/v1/training-runs/{school.submit()['id']}/steps"
    response = school.client.get(place, params={"after": after})
    assert response.status_code == 422
    assert [error["field"] for error in response.json()["errors"]] == ["query.after"]


def test_an_unknown_preset_is_refused_with_those_that_there_are(school: School) -> None:
    response = school.client.post("/v1/training-runs", json=wanted(school, preset="fast"))
    assert response.status_code == 422
    assert "lora-bf16" in response.json()["detail"]


@pytest.mark.parametrize("state", [state for state in DatasetState if state is not DatasetState.READY])
def test_only_a_checked_dataset_is_trained_on(school: School, state: DatasetState) -> None:
    school.dataset_id = add_dataset(school.api, school.admin, state)
    assert school.client.post("/v1/training-runs", json=wanted(school)).status_code == 409


def test_a_dataset_in_use_is_not_hidden(school: School) -> None:
    run = school.submit()
    assert school.client.delete(f"/v1/datasets/{school.dataset_id}").status_code == 409
    school.cancel(run["id"])
    assert school.client.delete(f"/v1/datasets/{school.dataset_id}").status_code == 204
    assert school.client.post("/v1/training-runs", json=wanted(school)).status_code == 404


def test_the_same_wish_under_the_same_key_is_the_same_run(school: School) -> None:
    headers = {"Idempotency-Key": "once"}
    first, second = (
        school.client.post("/v1/training-runs", json=wanted(school), headers=headers) for _ in range(2)
    )
    assert second.json() == first.json()
    other = school.client.post("/v1/training-runs", json=wanted(school, name="other"), headers=headers)
    assert other.status_code == 422


def test_only_a_failed_run_is_started_again_and_the_log_says_so(school: School) -> None:
    headers = {"Idempotency-Key": "once"}
    run = school.client.post("/v1/training-runs", json=wanted(school), headers=headers).json()
    path = f"/v1/training-runs/{run['id']}/resume"
    assert school.client.post(path).status_code == 409
    job = school.api.claim(kind=Kind.TRAIN)
    school.api.finish(job, EventKind.FAILED, error="disk-full", error_detail="Free space.")
    assert school.resume(run["id"])["state"] == "queued"
    assert "Free space." in school.notes(run["id"])
    (event,) = school.api.audit("training.resumed")
    assert event.object == f"training_run:{run['id']}"
    assert school.client.post(path).status_code == 409
    again = school.client.post("/v1/training-runs", json=wanted(school), headers=headers).json()
    assert again["id"] == run["id"]


def test_a_run_whose_dataset_was_removed_is_not_started_again_and_that_is_said(school: School) -> None:
    run = school.submit()
    school.api.finish(claim_run(school.api), EventKind.FAILED, error="disk-full", error_detail="Free space.")
    assert school.client.delete(f"/v1/datasets/{school.dataset_id}").status_code == 204
    refused = school.client.post(f"/v1/training-runs/{run['id']}/resume")
    assert refused.status_code == 409
    assert "was removed" in refused.json()["detail"]
    assert "upload the file again" in refused.json()["detail"]


@pytest.mark.parametrize("dialect", ["postgresql"])  # writers of SQLite take turns
def test_a_run_that_two_cancel_at_the_same_moment_ends_once(make_api: MakeApi, dialect: str) -> None:
    school = School(make_api(reconcile_s=600))
    run, gateway = school.submit(), school.api.gateway
    with gateway.database.read() as connection:
        job_id = RunStore(gateway.jobs).get(connection, run["id"]).job.id
    with ThreadPoolExecutor(1) as pool:
        with gateway.database.write() as connection:
            assert gateway.jobs.cancel(connection, job_id) is not None
            other = pool.submit(school.cancel, run["id"])
            wait_until(school.api.waits_for_lock)
        assert other.result()["state"] == "cancelled"
    assert not school.api.audit("training.cancel_asked")
    assert not school.api.audit("train.cancelled")


def test_runs_are_listed_by_page_the_newest_first(school: School) -> None:
    ids = [school.submit(f"run {number}")["id"] for number in range(3)]
    first = school.client.get("/v1/training-runs", params={"limit": 2}).json()
    rest = school.client.get("/v1/training-runs", params={"cursor": first["next_cursor"]}).json()
    assert [run["id"] for run in first["items"] + rest["items"]] == ids[::-1]
    assert rest["next_cursor"] is None


def test_every_admin_sees_every_run(school: School) -> None:
    run = school.submit()
    other = school.api.log_in(Role.ADMIN)
    assert other.get(f"/v1/training-runs/{run['id']}").json()["id"] == run["id"]


def test_a_queue_has_an_end(make_api: Any) -> None:
    school = School(make_api(max_queued_jobs_per_user=1))
    school.submit()
    assert school.client.post("/v1/training-runs", json=wanted(school)).status_code == 429


def test_a_run_that_was_made_is_told_again_also_when_the_queue_is_full(make_api: Any) -> None:
    school, headers = School(make_api(max_queued_jobs_per_user=1)), {"Idempotency-Key": "once"}
    first, second = (
        school.client.post("/v1/training-runs", json=wanted(school), headers=headers) for _ in range(2)
    )
    assert (second.status_code, second.json()) == (202, first.json())


def test_without_redis_no_training_begins(make_api: Any, tmp_path: Any) -> None:
    redis = RedisServer(tmp_path).start()
    school = School(make_api(redis_url=redis.url))
    redis.kill()
    response = school.client.post("/v1/training-runs", json=wanted(school))
    assert response.status_code == 503
    assert school.api.count(training_runs) == 0
