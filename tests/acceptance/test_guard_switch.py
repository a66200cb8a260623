"""A changed policy and the stop switch, in every process of a whole installation, without a restart."""

import time
from collections.abc import Iterator
from contextlib import closing

import httpx
import pytest

from services.local import Stack
from services.smoke import log_in
from tests.endless_model import write_endless_model
from tests.policies import add_version
from tests.support import ask_async, wait_until

WITHIN_S = 10.0
ENDED = ("succeeded", "failed", "cancelled")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """All processes but the dashboard, with a model whose answers never end by themselves."""
    folder = tmp_path_factory.mktemp("switch")
    environment = {
        "MEDICHAT_MODEL_PATH": str(write_endless_model(folder / "model")),
        "MEDICHAT_MAX_NEW_TOKENS": "1200",
        "MEDICHAT_HEARTBEAT_S": "1",
    }
    with Stack(folder / "state", without=["ui"], environment=environment) as started:
        yield started


@pytest.fixture(scope="module")
def admin(stack: Stack) -> Iterator[httpx.Client]:
    with closing(log_in(stack, "admin")) as client:
        yield client


@pytest.fixture(scope="module")
def client(stack: Stack) -> Iterator[httpx.Client]:
    with closing(log_in(stack, "user")) as client:
        yield client


def test_every_process_takes_a_changed_policy_up(stack: Stack, admin: httpx.Client) -> None:
    version = add_version(admin, refer="[dosing]")
    began = time.monotonic()
    assert admin.post(f"/v1/guard/policies/{version}/activate").status_code == 200

    def followed() -> bool:
        processes = admin.get("/v1/guard").json()["processes"]
        return len(processes) == 2 and {each["policy_version"] for each in processes} == {version}

    wait_until(followed, WITHIN_S, "for the gateway and the worker")
    assert time.monotonic() - began < WITHIN_S


def test_an_answer_that_is_being_written_ends_when_answers_are_stopped(
    admin: httpx.Client, client: httpx.Client
) -> None:
    job = ask_async(client)
    wait_until(lambda: client.get(f"/v1/jobs/{job['id']}").json()["state"] == "running", 30, "for the worker")
    began = time.monotonic()
    assert admin.post("/v1/guard/stop", json={"reason": "A test."}).status_code == 200

    def ended() -> dict[str, object] | None:
        seen: dict[str, object] = client.get(f"/v1/jobs/{job['id']}").json()
        return seen if seen["state"] in ENDED else None

    seen = wait_until(ended, WITHIN_S, "for its end")
    assert time.monotonic() - began < WITHIN_S
    assert (seen["state"], seen["error"]["code"]) == ("failed", "answers-stopped")
    refused = client.post("/predict", json={"query": "What is asthma?"})
    assert refused.json()["type"] == "urn:medichat:problem:answers-stopped"
    helped = client.post("/predict", json={"query": "I want to end my life tonight."})
    assert helped.json()["guard"]["category"] == "crisis"
    assert admin.post("/v1/guard/start").status_code == 200


def test_the_training_worker_replays(admin: httpx.Client, client: httpx.Client) -> None:
    answer = client.post("/predict", json={"query": "What is asthma?", "max_new_tokens": 8})
    assert answer.status_code == 200, answer.text
    packaged = admin.get("/v1/guard").json()["packaged"]
    replay = admin.post(f"/v1/guard/policies/{packaged}/replays", json={"answers": 10}).json()

    def ended() -> dict[str, object] | None:
        seen: dict[str, object] = admin.get(f"/v1/guard/replays/{replay['id']}").json()
        return seen if seen["state"] in ENDED else None

    seen = wait_until(ended, 60, "for the replay")
    assert (seen["state"], seen["error"]) == ("succeeded", None)
    assert seen["counts"]["answers"] >= 1
