"""How auditors, and admins in an emergency, read logged conversations; and what the log says of it."""

import logging
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from shared.auth.roles import Role
from shared.db.tables import audit_events, data_keys, sessions
from shared.db.tables_privacy import access_grants
from tests.integration.test_access import NOBODYS, details_of
from tests.support import PASSWORD, Api, Person, ask_async

QUESTION = "I am Maria Gonzalez, MRN 4456123. What is asthma?"
MASKED = "I am [NAME], MRN [RECORD_NUMBER]. What is asthma?"
REASON = "Maria Gonzalez lies unconscious in the ward."


@pytest.fixture
def dialect() -> str:
    """Its statements mean the same to every database."""
    return "sqlite"


@pytest.fixture
def conversation(api: Api) -> str:
    """The id of somebody's conversation."""
    asked = ask_async(api.log_in(), QUESTION)
    api.answer("Asthma narrows the airways.")
    return str(asked["conversation_id"])


def path_to(conversation: str, tail: str = "") -> str:
    return f"/v1/audit/conversations/{conversation}{tail}"


def first_text(answer: httpx.Response) -> str | None:
    assert answer.status_code == 200, answer.text
    text: str | None = answer.json()["turns"][0]["text"]
    return text


def broken(client: httpx.Client, conversation: str, minutes: int = 30) -> dict[str, Any]:
    """An emergency access of this admin's."""
    body = {"conversation_id": conversation, "reason": REASON, "minutes": minutes}
    answer = client.post("/v1/break-glass", json=body)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


def forget_the_password(api: Api, person: Person) -> None:
    api.set(
        sessions, sessions.c.user_id == person.id, reauthenticated_at=datetime.now(UTC) - timedelta(hours=2)
    )


def acts(api: Api, prefix: str) -> list[str]:
    return [event.action for event in api.audit() if event.action.startswith(prefix)]


# -- auditors


def test_an_auditor_reads_with_identifiers_masked_and_that_is_an_event(api: Api, conversation: str) -> None:
    auditor = api.person(Role.AUDITOR)
    answer = api.client(auditor).get(path_to(conversation))
    assert first_text(answer) == MASKED
    assert answer.json()["turns"][0]["masked"] == {"NAME": 1, "RECORD_NUMBER": 1}
    (event,) = api.audit("conversation.opened")
    assert (event.actor, event.object) == (auditor.id, f"conversation:{conversation}")


def test_without_an_event_nothing_is_shown(api: Api, conversation: str) -> None:
    admin, auditor = api.log_in(Role.ADMIN), api.log_in(Role.AUDITOR)
    grant = broken(admin, conversation)
    auditor.post(path_to(conversation, "/reveal"), json={"reason": REASON}).raise_for_status()
    with api.gateway.database.write() as connection:
        connection.exec_driver_sql(
            "CREATE TRIGGER full BEFORE INSERT ON audit_events BEGIN SELECT RAISE(ABORT, 'full'); END"
        )
    for client, path in (
        (auditor, path_to(conversation)),
        (auditor, path_to(conversation, "?revealed=true")),
        (admin, f"/v1/break-glass/{grant['id']}/conversation"),
        (auditor, "/v1/break-glass"),
    ):
        answer = client.get(path)
        assert answer.status_code == 500, path
        assert "asthma" not in answer.text
        assert "unconscious" not in answer.text


def test_an_unknown_conversation_is_not_found_and_no_read_is_logged(api: Api) -> None:
    auditor = api.log_in(Role.AUDITOR)
    assert auditor.get(path_to(NOBODYS["conversation_id"])).status_code == 404
    assert auditor.post(path_to("nobodys", "/reveal"), json={"reason": "A complaint."}).status_code == 404
    assert not acts(api, "conversation.opened")
    assert not acts(api, "conversation.revealed")


def test_a_reveal_shows_identifiers_for_a_while_to_who_asked_for_it(api: Api, conversation: str) -> None:
    auditor, another = api.log_in(Role.AUDITOR), api.log_in(Role.AUDITOR)
    unmasked = path_to(conversation, "?revealed=true")
    assert auditor.get(unmasked).status_code == 403
    (refused,) = api.audit("access.denied")
    assert (refused.object, refused.outcome) == (f"conversation:{conversation}", "denied")
    revealed = auditor.post(path_to(conversation, "/reveal"), json={"reason": REASON})
    assert first_text(revealed) == QUESTION
    assert first_text(auditor.get(unmasked)) == QUESTION
    assert auditor.get(path_to(conversation)).json()["revealed_until"] == revealed.json()["revealed_until"]
    assert another.get(unmasked).status_code == 403
    assert another.get(path_to(conversation)).json()["revealed_until"] is None
    assert len(acts(api, "conversation.revealed")) == 2
    api.set(access_grants, access_grants.c.kind == "reveal", expires_at=datetime.now(UTC))
    assert auditor.get(unmasked).status_code == 403


