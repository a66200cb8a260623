"""Accounts, auditors who need a yes, API keys, and the log of all that."""

import json
import re
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import Connection, select, update

from services.api.main import THREADS
from shared.audit.record import Actor
from shared.auth.accounts import (
    Account,
    approve_auditor,
    change_account,
    create_first_users,
    get_account,
    set_password,
)
from shared.auth.api_keys import SCOPES_OF_ROLE
from shared.auth.consent import CONSENT_VERSION
from shared.auth.roles import AccountStatus, Role
from shared.auth.tokens import API_KEY_PREFIX
from shared.db.tables import api_keys, users
from shared.errors import Conflict
from shared.guard.verdict import Audience
from shared.jobs.lifecycle import Kind
from shared.registration import Registration
from tests.conftest import MakeApi
from tests.support import PASSWORD, Api, Person, ask_async, wait_until
from tests.training import School, claim_run


def key_client(api: Api, client, scopes: list[str], **body: str):  # type: ignore[no-untyped-def]
    made = client.post("/v1/api-keys", json={"name": "a key", "scopes": scopes, **body})
    assert made.status_code == 201, made.text
    other = api.client()
    other.headers["Authorization"] = f"Bearer {made.json()['key']}"
    return other, made.json()


# -- accounts


def test_an_admin_lets_somebody_in(api: Api) -> None:
    made = api.log_in(Role.ADMIN).post("/v1/users", json={"name": "nurse.kim", "role": "user"}).json()
    form = {"username": "nurse.kim", "password": made["password"]}
    assert api.client().post("/v1/auth/token", data=form).status_code == 200


def test_a_password_is_kept_as_an_argon2_hash(api: Api) -> None:
    made = api.log_in(Role.ADMIN).post("/v1/users", json={"name": "nurse.kim", "role": "user"}).json()
    with api.gateway.database.read() as connection:
        kept = connection.execute(select(users.c.password_hash).where(users.c.id == made["id"])).scalar_one()
    assert kept.startswith("$argon2id$")
    assert made["password"] not in kept


def test_a_name_is_taken_once(api: Api) -> None:
    admin = api.log_in(Role.ADMIN)
    statuses = [admin.post("/v1/users", json={"name": "Kim", "role": "user"}).status_code for _ in range(2)]
    assert statuses == [201, 409]


def test_a_new_auditor_waits_for_an_auditors_yes(api: Api) -> None:
    admin, auditor = api.log_in(Role.ADMIN), api.log_in(Role.AUDITOR)
    made = admin.post("/v1/users", json={"name": "new.auditor", "role": "auditor"}).json()
    form = {"username": made["name"], "password": made["password"]}
    assert made["status"] == "pending"
    assert api.client().post("/v1/auth/token", data=form).status_code == 401
    assert [each["id"] for each in auditor.get("/v1/users/pending").json()["items"]] == [made["id"]]
    assert admin.patch(f"/v1/users/{made['id']}", json={"status": "active"}).status_code == 403
    (denied,) = api.audit("access.denied")
    assert (denied.object, denied.outcome) == (f"user:{made['id']}", "denied")
    yes = auditor.post(f"/v1/users/{made['id']}/approve").json()
    assert api.client().post("/v1/auth/token", data=form).status_code == 401, "an admin knows this one"
    form["password"] = yes["password"]
    assert api.client().post("/v1/auth/token", data=form).status_code == 200


def test_an_admin_who_reset_an_auditors_password_is_no_auditor_after_a_yes_either(api: Api) -> None:
    admin, other, auditor = api.log_in(Role.ADMIN), api.log_in(Role.AUDITOR), api.person(Role.AUDITOR)
    known = admin.post(f"/v1/users/{auditor.id}/password").json()["password"]
    other.post(f"/v1/users/{auditor.id}/approve").raise_for_status()
    assert logged_in(api, auditor.name, known).status_code == 401


def logged_in(api: Api, name: str, password: str) -> httpx.Response:
    return api.client().post("/v1/auth/token", data={"username": name, "password": password})


def bearing(api: Api, answer: httpx.Response) -> httpx.Client:
    client = api.client()
    client.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"
    return client


def gauge(api: Api) -> float:
    (line,) = re.findall(
        r"^medichat_set_passwords_used (.+)$", api.client().get("/metrics").text, re.MULTILINE
    )
    return float(line)


