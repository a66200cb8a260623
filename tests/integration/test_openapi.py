"""The gateway's description of itself, and what a fuzzer makes of it: never a 5xx."""

from collections.abc import Iterator, Sequence
from typing import Any

import jsonschema_rs
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode

from services.api.main import create_app
from shared.auth.roles import Role
from shared.settings import Settings
from tests.policies import add_version
from tests.registry import add_good_adapter, sha_of
from tests.support import Api, ask_async
from tests.training import School
from tests.uploads import check, uploaded

EXAMPLES = 8
#: Where problems come as OpenAI's clients know them.
OPENAIS = ("/v1/chat/completions", "/v1/models", "/v1/models/{model}")
#: The operations are dealt out to so many tests: each is over before its time is.
PARTS = 4


@pytest.fixture
def api(make_api) -> Api:  # type: ignore[no-untyped-def]
    made: Api = make_api(max_queued_jobs_per_user=1_000_000, wait_limit_s=0)
    return made


def own_ids(api: Api, client: Any) -> dict[str, str]:
    """Ids of things that the person owns: a fuzzer alone would never get past "not found"."""
    job = ask_async(client)
    api.answer("An answer.")
    dataset_id = uploaded(api.log_in(Role.ADMIN))
    check(api)
    said = client.get(f"/v1/conversations/{job['conversation_id']}").json()["messages"]
    admin = api.person(Role.ADMIN)
    adapter = add_good_adapter(api, admin, sha_of("a"))
    compared = api.client(admin).post(
        "/v1/comparisons", json={"question": "Why?", "left": None, "right": adapter}
    )
    guards = api.client(admin)
    version = add_version(guards, refer="[dosing]")
    replay = guards.post(f"/v1/guard/policies/{version}/replays", json={"answers": 1}).json()
    return {
        "version": version,
        "replay_id": replay["id"],
        "sha256": adapter,
        "comparison_id": compared.json()["id"],
        "job_id": job["id"],
        "conversation_id": job["conversation_id"],
        "message_id": said[-1]["id"],
        "user_id": api.person().id,
        "run_id": School(api).submit()["id"],
        "key_id": client.post("/v1/api-keys", json={"name": "k", "scopes": ["ask"]}).json()["id"],
        "dataset_id": dataset_id,
        "item_id": api.log_in(Role.AUDITOR).post("/v1/reviews", json={"job_id": job["id"]}).json()["id"],
        "grant_id": guards.post(
            "/v1/break-glass",
            json={"conversation_id": job["conversation_id"], "reason": "An emergency.", "minutes": 240},
        ).json()["id"],
    }


@pytest.mark.parametrize("part", range(PARTS))
def test_no_request_ends_in_a_5xx_whether_it_keeps_to_the_description_or_not(api: Api, part: int) -> None:
    asker = api.person()
    ids = own_ids(api, api.client(asker))
    schema = schemathesis.openapi.from_url(f"{api.url}/openapi.json")
    found: list[str] = []
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) >= 25 * PARTS
    for operation in operations[part::PARTS]:
        own = {name: value for name, value in ids.items() if "{" + name + "}" in operation.path}
        right = generated(operation, GenerationMode.POSITIVE, tuple(own))
        read = False
        for role in Role:
            # a new log-in each time: one of the routes ends it
            person = asker if role is Role.USER else api.person(role)
            headers = {"Authorization": f"Bearer {api.token(person)}", "Prefer": "wait=0"}
            # who is turned away is so before anything of the request is read: then one is enough
            turned_away = fuzz(api, right[:1], headers, own, found) == {403}
            if not turned_away:
                fuzz(api, right, headers, own, found)
            if not turned_away or (role is list(Role)[-1] and not read):
                read = True
                headers["Authorization"] = f"Bearer {api.token(person)}"
                fuzz(api, generated(operation, GenerationMode.NEGATIVE), headers, {}, found)
    assert not found


#: By operation and mode. The requests do not depend on who sends them, nor on the database; making them takes
#: as long as answering them.
_GENERATED: dict[tuple[str, GenerationMode], list[Any]] = {}


def generated(operation: Any, mode: GenerationMode, own: Sequence[str] = ()) -> list[Any]:
    """Requests for the operation, whose own ids are yet to be filled in; the same each time.

    There are none where nothing can be wrong about a request, and wrong ones were asked for.
    """
    if (known := _GENERATED.get((operation.label, mode))) is not None:
        return known
    given_ids = {"path_parameters": {name: name for name in own}} if own else {}
    cases: list[Any] = []

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode, **given_ids))
    def keep(case: Any) -> None:
        cases.append(case)

    try:
        keep()
    except Unsatisfiable:
        assert mode is GenerationMode.NEGATIVE, operation.label
    _GENERATED[operation.label, mode] = cases
    return cases


