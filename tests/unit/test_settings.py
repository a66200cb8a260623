"""What an operator sets, and what is said when it is wrong."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from services import cli
from shared.settings import Settings, load_settings, settings_from


def test_every_setting_is_an_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDICHAT_LEASE_S", "90")
    assert load_settings().lease_s == 90


def test_a_secret_may_be_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "medichat_token_key").write_text("from a file")
    monkeypatch.setenv("MEDICHAT_SECRETS_DIR", str(tmp_path))
    assert load_settings().secret("token_key") == "from a file"


def test_a_secret_is_in_no_repr(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "hidden" not in repr(Settings(token_key="hidden", redis_password="hidden"))  # type: ignore[arg-type]


def test_a_missing_secret_is_named_with_the_way_out() -> None:
    with pytest.raises(ValueError, match="medichat init"):
        Settings().secret("master_key")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MEDICHAT_API_PORT", "x"),
        ("MEDICHAT_DEVICE", "tpu"),
        ("MEDICHAT_LEASE_S", "5"),
        ("MEDICHAT_LOCALE", "xx"),
        ("MEDICHAT_REDIS_URL", "127.0.0.1:6379"),
        ("MEDICHAT_REDIS_URL", "redis://127.0.0.1:port/0"),
        ("MEDICHAT_TRUSTED_PROXIES", "the proxy"),
        ("MEDICHAT_DATABASE_URL", "postgres"),
        ("MEDICHAT_DATABASE_URL", "postgresql+nothing://host/name"),
        ("MEDICHAT_DATABASE_URL", "postgresql+psycopg://host:port/name"),
        ("MEDICHAT_DATABASE_URL", "postgresql+psycopg://127.0.0.1:1/name"),
        ("MEDICHAT_DATABASE_OWNER_URL", "sqlite:////nowhere/to/be/found.db"),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_it(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MEDICHAT_STATE_DIR", str(tmp_path))
    monkeypatch.setenv(name, value)
    assert cli.main(["init"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert (name if value != "5" else "MEDICHAT_HEARTBEAT_S") in line
    assert "Value error" not in line


def test_an_unknown_locale_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(ValidationError, match=r"'intl', 'us', 'uk', 'gb'"):
        Settings(locale="xx")  # type: ignore[arg-type]


def test_settings_are_made_of_a_given_environment_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDICHAT_DATABASE_URL", "postgresql+psycopg://somewhere/else")
    made = settings_from({"MEDICHAT_STATE_DIR": "/there", "MEDICHAT_API_PORT": "9000", "PATH": "/bin"})
    assert (made.database_url, made.api_port) == ("sqlite:////there/medichat.db", 9000)


def test_a_heartbeat_that_cannot_keep_the_lease_is_refused() -> None:
    with pytest.raises(ValidationError, match="MEDICHAT_HEARTBEAT_S"):
        Settings(lease_s=10, heartbeat_s=6)


@pytest.mark.parametrize(
    ("host", "reached_at"),
    [
        ("192.168.1.5", "http://192.168.1.5:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("localhost", "http://127.0.0.1:8000"),
        ("::", "http://[::1]:8000"),
        ("fd00::5", "http://[fd00::5]:8000"),
    ],
)
def test_the_processes_of_this_machine_reach_the_gateway_where_it_listens(host: str, reached_at: str) -> None:
    assert Settings(api_host=host).api_url == reached_at
    assert Settings(ui_host=host).public_ui_url == reached_at.replace("8000", "8501")