def test_a_log_in_with_a_password_that_another_set_is_told_until_its_owner_changes_it(api: Api) -> None:
    admin, auditor, person = api.person(Role.ADMIN), api.log_in(Role.AUDITOR), api.person()
    known = api.client(admin).post(f"/v1/users/{person.id}/password").json()["password"]
    assert auditor.get("/v1/users/set-passwords").json()["items"] == []
    client = bearing(api, logged_in(api, person.name, known))
    key = client.post("/v1/api-keys", json={"name": "a key", "scopes": ["read"]}).json()["key"]
    (item,) = auditor.get("/v1/users/set-passwords").json()["items"]
    assert (item["user_name"], item["set_by"]) == (person.name, admin.name)
    assert (auditor.get("/v1/me").json()["set_passwords_used"], gauge(api)) == (1, 1)
    me = client.get("/v1/me").json()
    assert (me["password_set_by"], me["password_set_at"]) == ("admin", item["set_at"])
    assert marks(api)[-1] is True
    client.post("/v1/me/password", json={"current": known, "new": PASSWORD + "!"}).raise_for_status()
    me = bearing(api, logged_in(api, person.name, PASSWORD + "!")).get("/v1/me").json()
    assert (me["password_set_by"], me["password_set_at"]) == (None, None)
    assert marks(api)[-1] is False
    assert (auditor.get("/v1/me").json()["set_passwords_used"], gauge(api)) == (0, 0)
    by_key = api.client().get("/v1/me", headers={"Authorization": f"Bearer {key}"})
    assert by_key.status_code == 401, "whoever knew the password may have made it"


def test_a_disabled_account_raises_no_alarm_about_its_password_and_stays_listed(api: Api) -> None:
    admin, auditor, person = api.log_in(Role.ADMIN), api.log_in(Role.AUDITOR), api.person()
    known = admin.post(f"/v1/users/{person.id}/password").json()["password"]
    logged_in(api, person.name, known)
    assert gauge(api) == 1
    admin.patch(f"/v1/users/{person.id}", json={"status": "disabled"}).raise_for_status()
    assert (auditor.get("/v1/me").json()["set_passwords_used"], gauge(api)) == (0, 0)
    (item,) = auditor.get("/v1/users/set-passwords").json()["items"]
    assert item["user_name"] == person.name


def marks(api: Api) -> list[bool]:
    """Of each log-in, whether the log says that another had set its password."""
    events = api.audit("session.started")
    return ["password_set_by_another" in json.loads(event.canonical_bytes)["details"] for event in events]


def test_the_first_log_ins_of_an_installation_are_nobody_elses(api: Api) -> None:
    with api.gateway.database.write() as connection:
        made = create_first_users(connection, api.gateway.clock.now(connection))
    assert len(made) == 3
    for name, _role, password in made:
        assert bearing(api, logged_in(api, name, password)).get("/v1/me").json()["password_set_by"] is None
    assert gauge(api) == 0


def test_a_change_that_an_account_does_not_allow_is_in_the_log(api: Api) -> None:
    first, only = api.person(Role.ADMIN), api.person(Role.AUDITOR)
    admin, auditor = api.client(first), api.client(only)
    refused = [
        admin.patch(f"/v1/users/{first.id}", json={"role": "user"}),
        admin.post(f"/v1/users/{only.id}/password"),
        auditor.post(f"/v1/users/{first.id}/approve"),
    ]
    assert [each.status_code for each in refused] == [409, 409, 409]
    events = api.audit("access.denied")
    assert [(event.actor, event.object, event.outcome) for event in events] == [
        (first.id, f"user:{first.id}", "denied"),
        (first.id, f"user:{only.id}", "denied"),
        (only.id, f"user:{first.id}", "denied"),
    ]
    assert [event.reason for event in events] == [each.json()["detail"] for each in refused]


def test_an_account_that_becomes_an_auditors_waits_for_an_auditors_yes(api: Api) -> None:
    admin, person = api.log_in(Role.ADMIN), api.person()
    changed = admin.patch(f"/v1/users/{person.id}", json={"role": "auditor", "status": "active"})
    assert (changed.status_code, changed.json()["status"]) == (200, "pending")
    again = admin.patch(f"/v1/users/{person.id}", json={"role": "auditor"})
    assert again.json()["status"] == "pending"


