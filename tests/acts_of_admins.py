"""What admins do with datasets, runs, adapters and the guard, each once, with the events that it leaves."""

import secrets
from typing import Any

from shared.auth.roles import Role
from shared.db.tables_training import datasets
from shared.jobs.lifecycle import EventKind
from tests.acts import Call, act, answered, call
from tests.acts_of_auditors import by_auditor
from tests.policies import activate, add_version, knobs
from tests.registry import GOOD, add_adapter, add_good_adapter
from tests.support import Api, Person
from tests.training import School, claim_run
from tests.uploads import ROWS, check, uploaded

ADAPTER = "adapter:{sha256}"
DATASET = "dataset:{dataset_id}"


def by_admin(api: Api, action: str, object: str | None = None, **request: Any) -> Call:
    """A call by a new admin that leaves one event."""
    return call(api.person(Role.ADMIN), (action, object), **request)


# -- datasets


def checked(api: Api, **how: Any) -> dict[str, str]:
    """The id of a dataset whose check has ended."""
    ids = {"dataset_id": uploaded(api.log_in(Role.ADMIN))}
    check(api, **how)
    return ids


@act("POST", "/v1/datasets")
def upload_dataset(api: Api) -> Call:
    params = {"name": "A set", "filename": "set.jsonl"}
    return by_admin(api, "dataset.received", "dataset:{id}", params=params, content=ROWS)


@act("POST", "/v1/datasets/import")
def import_dataset(api: Api) -> Call:
    body = {"source": "path", "location": "set.jsonl"}
    return by_admin(api, "dataset.received", "dataset:{id}", json=body)


@act("GET", "/v1/datasets/{dataset_id}")
def read_dataset(api: Api) -> Call:
    return by_admin(api, "dataset.report_read", DATASET, ids=checked(api))


@act("GET", "/v1/datasets/{dataset_id}/rows")
def read_rows(api: Api) -> Call:
    return by_admin(api, "dataset.rows_read", DATASET, ids=checked(api))


@act("GET", "/v1/datasets/{dataset_id}/images/{sha256}")
def read_image(api: Api) -> Call:
    ids = checked(api, picture=b"the bytes of a picture")
    rows = api.log_in(Role.ADMIN).get(f"/v1/datasets/{ids['dataset_id']}/rows").json()
    ids["sha256"] = rows["items"][0]["image"]
    return by_admin(api, "dataset.image_read", DATASET, ids=ids)


@act("POST", "/v1/datasets/{dataset_id}/validate")
def validate_dataset(api: Api) -> Call:
    body = {"options": {"phi": "quarantine"}}
    return by_admin(api, "dataset.revalidated", DATASET, ids=checked(api), json=body)


@act("DELETE", "/v1/datasets/{dataset_id}")
def hide_dataset(api: Api) -> Call:
    return by_admin(api, "dataset.hidden", DATASET, ids=checked(api))


@act("POST", "/v1/datasets/{dataset_id}/erase")
def erase_dataset(api: Api) -> Call:
    return by_admin(api, "dataset.erased", DATASET, ids=checked(api))


# -- training


@act("POST", "/v1/training-runs")
def submit_run(api: Api) -> Call:
    school = School(api)
    body = {"name": "asthma", "dataset_id": school.dataset_id, "preset": "quick"}
    return call(school.admin, ("training.submitted", "training_run:{id}"), json=body)


@act("POST", "/v1/training-runs/{run_id}/cancel")
def cancel_run(api: Api) -> Call:
    school = School(api)
    ids = {"run_id": school.submit()["id"]}
    events = (("training.cancel_asked", "training_run:{run_id}"), ("train.cancelled", "job:*"))
    return call(school.admin, *events, ids=ids)


@act("POST", "/v1/training-runs/{run_id}/resume")
def resume_run(api: Api) -> Call:
    school = School(api)
    ids = {"run_id": school.submit()["id"]}
    api.finish(claim_run(api), EventKind.FAILED, error="disk-full", error_detail="Free space.")
    return call(school.admin, ("training.resumed", "training_run:{run_id}"), ids=ids)


# -- adapters


def good(api: Api) -> dict[str, str]:
    """An adapter that may be promoted, of a base model that has no other."""
    sha256 = secrets.token_hex(32)
    add_good_adapter(api, api.person(Role.ADMIN), sha256, base_model=f"base-{sha256[:8]}")
    api.set(datasets, datasets.c.name == "rows", rows_validation=5)
    return {"sha256": sha256}


def plain(api: Api, admin: Person) -> str:
    """An adapter of the model that answers."""
    return add_adapter(api, admin, sha256=secrets.token_hex(32), verification=GOOD)


@act("POST", "/v1/adapters/{sha256}/verify")
def verify_adapter(api: Api) -> Call:
    return by_admin(api, "adapter.verification_asked", ADAPTER, ids=good(api))


@act("POST", "/v1/adapters/{sha256}/approve")
def approve_adapter(api: Api) -> Call:
    return by_admin(api, "adapter.approved", ADAPTER, ids=good(api))


@act("POST", "/v1/adapters/{sha256}/promote")
def promote_adapter(api: Api) -> Call:
    events = (("adapter.approved", ADAPTER), ("adapter.promoted", ADAPTER))
    return call(api.person(Role.ADMIN), *events, ids=good(api), json={})


@act("POST", "/v1/adapters/{sha256}/recall")
def recall_adapter(api: Api) -> Call:
    body = {"reason": "It gives wrong doses."}
    return by_admin(api, "adapter.recalled", ADAPTER, ids=good(api), json=body)


