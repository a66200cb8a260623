"""The training worker with its real programs: a file becomes a dataset, a run, an adapter."""

import io
import json
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from models.demo.pictures import draw_picture
from shared.auth.roles import Role
from shared.storage import Storage
from tests.support import Api, wait_until
from tests.training import WorkerProcess
from tests.uploads import uploaded

TIMES = {"lease_s": 4, "heartbeat_s": 1, "reconcile_s": 0.2, "retry_base_s": 0.1}


@pytest.fixture
def dialect() -> str:
    return "sqlite"


@pytest.fixture
def api(make_api: Any) -> Api:
    made: Api = make_api(**TIMES)
    return made


@pytest.fixture
def worker(api: Api) -> Iterator[WorkerProcess]:
    with WorkerProcess(api.settings, "services.worker_train") as process:
        yield process


def questions(count: int) -> bytes:
    """Rows of questions and answers that differ from one another."""
    parts = ("lung", "heart", "liver", "kidney", "skin", "eye", "ear", "bone", "nerve", "stomach")
    signs = ("pain", "swelling", "fever", "a rash", "weakness", "itching", "bleeding", "stiffness")
    rows = (
        {
            "question": f"What does {signs[n % 8]} near the {parts[n // 8 % 10]} mean in case {n}?",
            "answer": f"{signs[n % 8].capitalize()} of the {parts[n // 8 % 10]} has many causes. "
            f"A doctor who sees you can tell which of the {n + 2} it is.",
        }
        for n in range(count)
    )
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def checked(client: Any, dataset_id: str) -> dict[str, Any]:
    """The dataset once its check has ended."""

    def look() -> dict[str, Any] | None:
        seen: dict[str, Any] = client.get(f"/v1/datasets/{dataset_id}").json()
        return seen if seen["state"] in ("ready", "rejected") else None

    found: dict[str, Any] = wait_until(look, 90, "for the check")
    return found


def test_an_upload_is_checked_and_its_report_kept(api: Api, worker: WorkerProcess) -> None:
    client = api.log_in(Role.ADMIN)
    dataset = checked(client, uploaded(client, questions(60)))
    assert (dataset["state"], dataset["error"]) == ("ready", None)
    assert dataset["rows_train"] + dataset["rows_validation"] > 20
    assert dataset["report"]
    rows = client.get(f"/v1/datasets/{dataset['id']}/rows", params={"split": "train"})
    assert rows.status_code == 200
    storage, place = Storage.from_settings(api.settings), f"datasets/{dataset['id']}"
    wait_until(  # the worker tidies after the row says that it is ready
        lambda: not any(name.endswith("report.json") for name in storage.list(place)),
        10,
        "for the report to be in the database only",
    )


