"""Evaluations from the request to the verdict: store, gateway, and the program as a process of its own."""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from sqlalchemy import select

from services.api.state import Gateway
from services.local import free_ports
from services.worker_train.child import Exit, Refused, emit
from services.worker_train.copies import folder_for_copy
from services.worker_train.evaluate import main
from services.worker_train.evaluation import carry_out
from services.worker_train.evaluation.by_hand import by_hand, gather
from services.worker_train.evaluation.carry_out import evaluate
from shared.audit.record import Actor
from shared.auth.roles import Role
from shared.db.tables import data_keys, jobs
from shared.db.tables_training import adapters, datasets, evaluations
from shared.errors import AdapterRefused, Conflict, DatasetDamaged, LeaseLost, NotFound
from shared.ids import new_id
from shared.jobs.lifecycle import EventKind, Kind
from shared.memory import WANTED_BY_SERVING, memory_name
from shared.registration import Registration
from shared.settings import Settings
from shared.storage import Storage
from shared.training.adapter_files import CONFIG, WEIGHTS
from shared.training.evaluations import EvaluationStore, samples_path
from tests.evaluating import Registered, add_dataset, demo_weights, message_row, nudge, register, with_lora
from tests.support import ROOT, Api, wait_until
from tests.training import worker_thread
from tests.unit.test_training_gate import GOOD, WORSE

#: peft still asks transformers by the old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

ADVICE = "Please rest, drink enough and ask a pharmacist when it does not get better within a few days. "
ROWS = {
    "train": [message_row(n, f"What helps against cough {n}?", ADVICE * 4) for n in range(6)],
    "validation": [message_row(n, f"What helps against fever {n}?", ADVICE, f"p{n % 3}") for n in range(6)],
}
SAMPLES = {"best": [{"question": "What is flu?"}], "worst": [], "stopped": [], "declined": []}


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an adapter of the demo model."""
    folder = tmp_path_factory.mktemp("adapter")
    model = with_lora(demo_weights())
    nudge(model)
    model.save_pretrained(folder)
    name_base(folder, "demo")
    return folder


def name_base(folder: Path, base: str) -> None:
    """As a training does; peft names the folder that it read the base from."""
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, "base_model_name_or_path": base}))


@pytest.fixture
def dialect() -> str:
    """The gateway's own tests run on both; here one of them is enough."""
    return "sqlite"


@pytest.fixture
def api(make_api: Any) -> Api:
    made: Api = make_api()
    return made


@pytest.fixture
def registered(api: Api, adapter: Path) -> Registered:
    """The adapter and its dataset, in this gateway's database and storage."""
    gateway = api.gateway
    return register(
        gateway.database,
        Storage.from_settings(api.settings),
        gateway.jobs,
        gateway.envelope,
        folder=adapter,
        rows=ROWS,
        recipe={"canaries": 1, "seed": 3},
    )


def store(gateway: Gateway) -> EvaluationStore:
    return EvaluationStore(gateway.jobs, gateway.envelope)


def submit(api: Api, registered: Registered, **changes: Any) -> Any:
    given = {"adapter_sha256": registered.sha256, "dataset_id": None, **changes}
    with api.gateway.database.write() as connection:
        return store(api.gateway).submit(
            connection,
            user_id=registered.user_id,
            actor=Actor(registered.user_id),
            now=datetime.now(UTC),
            **given,
        )


def claim(api: Api) -> Any:
    return api.claim(kind=Kind.EVALUATE)


def end(api: Api, job: Any, figures: dict[str, Any]) -> Any:
    with api.gateway.database.write() as connection:
        return store(api.gateway).record_end(connection, job.claim, figures=figures, samples=SAMPLES)


def another_dataset(api: Api, registered: Registered, held_out: Sequence[Any]) -> str:
    """The id of a dataset that the adapter was not trained on."""
    with api.gateway.database.write() as connection:
        dataset_id, _ = add_dataset(
            connection,
            Storage.from_settings(api.settings),
            api.gateway.envelope,
            rows={"train": [], "validation": held_out},
            user_id=registered.user_id,
        )
    return dataset_id


# -- the store


def test_an_evaluation_brings_its_job_and_its_audit_event(api: Api, registered: Registered) -> None:
    evaluation = submit(api, registered)
    assert evaluation.dataset_id == registered.dataset_id
    assert claim(api).id == evaluation.job_id
    (event,) = api.audit("evaluation.submitted")
    assert event.object == f"evaluation:{evaluation.id}"


