"""`medichat keys`: the master key is rotated while a gateway serves, whoever breaks it off."""

import fcntl
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import func, select

from services import cli
from shared.db.tables import data_keys
from shared.ids import new_id
from shared.privacy.envelope import Envelope, new_master_key
from shared.privacy.keyring import Keyring
from shared.privacy.keys import create_data_key
from tests.conftest import MakeApi
from tests.support import Api

SCOPES = ("conversation", "dataset", "image", "person", "search")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where the master key is kept."""
    (tmp_path / "secrets").mkdir()
    path = tmp_path / "secrets/medichat_master_key"
    path.write_text(new_master_key())
    path.chmod(0o600)
    return path


@pytest.fixture
def api(make_api: MakeApi, file: Path, monkeypatch: pytest.MonkeyPatch) -> Api:
    """A gateway that reads its master key from the file, on the machine of the command."""
    made = make_api(master_key=None, reconcile_s=600)
    made.wait_for_maintenance()  # which makes no data key from now on
    for name in ("state_dir", "database_url", "database_owner_url", "redis_url"):
        monkeypatch.setenv(f"MEDICHAT_{name.upper()}", str(getattr(made.settings, name)))
    return made


@pytest.fixture
def reader(api: Api) -> Callable[[], list[str]]:
    """Reads all titles of somebody who has asked, over HTTP."""
    person = api.person()
    client = api.client(person)
    api.write_history(person, ["About asthma", "About gout"])

    def titles() -> list[str]:
        return sorted(item["title"] for item in client.get("/v1/conversations").json()["items"])

    return titles


def keys(*arguments: str) -> int:
    return cli.main(["keys", *arguments])


def versions(api: Api) -> dict[int, int]:
    """How many data keys are under each version of the master key."""
    with api.gateway.database.read() as connection:
        statement = select(data_keys.c.master_key_version, func.count()).group_by(
            data_keys.c.master_key_version
        )
        return {row[0]: row[1] for row in connection.execute(statement)}


def make_data_keys(api: Api, count: int = 1) -> None:
    """Data keys of every scope, as other parts make them."""
    with api.gateway.database.write() as connection:
        for number in range(count):
            scope = SCOPES[number % len(SCOPES)]
            now = api.gateway.clock.now(connection)
            create_data_key(
                connection,
                api.gateway.envelope,
                scope=scope,  # type: ignore[arg-type]
                owner_id=new_id(),
                now=now,
            )


def make_old_data_key(api: Api, file: Path) -> None:
    """A data key under the version before, as a process makes it that has not looked since."""
    ring = Keyring.parse(file.read_text())
    with api.gateway.database.write() as connection:
        create_data_key(
            connection,
            Envelope(Keyring.of({1: ring.keys[1]}, ring.fingerprint_key)),
            scope="person",
            owner_id=new_id(),
            now=api.gateway.clock.now(connection),
        )


def test_a_gateway_that_is_up_reads_old_and_new_texts_across_a_rotation(
    api: Api, reader: Callable[[], list[str]], file: Path
) -> None:
    make_data_keys(api, len(SCOPES))
    fingerprint = api.gateway.envelope.fingerprint("a")
    assert keys("rotate") == 0
    assert versions(api) == {2: 2 + len(SCOPES)}
    assert reader() == ["About asthma", "About gout"]
    make_data_keys(api)
    assert versions(api) == {2: 3 + len(SCOPES)}, "what is new is under the newest version"
    assert keys("drop-old", "--at-once") == 0
    assert list(Keyring.parse(file.read_text()).keys) == [2]
    api.gateway.envelope.look_again()
    assert reader() == ["About asthma", "About gout"]
    assert api.gateway.envelope.fingerprint("a") == fingerprint
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_each_act_is_in_the_log_and_no_key_is(
    api: Api, reader: Callable[[], list[str]], file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (("list",), ("rotate",), ("list",), ("drop-old", "--at-once")):
        assert keys(*arguments) == 0
    logged = [event for event in api.audit() if event.action.startswith("keys.")]
    assert [event.action.removeprefix("keys.") for event in logged] == [
        "listed",
        "version-made",
        "rotated",
        "listed",
        "dropped",
    ]
    assert {event.actor for event in logged} == {"operator"}
    assert [event.object for event in logged if event.object] == ["master-key:2"] * 3
    said = capsys.readouterr()
    ring = file.read_text().split()
    for secret in (entry.partition(":")[2] for entry in ring):
        assert secret not in said.out + said.err
        assert all(secret.encode() not in event.canonical_bytes for event in logged)
    assert "version 1    data keys: 2          newest" in said.out
    assert "version 2    data keys: 2          newest" in said.out


DIES = """
import os, signal, sys
from shared.privacy import rotation
from services import cli
rotation._BATCH = 1
once = rotation._pass
def dies(database, envelope, told):
    def tell(count):
        if count == 2:
            os.kill(os.getpid(), signal.SIGKILL)
    return once(database, envelope, tell)
