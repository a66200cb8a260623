"""A host whose master key is not the one of the database is told so before it serves."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import func, select

from services import cli
from shared.db.tables import data_keys
from shared.privacy.envelope import new_master_key
from shared.privacy.keys import check_master_key
from tests.support import Api, ask_async

#: Of the gateway's settings, those that a second host has in common with it.
SHARED = ("database_url", "database_owner_url", "redis_url")


@pytest.fixture
def second_host(api: Api, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The environment, and the empty state folder, of another host of an installation that was used."""
    ask_async(api.log_in())
    for name in SHARED:
        monkeypatch.setenv(f"MEDICHAT_{name.upper()}", str(getattr(api.settings, name)))
    folder = tmp_path / "second"
    monkeypatch.setenv("MEDICHAT_STATE_DIR", str(folder))
    return folder


def test_another_host_is_not_prepared_before_it_has_the_first_ones_key(
    api: Api, second_host: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["init"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "not the master key of this database" in line
    assert "copy the folder secrets" in line
    key = api.settings.secret("master_key")
    (second_host / "secrets/medichat_master_key").write_text(key)
    assert cli.main(["init"]) == 0


@pytest.mark.usefixtures("second_host")
def test_no_process_serves_with_another_master_key() -> None:
    names = ("api", "worker_infer", "worker_train")
    program = (
        "from importlib import import_module as find\n"
        f"print([find(f'services.{{name}}.__main__').main() for name in {names}])"
    )
    keys = {"MEDICHAT_MASTER_KEY": new_master_key(), "MEDICHAT_TOKEN_KEY": "x" * 64}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **keys},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.strip() == str([os.EX_CONFIG] * len(names))
    assert done.stderr.count("not the master key of this database") == len(names)


def test_a_key_is_judged_by_the_oldest_data_key_that_is_left(api: Api) -> None:
    other = api.settings.model_copy(update={"master_key": SecretStr(new_master_key())})
    check_master_key(other)  # nothing says which is the right one yet
    client = api.log_in()
    for _ in range(2):
        ask_async(client)
    for erased in (False, True):
        check_master_key(api.settings)
        with pytest.raises(ValueError, match="not the master key of this database"):
            check_master_key(other)
        if not erased:
            api.set(data_keys, data_keys.c.key_id == oldest(api), wrapped_key=None)


def test_a_database_that_is_away_is_not_asked(api: Api) -> None:
    away = "postgresql+psycopg://127.0.0.1:1/none"
    check_master_key(api.settings.model_copy(update={"database_url": away}))


def oldest(api: Api) -> str:
    """The id of the first data key."""
    with api.gateway.database.read() as connection:
        return str(connection.execute(select(func.min(data_keys.c.key_id))).scalar_one())
