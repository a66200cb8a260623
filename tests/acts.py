"""Calls that shall succeed, one for each route, with the events that each leaves. It calls nothing itself.

Each makes people and things of its own, so that one gateway serves them all.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from shared.auth import accounts, sessions
from shared.auth.consent import CONSENT_VERSION
from shared.auth.roles import Role
from shared.jobs.records import Job
from tests.support import PASSWORD, Api, Person, ask_async


@dataclass(frozen=True, kw_only=True)
class Call:
    """What is sent, by whom, and which events of theirs it leaves."""

    by: Person
    #: Action and object of each, in order. In an object `{me}` is the caller, `{session}` the log-in that the
    #: event names, any other name an id of the address or a field of the answer; `*` is anything.
    events: Iterable[tuple[str, str | None]]
    ids: Mapping[str, str] = field(default_factory=dict)
    #: What httpx is told of the request.
    request: Mapping[str, Any] = field(default_factory=dict)
    #: What sends it; None: a client logged in as the person.
    client: httpx.Client | None = None
    #: Puts right again what all share.
    after: Callable[[], object] = lambda: None


Act = Callable[[Api], Call]
ACTS: dict[tuple[str, str], Act] = {}


def act(method: str, path: str) -> Callable[[Act], Act]:
    """Declare the act of a route."""

    def declare(prepare: Act) -> Act:
        assert (method, path) not in ACTS, f"{method} {path} has two acts"
        ACTS[method, path] = prepare
        return prepare

    return declare


def call(
    by: Person,
    *events: tuple[str, str | None],
    ids: Mapping[str, str] | None = None,
    client: httpx.Client | None = None,
    after: Callable[[], object] = lambda: None,
    **request: Any,
) -> Call:
    """A call with what httpx is told of the request as keywords."""
    return Call(by=by, events=events, ids=ids or {}, request=request, client=client, after=after)


def asked(api: Api, person: Person) -> dict[str, Any]:
    """A question of the person's that waits."""
    return ask_async(api.client(person))


def answered(api: Api, person: Person | None = None) -> Job:
    """An answer to a question of the person's."""
    asked(api, person or api.person())
    return api.answer("See a doctor.")


def message_of(api: Api, person: Person, job: Job) -> str:
    """The id of the answer as its person reads it."""
    read = api.client(person).get(f"/v1/conversations/{job.conversation_id}").json()
    return str(read["messages"][-1]["id"])


# -- asking


@act("POST", "/predict")
def predict(api: Api) -> Call:
    return call(
        api.person(),
        ("question.asked", "job:{id}"),
        json={"query": "What is asthma?"},
        headers={"Prefer": "respond-async"},
    )


@act("POST", "/v1/chat/completions")
def complete(api: Api) -> Call:
    in_need = [{"role": "user", "content": "I want to kill myself."}]  # answered without a worker
    body = {"model": api.settings.model, "messages": in_need}
    return call(api.person(), ("question.asked", "job:*"), json=body)


@act("POST", "/v1/jobs/{job_id}/cancel")
def cancel(api: Api) -> Call:
    person = api.person()
    ids = {"job_id": asked(api, person)["id"]}
    return call(person, ("job.cancel_asked", "job:{job_id}"), ("answer.cancelled", "job:{job_id}"), ids=ids)


def in_conversation(api: Api, *events: tuple[str, str], **request: Any) -> Call:
    """Something that is done to a conversation of one's own with an answer in it."""
    person = api.person()
    ids = {"conversation_id": str(answered(api, person).conversation_id)}
    return call(person, *events, ids=ids, **request)


@act("POST", "/v1/conversations/{conversation_id}/messages")
def ask_on(api: Api) -> Call:
    return in_conversation(api, ("question.asked", "job:{id}"), json={"query": "And later?"})


@act("POST", "/v1/conversations/{conversation_id}/regenerate")
def regenerate(api: Api) -> Call:
    return in_conversation(api, ("question.asked", "job:{id}"))


@act("PATCH", "/v1/conversations/{conversation_id}")
def rename(api: Api) -> Call:
    return in_conversation(api, ("conversation.renamed", "conversation:{id}"), json={"title": "Mine"})


@act("DELETE", "/v1/conversations/{conversation_id}")
def hide(api: Api) -> Call:
    return in_conversation(api, ("conversation.hidden", "conversation:{conversation_id}"))


@act("POST", "/v1/conversations/{conversation_id}/erase")
def erase_conversation(api: Api) -> Call:
    return in_conversation(api, ("conversation.erased", "conversation:{conversation_id}"))


@act("PUT", "/v1/messages/{message_id}/feedback")
def rate(api: Api) -> Call:
    person = api.person()
    ids = {"message_id": message_of(api, person, answered(api, person))}
    return call(person, ("feedback.given", "message:{message_id}"), ids=ids, json={"rating": "up"})


