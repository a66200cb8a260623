"""Who gets in, how long, and what ends it."""

import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta

import httpx
import jwt
import pytest
from pwdlib import PasswordHash
from pwdlib.hashers.argon2 import Argon2Hasher
from sqlalchemy import select

from shared.auth.passwords import _DUMMY
from shared.auth.roles import AccountStatus, Role
from shared.auth.tokens import AccessClaims, make_access_token
from shared.db.tables import sessions, users
from shared.queue import open_redis
from tests.support import (
    PASSWORD,
    Api,
    FakeClock,
    Person,
    RedisServer,
    ask_async,
    assert_problem,
    wait_until,
)


def log_in(api: Api, person: Person, password: str = PASSWORD):  # type: ignore[no-untyped-def]
    return api.client().post("/v1/auth/token", data={"username": person.name, "password": password})


def come_with(api: Api, token: str) -> httpx.Response:
    return api.client().get("/v1/me", headers={"Authorization": f"Bearer {token}"})


def me(api: Api, token: str) -> int:
    return come_with(api, token).status_code


def test_a_password_buys_a_token_that_names_its_owner(api: Api) -> None:
    person = api.person()
    token = log_in(api, person).json()["access_token"]
    answer = api.client().get("/v1/me", headers={"Authorization": f"Bearer {token}"})
    assert answer.json()["id"] == person.id


def test_a_wrong_password_and_an_unknown_name_get_the_same_answer(api: Api) -> None:
    wrong = log_in(api, api.person(), "not the password")
    unknown = log_in(api, Person("", "nobody.there", Role.USER))
    assert wrong.status_code == unknown.status_code == 401
    assert wrong.json() == unknown.json()


def test_what_is_checked_where_there_is_no_account_costs_what_a_hash_of_today_costs() -> None:
    assert not PasswordHash.recommended().current_hasher.check_needs_rehash(_DUMMY)


@pytest.mark.parametrize(
    ("trusted", "statuses"), [("192.0.2.1", [401, 401, 429]), ("127.0.0.1", [401, 401, 401])]
)
def test_log_ins_are_limited_for_each_address_that_a_trusted_proxy_names(
    make_api: Callable[..., Api], trusted: str, statuses: list[int]
) -> None:
    api = make_api(logins_per_minute=2, trusted_proxies=trusted)
    client, form = api.client(), {"username": "nobody.there", "password": "a guess"}
    got = [
        client.post("/v1/auth/token", data=form, headers={"X-Forwarded-For": f"198.51.100.{number}"})
        for number in range(3)
    ]
    assert [each.status_code for each in got] == statuses


@pytest.mark.parametrize("watching", [True, False])
def test_looks_that_a_page_takes_by_itself_are_no_use_of_a_log_in(api: Api, watching: bool) -> None:
    person = api.person()
    headers = {"Authorization": f"Bearer {api.browser_token(person)}"}
    if watching:
        headers["X-MediChat-Poll"] = "1"
    condition = sessions.c.user_id == person.id
    api.set(sessions, condition, last_seen_at=datetime.now(UTC) - timedelta(minutes=50))
    assert api.client().get("/v1/jobs", headers=headers).status_code == 200
    recent = sessions.c.last_seen_at > datetime.now(UTC) - timedelta(minutes=10)
    assert api.count(sessions, condition, recent) == (0 if watching else 1)


def test_guessing_locks_the_account_for_a_while(api: Api) -> None:
    person = api.person()
    for _ in range(5):
        log_in(api, person, "guess")
    locked = log_in(api, person)
    assert locked.status_code == 429
    assert int(locked.headers["Retry-After"]) >= 1
    api.set(users, users.c.id == person.id, locked_until=datetime.now(UTC) - timedelta(seconds=1))
    assert log_in(api, person).status_code == 200


def test_each_further_guess_locks_for_longer(api: Api) -> None:
    person, waits = api.person(), []
    for guess in range(1, 8):
        log_in(api, person, "guess")
        if guess >= 5:
            waits.append(int(log_in(api, person).headers["Retry-After"]))
            past = datetime.now(UTC) - timedelta(seconds=1)
            api.set(users, users.c.id == person.id, locked_until=past)
    assert waits == [2, 4, 8]