def test_an_attempt_to_see_who_it_is_without_a_reveal_is_logged_as_denied(
    api: Api, conversation: str
) -> None:
    auditor = api.log_in(Role.AUDITOR)
    assert auditor.get(path_to(conversation, "?revealed=true")).status_code == 403
    (denied,) = api.audit("access.denied")
    assert (denied.object, denied.outcome) == (f"conversation:{conversation}", "denied")
    assert not acts(api, "conversation.opened")


@pytest.mark.parametrize("role", [Role.AUDITOR, Role.ADMIN])
def test_no_api_key_reads_unmasked_even_while_its_owner_may(api: Api, conversation: str, role: Role) -> None:
    client = api.log_in(role)
    scope = "audit" if role is Role.AUDITOR else "admin"
    made = client.post("/v1/api-keys", json={"name": "a key", "scopes": [scope]}).json()
    if role is Role.AUDITOR:
        client.post(path_to(conversation, "/reveal"), json={"reason": REASON}).raise_for_status()
        unmasked = path_to(conversation, "?revealed=true")
    else:
        unmasked = f"/v1/break-glass/{broken(client, conversation)['id']}/conversation"
    assert first_text(client.get(unmasked)) == QUESTION
    refused = api.client().get(unmasked, headers={"Authorization": f"Bearer {made['key']}"})
    assert (refused.status_code, "not to an API key" in refused.text) == (403, True)
    (denied,) = api.audit("access.denied")
    assert (denied.session_id, denied.outcome) == (f"key:{made['id']}", "denied")


@pytest.mark.parametrize("role", [Role.AUDITOR, Role.ADMIN])
def test_what_ends_every_log_in_ends_what_may_be_read_unmasked(
    api: Api, conversation: str, role: Role
) -> None:
    person = api.person(role)
    client = api.client(person)
    if role is Role.AUDITOR:
        client.post(path_to(conversation, "/reveal"), json={"reason": REASON}).raise_for_status()
        unmasked = path_to(conversation, "?revealed=true")
    else:
        unmasked = f"/v1/break-glass/{broken(client, conversation)['id']}/conversation"
    change = {"current": PASSWORD, "new": "another long enough one"}
    client.post("/v1/me/password", json=change).raise_for_status()
    assert api.client(person).get(unmasked).status_code == 403


@pytest.mark.parametrize("role", [Role.AUDITOR, Role.ADMIN])
def test_to_see_who_it_is_the_password_is_asked_for_again(api: Api, conversation: str, role: Role) -> None:
    person = api.person(role)
    client = api.client(person)
    forget_the_password(api, person)

    def ask() -> httpx.Response:
        if role is Role.AUDITOR:
            return client.post(path_to(conversation, "/reveal"), json={"reason": REASON})
        body = {"conversation_id": conversation, "reason": REASON, "minutes": 5}
        return client.post("/v1/break-glass", json=body)

    refused = ask()
    assert (refused.status_code, refused.json()["type"]) == (403, "urn:medichat:problem:password-required")
    assert api.count(access_grants) == 0
    client.post("/v1/me/reauthenticate", json={"password": PASSWORD}).raise_for_status()
    assert ask().is_success


