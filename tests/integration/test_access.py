"""Every route of the application itself: who may call it, and whose things it shows."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute, iter_route_contexts

from services.api.deps import Access, everyone
from services.api.main import create_app
from shared.auth.roles import Role
from shared.db.tables import audit_events
from shared.settings import Settings
from tests.support import Api, ask_async

#: What FastAPI itself adds; it describes the routes and shows nothing of anybody.
UNDECLARED = {"/openapi.json"}
BODIES = {
    "/predict": {"query": "What is asthma?"},
    "/v1/conversations/{conversation_id}/messages": {"query": "What is asthma?"},
    "/v1/conversations/{conversation_id}": {"title": "Mine now"},
    "/v1/messages/{message_id}/feedback": {"rating": "up"},
    "/v1/me/consent": {"version": "2026-11"},
    "/v1/me/reauthenticate": {"password": "wrong"},
    "/v1/me/password": {"current": "wrong", "new": "a new long password"},
    "/v1/users": {"name": "somebody", "role": "user"},
    "/v1/users/{user_id}": {"audience": "clinician"},
    "/v1/api-keys": {"name": "a key", "scopes": ["ask"]},
    "/v1/training-runs": {"name": "a run", "dataset_id": "nobodys", "preset": "quick"},
    "/v1/datasets/import": {"name": "a set", "source": "path", "location": "set.jsonl"},
    "/v1/datasets/{dataset_id}/validate": {"options": {"phi": "quarantine"}},
    "/v1/adapters/roll-back": {"base_model": "demo"},
    "/v1/adapters/{sha256}/promote": {},
    "/v1/adapters/{sha256}/recall": {"reason": "It gives wrong doses."},
    "/v1/comparisons": {"question": "What is asthma?", "left": None, "right": "f" * 64},
    "/v1/comparisons/{comparison_id}/vote": {"vote": "tie"},
    "/v1/adapters/{sha256}/evaluate": {},
    "/v1/guard/policies": {"texts": {"policy.yaml": "x: y"}, "note": "A note."},
    "/v1/guard/policies/{version}/try": {"text": "Rest well."},
    "/v1/guard/policies/{version}/replays": {"answers": 10},
    "/v1/guard/stop": {"reason": "A test."},
    "/v1/audit/conversations/{conversation_id}/reveal": {"reason": "A complaint."},
    "/v1/break-glass": {
        "conversation_id": "01a20ced-32e0-731b-806d-a95e481a1022",
        "reason": "An emergency in the ward.",
        "minutes": 30,
    },
    "/v1/reviews": {"job_id": "nobodys"},
    "/v1/reviews/{item_id}": {"verdict": "safe"},
    "/v1/datasets/from-reviews": {"name": "a set"},
    "/v1/audit/conversations/search": {"words": "asthma"},
    "/v1/audit/views": {"name": "A view", "filters": {"flagged": True}},
    "/v1/audit/export": {"what": "events", "format": "jsonl"},
    "/v1/me/erase": {"name": "not one's own"},
    "/v1/users/{user_id}/erase": {"name": "nobody"},
    "/v1/holds": {"subject": "user:01a20ced-32e0-731b-806d-a95e481a1022", "reference": "2026-1"},
}


def details_of(event: Any) -> dict[str, Any]:
    details: dict[str, Any] = json.loads(event.canonical_bytes)["details"]
    return details


def routes(app: FastAPI | None = None) -> Iterator[tuple[str, APIRoute]]:
    """Every route with each of its methods."""
    app = app or create_app(Settings())
    for context in iter_route_contexts(app.routes):
        if context.path in UNDECLARED:
            continue
        route = context.original_route
        assert isinstance(route, APIRoute), f"{context.path} is not declared as the others are"
        assert route.path == context.path
        for method in sorted(route.methods):
            yield method, route


def access_of(route: APIRoute) -> Access | None:
    """What the route declares; None for one that everybody may call. Fails when it declares nothing."""
    declared = [call for call in calls(route.dependant) if isinstance(call, Access) or call is everyone]
    assert declared, f"{route.path} does not say who may call it"
    rules = [call for call in declared if isinstance(call, Access)]
    return rules[0] if rules else None


def calls(dependant: Dependant) -> Iterator[object]:
    for inner in dependant.dependencies:
        yield inner.call
        yield from calls(inner)


ALL = [pytest.param(method, route, id=f"{method} {route.path}") for method, route in routes()]


def call(client: httpx.Client, method: str, route: APIRoute, ids: dict[str, str]) -> httpx.Response:
    path = route.path
    for name, value in ids.items():
        path = path.replace("{" + name + "}", value)
    body = BODIES.get(route.path) if method in ("POST", "PUT", "PATCH") else None
    headers = {"Prefer": "respond-async"}
    with client.stream(method, path, json=body, headers=headers) as response:
        response.read()
    return response


NOBODYS = dict.fromkeys(
    (
        "job_id",
        "conversation_id",
        "message_id",
        "user_id",
        "key_id",
        "dataset_id",
        "run_id",
        "comparison_id",
        "sha256",
        "evaluation_id",
        "version",
        "replay_id",
        "checkpoint_id",
        "item_id",
        "grant_id",
        "view_id",
        "hold_id",
    ),
    "01a20ced-32e0-731b-806d-a95e481a1022",
)


@pytest.mark.parametrize(("method", "route"), ALL)
def test_every_route_declares_who_may_call_it(method: str, route: APIRoute) -> None:
    access_of(route)


@pytest.fixture
def dialect() -> str:
    """Who may do what does not depend on the database; one of them is enough here."""
    return "sqlite"


def test_without_a_token_every_closed_route_answers_401(api: Api) -> None:
    for method, route in routes(api.app):
        if access_of(route) is not None:
            assert call(api.client(), method, route, NOBODYS).status_code == 401, f"{method} {route.path}"


@pytest.mark.parametrize("role", list(Role))
def test_every_role_is_refused_what_is_not_its_own_and_the_refusal_is_logged(api: Api, role: Role) -> None:
    person = api.person(role)
    client, refused = api.client(person), 0
    for method, route in routes(api.app):
        access = access_of(route)
        if route.path == "/v1/auth/logout" or access is None:
            continue
        status = call(client, method, route, NOBODYS).status_code
        if access.role in (None, role) or (access.also is not None and access.also[0] is role):
            assert status != 403 or route.path == "/v1/api-keys", f"{method} {route.path} refuses {role}"
        else:
            assert status == 403, f"{method} {route.path} lets {role} in"
            refused += 1
    assert refused
    assert api.count(audit_events, audit_events.c.action == "access.denied") == refused


def test_a_denied_act_is_logged_with_its_method_and_route(api: Api) -> None:
    admin = api.person(Role.ADMIN)
    api.log_in().patch(f"/v1/users/{admin.id}", json={"role": "user"})
    (event,) = api.audit("access.denied")
    assert details_of(event) == {"method": "PATCH", "route": "/v1/users/{user_id}"}


def test_what_only_a_person_may_do_is_refused_to_a_key_and_logged(api: Api) -> None:
    person = api.person()
    made = api.client(person).post("/v1/api-keys", json={"name": "a key", "scopes": ["ask"]}).json()
    by_key = api.client()
    by_key.headers["Authorization"] = f"Bearer {made['key']}"
    acts = [
        ("POST", "/v1/api-keys"),
        ("DELETE", "/v1/api-keys/{key_id}"),
        ("POST", "/v1/me/password"),
        ("POST", "/v1/me/consent"),
        ("POST", "/v1/auth/logout"),
    ]
    for method, path in acts:
        body = BODIES.get(path)
        refused = by_key.request(method, path.format(key_id=made["id"]), json=body)
        assert refused.status_code == 403, f"{method} {path}"
    events = api.audit("access.denied")
    assert [tuple(details_of(event).values()) for event in events] == acts
    assert {(event.actor, event.session_id, event.outcome) for event in events} == {
        (person.id, f"key:{made['id']}", "denied")
    }
    assert by_key.get("/v1/me").status_code == 200


def test_a_key_approves_no_auditor_and_so_learns_no_password(api: Api) -> None:
    admin, auditor = api.log_in(Role.ADMIN), api.log_in(Role.AUDITOR)
    new = admin.post("/v1/users", json={"name": "an.auditor", "role": "auditor"}).json()["id"]
    key = auditor.post("/v1/api-keys", json={"name": "a key", "scopes": ["audit"]}).json()["key"]
    path = f"/v1/users/{new}/approve"
    refused = api.client().post(path, headers={"Authorization": f"Bearer {key}"})
    assert (refused.status_code, "password" in refused.json()) == (403, False)
    assert "password" in auditor.post(path).json()


def test_what_asks_for_the_password_is_refused_to_every_key(api: Api) -> None:
    by_key = {role: api.client() for role in Role}
    for role, scopes in ((Role.USER, ["ask", "read"]), (Role.ADMIN, ["admin"]), (Role.AUDITOR, ["audit"])):
        body = {"name": "a key", "scopes": scopes}
        made = api.log_in(role).post("/v1/api-keys", json=body).json()
        by_key[role].headers["Authorization"] = f"Bearer {made['key']}"
    refused = 0
    for method, route in routes(api.app):
        access = access_of(route)
        if access is None or not access.password:
            continue
        for role in [access.role] if access.role else list(Role):
            answer = call(by_key[role], method, route, NOBODYS)
            assert (answer.status_code, "API key" in answer.text) == (403, True), f"{method} {route.path}"
            refused += 1
    assert refused > 5


def test_what_belongs_to_another_is_not_found_and_stays_as_it_was(api: Api) -> None:
    owner, other = api.log_in(), api.log_in()
    job = ask_async(owner)
    api.answer("Asthma is a disease of the airways.")
    conversation = owner.get(f"/v1/conversations/{job['conversation_id']}").json()
    ids = {
        "job_id": job["id"],
        "conversation_id": job["conversation_id"],
        "message_id": conversation["messages"][-1]["id"],
        "key_id": owner.post("/v1/api-keys", json={"name": "mine", "scopes": ["ask"]}).json()["id"],
    }
    knocks = []
    for method, route in routes(api.app):
        kind = next((name for name in ids if "{" + name + "}" in route.path), None)
        access = access_of(route)
        if kind is not None and access is not None and access.role in (None, Role.USER):
            there, nowhere = call(other, method, route, ids), call(other, method, route, NOBODYS)
            assert there.status_code == 404, f"{method} {route.path}"
            assert (nowhere.status_code, nowhere.content) == (there.status_code, there.content)
            named = "api_key" if kind == "key_id" else kind.removesuffix("_id")
            knocks.append((f"{named}:{ids[kind]}", method, route.path))
    assert len(knocks) >= 10
    assert owner.get(f"/v1/conversations/{job['conversation_id']}").json() == conversation
    events = [(event.object, *details_of(event).values()) for event in api.audit("access.denied")]
    assert events == knocks, "each is logged once, and what is not there is not"


def test_asking_in_anothers_conversation_is_logged(api: Api) -> None:
    owner, other = api.log_in(), api.log_in()
    theirs = ask_async(owner)["conversation_id"]
    answers = [
        other.post("/predict", json={"query": "Why?", "conversation_id": conversation})
        for conversation in (theirs, NOBODYS["conversation_id"])
    ]
    assert [answer.status_code for answer in answers] == [404, 404]
    assert answers[0].content == answers[1].content
    (event,) = api.audit("access.denied")
    assert (event.object, event.outcome) == (f"conversation:{theirs}", "denied")


def test_what_a_person_has_hidden_is_no_knock_at_anothers(api: Api) -> None:
    owner = api.log_in()
    path = f"/v1/conversations/{ask_async(owner)['conversation_id']}"
    owner.delete(path)
    assert owner.get(path).status_code == 404
    assert not api.audit("access.denied")


def test_reading_the_accounts_is_logged(api: Api) -> None:
    api.log_in(Role.ADMIN).get("/v1/users")
    api.log_in(Role.AUDITOR).get("/v1/users/pending")
    assert [details_of(event) for event in api.audit("users.read")] == [{"pending": False}, {"pending": True}]


def test_lists_show_only_ones_own(api: Api) -> None:
    owner, other = api.log_in(), api.log_in()
    ask_async(owner)
    owner.post("/v1/api-keys", json={"name": "mine", "scopes": ["ask"]})
    for path in ("/v1/conversations", "/v1/jobs", "/v1/api-keys"):
        assert len(owner.get(path).json()["items"]) == 1, path
        assert other.get(path).json()["items"] == [], path


def test_a_changed_role_counts_at_once(api: Api) -> None:
    person = api.person()
    token = api.token(person)
    admin = api.log_in(Role.ADMIN)
    changed = admin.patch(f"/v1/users/{person.id}", json={"role": "admin"})
    assert changed.status_code == 200
    answer = api.client().get("/v1/system", headers={"Authorization": f"Bearer {token}"})
    assert answer.status_code == 401  # the log-in of the former role ended
