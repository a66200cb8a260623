"""Who is calling, when many call at the same moment: each is known, and each is counted."""

from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest

from services.api.identify import Caller, Knock, identify
from shared.db.engine import SQLITE_PRAGMAS, connect
from shared.db.tables import api_keys, sessions
from shared.errors import NotAuthenticated
from tests.conftest import MakeApi
from tests.support import Api


def who(outcome: Caller | Exception) -> str:
    """The caller's id, `wait` added when they called too often, or the error's name."""
    if isinstance(outcome, Exception):
        return type(outcome).__name__
    return outcome.principal.user_id + ("" if outcome.wait_s is None else " wait")


def test_everyone_of_a_group_is_known_in_its_place(api: Api) -> None:
    one, other = api.person(), api.person()
    bearers = [api.token(one), api.token(other), "forged", api.token(one), "forged"]
    found = identify(api.gateway, [Knock(bearer) for bearer in bearers])
    nobody = NotAuthenticated.__name__
    assert [who(outcome) for outcome in found] == [one.id, other.id, nobody, one.id, nobody]


def test_each_of_a_group_counts_against_its_persons_limit(make_api) -> None:  # type: ignore[no-untyped-def]
    api = make_api(requests_per_minute=3)
    eager, calm = api.person(), api.person()
    knocks = [Knock(api.token(person)) for person in (eager, eager, calm, eager, eager, eager)]
    found = identify(api.gateway, knocks)
    wait = f"{eager.id} wait"
    assert [who(outcome) for outcome in found] == [eager.id, eager.id, calm.id, eager.id, wait, wait]
    again = identify(api.gateway, [Knock(api.token(person)) for person in (calm, calm, calm)])
    assert [who(outcome) for outcome in again] == [calm.id, calm.id, f"{calm.id} wait"]


def test_a_group_is_let_in_when_nothing_can_be_counted(make_api) -> None:  # type: ignore[no-untyped-def]
    api = make_api(redis_url="redis://127.0.0.1:1", requests_per_minute=1)
    person = api.person()
    found = identify(api.gateway, [Knock(api.token(person)) for _ in range(3)])
    assert [who(outcome) for outcome in found] == [person.id] * 3


@pytest.mark.parametrize(("unused", "status"), [(timedelta(minutes=5), 200), (timedelta(hours=2), 401)])
@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_reading_goes_on_while_nothing_can_be_written_until_a_log_in_is_too_old(
    make_api: MakeApi, monkeypatch: pytest.MonkeyPatch, unused: timedelta, status: int
) -> None:
    monkeypatch.setitem(SQLITE_PRAGMAS, "busy_timeout", "50")
    api = make_api(reconcile_s=600)
    person = api.person()
    headers = {"Authorization": f"Bearer {api.browser_token(person)}"}
    api.set(sessions, sessions.c.user_id == person.id, last_seen_at=datetime.now(UTC) - unused)
    with closing(connect(api.settings.database_url)) as another, another.write():
        assert api.client().get("/v1/me", headers=headers).status_code == status


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_a_revoked_key_opens_nothing_while_nothing_can_be_written_either(
    make_api: MakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SQLITE_PRAGMAS, "busy_timeout", "50")
    api = make_api(reconcile_s=600)
    made = api.log_in().post("/v1/api-keys", json={"name": "a key", "scopes": ["ask"]}).json()
    api.set(api_keys, api_keys.c.id == made["id"], revoked_at=datetime.now(UTC))
    headers = {"Authorization": f"Bearer {made['key']}"}
    with closing(connect(api.settings.database_url)) as another, another.write():
        assert api.client().get("/v1/me", headers=headers).status_code == 401
