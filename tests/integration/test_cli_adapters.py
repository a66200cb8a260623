"""`medichat train` and `medichat adapter` against a gateway that listens, with rows as workers leave them."""

import sys
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select, update

from services import cli, cli_client
from services.cli_adapters import GONE
from services.cli_measured import print_samples
from shared.auth.roles import Role
from shared.db.tables import jobs
from shared.db.tables_training import adapters, datasets, evaluations, training_runs
from shared.jobs.lifecycle import EventKind, Kind
from shared.training.progress import StepReport, record_steps
from shared.training.recipe import Recipe
from tests.conftest import MakeApi
from tests.registry import GOOD, add_adapter, add_evaluation, add_good_adapter, answers_by, sha_of
from tests.support import Api, Person, wait_until
from tests.training import add_dataset

#: A figure over its limit.
FAILED = {
    "figure": "loss",
    "limit": 0.0,
    "value": 0.4,
    "passed": False,
    "excess": 0.4,
    "message": "worse",
}


@pytest.fixture
def dialect() -> str:
    """The command line speaks HTTP; one database is enough."""
    return "sqlite"


@pytest.fixture
def admin(api: Api, monkeypatch: pytest.MonkeyPatch) -> Person:
    """An admin whose API key is in the environment."""
    return admin_of(api, monkeypatch)


def admin_of(api: Api, monkeypatch: pytest.MonkeyPatch) -> Person:
    person = api.person(Role.ADMIN)
    made = api.client(person).post("/v1/api-keys", json={"name": "cli", "scopes": ["admin"]})
    monkeypatch.setenv("MEDICHAT_API_URL", api.url)
    monkeypatch.setenv("MEDICHAT_API_KEY", made.json()["key"])
    return person


def status_of(api: Api, sha256: str) -> str:
    with api.gateway.database.read() as connection:
        return str(connection.execute(adapters.select().where(adapters.c.sha256 == sha256)).one().status)