def test_what_does_not_exist_cannot_be_evaluated(api: Api, registered: Registered) -> None:
    with pytest.raises(NotFound, match="adapter"):
        submit(api, registered, adapter_sha256="0" * 64)
    with pytest.raises(NotFound, match="dataset"):
        submit(api, registered, dataset_id=new_id())
    api.set(datasets, datasets.c.id == registered.dataset_id, rows_validation=0)
    with pytest.raises(Conflict, match="held-out rows"):
        submit(api, registered)
    api.set(adapters, adapters.c.sha256 == registered.sha256, status="recalled")
    with pytest.raises(Conflict, match="recalled"):
        submit(api, registered)


def test_an_adapter_whose_dataset_was_taken_out_of_the_list_is_evaluated_on_it(
    api: Api, registered: Registered
) -> None:
    api.set(datasets, datasets.c.id == registered.dataset_id, hidden_at=datetime.now(UTC))
    assert submit(api, registered).dataset_id == registered.dataset_id


def test_another_dataset_that_was_taken_out_of_the_list_is_not_found(
    api: Api, registered: Registered
) -> None:
    other = another_dataset(api, registered, ROWS["validation"])
    api.set(datasets, datasets.c.id == other, hidden_at=datetime.now(UTC))
    with pytest.raises(NotFound, match="dataset"):
        submit(api, registered, dataset_id=other)


def test_an_adapter_whose_own_rows_were_erased_is_measured_on_no_others(
    api: Api, registered: Registered
) -> None:
    other = another_dataset(api, registered, ROWS["validation"])
    waiting = submit(api, registered, dataset_id=other)
    key = data_keys.c.key_id == registered.key.key_id
    gone = {"manifest": None, "state": "rejected", "error": "erased"}
    api.set(datasets, datasets.c.id == registered.dataset_id, **gone)
    api.set(data_keys, key, wrapped_key=None)
    with pytest.raises(Conflict, match="What the adapter was trained on was erased"):
        submit(api, registered, dataset_id=other)
    with pytest.raises(Refused, match="What the adapter was trained on was erased"):
        evaluate(api.settings, waiting.id)


def test_an_adapter_without_held_out_rows_of_its_own_is_measured_on_others(
    api: Api, registered: Registered
) -> None:
    api.set(datasets, datasets.c.id == registered.dataset_id, rows_validation=0)
    other = another_dataset(api, registered, ROWS["validation"])
    assert submit(api, registered, dataset_id=other).dataset_id == other


def test_the_end_keeps_the_figures_and_what_the_gate_makes_of_them(api: Api, registered: Registered) -> None:
    evaluation = submit(api, registered)
    assert not end(api, claim(api), {**GOOD, "verbatim": WORSE["verbatim"][0]}).passed
    with api.gateway.database.read() as connection:
        kept = store(api.gateway).get(connection, evaluation.id)
        assert kept.passed is False
        assert kept.figures is not None
        assert kept.figures["loss"] == GOOD["loss"]
        gate = store(api.gateway).newest_gate(connection, registered.sha256)
        assert gate is not None
        assert [check["figure"] for check in gate["checks"] if not check["passed"]] == ["verbatim"]
        assert store(api.gateway).samples(connection, evaluation.id) == SAMPLES


def test_samples_are_not_in_the_clear_in_the_database(api: Api, registered: Registered) -> None:
    evaluation = submit(api, registered)
    end(api, claim(api), GOOD)
    with api.gateway.database.read() as connection:
        row = connection.execute(select(evaluations).where(evaluations.c.id == evaluation.id)).one()
    assert b"flu" not in row.samples_ciphertext


def test_a_worker_that_lost_its_claim_records_nothing(api: Api, registered: Registered) -> None:
    evaluation, job = submit(api, registered), claim(api)
    with api.gateway.database.write() as connection:
        api.gateway.jobs.drain(connection, job.claim)
    with pytest.raises(LeaseLost):
        end(api, job, GOOD)
    with api.gateway.database.read() as connection:
        assert store(api.gateway).get(connection, evaluation.id).figures is None


# -- the gateway


