"""Whatever is sent: the right refusal, what to do, and nothing half-written."""

import json

import pytest

from shared.db.tables import conversations, jobs, messages
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
        (b'{"query": "a", "colour": "red"}', 422),
        (b'{"query": "a", "max_new_tokens": 0}', 422),
        (b'{"query": "a", "max_new_tokens": 1e9}', 422),
        (b'{"query": "a", "max_new_tokens": 100000}', 422),
        (b'{"query": "a", "max_new_tokens": "12"}', 422),
        (b'{"query": "a", "temperature": -1}', 422),
        (b'{"query": "a", "temperature": NaN}', 422),
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

    def screen_question(self, text: str, _audience: object) -> None:
        raise ValueError(text)


def test_an_error_inside_says_nothing_of_the_request(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    client = api.log_in()
    object.__setattr__(api.gateway, "guard", LeakyGuard())
    response = client.post("/predict", json={"query": "my secret"})
    assert (response.status_code, response.json()["type"]) == (500, "urn:medichat:problem:internal")
    assert "secret" not in response.text
    assert "secret" not in caplog.text
