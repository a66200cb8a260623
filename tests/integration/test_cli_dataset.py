"""`medichat dataset` against a gateway that listens."""

import json
import sys
import threading
from pathlib import Path

import pytest

from services import cli, cli_report, cli_training
from shared.auth.roles import Role
from shared.db.tables_training import datasets
from shared.jobs.lifecycle import EventKind
from shared.training.report import MAX_LINES, Reason
from tests.support import PASSWORD, Api, wait_until
from tests.uploads import REPORT, ROWS, WORD, check, claim_check, uploaded


@pytest.fixture
def dialect() -> str:
    """The command line speaks HTTP; one database is enough."""
    return "sqlite"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "ward notes.jsonl"
    path.write_bytes(ROWS)
    return path


@pytest.fixture
def key(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of an admin with an API key."""
    monkeypatch.setenv("MEDICHAT_API_URL", api.url)
    made = api.log_in(Role.ADMIN).post("/v1/api-keys", json={"name": "cli", "scopes": ["admin"]})
    monkeypatch.setenv("MEDICHAT_API_KEY", made.json()["key"])


def in_the_background(*arguments: str) -> tuple[threading.Thread, list[int]]:
    """Run a command that waits for something."""
    status: list[int] = []
    thread = threading.Thread(target=lambda: status.append(cli.main([*arguments])))
    thread.start()
    return thread, status


@pytest.mark.usefixtures("key")
def test_a_file_is_sent_with_its_options_and_progress(
    api: Api, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--phi", "reject", "--validation-fraction", "0.3", "--column", "messages:chat"]
    assert cli.main(["dataset", "add", str(file), *arguments]) == 0
    said = capsys.readouterr()
    with api.gateway.database.read() as connection:
        (dataset,) = api.gateway.datasets.list(connection, limit=2)
    assert dataset.id in said.out
    assert f"{len(ROWS):,} of {len(ROWS):,} bytes  100%" in said.err
    assert (dataset.source_name, dataset.bytes) == ("ward notes.jsonl", len(ROWS))
    assert dataset.name == f"Data of {dataset.created_at:%d %b %Y, %H:%M}"
    assert dataset.options["phi"] == "reject"
    assert dataset.options["validation_fraction"] == 0.3
    assert dataset.options["columns"] == {"messages": "chat"}


@pytest.mark.usefixtures("key")
def test_waiting_ends_with_the_figures_of_the_report(
    api: Api, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    thread, status = in_the_background("dataset", "add", str(file), "--wait")
    wait_until(lambda: api.count(datasets, datasets.c.state == "validating"))
    check(api, report=REPORT)
    thread.join()
    said = capsys.readouterr()
    assert status == [0]
    assert "rows in: 7\nrows out: train 3, validation 1, quarantine 1\n" in said.out
    assert "ready: 3 rows to train on, 1 held out" in said.out
    assert WORD not in said.out + said.err


@pytest.mark.usefixtures("key")
def test_a_rejected_dataset_has_a_status_of_its_own(
    api: Api, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    thread, status = in_the_background("dataset", "add", str(file), "--wait")
    wait_until(lambda: api.count(datasets, datasets.c.state == "validating"))
    job = claim_check(api)
    with api.gateway.database.write() as connection:
        api.gateway.datasets.reject(connection, job.claim, code="no-rows", detail="There is no row in it.")
        api.gateway.jobs.finish(connection, job.claim, EventKind.FAILED, error="no-rows")
    thread.join()
    assert status == [cli_training.REJECTED]
    assert "rejected: There is no row in it." in capsys.readouterr().err


def test_a_person_logs_in_by_name_and_password(api: Api, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    person = api.person(Role.ADMIN)
    monkeypatch.setenv("MEDICHAT_API_URL", api.url)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda _prompt: person.name)
    monkeypatch.setattr("getpass.getpass", lambda: PASSWORD)
    assert cli.main(["dataset", "add", str(file)]) == 0
    assert api.count(datasets, datasets.c.created_by == person.id) == 1


@pytest.mark.usefixtures("key")
def test_the_list_names_state_and_rows(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    dataset_id = uploaded(api.log_in(Role.ADMIN), name="Ward notes")
    check(api)
    assert cli.main(["dataset", "list"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert [dataset_id, "ready", "3+1", "Ward", "notes"] == [word for word in line.split() if word != "rows"]


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(["dataset", "add", *arguments]) == cli_training.REFUSED
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.usefixtures("key")
def test_what_cannot_be_sent_is_refused_in_one_line(
    api: Api, file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "is a folder" in refusal(capsys, str(file.parent))
    assert "there is no file" in refusal(capsys, str(file) + "x")
    monkeypatch.setenv("MEDICHAT_MAX_DATASET_BYTES", "10")
    assert "MEDICHAT_MAX_DATASET_BYTES" in refusal(capsys, str(file))
    file.write_bytes(b"")
    assert "is empty" in refusal(capsys, str(file))
    assert api.count(datasets) == 0


@pytest.mark.usefixtures("key")
def test_the_gateways_own_words_are_shown(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["dataset", "add", str(file), "--validation-fraction", "0.9"]) == 1
    assert "validation_fraction: Input should be less than or equal to 0.5" in capsys.readouterr().err


def test_a_key_without_the_right_is_refused_before_anything_is_sent(
    api: Api, file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDICHAT_API_URL", api.url)
    monkeypatch.setenv("MEDICHAT_API_KEY", "wrong")
    refusal(capsys, str(file))
    monkeypatch.delenv("MEDICHAT_API_KEY")
    assert "MEDICHAT_API_KEY" in refusal(capsys, str(file))
    monkeypatch.setenv("MEDICHAT_API_KEY", "wrong")
    monkeypatch.setenv("MEDICHAT_API_URL", "http://127.0.0.1:9")
    assert "cannot be reached" in refusal(capsys, str(file))


@pytest.mark.usefixtures("key")
def test_one_dataset_is_shown_with_what_its_check_found(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    dataset_id = uploaded(api.log_in(Role.ADMIN), name="Ward notes")
    assert cli.main(["dataset", "show", dataset_id]) == 0
    assert capsys.readouterr().out == f"{dataset_id}  Ward notes: validating\n"
    check(api, report={**REPORT, "columns": ["Frage", "\x1b[2Jid", "answer"]})
    assert cli.main(["dataset", "show", dataset_id]) == 0
    said = capsys.readouterr().out.splitlines()
    for line in (
        "read as: question answer, from jsonl: question ← Frage, answer ← answer",
        "columns not used: ?[2Jid",
        "rows in: 7",
        "phi (mask): US_SSN 2; in 1 rows; lines 2",
        "dangerous: dosing 1; lines 5",
        "not English: de 1; lines 7",
        "dropped: empty answer 2",
        "line 4: empty answer: Write the answer, or leave the row out.",
        "line 6: empty answer: Write the answer, or leave the row out.",
        "note: Only 3 rows are left to train on.",
        "ready: 3 rows to train on, 1 held out",
    ):
        assert line in said
    assert WORD not in "\n".join(said)


@pytest.mark.usefixtures("key")
def test_the_whole_report_is_printed_as_json(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    dataset_id = uploaded(api.log_in(Role.ADMIN))
    assert cli.main(["dataset", "show", dataset_id, "--json"]) == cli_training.REFUSED
    assert "no report of this dataset; it is validating" in capsys.readouterr().err
    check(api, report=REPORT)
    assert cli.main(["dataset", "show", dataset_id, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == REPORT


@pytest.mark.usefixtures("key")
def test_a_report_that_names_not_all_rows_says_of_how_many(
    api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset_id = uploaded(api.log_in(Role.ADMIN))
    rows = [{"line": line, "advice": "Nothing to do."} for line in range(1, MAX_LINES + 1)]
    dropped = [
        {"reason": Reason.NEAR_DUPLICATE, "count": 300, "rows": rows},
        {"reason": Reason.EMPTY_ANSWER, "count": 2, "rows": rows[:2]},
    ]
    lines = list(range(1, MAX_LINES + 1))
    phi = {"policy": "mask", "by_type": {"US_SSN": 301}, "rows": 301, "lines": lines}
    check(api, report={**REPORT, "rows_in": 500, "dropped": dropped, "phi": phi})
    assert cli.main(["dataset", "show", dataset_id]) == 0
    said = capsys.readouterr().out
    assert (
        "dropped: near duplicate 300 (the first 200 of 300 by line in the report), empty answer 2\n" in said
    )
    assert said.count("\nline ") == 20
    assert (
        "\nline 18: near duplicate: Nothing to do.\nand 282 more; `medichat dataset show ID --json`" in said
    )
    assert "301 rows; lines 1, 2, 3" in said
    assert ", 20 and 281 more\n" in said


@pytest.mark.usefixtures("key")
def test_a_report_that_names_all_rows_by_line_says_so(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    dataset_id = uploaded(api.log_in(Role.ADMIN))
    rows = [{"line": line, "advice": "Nothing to do."} for line in range(1, MAX_LINES + 1)]
    near = {"reason": Reason.NEAR_DUPLICATE, "count": 300, "rows": rows, "all_lines": "1-300"}
    check(api, report={**REPORT, "dropped": [near]})
    assert cli.main(["dataset", "show", dataset_id]) == 0
    said = capsys.readouterr().out
    assert "dropped: near duplicate 300\n" in said
    assert "and 280 more; `medichat dataset show ID --json` prints the whole report" in said
    assert cli.main(["dataset", "show", dataset_id, "--json"]) == 0
    assert '"all_lines": "1-300"' in capsys.readouterr().out


@pytest.mark.usefixtures("key")
def test_a_dataset_of_the_hub_is_taken_with_its_options(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "--name",
        "Doctors",
        "--seed",
        "7",
        "--column",
        "question:Frage",
        "--column",
        "answer:Antwort",
        "--column",
        "group:",
        "--subset",
        "labelled",
        "--split",
        "test",
    ]
    assert cli.main(["dataset", "import", "hub", "owner/name", *arguments]) == 0
    with api.gateway.database.read() as connection:
        (dataset,) = api.gateway.datasets.list(connection, limit=2)
    assert capsys.readouterr().out == f"{dataset.id}  Doctors: to be fetched\n"
    assert (dataset.source, dataset.source_name, dataset.options["seed"]) == ("hub", "owner/name", 7)
    assert dataset.options["columns"] == {"question": "Frage", "answer": "Antwort", "group": ""}
    assert (dataset.options["subset"], dataset.options["split"]) == ("labelled", "test")


@pytest.mark.usefixtures("key")
def test_without_an_import_folder_nothing_is_taken_from_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["dataset", "import", "path", "notes.jsonl"]) == 1
    assert "MEDICHAT_DATASET_IMPORT_DIR" in capsys.readouterr().err


@pytest.mark.usefixtures("key")
def test_rows_are_shown_a_part_at_a_time(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    dataset_id = uploaded(api.log_in(Role.ADMIN))
    check(api)
    assert cli.main(["dataset", "rows", dataset_id, "--offset", "1", "--limit", "1"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "-- row 1",
        "user: Q1",
        f"assistant: {WORD} 1",
        "1 of 3 rows, from row 1 on",
        "the next: --offset 2",
    ]
    assert cli.main(["dataset", "rows", dataset_id, "--split", "quarantine"]) == 0
    said = capsys.readouterr().out
    assert "-- row 901, line 5, reason dangerous\n" in said
    assert "the next" not in said


def test_a_row_cannot_steer_the_terminal() -> None:
    said = [{"role": "user", "content": "One.\n\x1b[2JTwo.\tThree."}]
    row = {"id": 4, "messages": said, "image": None, "group": "bed\r7", "line": None, "reason": None}
    assert list(cli_report.row_told(row)) == ["-- row 4, group bed?7", "user: One.\n  ?[2JTwo.  Three."]


@pytest.mark.usefixtures("key")
def test_a_dataset_is_checked_again_with_the_options_it_had_but_for_those_given(
    api: Api, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = ["--name", "ward notes"]
    assert cli.main(["dataset", "add", str(file), *named, "--phi", "quarantine", "--seed", "7"]) == 0
    made, _ = check(api)
    capsys.readouterr()
    thread, status = in_the_background("dataset", "check", made.id, "--seed", "8", "--wait")
    wait_until(lambda: api.count(datasets, datasets.c.state == "validating"))
    again, _ = check(api, report=REPORT)
    thread.join()
    assert status == [0]
    assert (again.id, again.options["phi"], again.options["seed"]) == (made.id, "quarantine", 8)
    assert f"{made.id}  ward notes: to be checked again\n" in capsys.readouterr().out


@pytest.mark.usefixtures("key")
def test_a_dataset_is_removed_when_the_person_says_so(
    api: Api, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset_id = uploaded(api.log_in(Role.ADMIN), name="Ward notes")
    assert cli.main(["dataset", "remove", dataset_id]) == cli_training.REFUSED  # nobody to ask
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda _question: "n")
    assert cli.main(["dataset", "remove", dataset_id]) == cli_training.REFUSED
    assert "nothing was removed; `--yes` removes it" in capsys.readouterr().err
    monkeypatch.setattr("builtins.input", lambda _question: "y")
    assert cli.main(["dataset", "remove", dataset_id]) == 0
    assert capsys.readouterr().out == f"{dataset_id}  Ward notes: removed\n"
    assert cli.main(["dataset", "list"]) == 0
    assert capsys.readouterr().out == ""