def test_an_admin_asks_for_an_evaluation_and_reads_what_it_found(api: Api, registered: Registered) -> None:
    admin = api.log_in(Role.ADMIN)
    asked = admin.post(f"/v1/adapters/{registered.sha256}/evaluate")
    assert asked.status_code == 202, asked.text
    assert (asked.json()["state"], asked.json()["gate"]) == ("queued", None)
    job = claim(api)
    end(api, job, GOOD)
    with api.gateway.database.write() as connection:
        api.gateway.jobs.finish(connection, job.claim, EventKind.SUCCEEDED)
    read = admin.get(f"/v1/evaluations/{asked.json()['id']}").json()
    assert (read["state"], read["gate"]["passed"], read["samples"]) == ("succeeded", True, SAMPLES)
    assert len(read["gate"]["checks"]) == len(GOOD)
    (event,) = api.audit("evaluation.read")
    assert event.object == f"evaluation:{asked.json()['id']}"


def test_samples_of_an_erased_dataset_are_gone_and_the_figures_stay(api: Api, registered: Registered) -> None:
    admin = api.log_in(Role.ADMIN)
    asked = admin.post(f"/v1/adapters/{registered.sha256}/evaluate", json={}).json()
    end(api, claim(api), GOOD)
    admin.post(f"/v1/datasets/{registered.dataset_id}/erase").raise_for_status()
    read = admin.get(f"/v1/evaluations/{asked['id']}").json()
    assert (read["samples"], read["samples_erased"]) == ({}, True)
    assert read["figures"]["loss"] == GOOD["loss"]


def test_erasing_what_an_adapter_was_trained_on_ends_its_evaluation_on_other_rows_too(
    api: Api, registered: Registered
) -> None:
    admin = api.log_in(Role.ADMIN)
    asked = submit(api, registered, dataset_id=another_dataset(api, registered, ROWS["validation"]))
    admin.post(f"/v1/datasets/{registered.dataset_id}/erase").raise_for_status()
    assert admin.get(f"/v1/evaluations/{asked.id}").json()["state"] == "cancelled"


def test_samples_of_peoples_conversations_are_withheld_and_the_figures_stay(
    api: Api, registered: Registered
) -> None:
    admin = api.log_in(Role.ADMIN)
    asked = admin.post(f"/v1/adapters/{registered.sha256}/evaluate", json={}).json()
    end(api, claim(api), GOOD)
    api.set(datasets, datasets.c.id == asked["dataset_id"], source="reviews")
    read = admin.get(f"/v1/evaluations/{asked['id']}").json()
    assert (read["samples"], read["samples_withheld"]) == ({}, True)
    assert read["figures"]["loss"] == GOOD["loss"]


def test_what_cannot_be_evaluated_or_read_is_a_problem(api: Api, registered: Registered) -> None:
    admin = api.log_in(Role.ADMIN)
    assert admin.post(f"/v1/adapters/{'0' * 64}/evaluate").status_code == 404
    assert (
        admin.post(f"/v1/adapters/{registered.sha256}/evaluate", json={"dataset_id": "x"}).status_code == 404
    )
    assert admin.get(f"/v1/evaluations/{new_id()}").status_code == 404


# -- the program