def test_the_reason_is_in_no_event_no_log_line_and_sealed_in_the_database(
    api: Api, conversation: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        auditor, admin = api.log_in(Role.AUDITOR), api.log_in(Role.ADMIN)
        auditor.post(path_to(conversation, "/reveal"), json={"reason": REASON})
        broken(admin, conversation)
    assert "may read conversation" in caplog.text
    assert "unconscious" not in caplog.text
    with api.gateway.database.read() as connection:
        rows = connection.execute(access_grants.select()).all()
        events = connection.execute(audit_events.select()).all()
    assert len(rows) == 2
    assert b"unconscious" not in b"".join(row.reason_ciphertext for row in rows)
    assert not any(b"unconscious" in event.canonical_bytes for event in events)
    (event,) = api.audit("break_glass.opened")
    assert details_of(event) == {"grant": rows[1].id, "minutes": 30, "reason_given": True}


def test_an_auditor_sees_who_read_it_unmasked_and_why_without_identifiers(
    api: Api, conversation: str
) -> None:
    admin, auditor = api.person(Role.ADMIN), api.log_in(Role.AUDITOR)
    broken(api.client(admin), conversation)
    (access,) = auditor.get(path_to(conversation)).json()["accesses"]
    assert (access["kind"], access["user_name"], access["open"]) == ("break_glass", admin.name, True)
    assert access["reason"] == "[NAME] lies unconscious in the ward."


def test_an_erased_conversation_is_shown_as_erased_and_cannot_be_revealed(
    api: Api, conversation: str
) -> None:
    auditor, admin = api.log_in(Role.AUDITOR), api.log_in(Role.ADMIN)
    grant = broken(admin, conversation)
    api.set(data_keys, data_keys.c.owner_id == conversation, wrapped_key=None)
    seen = auditor.get(path_to(conversation)).json()
    assert (seen["erased"], seen["title"], seen["turns"][0]["text"]) == (True, None, None)
    assert seen["accesses"][0]["reason"] is None
    assert auditor.post(path_to(conversation, "/reveal"), json={"reason": REASON}).status_code == 410
    read = admin.get(f"/v1/break-glass/{grant['id']}/conversation")
    assert read.json()["erased"]


# -- emergency access


def test_without_an_emergency_access_an_admin_gets_no_word_of_it(api: Api, conversation: str) -> None:
    admin, another = api.log_in(Role.ADMIN), api.log_in(Role.ADMIN)
    grant = broken(another, conversation)
    tries = [path_to(conversation), f"/v1/conversations/{conversation}"]
    assert [admin.get(path).status_code for path in tries] == [403, 403]
    assert admin.get(f"/v1/break-glass/{grant['id']}/conversation").status_code == 404
    assert admin.get(f"/v1/break-glass/{NOBODYS['grant_id']}/conversation").status_code == 404
    assert admin.post(f"/v1/break-glass/{grant['id']}/end").status_code == 404
    assert admin.get("/v1/break-glass").json()["items"] == []
    denied = [event.object for event in api.audit("access.denied")]
    assert denied == [None, None, *[f"access_grant:{grant['id']}"] * 2]


def test_with_an_emergency_access_an_admin_reads_and_each_look_is_an_event(
    api: Api, conversation: str
) -> None:
    admin = api.person(Role.ADMIN)
    client = api.client(admin)
    grant = broken(client, conversation)
    for _ in range(2):
        assert first_text(client.get(f"/v1/break-glass/{grant['id']}/conversation")) == QUESTION
    looks = api.audit("break_glass.read")
    assert [(look.actor, look.object) for look in looks] == [(admin.id, f"conversation:{conversation}")] * 2


def test_when_it_is_over_it_is_refused_with_what_to_do_and_that_is_logged(
    api: Api, conversation: str
) -> None:
    admin = api.log_in(Role.ADMIN)
    expired = broken(admin, conversation)
    api.set(access_grants, access_grants.c.id == expired["id"], expires_at=datetime.now(UTC))
    ended = broken(admin, conversation)
    assert admin.post(f"/v1/break-glass/{ended['id']}/end").json()["open"] is False
    for grant in (expired, ended):
        answer = admin.get(f"/v1/break-glass/{grant['id']}/conversation")
        assert answer.status_code == 403
        assert "open another" in answer.json()["detail"]
        assert admin.post(f"/v1/break-glass/{grant['id']}/end").status_code == 409
    assert len(api.audit("access.denied")) == 2
    assert not acts(api, "break_glass.read")


@pytest.mark.parametrize(
    "change", [{"reason": "      too few     "}, {"minutes": 4}, {"minutes": 241}, {"reason": "a" * 501}]
)
def test_it_asks_for_a_reason_and_has_an_end(api: Api, conversation: str, change: dict[str, Any]) -> None:
    body = {"conversation_id": conversation, "reason": REASON, "minutes": 30, **change}
    assert api.log_in(Role.ADMIN).post("/v1/break-glass", json=body).status_code == 422
    assert api.count(access_grants) == 0


def test_an_unknown_conversation_cannot_be_opened_and_one_is_opened_once(api: Api, conversation: str) -> None:
    admin = api.log_in(Role.ADMIN)
    body = {"conversation_id": NOBODYS["conversation_id"], "reason": REASON, "minutes": 30}
    assert admin.post("/v1/break-glass", json=body).status_code == 404
    broken(admin, conversation)
    body["conversation_id"] = conversation
    assert admin.post("/v1/break-glass", json=body).status_code == 409


def test_auditors_are_told_until_one_has_acknowledged_it(api: Api, conversation: str) -> None:
    admin, first, second = api.log_in(Role.ADMIN), api.person(Role.AUDITOR), api.log_in(Role.AUDITOR)
    grant = broken(admin, conversation)
    by_first = api.client(first)
    waiting = [client.get("/v1/me").json()["break_glass_waiting"] for client in (by_first, second, admin)]
    assert waiting == [1, 1, 0]
    (listed,) = by_first.get("/v1/break-glass").json()["items"]
    assert (listed["id"], listed["reason"], listed["acknowledged_at"]) == (
        grant["id"],
        "[NAME] lies unconscious in the ward.",
        None,
    )
    acknowledge = f"/v1/break-glass/{grant['id']}/acknowledge"
    assert by_first.post(acknowledge).json()["acknowledged_by"] == first.id
    assert second.post(acknowledge).status_code == 409
    assert second.get("/v1/me").json()["break_glass_waiting"] == 0
    assert acts(api, "break_glass.") == [f"break_glass.{act}" for act in ("opened", "listed", "acknowledged")]


def test_a_reveal_of_an_auditors_is_no_emergency_access(api: Api, conversation: str) -> None:
    auditor = api.log_in(Role.AUDITOR)
    auditor.post(path_to(conversation, "/reveal"), json={"reason": REASON}).raise_for_status()
    assert auditor.get("/v1/me").json()["break_glass_waiting"] == 0
    assert auditor.get("/v1/break-glass").json()["items"] == []
    with api.gateway.database.read() as connection:
        (grant,) = connection.execute(access_grants.select()).all()
    assert auditor.post(f"/v1/break-glass/{grant.id}/acknowledge").status_code == 404


def test_an_auditor_can_end_anybodys_access_and_an_admin_sees_no_reasons(api: Api, conversation: str) -> None:
    admin, auditor = api.log_in(Role.ADMIN), api.log_in(Role.AUDITOR)
    grant = broken(admin, conversation)
    assert auditor.post(f"/v1/break-glass/{grant['id']}/end").status_code == 200
    (listed,) = admin.get("/v1/break-glass").json()["items"]
    assert (listed["open"], listed["reason"]) == (False, None)


def test_the_list_goes_on_where_a_page_ended(api: Api) -> None:
    admin = api.log_in(Role.ADMIN)
    made = [broken(admin, each)["id"] for each in api.write_history(api.person(), ["One?", "Two?", "Three?"])]
    first = admin.get("/v1/break-glass", params={"limit": 2}).json()
    rest = admin.get("/v1/break-glass", params={"limit": 2, "cursor": first["next_cursor"]}).json()
    assert [item["id"] for item in (*first["items"], *rest["items"])] == made[::-1]
    assert rest["next_cursor"] is None


def test_metrics_count_the_open_and_all(api: Api, conversation: str) -> None:
    def figures() -> dict[str, float]:
        lines = api.client().get("/metrics").text.splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if line.startswith("medichat_break_glass"))
        return {name: float(value) for name, value in pairs if not name.endswith("_created")}

    before = figures()
    admin = api.log_in(Role.ADMIN)
    grant = broken(admin, conversation)
    assert figures() == {
        "medichat_break_glass_open": 1,
        "medichat_break_glass_unacknowledged": 1,
        "medichat_break_glass_total": before["medichat_break_glass_total"] + 1,
    }
    admin.post(f"/v1/break-glass/{grant['id']}/end").raise_for_status()
    after = figures()
    assert (after["medichat_break_glass_open"], after["medichat_break_glass_unacknowledged"]) == (0, 1)
    seen = f"/v1/break-glass/{grant['id']}/acknowledge"
    api.log_in(Role.AUDITOR).post(seen).raise_for_status()
    assert figures()["medichat_break_glass_unacknowledged"] == 0