@pytest.mark.parametrize("dialect", ["sqlite"])
@pytest.mark.parametrize(("role", "disabled"), [(Role.USER, False), (Role.ADMIN, False), (Role.USER, True)])
def test_who_became_an_auditor_by_mistake_is_put_back_and_can_log_in(
    api: Api, role: Role, disabled: bool
) -> None:
    admin, auditor, person = api.log_in(Role.ADMIN), api.log_in(Role.AUDITOR), api.person()
    path = f"/v1/users/{person.id}"
    admin.patch(path, json={"role": "auditor", **({"status": "disabled"} if disabled else {})})
    back = admin.patch(path, json={"role": role, **({"status": "active"} if disabled else {})}).json()
    assert (back["role"], back["status"]) == (role, "active")
    assert auditor.get("/v1/users/pending").json()["items"] == []
    assert auditor.post(f"{path}/approve").status_code == 409
    assert bearing(api, logged_in(api, person.name, PASSWORD)).get("/v1/me").json()["role"] == role
    assert admin.patch(path, json={"role": "auditor"}).json()["status"] == "pending"


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_no_auditor_approves_an_account_that_is_no_auditors(api: Api) -> None:
    admin, auditor = api.log_in(Role.ADMIN), api.log_in(Role.AUDITOR)
    left = api.person(status=AccountStatus.PENDING)
    assert auditor.get("/v1/users/pending").json()["items"] == []
    refused = auditor.post(f"/v1/users/{left.id}/approve")
    assert (refused.status_code, "password" in refused.json()) == (409, False)
    assert admin.patch(f"/v1/users/{left.id}", json={"audience": "clinician"}).json()["status"] == "active"


in_parallel = pytest.mark.parametrize("dialect", ["postgresql"])  # writers of SQLite take turns

Act = Callable[[Connection, datetime], object]


def begin_together(api: Api, first: Act, then: Act) -> Future[object]:
    """Let `then` begin while what `first` does is not yet committed; what becomes of `then`."""

    def write(act: Act) -> object:
        with api.gateway.database.write() as connection:
            return act(connection, api.gateway.clock.now(connection))

    with ThreadPoolExecutor(1) as pool, api.gateway.database.write() as connection:
        first(connection, api.gateway.clock.now(connection))
        other = pool.submit(write, then)
        wait_until(lambda: other.done() or api.waits_for_lock())
    return other


def change(person: Person, by: Person, **values: Any) -> Act:
    """The act of changing somebody's account."""
    return lambda connection, now: change_account(
        connection, person.id, actor=Actor(by.id), now=now, **values
    )


def account_of(api: Api, person: Person) -> Account:
    with api.gateway.database.read() as connection:
        return get_account(connection, person.id)


@in_parallel
@pytest.mark.parametrize("role", [Role.ADMIN, Role.AUDITOR])
def test_of_the_last_two_that_go_at_the_same_moment_one_stays(
    make_api: MakeApi, dialect: str, role: Role
) -> None:
    api = make_api(reconcile_s=600)
    first, second = api.person(role), api.person(role)
    other = begin_together(
        api,
        change(second, first, status=AccountStatus.DISABLED),
        change(first, second, status=AccountStatus.DISABLED),
    )
    with pytest.raises(Conflict, match="last active"):
        other.result()
    assert api.count(users, users.c.role == role, users.c.status == AccountStatus.ACTIVE) == 1


@in_parallel
def test_two_who_go_at_the_same_moment_do_not_wait_for_each_other(make_api: MakeApi, dialect: str) -> None:
    api = make_api(reconcile_s=600)
    first, second, third = (api.person(Role.ADMIN) for _ in range(3))

    def disable(person: Person) -> None:
        with api.gateway.database.write() as connection:
            change(person, third, status=AccountStatus.DISABLED)(
                connection, api.gateway.clock.now(connection)
            )

    with ThreadPoolExecutor(2) as pool:
        with api.gateway.database.write() as connection:  # as a guess at the first one's password does
            connection.execute(select(users).where(users.c.id == first.id).with_for_update())
            going = []
            for number, person in enumerate((first, second), start=1):
                going.append(pool.submit(disable, person))
                wait_until(lambda number=number: api.waits_for_lock(number))  # type: ignore[misc]
        for each in going:
            each.result()
    assert [account_of(api, person).status for person in (first, second, third)] == [
        AccountStatus.DISABLED,
        AccountStatus.DISABLED,
        AccountStatus.ACTIVE,
    ]