rotation._pass = dies
sys.exit(cli.main(["keys", "rotate"]))
"""


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_one_that_was_killed_half_way_goes_on(
    api: Api, reader: Callable[[], list[str]], file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_data_keys(api, 3)
    died = subprocess.run([sys.executable, "-c", DIES], env=dict(os.environ), check=False, timeout=60)
    assert died.returncode == -signal.SIGKILL
    assert versions(api) == {1: 3, 2: 2}
    assert reader() == ["About asthma", "About gout"]
    assert keys("drop-old", "--at-once") == 1
    assert "run `medichat keys rotate` first" in capsys.readouterr().err
    assert keys("rotate") == 0
    assert versions(api) == {2: 5}
    assert list(Keyring.parse(file.read_text()).keys) == [1, 2], "no third version was made"


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_a_data_key_that_is_destroyed_meanwhile_stays_so(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    from shared.privacy import rotation

    make_data_keys(api, 2)
    again = rotation._again
    with api.gateway.database.read() as connection:
        first = connection.execute(select(func.min(data_keys.c.key_id))).scalar_one()

    def destroyed_after_it_was_read(envelope: object, row: object) -> object:
        api.set(data_keys, data_keys.c.key_id == first, wrapped_key=None)
        return again(envelope, row)  # type: ignore[arg-type]

    monkeypatch.setattr(rotation, "_again", destroyed_after_it_was_read)
    assert keys("rotate") == 0
    assert api.count(data_keys, data_keys.c.wrapped_key.is_(None)) == 1


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_an_old_version_is_kept_while_a_process_may_still_use_it(
    api: Api, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_data_keys(api)
    assert keys("drop-old") == 0, "there is none"
    assert keys("rotate") == 0
    assert keys("drop-old") == 1
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert "UTC or later" in line
    assert list(Keyring.parse(file.read_text()).keys) == [1, 2]


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_a_damaged_data_key_does_not_stop_the_next_rotation(
    api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    make_data_keys(api, 3)
    with api.gateway.database.read() as connection:
        last = connection.execute(select(func.max(data_keys.c.key_id))).scalar_one()
    api.set(data_keys, data_keys.c.key_id == last, wrapped_key=b"damaged")
    assert keys("rotate") == 0
    assert "1 could not be opened" in capsys.readouterr().err
    assert keys("rotate") == 0
    assert versions(api) == {1: 1, 3: 2}


@pytest.mark.parametrize("dialect", ["sqlite"])
@pytest.mark.parametrize("how", ["--print", "the environment", "a command"])
def test_a_keyring_that_is_kept_elsewhere_is_printed_and_used_once_it_is_there(
    api: Api,
    file: Path,
    tmp_path: Path,
    how: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_data_keys(api)
    there = tmp_path / "service"
    there.write_text(file.read_text())
    if how == "the environment":
        monkeypatch.setenv("MEDICHAT_MASTER_KEY", file.read_text())
    elif how == "a command":
        monkeypatch.setenv("MEDICHAT_MASTER_KEY_COMMAND", f"cat {there}")
    before = file.read_text()
    assert keys("rotate", *(["--print"] if how == "--print" else [])) == 0
    said = capsys.readouterr()
    assert "run this command again" in said.err
    assert (versions(api), file.read_text()) == ({1: 1}, before)
    if how == "the environment":
        monkeypatch.setenv("MEDICHAT_MASTER_KEY", said.out)
    (there if how == "a command" else file).write_text(said.out)
    assert keys("rotate") == 0
    assert versions(api) == {2: 1}
    assert keys("drop-old", "--at-once") == 0
    kept = file.read_text() if how == "--print" else capsys.readouterr().out
    assert list(Keyring.parse(kept).keys) == [2]


@pytest.mark.parametrize("dialect", ["sqlite"])
@pytest.mark.parametrize("kept", ["in a file", "elsewhere"])
def test_what_is_printed_is_a_whole_keyring_or_nothing_and_the_status_tells(
    api: Api, file: Path, kept: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = kept == "elsewhere"
    if elsewhere:
        monkeypatch.setenv("MEDICHAT_MASTER_KEY_COMMAND", f"cat {file}")

    def run(*arguments: str) -> tuple[int, str]:
        status = keys(*arguments)
        printed = capsys.readouterr().out
        if printed:
            assert Keyring.parse(printed).text() == printed
        return status, printed

    make_data_keys(api, 3)
    assert run("drop-old") == (1 if elsewhere else 0, ""), "there is none beside the newest"
    status, printed = run("rotate", "--print")
    assert (status, list(Keyring.parse(printed).keys)) == (0, [1, 2])
    file.write_text(printed)
    assert run("rotate", "--print") == (0, printed), "what is stored is printed again"
    assert run("drop-old") == (1, ""), "data keys are under version 1"
    assert versions(api) == {1: 3}
    assert run("rotate") == (0, "")
    make_old_data_key(api, file)
    assert run("rotate", "--print") == (1, ""), "one that was broken off went on"
    assert run("drop-old") == (1, ""), "not yet"
    status, printed = run("drop-old", "--at-once")
    assert (status, printed == "") == (0, not elsewhere)
    if elsewhere:
        assert list(Keyring.parse(printed).keys) == [2]
    assert [event.action for event in api.audit() if event.action == "keys.printed"] == ["keys.printed"]


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_a_keyring_that_is_replaced_keeps_its_mode(api: Api, file: Path) -> None:
    make_data_keys(api)
    file.chmod(0o640)
    assert keys("rotate") == 0
    assert list(Keyring.parse(file.read_text()).keys) == [1, 2]
    assert stat.S_IMODE(file.stat().st_mode) == 0o640


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can take a file away from its owner")
@pytest.mark.parametrize("dialect", ["sqlite"])
def test_a_keyring_that_root_replaces_still_belongs_to_its_owner(api: Api, file: Path) -> None:
    make_data_keys(api)
    os.chown(file, 12345, 23456)
    assert keys("rotate") == 0
    for path in (file, file.with_name(f"{file.name}.lock")):
        assert (path.stat().st_uid, path.stat().st_gid) == (12345, 23456), path.name


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_the_key_of_another_database_is_not_rotated(
    api: Api, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_data_keys(api)
    other = new_master_key()
    file.write_text(other)
    assert keys("rotate") == 1
    assert "not the master key of this database" in capsys.readouterr().err
    assert (versions(api), file.read_text()) == ({1: 1}, other)


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_two_rotations_at_once_would_lose_keys_and_are_refused(
    api: Api, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:

    before = file.read_text()
    with file.with_name(f"{file.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert keys("rotate") == 1
    assert "another `medichat keys` is at work" in capsys.readouterr().err
    assert file.read_text() == before


def test_an_installation_whose_key_is_in_a_service_gets_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    service = tmp_path / "service"
    service.write_text(new_master_key())
    monkeypatch.setenv("MEDICHAT_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("MEDICHAT_MASTER_KEY_COMMAND", "/no/such/program")
    assert cli.main(["init"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "MEDICHAT_MASTER_KEY_COMMAND cannot be run" in line
    monkeypatch.setenv("MEDICHAT_MASTER_KEY_COMMAND", f"cat {service}")
    assert cli.main(["init"]) == 0
    made = sorted(path.name for path in (tmp_path / "state/secrets").iterdir())
    assert made == ["medichat_audit_key", "medichat_token_key"]