def test_a_log_in_that_is_refused_for_a_lock_is_in_the_log(api: Api) -> None:
    person = api.person()
    for _ in range(6):
        log_in(api, person, "guess")
    assert [event.reason for event in api.audit("session.refused")][-1] == "locked"


@pytest.mark.parametrize("known", [True, False])
def test_guesses_at_the_same_moment_are_judged_one_after_another(api: Api, known: bool) -> None:
    person = api.person() if known else Person("", "nobody.there", Role.USER)
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: log_in(api, person, "guess").status_code, range(12)))
    assert sorted(answers) == [401] * 5 + [429] * 7


def test_a_name_that_nobody_has_locks_like_any_other(api: Api) -> None:
    def answers(person: Person) -> list[tuple[int, dict[str, object], str | None]]:
        tried = [log_in(api, person, "guess") for _ in range(7)]
        return [(each.status_code, each.json(), each.headers.get("Retry-After")) for each in tried]

    assert answers(api.person()) == answers(Person("", "nobody.there", Role.USER))


def test_a_name_that_nobody_has_is_kept_nowhere(api: Api) -> None:
    log_in(api, Person("", "hunter2", Role.USER), "guess")
    with closing(open_redis(api.settings)) as redis:
        assert not [key for key in redis.scan_iter("*") if b"hunter2" in key]
    assert not any(b"hunter2" in event.canonical_bytes for event in api.audit())


def test_without_redis_nobody_logs_in(make_api, tmp_path) -> None:  # type: ignore[no-untyped-def]
    redis = RedisServer(tmp_path).start()
    api = make_api(redis_url=redis.url)
    person = api.person()
    tokens = log_in(api, person).json()
    redis.kill()
    assert log_in(api, person).status_code == 503
    form = {"username": person.name, "password": PASSWORD}
    assert api.client().post("/login", data=form).status_code == 503
    assert me(api, tokens["access_token"]) == 200, "who is logged in goes on"
    assert refresh(api, "mcr_forged").status_code == 503
    assert refresh(api, tokens["refresh_token"]).status_code == 200


def test_a_frozen_redis_hardly_slows_requests(make_api, tmp_path) -> None:  # type: ignore[no-untyped-def]
    redis = RedisServer(tmp_path).start()
    api = make_api(redis_url=redis.url)
    client = api.log_in()
    assert client.get("/v1/me").status_code == 200
    assert redis.process is not None
    redis.process.send_signal(signal.SIGSTOP)
    begun = time.monotonic()
    assert {client.get("/v1/me").status_code for _ in range(20)} == {200}
    assert time.monotonic() - begun < 1
    redis.process.send_signal(signal.SIGCONT)
    redis.kill()


def test_guessing_ones_password_while_logged_in_locks_and_is_in_the_log(api: Api) -> None:
    person = api.person()
    client = api.client(person)
    body = {"current": "guess", "new": "another long passphrase"}
    statuses = [client.post("/v1/me/password", json=body).status_code for _ in range(6)]
    assert statuses == [422] * 5 + [429]
    right = client.post("/v1/me/password", json={**body, "current": PASSWORD})
    assert right.status_code == 429
    events = api.audit("user.password_set")
    assert {event.outcome for event in events} == {"failed"}
    assert len(events) == 7
    assert log_in(api, person).status_code == 200, "another log-in is another's to guess in"


@pytest.mark.parametrize("path", ["/v1/me/reauthenticate", "/v1/me/password"])
def test_who_is_logged_in_is_kept_from_nothing_by_strangers_who_guess(api: Api, path: str) -> None:
    person = api.person()
    client = api.client(person)
    for _ in range(6):
        log_in(api, person, "guess")
    body = {"password": PASSWORD} if "auth" in path else {"current": PASSWORD, "new": "another passphrase"}
    assert client.post(path, json=body).status_code == 204


@pytest.mark.parametrize("failures", [1, 8])
def test_a_clock_that_was_set_back_locks_nobody_out(api: Api, failures: int) -> None:
    person = api.person()
    ahead = datetime.now(UTC) + timedelta(hours=1)
    api.set(users, users.c.id == person.id, failed_logins=failures, locked_until=ahead)
    assert log_in(api, person).status_code == 200