@in_parallel
def test_a_change_beside_a_new_password_is_no_auditors_yes(make_api: MakeApi, dialect: str) -> None:
    api = make_api(reconcile_s=600)
    admin, auditor, _another = api.person(Role.ADMIN), api.person(Role.AUDITOR), api.person(Role.AUDITOR)

    def new_password(connection: Connection, now: datetime) -> None:
        set_password(connection, auditor.id, "a hash", actor=Actor(admin.id), now=now)

    begin_together(api, new_password, change(auditor, admin, audience=Audience.CLINICIAN)).result()
    account = account_of(api, auditor)
    assert (account.status, account.audience) == (AccountStatus.PENDING, Audience.CLINICIAN)


@in_parallel
@pytest.mark.parametrize("beside", ["audience", "password", "approval"])
def test_no_act_at_the_same_moment_enables_a_disabled_account(
    make_api: MakeApi, dialect: str, beside: str
) -> None:
    api = make_api(reconcile_s=600)
    status = AccountStatus.PENDING if beside == "approval" else AccountStatus.ACTIVE
    auditor = api.person(Role.AUDITOR, status=status)
    admin, other = api.person(Role.ADMIN), api.person(Role.AUDITOR)
    acts: dict[str, Act] = {
        "audience": change(auditor, admin, audience=Audience.CLINICIAN),
        "password": lambda connection, now: set_password(
            connection, auditor.id, "a hash", actor=Actor(admin.id), now=now
        ),
        "approval": lambda connection, now: approve_auditor(
            connection, auditor.id, "a hash", actor=Actor(other.id), now=now
        ),
    }
    begin_together(api, change(auditor, admin, status=AccountStatus.DISABLED), acts[beside]).exception()
    assert account_of(api, auditor).status is AccountStatus.DISABLED


def test_disabling_and_enabling_is_no_auditors_yes(api: Api) -> None:
    admin, _another = api.log_in(Role.ADMIN), api.person(Role.AUDITOR)
    for status in (AccountStatus.ACTIVE, AccountStatus.PENDING):
        auditor = api.person(Role.AUDITOR, status=status)
        path = f"/v1/users/{auditor.id}"
        assert admin.patch(path, json={"status": "disabled"}).json()["status"] == "disabled"
        assert admin.patch(path, json={"status": "active"}).json()["status"] == "pending"


def test_an_admin_does_not_become_an_auditor_by_setting_a_password(api: Api) -> None:
    admin, auditor, _another = api.log_in(Role.ADMIN), api.person(Role.AUDITOR), api.person(Role.AUDITOR)
    new = admin.post(f"/v1/users/{auditor.id}/password").json()["password"]
    form = {"username": auditor.name, "password": new}
    assert api.client().post("/v1/auth/token", data=form).status_code == 401


def test_a_disabled_account_is_out_at_once_with_its_keys(api: Api) -> None:
    person = api.person()
    client = api.client(person)
    by_key, _ = key_client(api, client, ["ask"])
    api.log_in(Role.ADMIN).patch(f"/v1/users/{person.id}", json={"status": "disabled"})
    assert client.get("/v1/me").status_code == 401
    assert by_key.get("/v1/me").status_code == 401


def test_the_audience_of_a_person_is_that_of_their_jobs(api: Api) -> None:
    person = api.person()
    api.log_in(Role.ADMIN).patch(f"/v1/users/{person.id}", json={"audience": "clinician"})
    ask_async(api.client(person))
    assert api.claim().audience == "clinician"


@pytest.mark.parametrize("body", [{}, {"role": "king"}, {"status": "gone"}, {"colour": "red"}])
def test_a_bad_change_is_refused(api: Api, body: dict[str, str]) -> None:
    person = api.person()
    assert api.log_in(Role.ADMIN).patch(f"/v1/users/{person.id}", json=body).status_code == 422


# -- API keys


def test_a_key_does_what_its_scope_says(api: Api) -> None:
    by_key, _ = key_client(api, api.log_in(), ["ask"])
    assert ask_async(by_key)["state"] == "queued"
    assert by_key.get("/v1/audit/events").status_code == 403


