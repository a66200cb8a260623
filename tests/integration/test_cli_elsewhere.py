"""`medichat` in a folder that holds no installation: it says so, and makes none."""

from pathlib import Path

import pytest

from services import cli


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which somebody once looked for an installation."""
    for name in ("STATE_DIR", "SECRETS_DIR", "DATABASE_URL", "DATABASE_OWNER_URL", "AUDIT_KEY", "MASTER_KEY"):
        monkeypatch.delenv(f"MEDICHAT_{name}", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".medichat").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    "command",
    [
        ["audit", "verify"],
        ["audit", "key"],
        ["backup", "monday.tar"],
        ["export", "a" * 64, "exported"],
        ["keys", "rotate"],
        ["user", "reset-password", "admin"],
    ],
    ids=" ".join,
)
def test_a_command_says_where_it_looked_for_an_installation_and_leaves_nothing_there(
    command: list[str], elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(command) == 1
    told = capsys.readouterr().err
    assert f"there is no installation here, for there is no {elsewhere / '.medichat' / 'medichat.db'}" in told
    assert "run this in the project's folder, or set MEDICHAT_STATE_DIR" in told
    assert [path.name for path in elsewhere.rglob("*")] == [".medichat"]


@pytest.mark.usefixtures("elsewhere")
def test_a_database_that_is_named_and_not_there_is_told_by_its_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MEDICHAT_DATABASE_URL", f"sqlite:///{tmp_path}/other.db")
    assert cli.main(["audit", "key"]) == 1
    assert (
        f"there is no {tmp_path}/other.db; run this in the project's folder, or set MEDICHAT_DATABASE_URL"
        in (capsys.readouterr().err)
    )