def test_a_single_failure_locks_nobody_out_whatever_another_clock_says(api: Api) -> None:
    person = api.person()
    ahead = datetime.now(UTC) + timedelta(seconds=5)
    api.set(users, users.c.id == person.id, failed_logins=1, locked_until=ahead)
    assert log_in(api, person).status_code == 200


def test_failures_are_forgotten_after_a_day(api: Api) -> None:
    person = api.person()
    for age, status in ((timedelta(hours=23), 429), (timedelta(hours=25), 200)):
        api.set(users, users.c.id == person.id, failed_logins=8, locked_until=datetime.now(UTC) - age)
        log_in(api, person, "guess")
        assert log_in(api, person).status_code == status


def test_each_failed_log_in_is_in_the_log(api: Api) -> None:
    person = api.person()
    log_in(api, person, "guess")
    (event,) = api.audit("session.refused")
    assert (event.object, event.outcome) == (f"user:{person.id}", "denied")


def test_logging_out_works_at_once(api: Api) -> None:
    client = api.log_in()
    assert client.post("/v1/auth/logout").status_code == 204
    assert client.get("/v1/me").status_code == 401


def test_a_refresh_token_is_traded_once(api: Api) -> None:
    first = log_in(api, api.person()).json()
    second = api.client().post("/v1/auth/refresh", json={"refresh_token": first["refresh_token"]}).json()
    assert second["refresh_token"] != first["refresh_token"]
    assert me(api, second["access_token"]) == 200


def test_using_a_refresh_token_twice_ends_the_whole_log_in(api: Api) -> None:
    first = log_in(api, api.person()).json()
    body = {"refresh_token": first["refresh_token"]}
    second = api.client().post("/v1/auth/refresh", json=body).json()
    assert api.client().post("/v1/auth/refresh", json=body).status_code == 401
    assert me(api, second["access_token"]) == 401
    newest = {"refresh_token": second["refresh_token"]}
    assert api.client().post("/v1/auth/refresh", json=newest).status_code == 401


def refresh(api: Api, token: str) -> httpx.Response:
    return api.client().post("/v1/auth/refresh", json={"refresh_token": token})


def test_refresh_tokens_from_one_address_are_limited_before_anything_is_written(
    make_api: Callable[..., Api],
) -> None:
    api = make_api(logins_per_minute=2)
    assert [refresh(api, "mcr_forged").status_code for _ in range(2)] == [401, 401]
    with api.gateway.database.write():  # on SQLite nobody else could write now
        limited = refresh(api, "mcr_forged")
    assert (limited.status_code, limited.headers["content-type"]) == (429, "application/problem+json")
    assert int(limited.headers["Retry-After"]) >= 1
    given = [log_in(api, api.person()).json()["refresh_token"] for _ in range(2)]
    assert {refresh(api, token).status_code for token in given} == {200}, "strangers' tokens are not theirs"
    assert [refresh(api, given[0]).status_code for _ in range(2)] == [401, 429]
    assert "429" in api.app.openapi()["paths"]["/v1/auth/refresh"]["post"]["responses"]
    events = api.audit("session.refused")
    assert [(event.actor, event.object, event.outcome) for event in events] == [
        ("anonymous", None, "denied")
    ] * 2


def test_a_refresh_token_of_an_ended_log_in_is_refused_and_that_is_in_the_log(api: Api) -> None:
    person = api.person()
    tokens = log_in(api, person).json()
    bearer = {"Authorization": f"Bearer {tokens['access_token']}"}
    assert api.client().post("/v1/auth/logout", headers=bearer).status_code == 204
    assert refresh(api, tokens["refresh_token"]).status_code == 401
    (event,) = api.audit("session.refused")
    assert (event.actor, event.object, event.outcome) == (person.id, f"user:{person.id}", "denied")