def run_program(api: Api, *arguments: str, **settings: str) -> tuple[int, list[dict[str, Any]], str]:
    """Its exit status, its events and its standard error; its parent lives as long as it does."""
    master_key = api.settings.secret("master_key")
    environment = {
        "PATH": os.environ["PATH"],
        "OMP_NUM_THREADS": "1",
        "MEDICHAT_STATE_DIR": str(api.settings.state_dir),
        "MEDICHAT_DATABASE_URL": api.settings.database_url,
        "MEDICHAT_MASTER_KEY": master_key,
        "MEDICHAT_DEVICE": "cpu",
        **settings,
    }
    command = [sys.executable, "-m", "services.worker_train.evaluate", *arguments]
    reader, writer = os.pipe()
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            stdin=reader,
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
        )
    finally:
        os.close(reader)
        os.close(writer)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def test_the_program_measures_an_adapter_on_sealed_rows(
    api: Api, registered: Registered, tmp_path: Path
) -> None:
    evaluation = submit(api, registered)
    choices = tmp_path / "choices.jsonl"
    asked = ("Is rest good?", *(row["messages"][0]["content"] for row in ROWS["train"][:2]))
    lines = [{"question": question, "context": "Rest helps.", "answer": "yes"} for question in asked]
    choices.write_text("\n".join(map(json.dumps, lines)))
    status, events, errors = run_program(
        api,
        "--evaluation",
        evaluation.id,
        MEDICHAT_EVALUATION_ANSWER_TOKENS="8",
        MEDICHAT_EVALUATION_CHOICES=str(choices),
    )
    assert status == Exit.DONE, errors[-2000:]
    done = events[-1]
    assert done["event"] == "done"
    assert {event["event"] for event in events[:-1]} == {"progress"}
    figures = done["figures"]
    assert figures["loss"]["rows"] == figures["rouge_l"]["rows"] == 6
    assert figures["guard_violations_per_1000"]["rows"] >= 60
    assert figures["over_refusal"]["rows"] >= 60
    assert figures["verbatim"]["long_enough"] == 6
    assert figures["choices_accuracy"]["rows"] == figures["canary_exposure"]["rows"] == 1
    assert figures["about"]["choices_learnt_before"] == 2
    assert figures["loss"]["difference"]["value"] != 0
    assert "pharmacist" not in json.dumps(events), "a row's text is in an event"

    storage = Storage.from_settings(api.settings)
    assert done["samples_path"] == samples_path(evaluation.id)
    with storage.open(done["samples_path"]) as file:
        assert b"fever" not in file.read()
    with api.gateway.database.read() as connection:
        samples = store(api.gateway).sealed_samples(connection, storage, evaluation.job_id)
    assert "fever" in samples["best"][0]["question"]
    assert end(api, claim(api), figures).checks


def test_an_evaluation_without_enough_memory_fails_with_advice_that_fits(
    api: Api, registered: Registered
) -> None:
    admin = api.log_in(Role.ADMIN)
    path = f"/v1/evaluations/{submit(api, registered).id}"
    full = (sys.executable, "-c", f"raise SystemExit({Exit.OUT_OF_MEMORY:d})")
    with worker_thread(api.settings, {Kind.EVALUATE: full}):
        wait_until(lambda: admin.get(path).json()["state"] == "failed", 30, "for its end")
    told = admin.get(path).json()["error"]
    assert told["code"] == "out-of-memory"
    assert "MEDICHAT_QUANTISE" in told["detail"]
    assert "rank" not in told["detail"]


@pytest.mark.parametrize("recalled", [False, True])
def test_an_evaluation_under_way_is_stopped_within_seconds(
    api: Api, registered: Registered, recalled: bool
) -> None:
    """By an admin who asks for that, or who recalls its adapter."""
    admin = api.log_in(Role.ADMIN)
    path = f"/v1/evaluations/{submit(api, registered).id}"
    for_ever = (sys.executable, "-c", "import signal; signal.sigwait([])")
    with worker_thread(api.settings, {Kind.EVALUATE: for_ever}):
        wait_until(lambda: admin.get(path).json()["state"] == "running", 30, "for its start")
        if recalled:
            body = {"reason": "It gives wrong doses."}
            admin.post(f"/v1/adapters/{registered.sha256}/recall", json=body).raise_for_status()
        else:
            assert admin.post(f"{path}/cancel").status_code == 202
        wait_until(lambda: admin.get(path).json()["state"] == "cancelled", 10, "for its end")
    assert api.audit("evaluate.cancelled")


def test_rows_that_were_altered_end_it_at_once_with_advice(api: Api, registered: Registered) -> None:
    evaluation, storage = submit(api, registered), Storage.from_settings(api.settings)
    with storage.create(f"datasets/{registered.dataset_id}/v1/validation-00000.jsonl") as file:
        file.write(b"other rows")
    status, events, _ = run_program(api, "--evaluation", evaluation.id)
    assert (status, events[-1]["event"], events[-1]["code"]) == (Exit.REFUSED, "stopped", "data-altered")
    assert "upload it again" in events[-1]["detail"]


def test_rows_that_the_manifest_was_made_to_count_among_others_are_not_measured(
    api: Api, registered: Registered
) -> None:
    evaluation, own = submit(api, registered), datasets.c.id == registered.dataset_id
    with api.gateway.database.read() as connection:
        manifest = connection.execute(select(datasets.c.manifest).where(own)).scalar_one()
    parts = [{**part, "split": "validation"} for part in manifest["parts"]]
    api.set(datasets, own, manifest={**manifest, "parts": parts})
    with pytest.raises(DatasetDamaged):
        evaluate(api.settings, evaluation.id)


