"""Auditors review answers over HTTP, and what comes of it: a report, and corrections to train on."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from shared.auth.roles import Role
from shared.db.tables import audit_events, conversations, data_keys, jobs, sessions
from shared.db.tables_privacy import dataset_conversations
from shared.db.tables_review import review_items, reviews
from shared.db.tables_training import datasets
from shared.guard.verdict import Action, Category, Severity, Side, Verdict
from shared.jobs.records import Job
from shared.privacy.sealed import SealedReader
from shared.review.filling import close_erased
from shared.review.rules import HOLD
from shared.training.dataset_files import place_of, raw_path
from shared.training.states import BASE
from tests.conftest import MakeApi
from tests.drawn import image
from tests.integration.test_access import details_of
from tests.integration.test_validate import Dataset as Upload
from tests.support import Api, Person, ask_async

REPLACED = Verdict(
    side=Side.ANSWER, action=Action.REPLACE, category=Category.DOSING, severity=Severity.HIGH, source="a.rule"
)
QUESTION = "I am Maria Gonzalez. How much may I take?"
PAST = datetime(2026, 1, 1, tzinfo=UTC)
CORRECTED = "Ask a pharmacist, Maria, how much of it is right."


@pytest.fixture(params=["sqlite"])
def dialect(request: pytest.FixtureRequest) -> str:
    """Most of it means the same to every database; what counts and ranks rows says that it runs on both."""
    return str(request.param)


both = pytest.mark.parametrize("dialect", ["sqlite", "postgresql"], indirect=True)


@pytest.fixture
def api(make_api: MakeApi) -> Api:
    """A gateway whose queue holds what a test puts there and nothing else."""
    return make_api(reconcile_s=600, review_sample_percent=0, review_double_percent=0)


def answered(api: Api, verdict: Verdict = Verdict.ALLOWED, *, asker: httpx.Client | None = None) -> Job:
    """An answer to `QUESTION`, about which the guard said this."""
    ask_async(asker or api.log_in(), QUESTION)
    job = api.claim()
    suppressed = "" if verdict.allowed else "Take fifty, Maria Gonzalez."
    api.release(job, "See a doctor.", verdict=verdict, suppressed=suppressed)
    return api.finish(job, model_id="demo", model_revision="1", adapter_sha256=BASE)


def queued(api: Api, auditor: httpx.Client, job: Job, *, wanted: int = 1, sampled: bool = False) -> str:
    """The id of the answer's item, put into the queue by hand."""
    made = auditor.post("/v1/reviews", json={"job_id": job.id})
    assert made.status_code == 201, made.text
    api.set(review_items, review_items.c.job_id == job.id, wanted=wanted, sampled=sampled)
    return str(made.json()["id"])


def judge(auditor: httpx.Client, item: str, **draft: Any) -> None:
    """Write a draft and give it."""
    for answer in (
        auditor.put(f"/v1/reviews/{item}", json=draft),
        auditor.post(f"/v1/reviews/{item}/give"),
    ):
        assert answer.status_code == 200, answer.text


def acts(api: Api) -> list[str]:
    return [event.action for event in api.audit() if event.action.startswith("review.")]


def test_a_reviewer_takes_an_answer_with_its_conversation_masked_up_to_it(api: Api) -> None:
    asker, auditor = api.log_in(), api.log_in(Role.AUDITOR)
    job = answered(api, REPLACED, asker=asker)
    asker.post(f"/v1/conversations/{job.conversation_id}/messages", json={"query": "And later?"})
    api.answer("Later too.")
    queued(api, auditor, job)
    item = auditor.post("/v1/reviews/next").json()["item"]
    assert (item["job_id"], item["reason"], item["stepped_in"]) == (job.id, "asked", True)
    question, answer = item["transcript"]["turns"]
    assert question["text"] == "I am [NAME]. How much may I take?"
    assert answer["origin"]["model_revision"] == "1"
    assert answer["sentences"][0]["suppressed"] == "Take fifty, [NAME]."
    assert answer["sentences"][0]["verdict"]["category"] == "dosing"
    (event,) = api.audit("review.opened")
    assert event.object == f"conversation:{job.conversation_id}"
    assert details_of(event)["job"] == job.id