def fuzz(
    api: Api, cases: Sequence[Any], headers: dict[str, str], own: dict[str, str], found: list[str]
) -> set[int]:
    """Send generated requests; note those that end in a 5xx. Returns every status that came."""
    statuses: set[int] = set()
    for case in cases:
        case.path_parameters = {**case.path_parameters, **own}
        response = case.call(base_url=api.url, headers=headers, timeout=20)
        statuses.add(response.status_code)
        if response.status_code >= 500:
            found.append(f"{case.operation.label}: {response.status_code} to {case.as_curl_command()}")
    return statuses


def test_every_operation_says_which_problems_it_answers_with(api: Api) -> None:
    document = api.client().get("/openapi.json").json()
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if path.startswith("/v1/") or path == "/predict":
                problems = {code for code in operation["responses"] if int(code) >= 400}
                assert problems, f"{method} {path}"
                assert operation["description"], f"{method} {path}"


@pytest.fixture(scope="module")
def description() -> dict[str, Any]:
    return create_app(Settings()).openapi()


def operations(description: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            yield f"{method} {path}", operation


def check_examples(description: dict[str, Any], schema: dict[str, Any], where: str) -> None:
    """Whether the schema has examples, each of which keeps to it."""
    if "$ref" not in schema:  # one that may be left out
        (schema,) = (each for each in schema["anyOf"] if "$ref" in each)
    name = schema["$ref"].rsplit("/", 1)[-1]
    examples = description["components"]["schemas"][name].get("examples")
    assert examples, f"{where}: {name} has no example"
    for example in examples:
        jsonschema_rs.validate({**schema, "components": description["components"]}, example)


def test_every_body_has_an_example_that_keeps_to_its_schema(description: dict[str, Any]) -> None:
    bodies = 0
    for where, operation in operations(description):
        for kind, content in operation.get("requestBody", {}).get("content", {}).items():
            bodies += 1
            if kind == "application/octet-stream":
                assert content["example"], where
            else:
                check_examples(description, content["schema"], where)
    assert bodies >= 25


@pytest.mark.parametrize(
    "name",
    [
        *("AnswerView", "JobView", "ConversationView", "ConversationItem", "MessageView", "UserView"),
        *("RunView", "DatasetView", "AdapterView", "PolicyView", "PolicyItem", "Problem"),
        *("TranscriptView", "AuditedConversationView", "AccessView"),
    ],
)
def test_the_main_answers_have_an_example_that_keeps_to_their_schema(
    description: dict[str, Any], name: str
) -> None:
    check_examples(description, {"$ref": f"#/components/schemas/{name}"}, "an answer")


def test_an_example_names_no_field_that_is_not_there(description: dict[str, Any]) -> None:
    for name, schema in description["components"]["schemas"].items():
        for example in schema.get("examples", []):
            assert set(example) <= set(schema["properties"]), name


def test_problems_come_in_their_own_content_type_only(description: dict[str, Any]) -> None:
    for where, operation in operations(description):
        for status, response in operation["responses"].items():
            if int(status) < 400:
                continue
            if where.partition(" ")[2] in OPENAIS:
                refers = {"$ref": "#/components/schemas/ChatError"}
                assert response["content"] == {"application/json": {"schema": refers}}, f"{where}: {status}"
            else:
                assert list(response["content"]) == ["application/problem+json"], f"{where}: {status}"
    assert "HTTPValidationError" not in description["components"]["schemas"]


def test_every_operation_says_that_the_database_can_be_away(description: dict[str, Any]) -> None:
    without = [where for where, operation in operations(description) if "503" not in operation["responses"]]
    assert without == ["get /healthz"]


def test_every_operation_that_takes_json_says_that_it_refuses_other_bodies(
    description: dict[str, Any],
) -> None:
    for where, operation in operations(description):
        takes_json = "application/json" in operation.get("requestBody", {}).get("content", {})
        assert ("415" in operation["responses"]) == takes_json, where


def test_whatever_names_an_answers_job_is_described_with_where_that_is(description: dict[str, Any]) -> None:
    for path in ("/predict", "/v1/conversations/{conversation_id}/messages"):
        responses = description["paths"][path]["post"]["responses"]
        placed = {status for status, told in responses.items() if "Location" in told.get("headers", {})}
        assert placed == {"202", "409", "422", "500", "503", "504"}
    problem = description["components"]["schemas"]["Problem"]["properties"]
    assert problem["job_id"]["description"] == "Of an answer that failed or was cancelled."
    assert problem["conversation_id"]["description"]


def test_metrics_and_the_prefer_header_are_described(description: dict[str, Any]) -> None:
    metrics = description["paths"]["/metrics"]["get"]["responses"]["200"]
    assert list(metrics["content"]) == ["text/plain"]
    predict = description["paths"]["/predict"]["post"]["parameters"]
    assert all(parameter["description"] for parameter in predict)