def test_a_run_is_started_with_other_knobs_listed_and_stopped(
    api: Api, admin: Person, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset_id = add_dataset(api, admin)
    knobs = ["--set", "epochs=1", "--set", "learning_rate=1e-4", "--set", "rslora=true"]
    assert cli.main(["train", "start", dataset_id, "--name", "leaflets", *knobs]) == 0
    run_id = capsys.readouterr().out.split()[0]
    with api.gateway.database.read() as connection:
        recipe = connection.execute(training_runs.select()).one().recipe
    assert (recipe["epochs"], recipe["learning_rate"], recipe["rslora"]) == (1, 1e-4, True)
    assert cli.main(["train", "list"]) == 0
    assert f"{run_id}  queued" in capsys.readouterr().out
    assert cli.main(["train", "stop", run_id]) == 0
    assert "cancelled" in capsys.readouterr().out
    assert cli.main(["train", "watch", run_id]) == 3


def test_a_run_is_watched_with_its_losses(
    api: Api, admin: Person, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset_id = add_dataset(api, admin)
    assert cli.main(["train", "start", dataset_id, "--name", "leaflets"]) == 0
    run_id, now = capsys.readouterr().out.split()[0], datetime.now(UTC)
    job = api.claim(kind=Kind.TRAIN)
    with api.gateway.database.write() as connection:
        told = [StepReport(1, now, {"loss": 3.5, "eval_loss": 3.25}), StepReport(2, now, {"loss": 2.5})]
        record_steps(connection, run_id, told, starting=True)
    api.set(training_runs, training_runs.c.id == run_id, total_steps=4)
    lines: list[str] = []
    monkeypatch.setattr(cli_client.ProgressLine, "show", lambda _, line: lines.append(line))
    watching = threading.Thread(target=lambda: cli.main(["train", "watch", run_id]))
    watching.start()
    wait_until(lambda: lines, what="for the command to look")
    api.finish(job, EventKind.FAILED, error="internal", error_detail="Enough.")
    watching.join(30)
    assert lines[0].startswith("step 2 of 4 (")
    assert lines[0].endswith("loss 2.500, held out 3.250")


def test_a_run_without_a_preset_starts_from_the_one_for_the_served_model(
    make_api: MakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = make_api(model="medgemma-4b")
    dataset_id = add_dataset(api, admin_of(api, monkeypatch))
    assert cli.main(["train", "start", dataset_id, "--name", "leaflets"]) == 0
    assert [recipe["preset"] for recipe in recipes(api)] == ["lora-bf16"]


def test_a_knob_that_is_none_is_refused_with_the_gateways_words(
    api: Api, admin: Person, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset_id = add_dataset(api, admin)
    assert cli.main(["train", "start", dataset_id, "--name", "x", "--set", "colour=red"]) == 1
    assert "name no knob" in capsys.readouterr().err
    assert cli.main(["train", "start", dataset_id, "--name", "x", "--set", "epochs"]) == 1
    assert "KNOB=VALUE" in capsys.readouterr().err


def recipes(api: Api) -> list[dict[str, Any]]:
    with api.gateway.database.read() as connection:
        return [run.recipe for run in connection.execute(training_runs.select().order_by(training_runs.c.id))]


def test_every_choice_of_every_knob_can_be_written_as_it_is_called(api: Api, admin: Person) -> None:
    dataset_id = add_dataset(api, admin)
    chosen = {knob.name: knob.choices for knob in Recipe.knobs() if knob.choices}
    rounds = [
        {name: choices[turn % len(choices)] for name, choices in chosen.items()}
        for turn in range(max(map(len, chosen.values())))
    ]
    assert "off" in [wanted["packing"] for wanted in rounds]
    for wanted in rounds:
        knobs = [word for name, value in wanted.items() for word in ("--set", f"{name}={value}")]
        assert cli.main(["train", "start", dataset_id, "--name", "leaflets", *knobs]) == 0
    assert [{name: recipe[name] for name in chosen} for recipe in recipes(api)] == rounds


@pytest.mark.parametrize(("word", "meant"), [("yes", True), ("off", False)])
def test_a_switch_understands_words(api: Api, admin: Person, word: str, meant: bool) -> None:
    dataset_id = add_dataset(api, admin)
    switches = [knob.name for knob in Recipe.knobs() if knob.type == "boolean"]
    for name in switches:
        assert cli.main(["train", "start", dataset_id, "--name", "x", "--set", f"{name}={word}"]) == 0
    assert [recipe[name] for name, recipe in zip(switches, recipes(api), strict=True)] == [meant] * len(
        switches
    )


@pytest.mark.parametrize("value", ["[1", "2026-01-01"])
def test_a_value_that_is_none_is_refused_in_one_line(
    api: Api, admin: Person, capsys: pytest.CaptureFixture[str], value: str
) -> None:
    dataset_id = add_dataset(api, admin)
    assert cli.main(["train", "start", dataset_id, "--name", "x", "--set", f"epochs={value}"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "epochs" in line


def test_an_adapter_is_named_by_the_beginning_of_its_hash(
    api: Api, admin: Person, capsys: pytest.CaptureFixture[str]
) -> None:
    add_good_adapter(api, admin, sha_of("a"))
    assert cli.main(["adapter", "promote", sha_of("a")[:8]]) == 0
    assert status_of(api, sha_of("a")) == "active"
    capsys.readouterr()
    assert cli.main(["adapter", "promote", "00000000"]) == 1
    assert "0 adapters begin with" in capsys.readouterr().err
    assert cli.main(["adapter", "promote", sha_of("a")[:3]]) == 1


def test_an_adapter_is_approved(api: Api, admin: Person, capsys: pytest.CaptureFixture[str]) -> None:
    add_good_adapter(api, admin, sha_of("a"))
    assert cli.main(["adapter", "approve", sha_of("a")[:8]]) == 0
    assert status_of(api, sha_of("a")) == "approved"
    assert "v1 answers questions that name it" in capsys.readouterr().out


def test_an_adapter_is_found_behind_many_newer_ones(
    api: Api, admin: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.cli_adapters.PAGE", 1)
    add_good_adapter(api, admin, sha_of("a"))
    for newer in ("b", "c"):
        add_adapter(api, admin, sha256=sha_of(newer))
    assert cli.main(["adapter", "promote", sha_of("a")[:8]]) == 0
    assert status_of(api, sha_of("a")) == "active"


def test_a_failed_gate_needs_a_reason(api: Api, admin: Person, capsys: pytest.CaptureFixture[str]) -> None:
    add_adapter(api, admin, sha256=sha_of("a"), verification=GOOD, checks=[FAILED])
    assert cli.main(["adapter", "promote", sha_of("a")[:12]]) == 1
    assert "gate failed" in capsys.readouterr().err
    assert cli.main(["adapter", "promote", sha_of("a")[:12], "--override", "For a trial ward."]) == 0
    assert status_of(api, sha_of("a")) == "active"


def test_rolling_back_and_recalling(api: Api, admin: Person, capsys: pytest.CaptureFixture[str]) -> None:
    add_good_adapter(api, admin, sha_of("a"))
    assert cli.main(["adapter", "promote", sha_of("a")[:12]]) == 0
    assert cli.main(["adapter", "roll-back", "--base-model", "demo"]) == 0
    assert "the base model alone" in capsys.readouterr().out
    assert cli.main(["adapter", "recall", sha_of("a")[:12], "--reason", "It gives wrong doses."]) == 0
    assert status_of(api, sha_of("a")) == "recalled"
    assert f"`medichat adapter answers {sha_of('a')[:12]}`" in capsys.readouterr().out
    assert cli.main(["adapter", "list"]) == 0
    assert "recalled" in capsys.readouterr().out


def test_the_answers_that_an_adapter_gave_are_listed_page_by_page(
    api: Api, admin: Person, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.cli_adapters.PAGE", 1)
    add_good_adapter(api, admin, sha_of("a"))
    given = answers_by(api, admin, sha_of("a"), 3)
    assert cli.main(["adapter", "answers", sha_of("a")[:12]]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines] == given[::-1]
    assert len(api.audit("adapter.answers_listed")) == 3


@pytest.mark.parametrize(("ok", "status"), [(True, 0), (False, 3)])
def test_verifying_waits_for_the_worker_and_says_what_it_found(
    api: Api, admin: Person, capsys: pytest.CaptureFixture[str], ok: bool, status: int
) -> None:
    add_adapter(api, admin, sha256=sha_of("a"))
    ended: list[int] = []
    command = ["adapter", "verify", sha_of("a")[:12]]
    thread = threading.Thread(target=lambda: ended.append(cli.main(command)))
    thread.start()
    wait_until(lambda: api.count(jobs, jobs.c.kind == Kind.VERIFY), what="for the command to ask")
    gateway, found = api.gateway, {**GOOD, "ok": ok, "reason": None if ok else "It changes nothing."}
    claimed = api.claim(kind=Kind.VERIFY)
    with gateway.database.write() as connection:
        gateway.jobs.finish(connection, claimed.claim, EventKind.SUCCEEDED)
        connection.execute(update(adapters).values(verification=found))
    thread.join(30)
    assert ended == [status]
    said = capsys.readouterr()
    assert "verified" in said.out if ok else "It changes nothing." in said.err


def test_evaluating_ends_with_its_own_evaluation_whatever_others_ask_for(
    api: Api, admin: Person, capsys: pytest.CaptureFixture[str]
) -> None:
    add_adapter(api, admin, sha256=sha_of("a"), checks=[FAILED])
    later = datetime.now(UTC) + timedelta(hours=1)
    api.set(evaluations, evaluations.c.passed.is_(False), created_at=later)
    api.set(datasets, datasets.c.state == "ready", rows_validation=1)
    ended: list[int] = []
    command = ["adapter", "evaluate", sha_of("a")[:12]]
    thread = threading.Thread(target=lambda: ended.append(cli.main(command)))
    thread.start()
    wait_until(lambda: api.count(jobs, jobs.c.state == "queued"), what="for the command to ask")
    gateway = api.gateway
    claimed = api.claim(kind=Kind.EVALUATE)
    with gateway.database.write() as connection:
        gateway.jobs.finish(connection, claimed.claim, EventKind.SUCCEEDED)
        own = evaluations.c.job_id == claimed.id
        check = {**FAILED, "passed": True, "message": "as good"}
        gate = {"passed": True, "checks": [check]}
        connection.execute(update(evaluations).where(own).values(gate=gate, figures=FIGURES))
    thread.join(30)
    assert ended == [0]
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "passed  as good"
    assert said[-1].split() == [*["loss", "2.5", "(2.4", "to", "2.6)", "1.25", "(1.2", "to", "1.3)"]]


def test_an_adapter_is_shown_with_its_figures_beside_the_bases(
    api: Api, admin: Person, capsys: pytest.CaptureFixture[str]
) -> None:
    add_adapter(api, admin, sha256=sha_of("a"), checks=[FAILED])
    api.set(evaluations, evaluations.c.passed.is_(False), figures=FIGURES)
    assert cli.main(["adapter", "show", sha_of("a")[:12]]) == 0
    shown = capsys.readouterr().out
    assert "2.5 (2.4 to 2.6)" in shown
    assert "1.25 (1.2 to 1.3)" in shown


def test_measuring_may_be_on_the_rows_of_another_dataset(api: Api, admin: Person) -> None:
    add_adapter(api, admin, sha256=sha_of("a"))
    add_adapter(api, admin, sha256=sha_of("b"), name="others")
    api.set(datasets, datasets.c.state == "ready", rows_validation=1)
    with api.gateway.database.read() as connection:
        other = connection.execute(
            select(adapters.c.dataset_id).where(adapters.c.sha256 == sha_of("b"))
        ).scalar_one()
    command = ["adapter", "evaluate", sha_of("a")[:12], "--dataset", other]
    thread = threading.Thread(target=lambda: cli.main(command))
    thread.start()
    wait_until(
        lambda: api.count(evaluations, evaluations.c.dataset_id == other), what="for the command to ask"
    )
    claimed = api.claim(kind=Kind.EVALUATE)
    api.finish(claimed, EventKind.FAILED, error="internal", error_detail="Enough.")
    thread.join(30)
    assert not thread.is_alive()


def test_the_answers_behind_the_figures_are_printed(
    api: Api, admin: Person, capsys: pytest.CaptureFixture[str]
) -> None:
    add_adapter(api, admin, sha256=sha_of("a"), checks=[FAILED])
    assert cli.main(["adapter", "samples", sha_of("a")[:12]]) == 0
    assert "best answers, by likeness to the reference: 0" in capsys.readouterr().out
    add_adapter(api, admin, sha256=sha_of("b"), name="others")
    assert cli.main(["adapter", "samples", sha_of("b")[:12]]) == 1
    assert "not measured yet" in capsys.readouterr().err


def test_samples_are_printed_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    sample = {"question": "Why?", "reference": "So.", "base": "Dunno.", "candidate": "Thus."}
    seen = {"samples_withheld": False, "samples_erased": False, "samples": {"worst": [sample]}}
    print_samples(seen)
    printed = capsys.readouterr().out
    assert "question: Why?\nreference: So.\nbase: Dunno.\ncandidate: Thus.\n" in printed


#: Of an evaluation.
FIGURES = {
    "loss": {
        "base": {"value": 2.5, "low": 2.4, "high": 2.6},
        "candidate": {"value": 1.25, "low": 1.2, "high": 1.3},
    },
    "about": {"rows": 9},
}


@pytest.mark.parametrize(
    ("command", "kind", "progress", "told"),
    [
        ("verify", Kind.VERIFY, None, "a worker loads it"),
        ("evaluate", Kind.EVALUATE, None, "measuring"),
        (
            "evaluate",
            Kind.EVALUATE,
            {"done": 12, "total": 64, "what": "loss"},
            "measuring: loss, 12 of 64",
        ),
    ],
)
def test_what_is_waited_for_is_said_while_it_runs(
    api: Api,
    admin: Person,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    kind: Kind,
    progress: dict[str, Any] | None,
    told: str,
) -> None:
    monkeypatch.setattr(cli_client, "_LOG_S", 0.0)
    monkeypatch.setattr(cli_client, "_POLL_S", 0.1)
    add_adapter(api, admin, sha256=sha_of("a"))
    api.set(datasets, datasets.c.state == "ready", rows_validation=1)
    ended: list[int] = []
    lines: list[str] = []

    def said(line: str) -> bool:
        lines.extend(capsys.readouterr().err.splitlines())
        return line in lines

    arguments = ["adapter", command, sha_of("a")[:12]]
    thread = threading.Thread(target=lambda: ended.append(cli.main(arguments)), daemon=True)
    thread.start()
    wait_until(lambda: said("waiting for a worker"), what="for the command to wait")
    gateway = api.gateway
    claimed = api.claim(kind=kind)
    with gateway.database.write() as connection:
        sampling = {} if progress is None else {"progress": progress}
        gateway.jobs.hold(connection, claimed.claim, sampling=sampling)
    wait_until(lambda: said(told), what="for the command to say how far it is")
    api.finish(claimed, EventKind.FAILED, error="internal", error_detail="It broke.")
    thread.join(30)
    assert ended == [3]


def test_an_adapter_is_shown_with_its_gate_and_card(
    api: Api, admin: Person, capsys: pytest.CaptureFixture[str]
) -> None:
    add_adapter(api, admin, sha256=sha_of("a"), verification=GOOD, checks=[FAILED])
    assert cli.main(["adapter", "show", sha_of("a")[:12]]) == 0
    said = capsys.readouterr().out
    assert said == f"{sha_of('a')}  candidate\n\nverified: yes\nFAILED  worse\n\n# A card\n"


def test_it_is_shown_why_an_adapter_was_recalled_that_its_data_was_erased_and_how_its_last_measuring_ended(
    api: Api, admin: Person, capsys: pytest.CaptureFixture[str]
) -> None:
    add_adapter(api, admin, sha256=sha_of("a"), verification=GOOD)
    api.set(datasets, datasets.c.name == "rows", rows_validation=5)
    client = api.client(admin)
    client.post(f"/v1/adapters/{sha_of('a')}/evaluate").raise_for_status()
    claimed = api.claim(kind=Kind.EVALUATE)
    api.finish(claimed, EventKind.FAILED, error="no-rows", error_detail="There are no rows.")
    dataset_id = client.get(f"/v1/adapters/{sha_of('a')}").json()["dataset_id"]
    client.post(f"/v1/datasets/{dataset_id}/erase").raise_for_status()
    client.post(f"/v1/adapters/{sha_of('a')}/recall", json={"reason": "Wrong doses."}).raise_for_status()
    assert cli.main(["adapter", "show", sha_of("a")[:12]]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[:3] == [
        f"{sha_of('a')}  recalled",
        "recalled: Wrong doses.",
        f"{GONE} Where the law asks for it to be forgotten, recall it.",
    ]
    assert said[5:7] == ["newest evaluation: failed: There are no rows.", "not measured yet"]
    assert cli.main(["adapter", "list"]) == 0
    assert capsys.readouterr().out.endswith("; what it was trained on was erased\n")


def test_what_was_found_on_other_rows_is_shown_and_said_not_to_count(
    api: Api, admin: Person, capsys: pytest.CaptureFixture[str]
) -> None:
    add_adapter(api, admin, sha256=sha_of("a"), verification=GOOD, checks=[FAILED])
    other = add_dataset(api, admin)
    passed = {**FAILED, "value": 0.0, "passed": True, "message": "as good"}
    add_evaluation(api, admin, sha_of("a"), dataset_id=other, checks=[passed], after_s=2)
    assert cli.main(["adapter", "show", sha_of("a")[:12]]) == 0
    said = capsys.readouterr().out
    assert (
        f"FAILED  worse\n\non dataset {other}, which does not count for its promotion:\npassed  as good"
        in said
    )


def test_an_evaluation_is_stopped(api: Api, admin: Person, capsys: pytest.CaptureFixture[str]) -> None:
    add_adapter(api, admin, sha256=sha_of("a"))
    api.set(datasets, datasets.c.name == "rows", rows_validation=5)
    asked = api.client(admin).post(f"/v1/adapters/{sha_of('a')}/evaluate").json()
    assert cli.main(["adapter", "stop-evaluation", sha_of("a")[:12]]) == 0
    assert f"evaluation {asked['id']}: cancelled" in capsys.readouterr().out
    assert cli.main(["adapter", "stop-evaluation", sha_of("a")[:12]]) == 1
    assert "no evaluation of this adapter waits or runs" in capsys.readouterr().err


def comparing(api: Api, *arguments: str) -> list[int]:
    """Compare an adapter with the base, and play the worker; returns the exit status."""
    ended: list[int] = []
    command = ["adapter", "compare", sha_of("a")[:12], "base", "What is asthma?", *arguments]
    thread = threading.Thread(target=lambda: ended.append(cli.main(command)))
    thread.start()
    for answer in ("One answer.", "Another answer."):
        wait_until(lambda: api.count(jobs, jobs.c.kind == Kind.INFER, jobs.c.state == "queued"))
        api.answer(answer)
    thread.join(30)
    return ended


def test_two_are_compared_side_by_side(api: Api, admin: Person, capsys: pytest.CaptureFixture[str]) -> None:
    add_good_adapter(api, admin, sha_of("a"))
    assert comparing(api) == [0]
    said = capsys.readouterr().out
    assert f"--- left: {sha_of('a')[:12]}\n" in said
    assert "--- right: the base model alone\n" in said
    assert {"One answer.", "Another answer."} <= set(said.splitlines())
    assert not api.audit("comparison.voted")


def test_the_end_of_the_input_is_no_vote(
    api: Api, admin: Person, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(_prompt: str) -> str:
        raise EOFError

    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", nothing)
    add_good_adapter(api, admin, sha_of("a"))
    assert comparing(api) == [0]
    assert "Another answer." in capsys.readouterr().out
    assert not api.audit("comparison.voted")


def test_a_blind_comparison_tells_which_is_which_after_the_vote(
    api: Api, admin: Person, capsys: pytest.CaptureFixture[str]
) -> None:
    add_good_adapter(api, admin, sha_of("a"))
    assert comparing(api, "--blind", "--vote", "tie") == [0]
    answers, _, told = capsys.readouterr().out.partition("voted tie; ")
    assert sha_of("a")[:12] not in answers
    assert sha_of("a")[:12] in told
    assert "the base model alone" in told