def test_a_storage_that_cannot_be_reached_is_worth_another_evaluation(
    api: Api, registered: Registered
) -> None:
    evaluation, (nobody,) = submit(api, registered), free_ports(1)
    away = {
        "MEDICHAT_STORAGE_URL": "s3://bucket/medichat",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{nobody}",
        "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": "any",
        "AWS_MAX_ATTEMPTS": "1",
    }
    status, events, log = run_program(api, "--evaluation", evaluation.id, **away)
    assert (status, events[-1]["code"]) == (Exit.AWAY, "storage"), log


def test_the_program_loads_nothing_where_answers_may_need_the_memory(
    api: Api, registered: Registered
) -> None:
    evaluation = submit(api, registered)
    wanted = {memory_name(None): psutil.virtual_memory().total}
    status, events, _ = run_program(
        api, "--evaluation", evaluation.id, **{WANTED_BY_SERVING: json.dumps(wanted)}
    )
    assert (status, events[-1]["code"]) == (Exit.WAIT, "waiting-for-memory")
    assert "GB that answers may still need; it starts when there is room" in events[-1]["detail"]


def test_an_evaluation_without_room_waits_with_the_reason_and_burns_no_attempt(
    api: Api, registered: Registered
) -> None:
    gateway, admin = api.gateway, api.log_in(Role.ADMIN)
    serving = Registration(gateway.database, gateway.clock, "infer@host:1")
    serving.enter(Kind.INFER, "demo", {})
    serving.report({"memory": "gpu:a", "wanted_bytes": 7})
    evaluation = submit(api, registered)
    path = f"/v1/evaluations/{evaluation.id}"
    # tells as its reason what it was told of the memory
    waits = (
        "import os; from services.worker_train.child import Exit, stop; "
        f"stop(Exit.WAIT, 'waiting-for-memory', os.environ[{WANTED_BY_SERVING!r}])"
    )
    with worker_thread(api.settings, {Kind.EVALUATE: (sys.executable, "-c", waits)}):
        wait_until(lambda: admin.get(path).json()["waiting_reason"], 30, "for it to wait")
    seen = admin.get(path).json()
    assert (seen["state"], seen["waiting_reason"]) == ("queued", '{"gpu:a": 7}')
    with gateway.database.write() as connection:
        assert gateway.jobs.get(connection, evaluation.job_id).attempt == 0
        now = gateway.clock.now(connection)
        connection.execute(jobs.update().values(available_at=now))  # a minute later
    refused = (sys.executable, "-c", f"raise SystemExit({Exit.REFUSED:d})")
    with worker_thread(api.settings, {Kind.EVALUATE: refused}):
        wait_until(lambda: admin.get(path).json()["state"] == "failed", 30, "for its end")
    assert admin.get(path).json()["waiting_reason"] is None


def test_the_adapter_is_copied_to_where_a_killed_programs_copy_is_removed(
    api: Api, registered: Registered, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Path] = []

    def look(*_: object, adapter: Path, **rest: object) -> None:
        seen.extend(adapter.iterdir())
        raise Refused("enough", "Seen.")

    monkeypatch.setattr(carry_out, "load_examinee", look)
    with pytest.raises(Refused, match="Seen"):
        evaluate(api.settings, submit(api, registered).id)
    assert {path.name for path in seen} == {WEIGHTS, CONFIG}
    (copy,) = {path.parent for path in seen}
    assert copy.parent == api.settings.state_dir
    assert not [*api.settings.state_dir.glob(".writing-*")]
    copy.mkdir()  # as a program that was killed leaves it
    with folder_for_copy(api.settings.state_dir):
        assert not copy.exists()


def test_weights_that_were_changed_afterwards_are_refused(api: Api, registered: Registered) -> None:
    evaluation = submit(api, registered)
    storage, path = Storage.from_settings(api.settings), f"adapters/{registered.sha256}/{WEIGHTS}"
    with storage.open(path) as file:
        weights = bytearray(file.read())
    weights[-1] ^= 1
    with storage.create(path) as file:
        file.write(weights)
    with pytest.raises(AdapterRefused, match="tampered"):
        evaluate(api.settings, evaluation.id)