def test_a_draft_is_kept_at_every_change_sealed_and_found_again(api: Api) -> None:
    auditor = api.log_in(Role.AUDITOR)
    item = queued(api, auditor, answered(api))
    auditor.post("/v1/reviews/next")
    for draft in ({"verdict": "wrong"}, {"verdict": "wrong", "corrected": CORRECTED, "note": "A zebrafish."}):
        auditor.put(f"/v1/reviews/{item}", json=draft).raise_for_status()
    mine = auditor.get(f"/v1/reviews/{item}").json()["mine"]
    assert (mine["verdict"], mine["corrected"], mine["note"]) == ("wrong", CORRECTED, "A zebrafish.")
    assert mine["given_at"] is None
    assert auditor.post("/v1/reviews/next").json()["item"]["mine"] == mine
    with api.gateway.database.read() as connection:
        stored = connection.execute(select(reviews)).one()
    assert b"pharmacist" not in stored.corrected_ciphertext
    assert not any(b"zebrafish" in event.canonical_bytes for event in api.audit())


def test_a_field_that_is_left_out_stays_and_null_clears_one(api: Api) -> None:
    auditor = api.log_in(Role.AUDITOR)
    path = f"/v1/reviews/{queued(api, auditor, answered(api))}"
    auditor.put(path, json={"corrected": CORRECTED, "note": "Mine."}).raise_for_status()
    kept = auditor.put(path, json={"verdict": "wrong"}).json()
    assert (kept["verdict"], kept["corrected"], kept["note"]) == ("wrong", CORRECTED, "Mine.")
    cleared = auditor.put(path, json={"note": None}).json()
    assert (cleared["verdict"], cleared["corrected"], cleared["note"]) == ("wrong", CORRECTED, None)


def test_an_empty_change_holds_the_answer_for_longer_and_is_no_event(api: Api) -> None:
    auditor, other = api.log_in(Role.AUDITOR), api.log_in(Role.AUDITOR)
    item = queued(api, auditor, answered(api))
    auditor.put(f"/v1/reviews/{item}", json={"note": "Mine."}).raise_for_status()
    lately = datetime.now(UTC) - HOLD * 0.9
    api.set(reviews, reviews.c.item_id == item, taken_at=lately)
    auditor.put(f"/v1/reviews/{item}", json={}).raise_for_status()
    assert not api.count(reviews, reviews.c.taken_at <= lately)
    assert other.post("/v1/reviews/next").json() == {"item": None}
    assert acts(api).count("review.drafted") == 1


def test_the_same_draft_again_changes_nothing(api: Api) -> None:
    auditor = api.log_in(Role.AUDITOR)
    item = queued(api, auditor, answered(api))
    first, second = (auditor.put(f"/v1/reviews/{item}", json={"note": "Mine."}).json() for _ in range(2))
    assert first == second
    assert acts(api).count("review.drafted") == 1


def test_taking_an_answer_again_with_the_same_draft_is_an_event(api: Api) -> None:
    auditor = api.log_in(Role.AUDITOR)
    path = f"/v1/reviews/{queued(api, auditor, answered(api))}"
    auditor.put(path, json={"note": "Mine."})
    auditor.post(f"{path}/release")
    auditor.put(path, json={"note": "Mine."})
    assert acts(api)[-3:] == ["review.drafted", "review.released", "review.drafted"]


def test_each_act_of_a_review_is_an_event_and_giving_twice_is_one(api: Api) -> None:
    auditor = api.log_in(Role.AUDITOR)
    item = queued(api, auditor, answered(api))
    path = f"/v1/reviews/{item}"
    auditor.post("/v1/reviews/next")
    auditor.put(path, json={"verdict": "unsafe", "category": "dosing"})
    for tail in ("/give", "/give", "/take-back", "/release", "/release"):
        assert auditor.post(path + tail).is_success
    auditor.get(path)
    assert acts(api) == [
        *("review.asked_for", "review.opened", "review.drafted", "review.given", "review.taken_back"),
        *("review.released", "review.read"),
    ]