def forged(api: Api, person: Person, **changes: object) -> str:
    """An access token of a running log-in with something about it changed."""
    good = api.token(person)
    claims = jwt.decode(good, options={"verify_signature": False})
    key = str(changes.pop("key", api.settings.secret("token_key")))
    algorithm = str(changes.pop("algorithm", "HS256"))
    return jwt.encode({**claims, **changes}, key, algorithm=algorithm)


@pytest.mark.parametrize(
    "changes",
    [
        {"key": "another key, which is also long enough to sign with, whatever the algorithm"},
        {"exp": 1},
        {"exp": "soon"},
        {"aud": "somebody-else"},
        {"iss": "somebody-else"},
        {"sub": "01a20ced-32e0-731b-806d-a95e481a1022"},
        {"algorithm": "HS512"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_forged_or_expired_token_is_refused(api: Api, changes: dict[str, object]) -> None:
    person = api.person()
    assert me(api, forged(api, person)) == 200
    refused = come_with(api, forged(api, person, **dict(changes)))
    assert "log in again" in assert_problem(refused, 401, "not-authenticated")
    assert refused.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize("hours", [-2, 2])
def test_a_gateway_whose_clock_is_wrong_goes_by_the_databases(api: Api, hours: int) -> None:
    object.__setattr__(api.gateway, "clock", FakeClock(datetime.now(UTC) + timedelta(hours=hours)))
    token = api.token(api.person())
    assert me(api, token) == 200
    object.__setattr__(
        api.gateway, "clock", FakeClock(datetime.now(UTC) + timedelta(hours=hours, minutes=16))
    )
    assert me(api, token) == 401


def test_an_unsigned_token_is_refused(api: Api) -> None:
    claims = jwt.decode(api.token(api.person()), options={"verify_signature": False})
    assert me(api, jwt.encode(claims, "", algorithm="none")) == 401


def test_a_token_of_a_session_that_never_was_is_refused(api: Api) -> None:
    person = api.person()
    token = make_access_token(
        AccessClaims(person.id, "01a20ced-32e0-731b-806d-a95e481a1022"),
        key=api.settings.secret("token_key"),
        now=datetime.now(UTC),
    )
    assert me(api, token) == 401


@pytest.mark.parametrize("status", [AccountStatus.DISABLED, AccountStatus.PENDING])
def test_only_active_accounts_log_in(api: Api, status: AccountStatus) -> None:
    assert log_in(api, api.person(status=status)).status_code == 401


def test_a_browser_that_was_idle_too_long_is_logged_out(api: Api) -> None:
    person = api.person()
    token = api.browser_token(person)
    assert me(api, token) == 200
    api.set(sessions, sessions.c.user_id == person.id, last_seen_at=datetime.now(UTC) - timedelta(hours=2))
    assert me(api, token) == 401


def test_a_short_idle_time_does_not_log_out_a_browser_that_is_used(make_api) -> None:  # type: ignore[no-untyped-def]
    api = make_api(session_idle_minutes=1)
    person = api.person()
    token = api.browser_token(person)
    of_person = sessions.c.user_id == person.id
    for _ in range(3):
        with api.gateway.database.read() as connection:
            seen_at = connection.execute(select(sessions.c.last_seen_at).where(of_person)).scalar_one()
        api.set(sessions, of_person, last_seen_at=seen_at - timedelta(seconds=25))
        assert me(api, token) == 200
    api.set(sessions, of_person, last_seen_at=datetime.now(UTC) - timedelta(seconds=61))
    assert me(api, token) == 401


@pytest.mark.parametrize(
    ("role", "ends"),
    [(Role.ADMIN, True), (Role.AUDITOR, True), (Role.USER, False)],
    ids=str,
)
def test_an_unused_program_of_who_may_see_others_is_logged_out(api: Api, role: Role, ends: bool) -> None:
    person = api.person(role)
    tokens = log_in(api, person).json()
    of_person = sessions.c.user_id == person.id
    api.set(sessions, of_person, last_seen_at=datetime.now(UTC) - timedelta(minutes=59))
    assert me(api, tokens["access_token"]) == 200, "and that is use"
    tokens = refresh(api, tokens["refresh_token"]).json()
    assert me(api, tokens["access_token"]) == 200
    api.set(sessions, of_person, last_seen_at=datetime.now(UTC) - timedelta(minutes=61))
    assert me(api, tokens["access_token"]) == (401 if ends else 200)
    assert refresh(api, tokens["refresh_token"]).status_code == (401 if ends else 200)
    assert len(api.audit("session.refused")) == ends


def test_refreshing_is_use_of_a_log_in(api: Api) -> None:
    auditor = api.person(Role.AUDITOR)
    tokens = log_in(api, auditor).json()
    of_person = sessions.c.user_id == auditor.id
    api.set(sessions, of_person, last_seen_at=datetime.now(UTC) - timedelta(minutes=59))
    assert refresh(api, tokens["refresh_token"]).status_code == 200
    with api.gateway.database.read() as connection:
        seen_at = connection.execute(select(sessions.c.last_seen_at).where(of_person)).scalar_one()
    assert seen_at > datetime.now(UTC) - timedelta(minutes=5)


def test_too_many_log_ins_from_one_address_are_slowed(make_api) -> None:  # type: ignore[no-untyped-def]
    api = make_api(logins_per_minute=2)
    person = api.person()
    statuses = [log_in(api, person).status_code for _ in range(3)]
    assert statuses == [200, 200, 429]


def test_the_log_in_page_sets_a_cookie_that_scripts_cannot_read(api: Api) -> None:
    person = api.person()
    answer = api.client().post("/login", data={"username": person.name, "password": PASSWORD})
    assert answer.status_code == 303
    cookie = answer.headers["Set-Cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert me(api, answer.cookies["medichat_session"]) == 200


@pytest.mark.parametrize("too_long", [{"username": "n" * 101}, {"password": "p" * 201}])
def test_the_log_in_page_says_what_is_too_long_to_be_right(api: Api, too_long: dict[str, str]) -> None:
    form = {"username": api.person().name, "password": PASSWORD, **too_long}
    answer = api.client().post("/login", data=form)
    assert (answer.status_code, answer.headers["content-type"]) == (401, "text/html; charset=utf-8")
    assert "at most 100 characters" in answer.text
    assert answer.text.count("maxlength=") == 2
    assert "n" * 101 not in answer.text


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_logging_in_ends_the_log_in_that_the_browser_had(api: Api) -> None:
    before, person = api.browser_token(api.person()), api.person()

    def log_in_over(cookie: str, password: str = PASSWORD) -> httpx.Response:
        form = {"username": person.name, "password": password}
        return api.client().post("/login", data=form, headers={"Cookie": f"medichat_session={cookie}"})

    assert (log_in_over(before, "a guess").status_code, me(api, before)) == (401, 200)
    entered = [log_in_over(cookie) for cookie in (before, "nonsense")]
    assert [me(api, each.cookies["medichat_session"]) for each in entered] == [200, 200]
    assert me(api, before) == 401
    (event,) = api.audit("session.ended")
    assert (event.actor, event.reason) == (person.id, "another log-in")
    assert api.count(
        sessions, sessions.c.revoked_at.is_not(None), event.object == "session:" + sessions.c.sid
    )


def test_the_log_in_page_refuses_a_form_of_another_site(api: Api) -> None:
    person = api.person()
    answer = api.client().post(
        "/login",
        data={"username": person.name, "password": PASSWORD},
        headers={"Origin": "https://evil.example"},
    )
    assert answer.status_code == 403
    assert "Set-Cookie" not in answer.headers


def test_the_log_out_page_asks_for_itself_what_a_form_of_another_site_wants(api: Api) -> None:
    token = api.browser_token(api.person())
    headers = {"Cookie": f"medichat_session={token}", "Origin": "https://evil.example"}
    answer = api.client().post("/logout", headers=headers)
    assert answer.status_code == 403
    assert "Set-Cookie" not in answer.headers
    assert "You are logged out" not in answer.text
    assert me(api, token) == 200


def test_logging_out_on_the_page_ends_the_browsers_log_in(api: Api) -> None:
    token = api.browser_token(api.person())
    api.client().post("/logout", headers={"Cookie": f"medichat_session={token}"})
    assert me(api, token) == 401


def test_the_cookie_alone_opens_nothing(api: Api) -> None:
    token = api.browser_token(api.person())
    answer = api.client().get("/v1/me", headers={"Cookie": f"medichat_session={token}"})
    assert answer.status_code == 401


def test_a_new_password_ends_every_other_log_in(api: Api) -> None:
    person = api.person()
    other, client = api.token(person), api.client(person)
    body = {"current": PASSWORD, "new": "another long passphrase"}
    assert client.post("/v1/me/password", json=body).status_code == 204
    assert me(api, other) == 401
    assert log_in(api, person, "another long passphrase").status_code == 200


def test_the_disclaimer_is_accepted_once_before_the_first_question(api: Api) -> None:
    person = api.person(consented=False)
    client = api.client(person)
    refused = client.post("/predict", json={"query": "What is asthma?"})
    assert (refused.status_code, refused.json()["type"]) == (403, "urn:medichat:problem:consent-required")
    version = client.get("/v1/me").json()["consent"]["version"]
    for _ in range(2):
        assert client.post("/v1/me/consent", json={"version": version}).status_code == 200
    accepted = client.post("/predict", json={"query": "What is asthma?"}, headers={"Prefer": "respond-async"})
    assert accepted.status_code == 202
    assert len(api.audit("consent.given")) == 1


# -- while a password is judged


@contextmanager
def slow_guess(api: Api, person: Person, password: str) -> Iterator[Future[httpx.Response]]:
    """A log-in whose password is being judged, which takes long: its hash was made so."""
    slow = Argon2Hasher(time_cost=12, parallelism=1).hash(PASSWORD)
    api.set(users, users.c.id == person.id, password_hash=slow)
    with ThreadPoolExecutor(1) as pool:
        guess = pool.submit(log_in, api, person, password)
        counted = (users.c.id == person.id, users.c.failed_logins > 0)
        wait_until(lambda: guess.done() or api.count(users, *counted), what="for the guess to be counted")
        yield guess


def test_a_guess_holds_no_lock_while_it_is_judged(api: Api) -> None:
    person, other = api.person(), api.log_in()
    with slow_guess(api, person, PASSWORD) as guess:
        assert ask_async(other)["state"] == "queued"
        assert not guess.done(), "the question waited for the hash"
    assert guess.result().status_code == 200
    assert api.count(users, users.c.failed_logins > 0) == 0


@pytest.mark.parametrize(
    ("meanwhile", "status"),
    [
        ({"password_hash": "another"}, 401),
        ({"status": AccountStatus.DISABLED}, 401),
        ({"failed_logins": 9}, 429),
    ],
)
def test_nobody_gets_in_whose_account_changed_while_the_password_was_judged(
    api: Api, meanwhile: dict[str, object], status: int
) -> None:
    person = api.person()
    with slow_guess(api, person, PASSWORD) as guess:
        soon = {"locked_until": datetime.now(UTC) + timedelta(minutes=10)} if status == 429 else {}
        api.set(users, users.c.id == person.id, **meanwhile, **soon)
        assert not guess.done()
    assert guess.result().status_code == status
    assert api.count(sessions) == 0
    (event,) = api.audit("session.refused")
    assert event.object == f"user:{person.id}"


def test_logging_in_many_times_at_once_is_no_guessing(api: Api) -> None:
    person = api.person()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: log_in(api, person).status_code, range(8)))
    assert answers == [200] * 8


def test_a_person_types_their_password_again_and_that_is_logged(api: Api) -> None:
    person = api.person()
    client, long_ago = api.client(person), datetime(2026, 1, 1, tzinfo=UTC)
    api.set(sessions, sessions.c.user_id == person.id, reauthenticated_at=long_ago)
    assert client.post("/v1/me/reauthenticate", json={"password": "not mine"}).status_code == 422
    assert api.count(sessions, sessions.c.reauthenticated_at == long_ago) == 1
    assert client.post("/v1/me/reauthenticate", json={"password": PASSWORD}).status_code == 204
    assert not api.count(sessions, sessions.c.reauthenticated_at == long_ago)
    (event,) = api.audit("session.reauthenticated")
    assert event.actor == person.id
