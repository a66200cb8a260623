"""Whatever is sent: the right refusal, what to do, and nothing half-written."""

import base64
import json
from typing import Any

import pytest

from shared.auth.roles import Role
from shared.db.tables import conversations, jobs, messages
from shared.guard import load_guard
from shared.guard.verdict import Category
from shared.policies.live import Standing
from tests.support import Api

JSON = {"Content-Type": "application/json"}
MEGABYTE = b'{"query": "' + b"a" * 1_000_000 + b'"}'


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 422),
        (b"not json", 422),
        (b'{"query": "unfinished', 422),
        (b"[]", 422),
        (b"{}", 422),
        (b'{"query": ""}', 422),
        (b'{"query": " \\n "}', 422),
        (b'{"query": 7}', 422),
        (b'{"query": null}', 422),
        (b'{"query": ["a"]}', 422),
        (b'{"query": "a\\u0000b"}', 422),
        (b'{"query": "a\\u001bb"}', 422),
        (b'{"query": "a\\ud800b"}', 422),
        (b'{"query": "a\xff"}', 400),
        (b'{"query": "\\u200b"}', 422),
        (b'{"query": " \\u2060\\ufeff\\u3164\\u0301"}', 422),
        (b'{"query": "Is it \\u202egnorw\\u202c?"}', 422),
        (b'{"query": "Is it \\u2067gnorw\\u2069?"}', 422),
        (b'{"query": "a", "colour": "red"}', 422),
        (b'{"query": "a", "max_new_tokens": 0}', 422),
        (b'{"query": "a", "max_new_tokens": 1e9}', 422),
        (b'{"query": "a", "max_new_tokens": 100000}', 422),
        (b'{"query": "a", "max_new_tokens": "12"}', 422),
        (b'{"query": "a", "temperature": -1}', 422),
        (b'{"query": "a", "temperature": NaN}', 422),
        (b'{"query": "a", "temperature": "0.5"}', 422),
        (b'{"query": "a", "temperature": true}', 422),
        (b'{"query": "a", "conversation_id": "nobody\'s"}', 404),
        (json.dumps({"query": "a" * 20_001}).encode(), 422),
        (b"[" * 100_000, 400),
        (MEGABYTE, 413),
    ],
    ids=lambda value: value[:32].decode("latin-1") if isinstance(value, bytes) else None,
)
def test_a_bad_question_is_refused_and_leaves_nothing(api: Api, body: bytes, status: int) -> None:
    response = api.log_in().post("/predict", content=body, headers=JSON)
    assert response.status_code == status
    assert response.headers["Content-Type"] == "application/problem+json"
    problem = response.json()
    assert problem["status"] == status
    assert problem["detail"]
    assert api.count(jobs) == api.count(messages) == api.count(conversations) == 0


@pytest.mark.parametrize("body", [b'{"query": "a\xff"}', b"[" * 100_000], ids=["latin-1", "deep"])
def test_what_cannot_be_read_is_told_how_to_be_sent(api: Api, body: bytes) -> None:
    detail = api.log_in().post("/predict", content=body, headers=JSON).json()["detail"]
    assert "UTF-8" in detail
    assert "nested" in detail


@pytest.mark.parametrize(
    "query", ["\u0645\u0627 \u0647\u0648\u200f \u0627\u0644\u0631\u0628\u0648\u061f", "5?", "\U0001f912"]
)
def test_a_question_in_any_script_is_taken(api: Api, query: str) -> None:
    response = api.log_in().post("/predict", json={"query": query}, headers={"Prefer": "respond-async"})
    assert response.status_code in (200, 202), "the guard answers some at once"


@pytest.mark.parametrize(
    ("body", "kind", "status", "end"),
    [
        (b'{"query": "Why?"}', "text/plain", 415, "something else."),
        (b"query=Why", "application/x-www-form-urlencoded", 415, "something else."),
        (b'{"query": "Why?"}', None, 415, "something else."),
        (b"", "application/json", 422, "the body is empty."),
        (b"", None, 422, "the body is empty."),
        (b"[]", "application/json; charset=utf-8", 422, "another JSON value."),
    ],
)
def test_a_body_that_is_no_json_object_is_told_what_to_send(
    api: Api, body: bytes, kind: str | None, status: int, end: str
) -> None:
    headers = {"Content-Type": kind} if kind else {}
    problem = api.log_in().post("/predict", content=body, headers=headers).json()
    assert problem["status"] == status
    assert problem["detail"].startswith("Send a JSON object with Content-Type: application/json")
    assert problem["detail"].endswith(end)
    assert "errors" not in problem


def test_a_refusal_does_not_repeat_what_was_sent(api: Api) -> None:
    response = api.log_in().post("/predict", json={"query": "my secret", "max_new_tokens": "my other secret"})
    assert response.status_code == 422
    assert "secret" not in response.text