#: What keys of a user may call, with the scopes that allow it.
CALLS = [
    ("GET", "/v1/jobs", None, {"ask", "read"}),
    ("GET", "/v1/jobs/{job}", None, {"ask", "read"}),
    ("GET", "/v1/conversations", None, {"ask", "read"}),
    ("GET", "/v1/conversations/{conversation}", None, {"ask", "read"}),
    ("POST", "/predict", {"query": "Why?"}, {"ask"}),
    ("POST", "/v1/conversations/{conversation}/messages", {"query": "Why?"}, {"ask"}),
    ("POST", "/v1/conversations/{conversation}/regenerate", None, {"ask"}),
    ("POST", "/v1/jobs/{job}/cancel", None, {"ask"}),
    ("PATCH", "/v1/conversations/{conversation}", {"title": "Mine"}, {"ask"}),
    ("PUT", "/v1/messages/{message}/feedback", {"rating": "up"}, {"ask"}),
    ("DELETE", "/v1/messages/{message}/feedback", None, {"ask"}),
    ("DELETE", "/v1/conversations/{conversation}", None, {"ask"}),
    ("GET", "/v1/system", None, set()),
    ("GET", "/v1/users", None, set()),
    ("GET", "/v1/audit/events", None, set()),
]


@pytest.mark.parametrize(
    ("role", "scope", "path", "wanted"),
    [
        (Role.USER, "read", "/predict", "the scope `ask`;"),
        (Role.ADMIN, "ask", "/v1/jobs", "Your role does not allow this"),
        (Role.USER, "admin", "/v1/jobs", "the scope `ask` or `read`;"),
        (Role.AUDITOR, "ask", "/v1/audit/events", "the scope `audit`;"),
        (Role.USER, "read", "/v1/system", "Your role does not allow this"),
    ],
)
def test_a_refusal_says_which_scope_a_key_needs(
    api: Api, role: Role, scope: str, path: str, wanted: str
) -> None:
    by_key, made = key_client(api, api.log_in(role), [str(next(iter(SCOPES_OF_ROLE[role])))])
    api.set(api_keys, api_keys.c.id == made["id"], scopes=[scope])
    refused = by_key.request(
        "POST" if path == "/predict" else "GET", path, json={"query": "Why?"} if path == "/predict" else None
    )
    assert refused.status_code == 403
    assert wanted in refused.json()["detail"]


@pytest.mark.parametrize("scope", ["ask", "read"])
def test_a_scope_is_refused_all_that_it_does_not_say(api: Api, scope: str) -> None:
    client = api.log_in()
    job = ask_async(client)
    api.answer("Because.")
    conversation = client.get(f"/v1/conversations/{job['conversation_id']}").json()
    ids = {
        "job": job["id"],
        "conversation": conversation["id"],
        "message": conversation["messages"][-1]["id"],
    }
    by_key, _ = key_client(api, client, [scope])
    for method, path, body, scopes in CALLS:
        headers = {"Prefer": "respond-async"}
        status = by_key.request(method, path.format(**ids), json=body, headers=headers).status_code
        assert (status != 403) == (scope in scopes), f"{scope}: {method} {path} answered {status}"


def test_a_scope_that_is_not_on_the_key_counts_though_its_owner_has_the_role(api: Api) -> None:
    admin = api.log_in(Role.ADMIN)
    by_key, made = key_client(api, admin, ["admin"])
    assert by_key.get("/v1/system").status_code == 200
    api.set(api_keys, api_keys.c.id == made["id"], scopes=["ask"])
    assert by_key.get("/v1/system").status_code == 403


def test_a_key_does_not_accept_the_disclaimer(api: Api) -> None:
    client = api.client(api.person(consented=False))
    by_key, _ = key_client(api, client, ["ask"])
    version = client.get("/v1/me").json()["consent"]["version"]
    assert by_key.post("/v1/me/consent", json={"version": version}).status_code == 403
    assert client.get("/v1/me").json()["consented"] is False


def test_anothers_key_is_not_found_and_stays_good(api: Api) -> None:
    by_key, made = key_client(api, api.log_in(), ["ask"])
    assert api.log_in().delete(f"/v1/api-keys/{made['id']}").status_code == 404
    assert by_key.get("/v1/me").status_code == 200


def test_a_request_that_passes_two_checks_is_counted_once(make_api) -> None:  # type: ignore[no-untyped-def]
    api = make_api(requests_per_minute=3)
    client = api.log_in()
    job = ask_async(client)
    statuses = [client.post(f"/v1/jobs/{job['id']}/cancel").status_code for _ in range(3)]
    assert statuses == [202, 202, 429]