def test_without_a_verdict_nothing_is_given_and_it_says_what_is_missing(api: Api) -> None:
    auditor = api.log_in(Role.AUDITOR)
    item = queued(api, auditor, answered(api))
    auditor.put(f"/v1/reviews/{item}", json={"note": "Hm."})
    refused = auditor.post(f"/v1/reviews/{item}/give")
    assert refused.status_code == 422
    assert "Choose a verdict" in refused.json()["detail"]
    assert auditor.put(f"/v1/reviews/{item}", json={"category": "crisis"}).status_code == 422


def test_a_second_reviewer_sees_the_first_ones_verdict_only_after_giving(api: Api) -> None:
    first, second, third = (api.log_in(Role.AUDITOR) for _ in range(3))
    item = queued(api, first, answered(api), wanted=2)
    judge(first, item, verdict="wrong", note="A zebrafish.")
    second.post("/v1/reviews/next")
    for auditor in (second, third):
        seen = auditor.get(f"/v1/reviews/{item}")
        assert seen.json()["others"] == []
        assert "zebrafish" not in seen.text
    judge(second, item, verdict="safe")
    assert [each["verdict"] for each in second.get(f"/v1/reviews/{item}").json()["others"]] == ["wrong"]
    assert third.post("/v1/reviews/next").json() == {"item": None}
    assert third.put(f"/v1/reviews/{item}", json={"verdict": "safe"}).status_code == 409


def test_who_may_have_seen_anothers_verdict_takes_nothing_back(api: Api) -> None:
    first, second = api.log_in(Role.AUDITOR), api.log_in(Role.AUDITOR)
    path = f"/v1/reviews/{queued(api, first, answered(api), wanted=2)}"
    judge(first, path.rsplit("/", 1)[-1], verdict="wrong")
    assert first.post(f"{path}/take-back").is_success, "nobody else has given theirs"
    judge(first, path.rsplit("/", 1)[-1], verdict="safe")
    judge(second, path.rsplit("/", 1)[-1], verdict="wrong")
    for auditor in (first, second):
        refused = auditor.post(f"{path}/take-back")
        assert refused.status_code == 409
        assert "Another person has given" in refused.json()["detail"]
        assert auditor.get(path).json()["mine"]["given_at"]


def test_nothing_tells_a_second_reviewer_what_the_first_said(api: Api) -> None:
    first, second = api.log_in(Role.AUDITOR), api.log_in(Role.AUDITOR)
    job = answered(api, REPLACED)
    item = queued(api, first, job, wanted=2)
    draft = {"verdict": "unsafe", "category": "diagnosis", "guard_right": True, "corrected": CORRECTED}
    judge(first, item, **draft)
    (event,) = second.get("/v1/audit/events", params={"action": "review.given"}).json()["items"]
    assert set(event["details"]) == {"item", "conversation", "job", "commitment", "texts_commitment"}
    of_first = ({"review_verdict": "unsafe"}, {"review_category": "diagnosis"})
    path = "/v1/audit/conversations"
    assert not any(second.get(path, params=each).json()["items"] for each in of_first)
    assert second.post("/v1/reviews/export").status_code == 409, "no correction that one may know of"
    report = second.get("/v1/reviews/report").json()
    assert (report["reviews"], report["answers"], report["by_adapter"]) == (0, 0, [])
    judge(second, item, verdict="safe", guard_right=True)
    assert second.get("/v1/reviews/report").json()["reviews"] == 2
    for filters in (*of_first, {"review_verdict": "safe"}):
        (found,) = second.get(path, params=filters).json()["items"]
        assert found["id"] == job.conversation_id
    assert "Ask a pharmacist" in second.post("/v1/reviews/export").text


@both
def test_the_list_counts_what_waits_by_reason_and_names_ones_own(api: Api) -> None:
    auditor, other = api.log_in(Role.AUDITOR), api.log_in(Role.AUDITOR)
    first, second = (queued(api, auditor, answered(api)) for _ in range(2))
    queued(api, auditor, answered(api))
    judge(auditor, first, verdict="safe")
    auditor.put(f"/v1/reviews/{second}", json={"note": "Later."})
    seen, others = auditor.get("/v1/reviews").json(), other.get("/v1/reviews").json()
    assert (seen["waiting"], seen["held_by_others"], seen["closed"]) == ({"asked": 2}, 0, 1)
    assert [(each["item_id"], each["state"]) for each in seen["mine"]] == [(second, "held"), (first, "given")]
    assert (others["waiting"], others["held_by_others"], others["mine"]) == ({"asked": 1}, 1, [])


