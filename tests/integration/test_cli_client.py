"""How long a command's log-in lasts, and what is said when a wait breaks off; the gateway is a real one."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from services import cli
from services.cli_client import CommandRefused, log_in
from shared.auth.roles import Role
from shared.db.tables import sessions
from shared.db.tables_training import datasets, training_runs
from shared.settings import load_settings
from tests.support import PASSWORD, ROOT, Api, FakeClock, Person, wait_until
from tests.training import add_dataset
from tests.uploads import ROWS, upload


@pytest.fixture
def dialect() -> str:
    """The command line speaks HTTP; one database is enough."""
    return "sqlite"


@pytest.fixture
def admin(api: Api, monkeypatch: pytest.MonkeyPatch) -> Person:
    """An admin at a terminal, who logs in by name and password."""
    person = api.person(Role.ADMIN)
    monkeypatch.setenv("MEDICHAT_API_URL", api.url)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda _prompt: person.name)
    monkeypatch.setattr("getpass.getpass", lambda: PASSWORD)
    return person


class Waiting:
    """A command in a thread that waits, and what it has said so far."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> None:
        self._capsys, self._said = capsys, ""
        self.status: list[int] = []
        self._thread = threading.Thread(target=lambda: self.status.append(cli.main([*arguments])))
        self._thread.start()
        wait_until(self.said, what="for the command to wait")

    def said(self) -> str:
        """All that it wrote to standard error."""
        self._said += self._capsys.readouterr().err
        return self._said

    def ended(self) -> tuple[list[int], str]:
        """Its status, and the last that it said."""
        self._thread.join(30)
        return self.status, self.said().splitlines()[-1]


def let_pass(api: Api, **time: float) -> None:
    """Put the gateway's clock forward, from now on."""
    object.__setattr__(api.gateway, "clock", FakeClock(datetime.now(UTC) + timedelta(**time)))


def run_id(api: Api) -> str:
    with api.gateway.database.read() as connection:
        return str(connection.execute(training_runs.select()).one().id)


def test_a_log_in_by_name_outlives_its_access_tokens(api: Api, admin: Person) -> None:
    with log_in(load_settings()) as client:
        for minutes in (0, 16, 32):
            let_pass(api, minutes=minutes)
            assert client.get("/v1/me").json()["id"] == admin.id
            assert client.post("/v1/training-runs", json={}).status_code == 422
    assert api.count(sessions, sessions.c.user_id == admin.id) == 1


def test_an_upload_begins_with_a_token_that_is_good(api: Api, admin: Person) -> None:
    read: list[bytes] = []

    def blocks() -> Iterator[bytes]:
        for line in ROWS.splitlines(keepends=True):
            read.append(line)
            yield line

    with log_in(load_settings()) as client:
        let_pass(api, minutes=16)
        assert upload(client, blocks()).status_code == 202
    assert b"".join(read) == ROWS
    assert api.count(datasets, datasets.c.bytes == len(ROWS), datasets.c.created_by == admin.id) == 1


def test_a_wait_goes_on_when_the_access_token_has_expired(
    api: Api, admin: Person, capsys: pytest.CaptureFixture[str]
) -> None:
    command = Waiting(capsys, "train", "start", add_dataset(api, admin), "--name", "leaflets", "--wait")
    let_pass(api, minutes=16)
    assert api.client(admin).post(f"/v1/training-runs/{run_id(api)}/cancel").status_code == 202
    assert command.ended() == ([3], "medichat: no adapter: it was stopped")


def test_a_log_in_that_cannot_be_renewed_is_told_with_the_way_to_go_on(
    api: Api, admin: Person, capsys: pytest.CaptureFixture[str]
) -> None:
    command = Waiting(capsys, "train", "start", add_dataset(api, admin), "--name", "leaflets", "--wait")
    let_pass(api, days=15)
    assert command.ended() == (
        [1],
        "medichat: The refresh token has expired; log in again. The job goes on without this command; "
        f"look again with `medichat train watch {run_id(api)}`.",
    )