def test_a_key_cannot_do_more_than_its_owner(api: Api) -> None:
    refused = api.log_in().post("/v1/api-keys", json={"name": "a key", "scopes": ["admin"]})
    assert refused.status_code == 422
    assert refused.json()["detail"] == "A key of this account may have these scopes: ask, read."


def test_the_key_itself_is_kept_as_a_hash_and_shown_once(api: Api) -> None:
    client = api.log_in()
    _, made = key_client(api, client, ["ask"])
    (listed,) = client.get("/v1/api-keys").json()["items"]
    assert "key" not in listed
    assert api.count(api_keys, api_keys.c.key_hash == made["key"]) == 0


def test_a_revoked_or_expired_key_opens_nothing(api: Api) -> None:
    client = api.log_in()
    revoked, made = key_client(api, client, ["ask"])
    expired, _ = key_client(
        api, client, ["ask"], expires_at=(datetime.now(UTC) + timedelta(seconds=30)).isoformat()
    )
    assert revoked.get("/v1/me").status_code == expired.get("/v1/me").status_code == 200
    client.delete(f"/v1/api-keys/{made['id']}")
    api.set(api_keys, api_keys.c.id != made["id"], expires_at=datetime.now(UTC))
    assert revoked.get("/v1/me").status_code == expired.get("/v1/me").status_code == 401


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_the_use_of_a_key_that_was_good_once_is_in_the_log_once_a_minute(api: Api) -> None:
    person, gone = api.person(), api.person()
    revoked, first = key_client(api, api.client(person), ["ask"])
    expired, second = key_client(api, api.client(person), ["ask"])
    disabled, third = key_client(api, api.client(gone), ["ask"])
    unknown = api.client()
    unknown.headers["Authorization"] = f"Bearer {API_KEY_PREFIX}x"
    api.client(person).delete(f"/v1/api-keys/{first['id']}")
    api.set(api_keys, api_keys.c.id == second["id"], expires_at=datetime.now(UTC))
    api.set(users, users.c.id == gone.id, status=AccountStatus.DISABLED)
    for client in (revoked, expired, disabled, unknown, revoked, disabled):
        assert client.get("/v1/me").status_code == 401
    assert [
        (event.actor, event.session_id, event.object, event.outcome, event.reason)
        for event in api.audit("api_key.refused")
    ] == [
        (owner.id, f"key:{made['id']}", f"api_key:{made['id']}", "denied", reason)
        for owner, made, reason in (
            (person, first, "revoked"),
            (person, second, "expired"),
            (gone, third, "account is not active"),
        )
    ]


def test_a_key_remembers_its_last_use(api: Api) -> None:
    client = api.log_in()
    by_key, _ = key_client(api, client, ["ask"])
    assert client.get("/v1/api-keys").json()["items"][0]["last_used_at"] is None
    by_key.get("/v1/me")
    assert client.get("/v1/api-keys").json()["items"][0]["last_used_at"] is not None


def test_a_key_makes_no_keys_and_changes_no_password(api: Api) -> None:
    by_key, _ = key_client(api, api.log_in(), ["ask"])
    assert by_key.post("/v1/api-keys", json={"name": "more", "scopes": ["ask"]}).status_code == 403
    assert by_key.post("/v1/me/password", json={"current": "x", "new": "y" * 20}).status_code == 403


# -- the log


def test_reading_the_log_is_in_the_log(api: Api) -> None:
    auditor = api.log_in(Role.AUDITOR)
    auditor.get("/v1/audit/events", params={"action": "session.*"})
    (event,) = auditor.get("/v1/audit/events", params={"action": "audit.read", "limit": 1}).json()["items"]
    assert event["details"]["action"] in ("session.*", "audit.read")
    assert len(api.audit("audit.read")) == 2


def test_the_event_of_a_reading_keeps_ids_and_actions_that_were_looked_for(api: Api) -> None:
    person = api.person()
    auditor = api.log_in(Role.AUDITOR)
    looked = {"actor": person.id, "object": f"user:{person.id}", "action": "session.started"}
    auditor.get("/v1/audit/events", params=looked)
    auditor.get("/v1/audit/events", params={"actor": "system", "object": f"adapter:{'a' * 64}"})
    first, second = (json.loads(row.canonical_bytes)["details"] for row in api.audit("audit.read"))
    assert {name: first[name] for name in looked} == looked
    assert (second["actor"], second["object"]) == ("system", f"adapter:{'a' * 64}")