@act("DELETE", "/v1/messages/{message_id}/feedback")
def take_back_rating(api: Api) -> Call:
    rated = rate(api)
    path = f"/v1/messages/{rated.ids['message_id']}/feedback"
    api.client(rated.by).put(path, json={"rating": "up"}).raise_for_status()
    return call(rated.by, ("feedback.taken_back", "message:{message_id}"), ids=rated.ids)


# -- logging in and out


@act("POST", "/v1/auth/token")
def log_in(api: Api) -> Call:
    person = api.person()
    form = {"username": person.name, "password": PASSWORD}
    return call(person, ("session.started", "session:{session}"), client=api.client(), data=form)


@act("POST", "/v1/auth/refresh")
def refresh(api: Api) -> Call:
    person, gateway = api.person(), api.gateway
    with gateway.database.write() as connection:
        account, now = accounts.get_account(connection, person.id), gateway.clock.now(connection)
        key = api.settings.secret("token_key")
        pair = sessions.start_token_session(connection, account, key=key, now=now)
    body = {"refresh_token": pair.refresh_token}
    return call(person, ("session.refreshed", "session:{session}"), client=api.client(), json=body)


@act("POST", "/v1/auth/logout")
def log_out(api: Api) -> Call:
    return call(api.person(), ("session.ended", "session:{session}"))


@act("POST", "/login")
def log_in_by_browser(api: Api) -> Call:
    person = api.person()
    form = {"username": person.name, "password": PASSWORD}
    return call(person, ("session.started", "session:{session}"), client=api.client(), data=form)


@act("POST", "/logout")
def log_out_by_browser(api: Api) -> Call:
    person, browser = api.person(), api.client()
    browser.cookies.set("medichat_session", api.browser_token(person))
    return call(person, ("session.ended", "session:{session}"), client=browser)


# -- one's own account


@act("POST", "/v1/me/consent")
def consent(api: Api) -> Call:
    body = {"version": CONSENT_VERSION}
    return call(api.person(consented=False), ("consent.given", "user:{me}"), json=body)


@act("POST", "/v1/me/password")
def change_password(api: Api) -> Call:
    body = {"current": PASSWORD, "new": "a new long password"}
    return call(api.person(), ("user.password_set", "user:{me}"), json=body)


@act("POST", "/v1/me/reauthenticate")
def reauthenticate(api: Api) -> Call:
    event = ("session.reauthenticated", "session:{session}")
    return call(api.person(), event, json={"password": PASSWORD})


@act("GET", "/v1/me/export")
def export_own_data(api: Api) -> Call:
    return call(api.person(), ("data.exported", "user:{me}"))


@act("POST", "/v1/me/erase")
def erase_oneself(api: Api) -> Call:
    person = api.person()
    conversation = answered(api, person).conversation_id
    events = (("user.erased", "user:{me}"), ("conversation.erased", f"conversation:{conversation}"))
    return call(person, *events, json={"name": person.name})


@act("POST", "/v1/api-keys")
def create_key(api: Api) -> Call:
    return call(api.person(), ("api_key.created", "api_key:{id}"), json={"name": "a key", "scopes": ["ask"]})


@act("DELETE", "/v1/api-keys/{key_id}")
def revoke_key(api: Api) -> Call:
    person = api.person()
    made = api.client(person).post("/v1/api-keys", json={"name": "a key", "scopes": ["ask"]}).json()
    return call(person, ("api_key.revoked", "api_key:{key_id}"), ids={"key_id": made["id"]})


# -- other people's accounts


@act("GET", "/v1/users")
def list_users(api: Api) -> Call:
    return call(api.person(Role.ADMIN), ("users.read", None))


@act("GET", "/v1/users/pending")
def list_pending(api: Api) -> Call:
    return call(api.person(Role.AUDITOR), ("users.read", None))


@act("GET", "/v1/users/set-passwords")
def list_set_passwords(api: Api) -> Call:
    return call(api.person(Role.AUDITOR), ("users.read", None))


@act("POST", "/v1/users")
def create_user(api: Api) -> Call:
    body = {"name": "somebody.new", "role": "user", "password": "a new long password"}
    return call(api.person(Role.ADMIN), ("user.created", "user:{id}"), json=body)


def to_a_user(api: Api, action: str, **request: Any) -> Call:
    """What an admin does to somebody's account."""
    ids = {"user_id": api.person().id}
    return call(api.person(Role.ADMIN), (action, "user:{user_id}"), ids=ids, **request)


@act("PATCH", "/v1/users/{user_id}")
def change_user(api: Api) -> Call:
    return to_a_user(api, "user.changed", json={"audience": "clinician"})


@act("POST", "/v1/users/{user_id}/password")
def reset_password(api: Api) -> Call:
    return to_a_user(api, "user.password_set")


@act("POST", "/v1/users/{user_id}/erase")
def erase_user(api: Api) -> Call:
    person = api.person()
    event = ("user.erased", "user:{user_id}")
    return call(api.person(Role.ADMIN), event, ids={"user_id": person.id}, json={"name": person.name})