def test_a_configuration_that_was_changed_afterwards_is_refused(api: Api, registered: Registered) -> None:
    evaluation = submit(api, registered)
    storage, path = Storage.from_settings(api.settings), f"adapters/{registered.sha256}/{CONFIG}"
    with storage.open(path) as file:
        config = json.load(file)
    with storage.create(path) as file:
        file.write(json.dumps({**config, "lora_alpha": 2 * config["lora_alpha"]}).encode())
    with pytest.raises(AdapterRefused, match="not the one that was registered"):
        evaluate(api.settings, evaluation.id)


def test_an_adapter_of_other_base_weights_is_refused(api: Api, registered: Registered) -> None:
    evaluation = submit(api, registered)
    api.set(adapters, adapters.c.sha256 == registered.sha256, base_revision="0" * 64)
    status, events, _ = run_program(api, "--evaluation", evaluation.id)
    assert (status, events[-1]["event"], events[-1]["code"]) == (Exit.REFUSED, "stopped", "adapter-refused")
    assert "another base" in events[-1]["detail"]


def test_nothing_is_measured_when_the_rows_it_was_trained_on_are_no_more(
    api: Api, registered: Registered
) -> None:
    evaluation = submit(api, registered)
    api.set(datasets, datasets.c.id == registered.dataset_id, manifest_sha256="d" * 64)
    with pytest.raises(Refused, match="which rows the adapter was trained on"):
        evaluate(api.settings, evaluation.id)


def test_rows_of_another_dataset_that_were_learnt_are_left_out_and_counted(
    api: Api, registered: Registered
) -> None:
    held_out = [*ROWS["train"], *(message_row(n, f"What helps against itch {n}?", ADVICE) for n in range(3))]
    other = another_dataset(api, registered, held_out)
    evaluation = submit(api, registered, dataset_id=other)
    hasty = api.settings.model_copy(update={"evaluation_seconds": 1.0, "evaluation_answer_tokens": 1})
    figures = evaluate(hasty, evaluation.id)[0].figures
    assert (figures["loss"]["rows"], figures["about"]["rows_learnt_before"]) == (3, len(ROWS["train"]))


def test_broken_weights_are_told_by_the_gate(
    api: Api, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = with_lora(demo_weights())
    nudge(model, math.inf)
    model.save_pretrained(tmp_path / "broken")
    gateway = api.gateway
    broken = register(
        gateway.database,
        Storage.from_settings(api.settings),
        gateway.jobs,
        gateway.envelope,
        folder=tmp_path / "broken",
        rows={**ROWS, "validation": ROWS["validation"] * 2},
    )
    evaluation = submit(api, broken)
    hasty = api.settings.model_copy(update={"evaluation_seconds": 1.0, "evaluation_answer_tokens": 1})
    emit("done", figures=evaluate(hasty, evaluation.id)[0].figures)
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    failures = {check.figure: check.message for check in end(api, claim(api), told["figures"]).failures}
    assert "is not a number: the adapter's weights are broken" in failures["loss"]


def test_a_person_runs_it_on_files_and_reads_the_gate(api: Api, adapter: Path, tmp_path: Path) -> None:
    rows, out = tmp_path / "rows.jsonl", tmp_path / "out.json"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS["validation"]))
    arguments = ("--adapter", str(adapter), "--rows", str(rows), "--out", str(out), "--answer-tokens", "4")
    status, events, errors = run_program(api, *arguments, "--answers", "2")
    assert status == 1, errors[-2000:]
    written = json.loads(out.read_text())
    assert written["figures"]["rouge_l"]["rows"] == 2
    assert "verbatim: this figure was not measured; give the rows it was trained on with --train." in errors
    assert "canary_exposure: this figure was not measured; where the adapter's card says that" in errors
    assert "give how many, and the seed, with --canaries N --canary-seed S." in errors
    assert written["gate"]["passed"] is False
    assert events == []


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"rows": "none.jsonl"}, "No such file or directory: .*none.jsonl.*evaluate again"),
        ({"rows": "latin1.jsonl"}, "Line 2 is not UTF-8"),
        ({"train": "latin1.jsonl"}, "Line 2 is not UTF-8"),
        ({"rows": "listed.jsonl"}, "Line 1 of the rows has a `group` or an `image` that is no name"),
        ({"train": "rows.jsonl"}, "No row of .*rows.jsonl is left to measure on: 1 ask what the adapter was"),
        ({"rows": "none.jsonl", "out": "none/out.json"}, "none/out.json cannot be written: name a file in"),
        ({"rows": "none.jsonl", "out": ""}, "cannot be written: name a file in"),
    ],
)
def test_files_that_cannot_be_used_are_named_before_anything_is_measured(
    tmp_path: Path, given: dict[str, str], told: str
) -> None:
    row = json.dumps(ROWS["validation"][0]).encode() + b"\n"
    (tmp_path / "rows.jsonl").write_bytes(row)
    (tmp_path / "latin1.jsonl").write_bytes(row + b'{"messages": "\xe9"}\n')
    (tmp_path / "listed.jsonl").write_text(json.dumps({**ROWS["validation"][0], "group": ["p1", "p2"]}))
    paths = {"rows": "rows.jsonl", "out": "out.json", "adapter": "adapter", **given}
    with pytest.raises(SystemExit, match=told):
        by_hand(Settings(device="cpu"), files(**{name: tmp_path / path for name, path in paths.items()}))


