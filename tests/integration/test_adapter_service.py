"""A worker with real weights: adapters verified, promoted under load, kept by an answer, and refused."""

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from sqlalchemy import update

from services.worker_infer.loading import load_model
from services.worker_infer.worker import Worker
from shared.auth.roles import Role
from shared.catalogue import CATALOGUE
from shared.db.tables import jobs
from shared.db.tables_training import adapters
from shared.jobs.lifecycle import EventKind
from shared.training.adapter_files import CONFIG, PROBE, WEIGHTS, hash_files
from tests.endless_model import write_endless_model
from tests.registry import add_adapter, add_good_adapter, sha_of
from tests.support import Api, Person, ask_async, wait_until
from tests.tiny_adapter import write_adapter

CPU = torch.device("cpu")


@pytest.fixture
def dialect() -> str:
    """What is new here is the engine; the rows were tested on both databases."""
    return "sqlite"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_endless_model(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def made(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Adapters of the model: a true one, another, one that changes nothing, one of another base."""
    folder = tmp_path_factory.mktemp("made")

    def make(seed: int, **rest: Any) -> str:
        loaded = load_model(CATALOGUE["demo"], folder=weights, device=CPU, dtype=torch.float32)
        return write_adapter(loaded.model, folder, seed, **{"revision": loaded.revision, **rest})

    return {
        "folder": folder,
        "true": make(1, scale=0.05),
        "other": make(2, scale=0.05),
        "zero": make(3, scale=0.0),
        "wrong base": make(4, scale=0.05, revision="f" * 64),
    }


@pytest.fixture
def api(make_api: Any, weights: Path, made: dict[str, Any], tmp_path: Path) -> Api:
    shutil.copytree(made["folder"], tmp_path / "storage" / "adapters")
    api: Api = make_api(model_path=weights, device="cpu", worker_concurrency=2, max_new_tokens=600)
    return api


@pytest.fixture
def admin(api: Api) -> Person:
    return api.person(Role.ADMIN)


@pytest.fixture
def worker(api: Api) -> Iterator[Worker]:
    """A worker without Celery: the tests ring by themselves."""
    worker = Worker(api.settings)
    worker.model.engine.start()
    worker.keeper.start()
    yield worker
    worker._close()


@contextmanager
def at_work(take_next: Callable[[], bool]) -> Iterator[None]:
    """Work off one job in a thread."""
    thread = threading.Thread(target=take_next)
    thread.start()
    yield
    thread.join()


def verified(api: Api, worker: Worker, admin: Person, sha256: str) -> dict[str, Any]:
    add_adapter(api, admin, sha256=sha256)
    client = api.client(admin)
    job = client.post(f"/v1/adapters/{sha256}/verify").json()
    assert worker.verifier.verify_next()
    with api.gateway.database.read() as connection:
        assert api.gateway.jobs.get(connection, job["id"]).state == "succeeded"
    found: dict[str, Any] = client.get(f"/v1/adapters/{sha256}").json()["verification"]
    return found


def test_a_true_adapter_is_verified(api: Api, worker: Worker, admin: Person, made: dict[str, Any]) -> None:
    found = verified(api, worker, admin, made["true"])
    assert (found["ok"], found["dtype"], found["reason"]) == (True, "float32", None)
    assert found["max_diff_base"] > 0.01
    assert found["max_diff_trainer"] < 1e-3
    assert found["at"]
    assert len(api.audit("verify.succeeded")) == 1


@pytest.mark.parametrize(
    ("which", "reason"), [("zero", "changes nothing"), ("wrong base", "trained on another base model")]
)
def test_a_useless_adapter_is_not(
    api: Api, worker: Worker, admin: Person, made: dict[str, Any], which: str, reason: str
) -> None:
    found = verified(api, worker, admin, made[which])
    assert not found["ok"]
    assert reason in found["reason"]
    (event,) = api.audit("adapter.verification_failed")
    assert event.object == f"adapter:{made[which]}"


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda folder: flip(folder / WEIGHTS), "tampered"),
        (lambda folder: cut(folder / WEIGHTS), "truncated"),
        (lambda folder: (folder / "adapter_model.bin").write_bytes(b"\x80\x04."), "pickled"),
        (lambda folder: (folder / PROBE).unlink(), "does not say which base|probe.json is missing"),
    ],
)
def test_a_harmed_adapter_is_not(
    api: Api,
    worker: Worker,
    admin: Person,
    made: dict[str, Any],
    tmp_path: Path,
    harm: Callable[[Path], object],
    reason: str,
) -> None:
    harm(tmp_path / "storage" / "adapters" / made["true"])
    found = verified(api, worker, admin, made["true"])
    assert not found["ok"]
    assert any(part in found["reason"] for part in reason.split("|"))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def test_a_probe_that_its_adapter_does_not_give_is_found_out(
    api: Api, worker: Worker, admin: Person, made: dict[str, Any], tmp_path: Path
) -> None:
    stored = tmp_path / "storage" / "adapters"
    shutil.copy(stored / made["other"] / PROBE, stored / made["true"] / PROBE)
    found = verified(api, worker, admin, made["true"])
    assert "does not compute what its trainer saw" in found["reason"]


def double_alpha(folder: Path) -> None:
    """Apply the weights twice as strongly; the configuration stays one of a plain LoRA adapter."""
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, "lora_alpha": 2 * config["lora_alpha"]}))


def test_an_adapter_whose_configuration_was_changed_answers_no_more(
    api: Api, worker: Worker, admin: Person, made: dict[str, Any], tmp_path: Path
) -> None:
    add_adapter(api, admin, sha256=made["true"], status="approved")
    double_alpha(tmp_path / "storage" / "adapters" / made["true"])
    asker = api.log_in()
    asked = ask_async(asker, adapter=made["true"])
    worker.answerer.answer_next()
    failed = answer_of(asker, asked["id"])
    assert (failed["state"], failed["error"]["code"]) == ("failed", "adapter-unavailable")
    assert "not the one that was registered" in failed["error"]["detail"]


def test_an_adapter_of_an_earlier_release_answers_once_it_was_verified(
    api: Api, worker: Worker, admin: Person, made: dict[str, Any], tmp_path: Path
) -> None:
    add_adapter(api, admin, sha256=made["true"], status="approved")
    api.set(adapters, adapters.c.sha256 == made["true"], files_sha256=None)
    asker = api.log_in()
    before = ask_async(asker, adapter=made["true"])
    worker.answerer.answer_next()
    assert answer_of(asker, before["id"])["error"]["code"] == "adapter-refused"
    api.client(admin).post(f"/v1/adapters/{made['true']}/verify")
    worker.verifier.verify_next()
    kept = hash_files(tmp_path / "storage" / "adapters" / made["true"])
    assert api.count(adapters, adapters.c.files_sha256 == kept) == 1
    after = ask_async(asker, adapter=made["true"], max_new_tokens=5)
    worker.answerer.answer_next()
    assert answer_of(asker, after["id"])["state"] == "succeeded"


def test_an_adapter_of_an_earlier_release_that_fails_its_verification_gets_no_hash(
    api: Api, worker: Worker, admin: Person, made: dict[str, Any], tmp_path: Path
) -> None:
    double_alpha(tmp_path / "storage" / "adapters" / made["true"])
    add_adapter(api, admin, sha256=made["true"])
    api.set(adapters, adapters.c.sha256 == made["true"], files_sha256=None)
    api.client(admin).post(f"/v1/adapters/{made['true']}/verify")
    worker.verifier.verify_next()
    assert api.count(adapters, adapters.c.files_sha256.is_(None)) == 1


def test_an_adapter_of_an_earlier_release_gets_no_hash_where_nothing_could_be_verified(
    api: Api, worker: Worker, admin: Person, made: dict[str, Any]
) -> None:
    add_adapter(api, admin, sha256=made["true"])
    api.set(adapters, adapters.c.sha256 == made["true"], files_sha256=None)
    api.client(admin).post(f"/v1/adapters/{made['true']}/verify")
    worker.model.engine.drain()
    assert not worker.verifier.verify_next()
    assert api.count(adapters, adapters.c.files_sha256.is_(None)) == 1


def test_an_adapter_that_was_loaded_to_verify_it_in_vain_answers_nobody(
    api: Api, worker: Worker, admin: Person, made: dict[str, Any], tmp_path: Path
) -> None:
    double_alpha(tmp_path / "storage" / "adapters" / made["true"])
    add_good_adapter(api, admin, made["true"], base_revision=worker.model.revision)
    client = api.client(admin)
    client.post(f"/v1/adapters/{made['true']}/promote", json={}).raise_for_status()
    api.set(adapters, adapters.c.sha256 == made["true"], files_sha256=None)
    client.post(f"/v1/adapters/{made['true']}/verify")
    worker.verifier.verify_next()
    asker = api.log_in()
    asked = ask_async(asker, max_new_tokens=5)
    worker.answerer.answer_next()
    failed = answer_of(asker, asked["id"])
    assert (failed["state"], failed["error"]["code"]) == ("failed", "adapter-refused")


def verify_again(api: Api, worker: Worker, admin: Person, sha256: str) -> dict[str, Any]:
    client = api.client(admin)
    client.post(f"/v1/adapters/{sha256}/verify").raise_for_status()
    worker.verifier.verify_next()
    found: dict[str, Any] = client.get(f"/v1/adapters/{sha256}").json()["verification"]
    return found


def test_a_verification_is_of_the_files_that_are_stored_not_of_those_that_were_loaded_before(
    api: Api, worker: Worker, admin: Person, made: dict[str, Any], tmp_path: Path
) -> None:
    add_adapter(api, admin, sha256=made["true"], status="approved")
    ask_async(api.log_in(), adapter=made["true"], max_new_tokens=2)
    worker.answerer.answer_next()
    assert worker.model.engine.stats().adapters == [made["true"]]
    api.set(adapters, adapters.c.sha256 == made["true"], files_sha256=None)
    double_alpha(tmp_path / "storage" / "adapters" / made["true"])
    assert not verify_again(api, worker, admin, made["true"])["ok"]
    assert api.count(adapters, adapters.c.files_sha256.is_(None)) == 1


def test_an_adapter_whose_right_files_were_put_back_is_verified(
    api: Api, worker: Worker, admin: Person, made: dict[str, Any], tmp_path: Path
) -> None:
    stored = tmp_path / "storage" / "adapters" / made["true"]
    add_adapter(api, admin, sha256=made["true"])
    api.set(adapters, adapters.c.sha256 == made["true"], files_sha256=None)
    double_alpha(stored)
    assert not verify_again(api, worker, admin, made["true"])["ok"]
    assert worker.model.engine.stats().adapters == []
    shutil.copy(made["folder"] / made["true"] / CONFIG, stored / CONFIG)
    assert verify_again(api, worker, admin, made["true"])["ok"]


def answer_of(client: httpx.Client, job_id: str) -> dict[str, Any]:
    found: dict[str, Any] = client.get(f"/v1/jobs/{job_id}").json()
    return found


def test_a_promotion_counts_for_the_next_answer_and_spares_the_one_under_way(
    api: Api, worker: Worker, admin: Person, made: dict[str, Any]
) -> None:
    asker, chief = api.log_in(), api.client(admin)
    for sha256 in (made["true"], made["other"]):
        add_good_adapter(api, admin, sha256, base_revision=worker.model.revision)
    assert chief.post(f"/v1/adapters/{made['true']}/promote", json={}).status_code == 200
    alone = ask_async(asker, max_new_tokens=400)
    worker.answerer.answer_next()
    under_way = ask_async(api.log_in(), max_new_tokens=400)
    with at_work(worker.answerer.answer_next):
        before = worker.model.engine.stats().generated_tokens
        wait_until(lambda: worker.model.engine.stats().generated_tokens > before, what="for a token")
        assert chief.post(f"/v1/adapters/{made['other']}/promote", json={}).status_code == 200
        assert worker.model.engine.stats().running == 1
        asked_next = ask_async(asker, max_new_tokens=5)
        worker.answerer.answer_next()
    assert answer_of(asker, asked_next["id"])["adapter_sha256"] == made["other"]
    assert text(api, under_way["id"]) == text(api, alone["id"]) != ""
    assert api.count(jobs, jobs.c.id == under_way["id"], jobs.c.adapter_sha256 == made["true"]) == 1


def text(api: Api, job_id: str) -> str:
    with api.gateway.database.read() as connection:
        job = api.gateway.jobs.get(connection, job_id)
        assert job.conversation_id is not None
        said = api.gateway.conversations.read_sentences(connection, job.conversation_id, job_id)
    return "".join(sentence.text for sentence in said)


def test_without_an_active_adapter_the_base_answers_and_is_named(
    api: Api, worker: Worker, admin: Person, made: dict[str, Any]
) -> None:
    add_adapter(api, admin, sha256=made["true"], status="approved")
    asker = api.log_in()
    plain, named = ask_async(asker, max_new_tokens=40), ask_async(asker, max_new_tokens=40, adapter="base")
    changed = ask_async(asker, max_new_tokens=40, adapter=made["true"])
    for _ in range(3):
        worker.answerer.answer_next()
    assert text(api, plain["id"]) == text(api, named["id"]) != text(api, changed["id"])
    assert api.count(jobs, jobs.c.id == plain["id"], jobs.c.adapter_sha256 == "base") == 1
    assert answer_of(asker, plain["id"])["adapter_sha256"] is None


def test_an_answer_taken_up_again_goes_on_under_its_adapter(
    api: Api, worker: Worker, admin: Person, made: dict[str, Any]
) -> None:
    chief = api.client(admin)
    for sha256 in (made["true"], made["other"]):
        add_good_adapter(api, admin, sha256, base_revision=worker.model.revision)
    chief.post(f"/v1/adapters/{made['other']}/promote", json={})
    asked = ask_async(api.log_in(), max_new_tokens=20)
    begun = api.claim("a worker that dies")
    api.release(begun, "It began. ")
    with api.gateway.database.write() as connection:
        api.gateway.jobs.hold(connection, begun.claim, adapter_sha256=made["true"])
        api.gateway.jobs.drain(connection, begun.claim)
    worker.answerer.answer_next()
    assert api.count(jobs, jobs.c.id == asked["id"], jobs.c.adapter_sha256 == made["true"]) == 1
    assert text(api, asked["id"]).startswith("It began. ")


def test_a_recalled_adapter_answers_no_more_not_even_to_end_what_it_began(
    api: Api, worker: Worker, admin: Person, made: dict[str, Any]
) -> None:
    add_adapter(api, admin, sha256=made["true"], status="approved")
    asker = api.log_in()
    asked = ask_async(asker, adapter=made["true"])
    api.client(admin).post(f"/v1/adapters/{made['true']}/recall", json={"reason": "It gives wrong doses."})
    worker.answerer.answer_next()
    failed = answer_of(asker, asked["id"])
    assert (failed["state"], failed["error"]["code"]) == ("failed", "adapter-refused")
    assert "recalled" in failed["error"]["detail"]


def test_an_adapter_that_was_recalled_meanwhile_is_not_loaded_to_be_verified(
    api: Api, worker: Worker, admin: Person, made: dict[str, Any]
) -> None:
    add_adapter(api, admin, sha256=made["true"])
    client = api.client(admin)
    job = client.post(f"/v1/adapters/{made['true']}/verify").json()
    client.post(f"/v1/adapters/{made['true']}/recall", json={"reason": "It gives wrong doses."})
    assert worker.verifier.verify_next()
    with api.gateway.database.read() as connection:
        ended = api.gateway.jobs.get(connection, job["id"])
    assert (ended.state, ended.error) == ("failed", "adapter-refused")
    assert client.get(f"/v1/adapters/{made['true']}").json()["verification"] is None


def test_an_adapter_that_cannot_be_loaded_fails_its_own_answers_only(
    api: Api, worker: Worker, admin: Person, made: dict[str, Any], tmp_path: Path
) -> None:
    flip(tmp_path / "storage" / "adapters" / made["true"] / WEIGHTS)
    add_adapter(api, admin, sha256=made["true"], status="approved")
    asker = api.log_in()
    bad = ask_async(asker, adapter=made["true"])
    good = ask_async(asker, max_new_tokens=5)
    for _ in range(2):
        worker.answerer.answer_next()
    failed = answer_of(asker, bad["id"])
    assert (failed["state"], failed["error"]["code"]) == ("failed", "adapter-unavailable")
    assert "tampered" in failed["error"]["detail"]
    assert answer_of(asker, good["id"])["state"] == "succeeded"


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_a_worker_tells_for_as_long_as_it_lives_on_which_weights_it_answers(
    api: Api, worker: Worker, admin: Person, made: dict[str, Any]
) -> None:
    add_adapter(api, admin, sha256=made["true"], base_revision=worker.model.revision)
    add_adapter(api, admin, sha256=made["wrong base"], base_revision="f" * 64)

    def served() -> list[bool | None]:
        both = [made["true"], made["wrong base"]]
        return [api.client(admin).get(f"/v1/adapters/{each}").json()["base_served"] for each in both]

    assert served() == [None, None]
    worker._register()
    assert served() == [True, False]
    worker._report()
    assert served() == [True, False]


def test_an_adapter_of_another_base_is_not_verified_here(
    api: Api, worker: Worker, admin: Person, made: dict[str, Any]
) -> None:
    add_adapter(api, admin, sha256=sha_of("x"), base_model="medgemma-4b")
    job = api.client(admin).post(f"/v1/adapters/{sha_of('x')}/verify").json()
    with api.gateway.database.write() as connection:
        connection.execute(update(jobs).where(jobs.c.id == job["id"]).values(max_attempts=1))
    worker.verifier.verify_next()
    with api.gateway.database.read() as connection:
        failed = api.gateway.jobs.get(connection, job["id"])
        assert api.gateway.jobs.events(connection, job["id"])[-1].kind is EventKind.FAILED
    assert (failed.state, failed.error) == ("failed", "other-base")
    assert "medgemma-4b" in str(failed.error_detail)