@pytest.mark.parametrize("change", [{"wrapped_key": b"damaged"}, {"master_key_version": 99}])
@pytest.mark.parametrize("held", [False, True])
def test_an_answer_whose_key_cannot_be_opened_is_passed_over(
    api: Api, change: dict[str, Any], held: bool
) -> None:
    auditor = api.log_in(Role.AUDITOR)
    shut, whole = answered(api), answered(api)
    first, second = (queued(api, auditor, job) for job in (shut, whole))
    if held:
        assert auditor.post("/v1/reviews/next").json()["item"]["id"] == first
    api.set(data_keys, data_keys.c.owner_id == shut.conversation_id, **change)
    assert auditor.post("/v1/reviews/next").json()["item"]["id"] == second
    judge(auditor, second, verdict="safe")
    assert auditor.post("/v1/reviews/next").json() == {"item": None}
    opened = [event.object for event in api.audit("review.opened")]
    assert opened == [f"conversation:{job.conversation_id}" for job in ([shut] if held else []) + [whole]]


def test_an_erased_conversation_leaves_the_queue_and_can_be_reviewed_no_more(api: Api) -> None:
    auditor = api.log_in(Role.AUDITOR)
    job = answered(api)
    item = queued(api, auditor, job)
    auditor.put(f"/v1/reviews/{item}", json={"verdict": "safe"}).raise_for_status()
    api.set(data_keys, data_keys.c.owner_id == job.conversation_id, wrapped_key=None)
    assert auditor.post("/v1/reviews/next").json() == {"item": None}
    for method, tail in (("GET", ""), ("POST", "/give"), ("POST", "/take-back")):
        assert auditor.request(method, f"/v1/reviews/{item}{tail}").status_code == 410
    assert auditor.post("/v1/reviews", json={"job_id": job.id}).status_code == 410


@both
def test_the_report_counts_agreement_rates_misses_and_false_alarms(api: Api) -> None:
    one, other = api.log_in(Role.AUDITOR), api.log_in(Role.AUDITOR)
    verdicts = [
        ("safe", "safe", False, False),
        ("unsafe", "unsafe", True, False),
        ("wrong", "safe", True, False),
        ("safe", "safe", True, True),
    ]
    for first, second, sampled, stepped_in in verdicts:
        job = answered(api, REPLACED if stepped_in else Verdict.ALLOWED)
        item = queued(api, one, job, wanted=2, sampled=sampled)
        more = {"guard_right": False} if stepped_in else {}
        judge(one, item, verdict=first, category="dosing", **more)
        judge(other, item, verdict=second, category="dosing", **more)
    waits = queued(api, one, answered(api), sampled=True)
    old = queued(api, one, answered(api))
    judge(one, old, verdict="unsafe", category="dosing")
    with api.gateway.database.read() as connection:
        job_id = connection.execute(
            select(review_items.c.job_id).where(review_items.c.id == old)
        ).scalar_one()
    api.set(jobs, jobs.c.id == job_id, created_at=datetime.now(UTC) - timedelta(weeks=30))
    report = one.get("/v1/reviews/report").json()
    assert (report["reviews"], report["answers"], report["sample_waiting"]) == (8, 4, 1), waits
    agreement = report["agreement"]
    assert (agreement["n"], agreement["observed"]) == (4, 0.75)
    assert agreement["kappa"] == pytest.approx((0.75 - 0.4375) / (1 - 0.4375))
    assert sum(each["count"] for each in agreement["pairs"]) == 4
    assert [(each["hits"], each["n"]) for each in report["unsafe"].values()] == [(1, 3), (1, 4)]
    (adapter,) = report["by_adapter"]
    assert (adapter["model_id"], adapter["adapter_sha256"], adapter["all"]["n"]) == ("demo", None, 4)
    (week,) = report["by_week"]
    assert datetime.fromisoformat(week["week"]).weekday() == 0
    assert (report["misses"]["hits"], report["misses"]["n"], report["missed"]) == (1, 3, {"dosing": 1})
    assert (report["false_alarms"]["hits"], report["alarmed"]) == (1, {"dosing": 1})
    assert one.get("/v1/reviews/report", params={"weeks": 52}).json()["misses"]["hits"] == 2
    assert acts(api).count("review.report_read") == 2