@pytest.mark.parametrize("name", ["actor", "object", "action"])
@pytest.mark.parametrize("typed", ["Hedwig Sonntag", "hedwig.sonntag", "hedwig.*", "patient:hedwig"])
def test_of_other_words_that_were_looked_for_the_log_keeps_a_hash(api: Api, name: str, typed: str) -> None:
    auditor = api.log_in(Role.AUDITOR)
    assert auditor.get("/v1/audit/events", params={name: typed}).status_code == 200
    (event,) = api.audit("audit.read")
    assert "hedwig" not in event.canonical_bytes.decode().lower()
    details = json.loads(event.canonical_bytes)["details"]
    assert details[f"{name}_hmac"] == api.gateway.envelope.fingerprint(typed)


def test_the_log_is_filtered_and_comes_in_pages(api: Api) -> None:
    person = api.person()
    client, auditor = api.client(person), api.log_in(Role.AUDITOR)
    for _ in range(3):
        ask_async(client)
        api.answer("Done.")
    found, cursor = [], None
    while True:
        params = {"actor": person.id, "action": "question.asked", "limit": 2}
        page = auditor.get(
            "/v1/audit/events", params={**params, **({"cursor": cursor} if cursor else {})}
        ).json()
        found += page["items"]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert len(found) == 3
    assert {event["actor_name"] for event in found} == {person.name}
    assert found == sorted(found, key=lambda event: event["occurred_at"], reverse=True)


def test_an_event_names_who_what_when_and_how_it_ended(api: Api) -> None:
    person = api.person()
    job = ask_async(api.client(person))
    (event,) = (
        api.log_in(Role.AUDITOR)
        .get("/v1/audit/events", params={"object": f"job:{job['id']}"})
        .json()["items"]
    )
    assert (event["actor"], event["action"], event["outcome"]) == (person.id, "question.asked", "done")
    assert event["session_id"]
    assert event["details"]["conversation"] == job["conversation_id"]


# -- operation


def test_a_training_counts_as_no_answer(api: Api) -> None:
    school = School(api)
    school.submit()
    api.finish(claim_run(api))
    system = api.log_in(Role.ADMIN).get("/v1/system").json()
    assert (system["latency"], system["jobs_by_state"]["succeeded"]) == ([], 0)


def test_an_admin_sees_queue_workers_and_latency(api: Api) -> None:
    client = api.log_in()
    ask_async(client)
    api.answer("Done.")
    ask_async(client)
    system = api.log_in(Role.ADMIN).get("/v1/system").json()
    assert system["queue"]["queued"] == 1
    assert system["jobs_by_state"]["succeeded"] == 1
    assert system["latency"][0]["answers"] == 1
    assert system["redis"] == "up"


def test_the_process_says_that_it_lives_while_all_its_threads_wait_for_the_database(api: Api) -> None:
    """Told by the names that anyio gives its threads, of which each waits for one request's database."""
    client = api.log_in()
    with ThreadPoolExecutor(THREADS + 2) as pool:
        with api.gateway.database.write() as connection:
            connection.execute(update(users).values(name=users.c.name))  # nobody else changes them meanwhile
            waiting = [
                pool.submit(client.post, "/v1/me/consent", json={"version": CONSENT_VERSION})
                for _ in range(THREADS + 2)
            ]
            busy = "AnyIO worker thread"
            wait_until(
                lambda: sum(each.name == busy for each in threading.enumerate()) >= THREADS, what="for them"
            )
            assert api.client().get("/healthz").status_code == 200
        assert {each.result().status_code for each in waiting} == {200}


def test_the_health_routes_and_metrics_name_nobody(api: Api) -> None:
    person = api.person()
    ask_async(api.client(person), "a very particular question")
    nobody = api.client()
    assert nobody.get("/healthz").status_code == 200
    assert nobody.get("/readyz").status_code == 200
    metrics = nobody.get("/metrics")
    assert 'medichat_jobs{state="queued"} 1.0' in metrics.text
    assert "particular" not in metrics.text
    assert person.id not in metrics.text


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_metrics_count_the_workers_that_are_alive(api: Api) -> None:
    client, worker = api.client(), Registration(api.gateway.database, api.gateway.clock, "infer@host:1")
    for number in (0, 1):
        lines = client.get("/metrics").text.splitlines()
        assert f'medichat_workers{{kind="infer"}} {number}.0' in lines
        assert 'medichat_workers{kind="train"} 0.0' in lines
        worker.enter(Kind.INFER, "demo", {})
