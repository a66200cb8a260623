"""The gateway's description of itself, and what a fuzzer makes of it: never a 5xx."""

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode

from shared.auth.roles import Role
from tests.policies import add_version
from tests.registry import add_good_adapter, sha_of
from tests.support import Api, ask_async
from tests.training import School
from tests.uploads import check, uploaded

EXAMPLES = 8


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
    }


def test_no_request_ends_in_a_5xx_whether_it_keeps_to_the_description_or_not(api: Api) -> None:
    asker = api.person()
    ids = own_ids(api, api.client(asker))
    schema = schemathesis.openapi.from_url(f"{api.url}/openapi.json")
    found: list[str] = []
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) >= 25
    for operation in operations:
        own = {name: value for name, value in ids.items() if "{" + name + "}" in operation.path}
        read = False
        for role in Role:
            # a new log-in each time: one of the routes ends it
            person = asker if role is Role.USER else api.person(role)
            headers = {"Authorization": f"Bearer {api.token(person)}", "Prefer": "wait=0"}
            well_formed = fuzz(operation, GenerationMode.POSITIVE, headers, own, found)
            turned_away = well_formed == {403}  # before anything that depends on the role is read
            if not turned_away or (role is list(Role)[-1] and not read):
                read = True
                headers["Authorization"] = f"Bearer {api.token(person)}"
                fuzz(operation, GenerationMode.NEGATIVE, headers, {}, found)
    assert not found


def fuzz(
    operation: Any, mode: GenerationMode, headers: dict[str, str], own: dict[str, str], found: list[str]
) -> set[int]:
    """Send generated requests; note those that end in a 5xx. Returns every status that came."""
    strategy = operation.as_strategy(generation_mode=mode, **({"path_parameters": own} if own else {}))
    statuses: set[int] = set()

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=strategy)
    def send(case: Any) -> None:
        response = case.call(headers=headers, timeout=20)
        statuses.add(response.status_code)
        if response.status_code >= 500:
            found.append(f"{operation.label}: {response.status_code} to {case.as_curl_command()}")

    try:
        send()
    except Unsatisfiable:
        assert mode is GenerationMode.NEGATIVE, operation.label  # nothing can be wrong about it
    return statuses


def test_every_operation_says_which_problems_it_answers_with(api: Api) -> None:
    document = api.client().get("/openapi.json").json()
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if path.startswith("/v1/") or path == "/predict":
                problems = {code for code in operation["responses"] if int(code) >= 400}
                assert problems, f"{method} {path}"
                assert operation["description"], f"{method} {path}"


def test_the_description_has_an_example_of_a_question(api: Api) -> None:
    document = api.client().get("/openapi.json").json()
    assert document["components"]["schemas"]["AskBody"]["examples"][0]["query"]