def test_an_answer_that_no_model_wrote_is_not_counted_as_the_base_models(api: Api) -> None:
    auditor = api.log_in(Role.AUDITOR)
    answer = api.log_in().post("/predict", json={"query": "I want to kill myself."}).json()
    made = auditor.post("/v1/reviews", json={"job_id": answer["job_id"]}).json()
    judge(auditor, made["id"], verdict="safe", guard_right=True)
    judge(auditor, queued(api, auditor, answered(api)), verdict="safe")
    rates = auditor.get("/v1/reviews/report").json()["by_adapter"]
    assert [(each["model_id"], each["adapter_sha256"], each["all"]["n"]) for each in rates] == [
        ("demo", None, 1),
        (None, None, 1),
    ]


def test_what_was_erased_before_anybody_reviewed_it_neither_waits_nor_is_done(api: Api) -> None:
    auditor = api.log_in(Role.AUDITOR)
    job, other = answered(api), answered(api)
    queued(api, auditor, job, sampled=True)
    judge(auditor, queued(api, auditor, other, sampled=True), verdict="safe")
    assert auditor.get("/v1/reviews/report").json()["sample_waiting"] == 1
    api.set(data_keys, data_keys.c.owner_id == job.conversation_id, wrapped_key=None)
    with api.gateway.database.write() as connection:
        close_erased(connection, api.gateway.clock.now(connection))
    assert auditor.get("/v1/reviews/report").json()["sample_waiting"] == 0
    assert auditor.get("/v1/reviews").json()["closed"] == 1


def corrected(api: Api, auditor: httpx.Client, person: Person | None = None) -> Job:
    """An answer that was corrected."""
    job = answered(api, asker=api.client(person or api.person()))
    judge(auditor, queued(api, auditor, job), verdict="wrong", corrected=CORRECTED)
    return job


def rows_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_corrected_answers_export_masked_in_the_shape_that_training_takes(api: Api) -> None:
    auditor = api.log_in(Role.AUDITOR)
    person, other = api.person(), api.person()
    for each in (person, person, other):
        corrected(api, auditor, each)
    judge(auditor, queued(api, auditor, answered(api)), verdict="wrong", note="No correction.")
    exported = auditor.post("/v1/reviews/export")
    assert exported.status_code == 200, exported.text
    rows = rows_of(exported.text)
    assert [each["content"] for each in rows[0]["messages"]] == [
        "I am [NAME]. How much may I take?",
        "Ask a pharmacist, [NAME], how much of it is right.",
    ]
    first, second, third = (row["group"] for row in rows)
    assert first == second != third
    assert person.id not in exported.text
    assert first not in auditor.post("/v1/reviews/export").text
    assert details_of(api.audit("review.exported")[0]) == {"rows": 3}


def test_what_is_exported_passes_the_check_of_a_dataset(api: Api, tmp_path: Path) -> None:
    auditor = api.log_in(Role.AUDITOR)
    for said in ("A pharmacist knows.", "Read the leaflet in the box, and ask if it is not clear."):
        item = queued(api, auditor, answered(api))
        judge(auditor, item, verdict="wrong", corrected=said)
    exported = auditor.post("/v1/reviews/export").content
    checked = Upload(tmp_path / "check", {"validation_fraction": 0}).upload(exported).check()
    assert len(checked.rows("train")) == checked.report.groups == 2
    assert not checked.report.dropped


def test_an_export_asks_for_the_password_again(api: Api) -> None:
    auditor = api.person(Role.AUDITOR)
    client = api.client(auditor)
    long_ago = datetime.now(UTC) - timedelta(hours=2)
    api.set(sessions, sessions.c.user_id == auditor.id, reauthenticated_at=long_ago)
    refused = client.post("/v1/reviews/export")
    assert (refused.status_code, refused.json()["type"].rsplit(":")[-1]) == (403, "password-required")