def files(**named: Path | str) -> argparse.Namespace:
    """What the command line names."""
    given = {"train": None, "canaries": 0, "canary_seed": 0, "model": "demo", **named}
    return argparse.Namespace(**given)


def test_a_model_that_is_named_for_an_adapter_of_another_is_what_the_refusal_speaks_of(
    adapter: Path, tmp_path: Path
) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROWS["validation"][0]))
    named = {"rows": tmp_path / "rows.jsonl", "out": tmp_path / "out.json", "adapter": adapter}
    with pytest.raises(SystemExit, match=r"than medgemma-4b, which --model names.*leave --model out"):
        by_hand(Settings(device="cpu"), files(**named, model="medgemma-4b"))


def test_the_model_is_that_of_the_adapter_where_none_is_named(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(*_: Any, base_model: str, **__: Any) -> None:
        raise Refused("seen", base_model)

    monkeypatch.setattr("services.worker_train.evaluation.by_hand.load_examinee", told)
    shutil.copytree(adapter, tmp_path / "medgemma")
    name_base(tmp_path / "medgemma", "google/medgemma-4b-it")
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROWS["validation"][0]))
    named = {"rows": tmp_path / "rows.jsonl", "out": tmp_path / "out.json", "adapter": tmp_path / "medgemma"}
    with pytest.raises(SystemExit, match=r"^medgemma-4b$"):
        by_hand(Settings(device="cpu"), files(**named, model=""))


def test_of_files_too_what_was_learnt_is_not_held_out_and_rows_with_pictures_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    learnt, rows = tmp_path / "train.jsonl", tmp_path / "rows.jsonl"
    pictured = {**ROWS["validation"][0], "image": "cough.png"}
    learnt.write_text("\n".join(json.dumps(row) for row in ROWS["train"]))
    rows.write_text("\n".join(json.dumps(row) for row in (*ROWS["train"], *ROWS["validation"], pictured)))
    material = gather(Settings(device="cpu"), files(rows=rows, train=learnt))
    assert (len(material.held_out), material.learnt_before) == (6, len(ROWS["train"]))
    assert capsys.readouterr().err == (
        f"{rows}: 1 rows with a picture are left out; measure those as a dataset.\n"
    )


@pytest.mark.parametrize(
    ("knob", "value"), [("answers", "0"), ("answers", "-1"), ("answer-tokens", "0"), ("limit-rows", "5001")]
)
def test_a_knob_is_refused_before_anything_is_measured_where_its_setting_would_be(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], knob: str, value: str
) -> None:
    given = ["evaluate", "--adapter", "a", "--rows", "b", "--out", "c", f"--{knob}", value]
    monkeypatch.setattr(sys, "argv", given)
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert "the setting MEDICHAT_EVALUATION_" in capsys.readouterr().err


def test_a_device_without_enough_memory_is_named_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr("services.worker_train.evaluation.by_hand.load_examinee", too_large)
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps(ROWS["validation"][0]))
    with pytest.raises(SystemExit, match="does not fit the device's memory"):
        by_hand(Settings(device="cpu"), files(rows=rows, out=tmp_path / "out.json", adapter=tmp_path))