def test_a_log_in_that_was_ended_is_not_renewed_for_an_upload(api: Api, admin: Person) -> None:
    with log_in(load_settings()) as client:
        api.set(sessions, sessions.c.user_id == admin.id, revoked_at=datetime.now(UTC))
        with pytest.raises(CommandRefused, match="log in again"):
            upload(client, iter([ROWS]))
    assert not api.count(datasets)


def test_a_gateway_that_goes_away_during_a_wait_is_told_with_the_way_to_go_on(
    api: Api, admin: Person, capsys: pytest.CaptureFixture[str]
) -> None:
    command = Waiting(capsys, "dataset", "import", "hub", "owner/name", "--wait")
    with api.gateway.database.read() as connection:
        (dataset,) = api.gateway.datasets.list(connection, limit=2)
    api.close()
    status, line = command.ended()
    assert status == [1]
    assert line.startswith("medichat: the gateway cannot be reached")
    assert line.endswith(
        f"The job goes on without this command; look again with `medichat dataset show {dataset.id}`."
    )


def test_a_wait_that_is_stopped_by_ctrl_c_leaves_the_run_alone(
    api: Api, admin: Person, tmp_path: Path
) -> None:
    client = api.client(admin)
    key = client.post("/v1/api-keys", json={"name": "cli", "scopes": ["admin"]}).json()["key"]
    body = {"name": "leaflets", "dataset_id": add_dataset(api, admin)}
    run = client.post("/v1/training-runs", json=body).json()["id"]
    said = tmp_path / "said.txt"
    with said.open("wb") as file:
        command = subprocess.Popen(
            [sys.executable, "-m", "services.cli", "train", "watch", run],
            cwd=ROOT,
            env={**os.environ, "MEDICHAT_API_KEY": key},
            stderr=file,
        )
    wait_until(said.read_text, what="for the command to wait")
    command.send_signal(signal.SIGINT)
    assert command.wait(30) == 130
    assert said.read_text().splitlines()[-1] == (
        "medichat: stopped. The job goes on without this command; "
        f"look again with `medichat train watch {run}`."
    )
    assert client.get(f"/v1/training-runs/{run}").json()["state"] == "queued"


@pytest.mark.parametrize("changed", [ROWS[:10], ROWS + ROWS], ids=["shorter", "longer"])
def test_a_file_that_changes_while_it_is_sent_is_told_so(
    api: Api,
    admin: Person,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    changed: bytes,
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(ROWS)

    def name(_prompt: str) -> str:
        file.write_bytes(changed)
        return admin.name

    monkeypatch.setattr("builtins.input", name)
    assert cli.main(["dataset", "add", str(file)]) == 1
    assert capsys.readouterr().err.endswith(f"medichat: {file} changed while it was sent; send it again\n")
    wait_until(lambda: not api.count(datasets), what="for the gateway to forget it")


def test_no_name_is_told_in_one_line(
    api: Api, admin: Person, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(_prompt: str) -> str:
        raise EOFError

    monkeypatch.setattr("builtins.input", nothing)
    assert cli.main(["train", "list"]) == 1
    assert capsys.readouterr().err == "medichat: no name and password were given\n"


def test_an_address_that_is_not_the_gateways_is_told_in_one_line(
    api: Api, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDICHAT_API_KEY", "any")
    for address in (f"{api.url}/login?", f"{api.url}x"):  # a page; no port
        monkeypatch.setenv("MEDICHAT_API_URL", address)
        assert cli.main(["train", "list"]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("medichat: ")
        assert line.endswith("see MEDICHAT_API_URL")


def test_space_around_an_api_key_is_no_part_of_it(
    api: Api, admin: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = api.client(admin).post("/v1/api-keys", json={"name": "cli", "scopes": ["admin"]})
    monkeypatch.setenv("MEDICHAT_API_KEY", f"{made.json()['key']}\n")
    assert cli.main(["train", "list"]) == 0
