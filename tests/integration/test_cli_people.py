"""`medichat user` on the machine: the way back when nobody can log in who could help."""

from datetime import UTC, datetime, timedelta

import pytest

from services import cli
from shared.auth.roles import AccountStatus, Role
from shared.db.tables import sessions, users
from tests.support import Api, Person


@pytest.fixture
def machine(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings of the gateway's machine."""
    for name in ("state_dir", "database_url", "database_owner_url", "redis_url"):
        monkeypatch.setenv(f"MEDICHAT_{name.upper()}", str(getattr(api.settings, name)))


def reset(person: Person, capsys: pytest.CaptureFixture[str]) -> str:
    """The new password that the command printed."""
    assert cli.main(["user", "reset-password", person.name.upper()]) == 0
    return capsys.readouterr().out.splitlines()[0].rsplit(": ", 1)[1]


def log_in(api: Api, person: Person, password: str) -> int:
    form = {"username": person.name, "password": password}
    return api.client().post("/v1/auth/token", data=form).status_code


@pytest.mark.usefixtures("machine")
def test_the_last_auditor_gets_back_in(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    auditor = api.person(Role.AUDITOR)
    before = api.client(auditor)
    refused = api.log_in(Role.ADMIN).post(f"/v1/users/{auditor.id}/password")
    assert refused.status_code == 409, "an admin must not become the auditor"
    locked = datetime.now(UTC) + timedelta(minutes=10)
    api.set(users, users.c.id == auditor.id, failed_logins=9, locked_until=locked)
    password = reset(auditor, capsys)
    assert before.get("/v1/me").status_code == 401
    assert log_in(api, auditor, password) == 200
    (event,) = api.audit("user.password_set")
    assert (event.actor, event.object, event.outcome) == ("operator", f"user:{auditor.id}", "done")
    assert password.encode() not in event.canonical_bytes
    assert api.count(sessions, sessions.c.user_id == auditor.id, sessions.c.revoked_at.is_(None)) == 1


@pytest.mark.usefixtures("machine")
def test_a_disabled_account_stays_so(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    person = api.person(status=AccountStatus.DISABLED)
    assert cli.main(["user", "reset-password", person.name]) == 0
    printed = capsys.readouterr().out
    assert "is disabled and stays so" in printed
    assert log_in(api, person, printed.splitlines()[0].rsplit(": ", 1)[1]) == 401


@pytest.mark.usefixtures("machine")
def test_an_unknown_name_is_told_in_one_line(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["user", "reset-password", "nobody.there"]) == 1
    assert capsys.readouterr().err == "medichat: There is no account of this name; check the name.\n"
    assert not api.audit("user.password_set")