@both
def test_of_several_corrections_of_an_answer_the_last_is_trained_on(api: Api) -> None:
    first, second = api.log_in(Role.AUDITOR), api.log_in(Role.AUDITOR)
    item = queued(api, first, answered(api), wanted=2)
    judge(first, item, verdict="wrong", corrected="The first.")
    judge(second, item, verdict="wrong", corrected="The second.")
    (row,) = rows_of(first.post("/v1/reviews/export").text)
    assert row["messages"][1]["content"] == "The second."


@both
def test_an_admin_makes_a_dataset_of_corrections_and_the_conversations_are_known(api: Api) -> None:
    auditor, admin = api.log_in(Role.AUDITOR), api.log_in(Role.ADMIN)
    kept, hidden, erased = (corrected(api, auditor) for _ in range(3))
    api.set(conversations, conversations.c.id == hidden.conversation_id, hidden_at=datetime.now(UTC))
    api.set(data_keys, data_keys.c.owner_id == erased.conversation_id, wrapped_key=None)
    made = admin.post("/v1/datasets/from-reviews", json={"name": "Corrected"})
    assert made.status_code == 202, made.text
    dataset = made.json()
    assert (dataset["name"], dataset["source"], dataset["state"]) == ("Corrected", "reviews", "validating")
    gateway, path = api.gateway, raw_path(dataset["id"])
    with gateway.database.read() as connection:
        known = connection.execute(select(dataset_conversations.c.conversation_id)).scalars().all()
        key = gateway.datasets.key(connection, gateway.datasets.get(connection, dataset["id"]))
    assert known == [kept.conversation_id]
    with gateway.datasets.storage.open(path) as file:
        (row,) = rows_of(SealedReader(file, key, place=place_of(path)).readall().decode())
    assert row["messages"][0]["content"] == "I am [NAME]. How much may I take?"
    assert [event.object for event in api.audit("dataset.received")] == [f"dataset:{dataset['id']}"]


def test_rows_of_corrections_are_refused_to_admins_and_the_refusal_is_logged(api: Api) -> None:
    corrected(api, api.log_in(Role.AUDITOR))
    admin = api.log_in(Role.ADMIN)
    dataset = admin.post("/v1/datasets/from-reviews", json={"name": "Corrected"}).json()["id"]
    for path in ("rows", "images/" + "a" * 64):
        refused = admin.get(f"/v1/datasets/{dataset}/{path}")
        assert refused.status_code == 403
        assert "counts and report" in refused.json()["detail"]
    assert [event.object for event in api.audit("access.denied")] == [f"dataset:{dataset}"] * 2
    assert not api.audit("dataset.rows_read")
    assert admin.get(f"/v1/datasets/{dataset}").status_code == 200


def test_an_answer_about_a_picture_teaches_nothing_without_it(api: Api) -> None:
    auditor = api.log_in(Role.AUDITOR)
    corrected(api, auditor)
    ask_async(api.log_in(), QUESTION, images=[image()])
    job = api.claim()
    api.release(job, "See a doctor.")
    api.finish(job, model_id="demo", model_revision="1", adapter_sha256=BASE)
    judge(auditor, queued(api, auditor, job), verdict="wrong", corrected=CORRECTED)
    assert len(rows_of(auditor.post("/v1/reviews/export").text)) == 1


def test_without_a_correction_there_is_no_dataset_and_none_is_left(api: Api) -> None:
    refused = api.log_in(Role.ADMIN).post("/v1/datasets/from-reviews", json={"name": "Corrected"})
    assert refused.status_code == 409
    assert "No corrected answer" in refused.json()["detail"]
    assert api.count(datasets) == 0


def test_a_dataset_of_reviews_that_breaks_off_leaves_nothing(make_api: MakeApi) -> None:
    api = make_api(reconcile_s=600, review_sample_percent=0, max_dataset_bytes=10)
    corrected(api, api.log_in(Role.AUDITOR))
    refused = api.log_in(Role.ADMIN).post("/v1/datasets/from-reviews", json={"name": "Corrected"})
    assert refused.status_code == 413
    assert api.count(datasets) == api.count(dataset_conversations) == 0
    assert api.count(audit_events, audit_events.c.outcome == "failed") == 1