def with_a_bomb() -> bytes:
    """A zip with a good picture and then one that would unpack to a hundred million pixels."""
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as file:
        rows = [
            {"question": f"What is {name}?", "answer": "A.", "image": name} for name in ("a.png", "b.png")
        ]
        file.writestr("rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        for name, size in (("a.png", (8, 8)), ("b.png", (10_000, 10_000))):
            picture = io.BytesIO()
            Image.new("1", size).save(picture, "PNG")
            file.writestr(name, picture.getvalue())
    return sink.getvalue()


@pytest.mark.parametrize("broken", [b"\xff\xfe\x00 no text", with_a_bomb()], ids=["no text", "bomb"])
def test_a_broken_upload_is_rejected_with_what_to_do_and_leaves_nothing(
    api: Api, worker: WorkerProcess, broken: bytes
) -> None:
    client = api.log_in(Role.ADMIN)
    dataset = checked(client, uploaded(client, broken))
    assert dataset["state"] == "rejected"
    assert dataset["error"]["detail"]
    wait_until(
        lambda: not Storage.from_settings(api.settings).list(f"datasets/{dataset['id']}"), 10, "to be tidied"
    )


def test_what_is_rejected_for_its_rows_keeps_a_report_of_them_and_can_be_checked_again(
    api: Api, worker: WorkerProcess
) -> None:
    client = api.log_in(Role.ADMIN)
    named = {"question": "Who asked about gout?", "answer": "Write to jane.roe@example.org about the gout."}
    rows = questions(60) + json.dumps(named).encode()
    dataset = checked(client, uploaded(client, rows, phi="reject"))
    assert (dataset["state"], dataset["error"]["code"]) == ("rejected", "phi-found")
    assert dataset["report"]["phi"]["lines"] == [61]
    assert dataset["report"]["dropped"][0]["rows"][0]["line"] == 61
    storage, place = Storage.from_settings(api.settings), f"datasets/{dataset['id']}"
    wait_until(lambda: storage.list(place) == [f"{place}/raw"], what="for the upload alone to be kept")


QUICK = {
    "max_steps": 6,
    "save_steps": 2,
    "eval_steps": 3,
    "batch_size": 2,
    "accumulation": 1,
    "max_tokens": 128,
}


def train(client: Any, dataset_id: str, **changes: Any) -> str:
    """Submit a run of the demo model; returns its id."""
    body = {"name": "signs", "dataset_id": dataset_id, "preset": "quick", "changes": {**QUICK, **changes}}
    response = client.post("/v1/training-runs", json=body)
    assert response.status_code == 202, response.text
    return str(response.json()["id"])


def run_of(client: Any, run_id: str) -> dict[str, Any]:
    run: dict[str, Any] = client.get(f"/v1/training-runs/{run_id}").json()
    return run


def with_pictures(count: int) -> bytes:
    """A zip of rows that each name one of four pictures of the demo model's kind."""
    sink, chance, names = io.BytesIO(), np.random.default_rng(0), ("a.png", "b.png", "c.png", "d.png")
    with zipfile.ZipFile(sink, "w") as file:
        rows = [json.loads(line) for line in questions(count).splitlines()]
        named = [{**row, "image": names[number % 4]} for number, row in enumerate(rows)]
        file.writestr("rows.jsonl", "".join(json.dumps(row) + "\n" for row in named))
        for number, name in enumerate(names):
            picture = io.BytesIO()
            Image.fromarray(draw_picture(("left", "right")[number % 2], chance)).save(picture, "PNG")
            file.writestr(name, picture.getvalue())
    return sink.getvalue()


#: A look at the adapter, not a judgement.
HASTY = {"ROWS": "2", "ANSWERS": "2", "ANSWER_TOKENS": "1", "SECONDS": "1"}


def test_a_zip_of_pictures_is_checked_and_trained_on_and_its_candidate_measured(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in HASTY.items():
        monkeypatch.setenv(f"MEDICHAT_EVALUATION_{name}", value)
    client = api.log_in(Role.ADMIN)
    with WorkerProcess(api.settings, "services.worker_train"):
        dataset = checked(client, uploaded(client, with_pictures(60), filename="set.zip"))
        assert (dataset["state"], dataset["report"]["images"]) == ("ready", 4)
        run_id = train(client, dataset["id"])
        wait_until(lambda: run_of(client, run_id)["finished_at"], 120, "for the run")
        run = run_of(client, run_id)
        assert (run["state"], run["error"]) == ("succeeded", None)
        steps = client.get(f"/v1/training-runs/{run_id}/steps").json()["items"]
        assert [step["step"] for step in steps] == list(range(1, 7))
        assert all(step["loss"] > 0 for step in steps)
        assert [step["step"] for step in steps if step["eval_loss"] is not None] == [3, 6]
        names = Storage.from_settings(api.settings).list(f"adapters/{run['adapter_sha256']}")
        assert len(names) == 4
        asked = client.post(f"/v1/adapters/{run['adapter_sha256']}/evaluate").json()
        path = f"/v1/evaluations/{asked['id']}"
        wait_until(lambda: client.get(path).json()["finished_at"], 120, "for the evaluation")
    found = client.get(path).json()
    assert (found["state"], found["error"]) == ("succeeded", None)
    assert found["figures"]["loss"]["rows"] == 2
    assert found["figures"]["loss"]["difference"]["value"] != 0


def test_a_run_is_killed_handed_back_and_cancelled_and_loses_nothing(api: Api, worker: WorkerProcess) -> None:
    """One story, because opening the model takes most of the time."""
    client = api.log_in(Role.ADMIN)
    dataset = checked(client, uploaded(client, questions(60)))
    run_id = train(client, dataset["id"], max_steps=2_000, epochs=100, early_stopping_patience=None)
    wait_for_step(client, run_id, 5)
    (program,) = psutil.Process(worker.process.pid).children()
    program.kill()
    wait_until(lambda: len(run_of(client, run_id)["notes"]) >= 2, 60, "for the program to start again")
    wait_for_step(client, run_id, run_of(client, run_id)["step"] + 3)
    assert worker.terminate() == 0
    handed_back = run_of(client, run_id)
    assert (handed_back["state"], handed_back["attempt"]) == ("queued", 1)
    with WorkerProcess(api.settings, "services.worker_train") as another:
        wait_for_step(client, run_id, handed_back["step"] + 1)
        assert (
            f"from the checkpoint of step {handed_back['step']},"
            in run_of(client, run_id)["notes"][-1]["text"]
        )
        (program,) = psutil.Process(another.process.pid).children()
        client.post(f"/v1/training-runs/{run_id}/cancel")
        wait_until(lambda: run_of(client, run_id)["state"] == "cancelled", 15, "for the end")
        assert not program.is_running()
    steps = client.get(f"/v1/training-runs/{run_id}/steps").json()["items"]
    assert [step["step"] for step in steps] == list(range(1, len(steps) + 1))


def wait_for_step(client: Any, run_id: str, step: int) -> None:
    wait_until(
        lambda: run_of(client, run_id)["step"] >= step, 90, f"for step {step}: {run_of(client, run_id)}"
    )