def test_a_body_that_does_not_say_its_length_is_cut_off_all_the_same(api: Api) -> None:
    chunks = (b"a" * 10_000 for _ in range(200))
    response = api.log_in().post("/predict", content=chunks, headers=JSON)
    assert response.status_code == 413


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/conversations"])
@pytest.mark.parametrize("query", ["limit=0", "limit=x", "limit=1000", "cursor=nonsense", "cursor=%00"])
def test_a_bad_page_is_refused(api: Api, path: str, query: str) -> None:
    assert api.log_in().get(f"{path}?{query}").status_code == 422


def cursor(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode()


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/conversations"])
@pytest.mark.parametrize("moment", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "2026-01-01"])
def test_a_cursor_off_the_calendar_is_refused(api: Api, path: str, moment: str) -> None:
    page = api.log_in().get(path, params={"cursor": cursor(f"{moment}|x")})
    assert page.status_code == 422


EXTREMES = ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"]


@pytest.mark.parametrize("moment", [*EXTREMES, "2026-01-31T12:00:00"])
@pytest.mark.parametrize("name", ["since", "until"])
def test_a_moment_that_cannot_be_compared_is_refused(api: Api, name: str, moment: str) -> None:
    auditor = api.log_in(Role.AUDITOR)
    assert auditor.get("/v1/audit/events", params={name: moment}).status_code == 422


@pytest.mark.parametrize("moment", EXTREMES)
def test_a_key_that_expires_off_the_calendar_is_refused(api: Api, moment: str) -> None:
    body = {"name": "a key", "scopes": ["ask"], "expires_at": moment}
    assert api.log_in().post("/v1/api-keys", json=body).status_code == 422


def test_a_name_that_grows_in_lower_case_is_measured_then(api: Api) -> None:
    body = {"name": "\u0130" * 100, "role": "user"}
    assert api.log_in(Role.ADMIN).post("/v1/users", json=body).status_code == 422


@pytest.mark.parametrize(
    ("role", "method", "path", "body"),
    [
        (None, "POST", "/v1/auth/token", {"data": {"username": "a\0b", "password": "x"}}),
        (None, "POST", "/login", {"data": {"username": "a\0b", "password": "x"}}),
        (Role.USER, "POST", "/predict", {"json": {"query": "Why?", "conversation_id": "a\0b"}}),
        (Role.USER, "GET", "/v1/jobs/a%00b", {}),
        (Role.USER, "GET", "/v1/conversations/a%00b", {}),
        (Role.USER, "PUT", "/v1/messages/a%00b/feedback", {"json": {"rating": "up"}}),
        (Role.USER, "DELETE", "/v1/api-keys/a%00b", {}),
        (Role.ADMIN, "PATCH", "/v1/users/a%00b", {"json": {"role": "user"}}),
        (Role.AUDITOR, "GET", "/v1/audit/events?actor=a%00b", {}),
        (Role.AUDITOR, "GET", "/v1/audit/events?object=a%00b", {}),
        (Role.AUDITOR, "GET", "/v1/audit/events?action=a%00b*", {}),
    ],
)
def test_a_nul_is_no_error_of_ours(api: Api, role: Role | None, method: str, path: str, body: Any) -> None:
    """PostgreSQL cannot even look for one; SQLite finds nothing."""
    client = api.log_in(role) if role else api.client()
    assert client.request(method, path, **body).status_code in (200, 401, 404, 422)


@pytest.mark.parametrize("value", ["x", "-1", "1e3", "99999999999999999999", ""])
def test_a_bad_last_event_id_is_refused(api: Api, value: str) -> None:
    client = api.log_in()
    job = client.post("/predict", json={"query": "Why?"}, headers={"Prefer": "respond-async"}).json()
    answer = client.get(f"/v1/jobs/{job['id']}/events", headers={"Last-Event-ID": value})
    assert answer.status_code == 422


def test_an_unknown_address_and_method_are_problems_too(api: Api) -> None:
    for response, status in ((api.client().get("/nowhere"), 404), (api.client().put("/predict"), 405)):
        assert response.status_code == status
        assert response.headers["Content-Type"] == "application/problem+json"


class LeakyGuard:
    """A bug whose message quotes what a person wrote."""

    policy_version = "0"

    def screen_at_once(self, text: str, _audience: object = None) -> None:
        raise ValueError(text)


def test_an_error_inside_says_nothing_of_the_request(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    client = api.log_in()
    api.judge_with(Standing(guard=LeakyGuard()))  # type: ignore[arg-type]
    response = client.post("/predict", json={"query": "my secret"})
    assert (response.status_code, response.json()["type"]) == (500, "urn:medichat:problem:internal")
    assert "secret" not in response.text
    assert "secret" not in caplog.text


def test_a_person_in_need_reads_where_help_is_though_the_guard_itself_fails(api: Api) -> None:
    client = api.log_in()
    api.judge_with(Standing(guard=LeakyGuard()))  # type: ignore[arg-type]
    response = client.post("/predict", json={"query": "I want to kill myself"})
    help_text = load_guard().responses(api.settings.locale).for_question(Category.CRISIS)
    assert (response.status_code, response.json()["help"]) == (500, help_text)