@act("POST", "/v1/adapters/roll-back")
def roll_back_adapter(api: Api) -> Call:
    ids = good(api)
    promoted = api.log_in(Role.ADMIN).post(f"/v1/adapters/{ids['sha256']}/promote", json={})
    body = {"base_model": promoted.json()["base_model"]}
    return by_admin(api, "adapter.rolled_back", ADAPTER, ids=ids, json=body)


@act("GET", "/v1/adapters/{sha256}/answers")
def list_answers(api: Api) -> Call:
    return by_admin(api, "adapter.answers_listed", ADAPTER, ids=good(api))


@act("POST", "/v1/adapters/{sha256}/evaluate")
def evaluate_adapter(api: Api) -> Call:
    return by_admin(api, "evaluation.submitted", "evaluation:{id}", ids=good(api))


def evaluating(api: Api) -> dict[str, str]:
    """An evaluation that waits."""
    path = f"/v1/adapters/{good(api)['sha256']}/evaluate"
    return {"evaluation_id": api.log_in(Role.ADMIN).post(path).json()["id"]}


@act("GET", "/v1/evaluations/{evaluation_id}")
def read_evaluation(api: Api) -> Call:
    return by_admin(api, "evaluation.read", "evaluation:{evaluation_id}", ids=evaluating(api))


@act("POST", "/v1/evaluations/{evaluation_id}/cancel")
def cancel_evaluation(api: Api) -> Call:
    events = (
        ("evaluation.cancel_asked", "evaluation:{evaluation_id}"),
        ("evaluate.cancelled", "job:{job_id}"),
    )
    return call(api.person(Role.ADMIN), *events, ids=evaluating(api))


@act("POST", "/v1/comparisons")
def compare(api: Api) -> Call:
    admin = api.person(Role.ADMIN)
    body = {"question": "Why?", "left": None, "right": plain(api, admin)}
    both = [("question.asked", "job:*")] * 2
    return call(admin, *both, ("comparison.asked", "comparison:{id}"), json=body)


@act("POST", "/v1/comparisons/{comparison_id}/vote")
def vote(api: Api) -> Call:
    admin = api.person(Role.ADMIN)
    body = {"question": "Why?", "left": None, "right": plain(api, admin)}
    ids = {"comparison_id": api.client(admin).post("/v1/comparisons", json=body).json()["id"]}
    for _ in range(2):
        api.answer("An answer.")
    return call(admin, ("comparison.voted", "comparison:{comparison_id}"), ids=ids, json={"vote": "left"})


# -- the guard


def new_version(api: Api) -> dict[str, str]:
    """A version of the policy that no other act has."""
    text = f"[dosing]  # {secrets.token_hex(4)}"
    return {"version": add_version(api.log_in(Role.ADMIN), refer=text)}


def moved(api: Api, action: str, object: str, path: str, **rest: Any) -> Call:
    """A call that changes what the gateway judges by, which is put right after it."""
    return by_admin(api, action, object, after=lambda: api.log_in(Role.ADMIN).request(*path.split()), **rest)


@act("POST", "/v1/guard/policies")
def add_policy(api: Api) -> Call:
    body = {"texts": knobs(refer="[dosing]  # another"), "note": "A test."}
    return by_admin(api, "policy.added", "policy:{version}", json=body)


@act("POST", "/v1/guard/policies/{version}/activate")
def activate_policy(api: Api) -> Call:
    ids, path = new_version(api), "POST /v1/guard/roll-back"
    return moved(api, "policy.activated", "policy:{version}", path, ids=ids)


@act("POST", "/v1/guard/roll-back")
def roll_back_policy(api: Api) -> Call:
    activate(api.log_in(Role.ADMIN), new_version(api)["version"])
    return by_admin(api, "policy.rolled_back", "policy:packaged")


@act("POST", "/v1/guard/policies/{version}/shadow")
def shadow(api: Api) -> Call:
    ids = new_version(api)
    return moved(api, "policy.shadowed", "policy:packaged", "DELETE /v1/guard/shadow", ids=ids)


@act("DELETE", "/v1/guard/shadow")
def end_shadow(api: Api) -> Call:
    path = f"/v1/guard/policies/{new_version(api)['version']}/shadow"
    api.log_in(Role.ADMIN).post(path).raise_for_status()
    return by_admin(api, "policy.shadowed", "policy:packaged")


@act("POST", "/v1/guard/stop")
def stop_answers(api: Api) -> Call:
    path, body = "POST /v1/guard/start", {"reason": "A test."}
    return moved(api, "answers.stopped", "guard_stop:*", path, json=body)


@act("POST", "/v1/guard/start")
def start_answers(api: Api) -> Call:
    api.log_in(Role.ADMIN).post("/v1/guard/stop", json={"reason": "A test."}).raise_for_status()
    return by_admin(api, "answers.started", "guard_stop:*")


def replayed(api: Api) -> str:
    """A replay that waits."""
    answered(api)
    path = f"/v1/guard/policies/{new_version(api)['version']}/replays"
    return str(api.log_in(Role.ADMIN).post(path, json={"answers": 1}).json()["id"])


@act("POST", "/v1/guard/policies/{version}/replays")
def submit_replay(api: Api) -> Call:
    return by_admin(api, "replay.submitted", "replay:{id}", ids=new_version(api), json={"answers": 1})


@act("GET", "/v1/guard/replays/{replay_id}/texts")
def read_replay_texts(api: Api) -> Call:
    return by_auditor(api, "replay.texts_read", "replay:{replay_id}", ids={"replay_id": replayed(api)})
