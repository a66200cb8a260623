"""Every route of the application leaves the events that the log promises, and without them does nothing."""

import fnmatch
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute
from sqlalchemy import make_url

from shared.auth.roles import Role
from shared.db.tables_review import review_items
from shared.guard.policy import packaged_policy, version_of
from shared.jobs.lifecycle import Kind
from shared.settings import Settings
from tests import acts_of_admins, acts_of_auditors
from tests.acts import ACTS, Call
from tests.conftest import Databases, fresh_settings
from tests.integration.test_access import routes
from tests.support import Api, Person, RedisServer, closed_after
from tests.uploads import ROWS

#: Their acts are declared by importing them.
DECLARED_IN = (acts_of_admins, acts_of_auditors)

OWN = "one's own (docs/decisions/0022-own-reads-are-no-events.md)"
PUBLIC = "the same for everybody, and nobody's"
FIGURES = "figures and states that name nobody"
SHARED = "what admins run together, with the names and reasons that they gave; no row, no conversation"
LOG = "roots and signatures of the log, none of its events"
#: Routes that leave no event, with the reason.
NO_EVENT = {
    "GET /healthz": PUBLIC,
    "GET /readyz": FIGURES,
    "GET /metrics": FIGURES,
    "GET /login": PUBLIC,
    "GET /logout": PUBLIC,
    "GET /v1/me": OWN,
    "GET /v1/api-keys": OWN,
    "GET /v1/jobs": OWN,
    "GET /v1/jobs/{job_id}": OWN,
    "GET /v1/jobs/{job_id}/events": OWN,
    "GET /v1/models": "what may answer everybody",
    "GET /v1/models/{model:path}": "what may answer everybody",
    "GET /v1/conversations": OWN,
    "GET /v1/conversations/{conversation_id}": OWN,
    "GET /v1/conversations/{conversation_id}/images/{image_id}": OWN,
    "GET /v1/audit/views": OWN,
    "GET /v1/reviews": f"{OWN}; of others' only how many there are",
    "GET /v1/comparisons": f"{OWN}; of others' only how many votes there are",
    "GET /v1/comparisons/{comparison_id}": OWN,
    "GET /v1/audit/state": LOG,
    "GET /v1/audit/checkpoints/{checkpoint_id}": LOG,
    "GET /v1/audit/check-proof.py": PUBLIC,
    "GET /v1/system": FIGURES,
    "GET /v1/recipes": PUBLIC,
    "GET /v1/datasets": SHARED,
    "GET /v1/training-runs": SHARED,
    "GET /v1/training-runs/{run_id}": SHARED,
    "GET /v1/training-runs/{run_id}/steps": FIGURES,
    "GET /v1/adapters": SHARED,
    "GET /v1/adapters/{sha256}": SHARED,
    "GET /v1/deployments": SHARED,
    "GET /v1/guard": SHARED,
    "GET /v1/guard/policies": SHARED,
    "GET /v1/guard/policies/{version}": SHARED,
    "GET /v1/guard/shadow": FIGURES,
    "GET /v1/guard/replays": FIGURES,
    "GET /v1/guard/replays/{replay_id}": FIGURES,
    "POST /v1/guard/policies/{version}/try": "judges what the caller typed, and keeps nothing of it",
}
ALL = {f"{method} {route.path}": (method, route) for method, route in routes()}
LOGGED = [pytest.param(*ALL[name], id=name) for name in ALL if name not in NO_EVENT]


@pytest.fixture(scope="module")
def settings(
    databases: Databases, redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Settings:
    folder = tmp_path_factory.mktemp("events")
    (folder / "set.jsonl").write_bytes(ROWS)
    return fresh_settings(
        databases,
        "sqlite",
        redis_server,
        folder,
        dataset_import_dir=folder,
        reconcile_s=600,
        review_sample_percent=0,
        review_double_percent=0,
    )


@pytest.fixture(scope="module")
def gateway(settings: Settings) -> Iterator[Api]:
    """One for all: which events an act leaves does not depend on what others did."""
    with closed_after(Api(settings)) as made:
        yield made


@pytest.fixture
def api(gateway: Api) -> Api:
    """The gateway, with nothing waiting."""
    store = gateway.gateway.jobs
    with gateway.gateway.database.write() as connection:
        for kind in Kind:
            store.fail_queued(
                connection, kind, error="over", error_detail="A test ended.", then=lambda job: None
            )
    gateway.set(review_items, review_items.c.closed_at.is_(None), closed_at=review_items.c.created_at)
    return gateway


def events_of(api: Api, person: Person) -> list[Any]:
    return [event for event in api.audit() if event.actor == person.id]


def send(client: httpx.Client, method: str, route: APIRoute, call: Call) -> httpx.Response:
    return client.request(method, route.path.format(**call.ids), **call.request)


def without_log(api: Api, person: Person) -> None:
    """From now on no event of this person can be written."""
    with api.gateway.database.write() as connection:
        connection.exec_driver_sql(
            f"CREATE TRIGGER no_event BEFORE INSERT ON audit_events WHEN NEW.actor = '{person.id}' "
            "BEGIN SELECT RAISE(ABORT, 'no event'); END"
        )


def with_log(api: Api) -> None:
    with api.gateway.database.write() as connection:
        connection.exec_driver_sql("DROP TRIGGER IF EXISTS no_event")


def test_every_route_leaves_events_or_says_why_it_leaves_none() -> None:
    named = {f"{method} {path}" for method, path in ACTS}
    assert not named & set(NO_EVENT)
    assert named | set(NO_EVENT) == set(ALL)


def test_what_leaves_no_event_only_reads() -> None:
    acts = [name for name in NO_EVENT if not name.startswith(("GET ", "HEAD "))]
    assert acts == ["POST /v1/guard/policies/{version}/try"]


def test_what_is_tried_on_a_policy_is_kept_nowhere(api: Api) -> None:
    admin, database = api.log_in(Role.ADMIN), make_url(api.settings.database_url).database
    version = version_of(packaged_policy())
    with closing(sqlite3.connect(str(database))) as looking:

        def writes_nothing() -> bool:
            before = looking.execute("PRAGMA data_version").fetchone()  # another after each write of others
            admin.post(f"/v1/guard/policies/{version}/try", json={"text": "Rest well."}).raise_for_status()
            return bool(looking.execute("PRAGMA data_version").fetchone() == before)

        # one call may note that the log-in was used
        assert any(writes_nothing() for _ in range(3))


@pytest.mark.parametrize(("method", "route"), LOGGED)
def test_no_event_no_act_and_with_the_act_its_events(api: Api, method: str, route: APIRoute) -> None:
    call = ACTS[method, route.path](api)
    client = call.client or api.client(call.by)
    before = {event.id for event in events_of(api, call.by)}
    without_log(api, call.by)
    try:
        refused = send(client, method, route, call)
    finally:
        with_log(api)
    assert refused.status_code >= 400, "it went on without its event"
    assert {event.id for event in events_of(api, call.by)} == before
    try:
        answer = send(client, method, route, call)
        assert answer.status_code < 400, answer.text
        left = [event for event in events_of(api, call.by) if event.id not in before]
    finally:
        call.after()
    said = answer.json() if answer.headers.get("Content-Type") == "application/json" else {}
    for event, (action, object) in zip(left, call.events, strict=True):
        assert (event.action, event.outcome) == (action, "done")
        names = {**said, **call.ids, "me": call.by.id, "session": event.session_id}
        wanted = None if object is None else object.format(**names)
        assert event.object == wanted or fnmatch.fnmatchcase(event.object, wanted)
        assert event.session_id
