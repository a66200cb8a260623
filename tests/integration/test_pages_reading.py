"""The pages on which auditors, and admins in an emergency, read logged conversations."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, tzinfo

import pytest
from streamlit.testing.v1 import AppTest

from services.ui.text import plain_markdown
from services.ui.views import countdown
from shared.auth.roles import Role
from shared.db.tables import data_keys, sessions
from shared.db.tables_privacy import access_grants
from shared.guard.verdict import Action, Category, Severity, Side, Verdict
from shared.jobs.lifecycle import EventKind
from shared.training.states import BASE
from tests.pages import button, open_with, served_by, texts, tick
from tests.support import PASSWORD, Api, Person, ask_async

Open = Callable[..., AppTest]
QUESTION = "I am Maria Gonzalez. How much may I take?"
REASON = "Maria Gonzalez lies unconscious in the ward."
DANGER = Verdict(
    side=Side.ANSWER,
    action=Action.REPLACE,
    category=Category.DOSING,
    severity=Severity.HIGH,
    layer="rules",
    source="dosing.as_much",
    score=0.9,
)


@pytest.fixture
def dialect() -> str:
    """The pages know no database."""
    return "sqlite"


@pytest.fixture
def open_app(api: Api, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """Opens the dashboard as this person, at a page and with what its address says."""

    def open_(person: Person, page: str, **query: str) -> AppTest:
        return open_with(monkeypatch, api.browser_token(person), page=page, **query)

    with served_by(api, monkeypatch):
        yield open_


@pytest.fixture
def conversation(api: Api) -> str:
    """The id of a conversation whose answer had a sentence replaced."""
    asked = ask_async(api.log_in(), QUESTION)
    job = api.claim()
    api.release(job, "Pain can be treated. ", 1)
    api.release(job, "Ask a pharmacist. ", 2, verdict=DANGER, suppressed="Take **all** of it. ")
    api.finish(job, model_id="demo", adapter_sha256=BASE, prompt_version="p7")
    return str(asked["conversation_id"])


def test_an_auditor_sees_verdicts_in_place_what_was_replaced_and_what_wrote_it(
    open_app: Open, api: Api, conversation: str
) -> None:
    app = open_app(api.person(Role.AUDITOR), "conversation", conversation=conversation)
    shown = texts(app)
    assert "Pain can be treated." in shown
    assert ":orange-badge[:material/shield: replaced] **dosing**" in shown
    assert "The guard replaced:" in shown
    assert r"~~Take \*\*all\*\* of it.~~" in shown
    assert {"model: demo", "adapter: none: the base model alone", "prompt version: p7"} <= {
        each.value for each in app.get("text")
    }


def test_the_guards_own_answer_names_no_model_and_no_adapter(open_app: Open, api: Api) -> None:
    answer = api.log_in().post("/predict", json={"query": "I want to kill myself."}).json()
    app = open_app(api.person(Role.AUDITOR), "conversation", conversation=answer["conversation_id"])
    assert {"model: none: the guard's own answer", "adapter: none"} <= {
        each.value for each in app.get("text")
    }


def test_identifiers_are_masked_and_counted(open_app: Open, api: Api, conversation: str) -> None:
    shown = texts(open_app(api.person(Role.AUDITOR), "conversation", conversation=conversation))
    assert r"I am \[NAME\]. How much may I take?" in shown
    assert "Masked here: 1 × name" in shown
    assert "Maria" not in shown


def test_an_answer_is_put_into_the_queue_of_the_review_with_a_click(
    open_app: Open, api: Api, conversation: str
) -> None:
    auditor = api.person(Role.AUDITOR)
    app = open_app(auditor, "conversation", conversation=conversation)
    button(app, "Ask for a review").click().run()
    assert app.toast[0].value == "It waits to be reviewed."
    assert len([each for each in app.button if each.label == "Ask for a review"]) == 1, "none at the question"
    item = api.client(auditor).post("/v1/reviews/next").json()["item"]
    assert (item["conversation_id"], item["reason"]) == (conversation, "asked")


def test_without_an_id_in_the_address_one_is_asked_for(open_app: Open, api: Api, conversation: str) -> None:
    app = open_app(api.person(Role.AUDITOR), "conversation")
    app.text_input[0].set_value(f"conversation:{conversation}")
    button(app, "Open").click().run()
    assert app.query_params["conversation"] == conversation
    assert "Pain can be treated." in texts(app)
    button(app, "Another conversation").click().run()
    assert "Pain can be treated." not in texts(app)


def test_a_wrong_id_says_so_and_leads_nowhere_else(open_app: Open, api: Api) -> None:
    app = open_app(api.person(Role.AUDITOR), "conversation", conversation="../events")
    assert "nothing at this address" in app.error[0].value
    assert not api.audit("audit.read")[1:], "but the home page's own look at the log"


def test_a_reveal_asks_for_the_password_and_the_reason_survives_it(
    open_app: Open, api: Api, conversation: str
) -> None:
    auditor = api.person(Role.AUDITOR)
    app = open_app(auditor, "conversation", conversation=conversation)
    ages_ago = datetime.now(UTC) - timedelta(hours=2)
    api.set(sessions, sessions.c.user_id == auditor.id, reauthenticated_at=ages_ago)
    app.text_area[0].set_value(REASON).run()
    button(app, "Yes: reveal identifiers").click().run()
    assert "Maria" not in texts(app)
    app.text_input[0].set_value(PASSWORD)
    button(app, "Go on").click().run()
    assert app.text_area[0].value == REASON
    button(app, "Yes: reveal identifiers").click().run()
    assert "I am Maria Gonzalez." in texts(app)
    button(app, "Mask them again").click().run()
    assert "Maria" not in texts(app)


def test_a_reload_shows_what_was_revealed_until_that_is_over(
    open_app: Open, api: Api, conversation: str
) -> None:
    auditor = api.person(Role.AUDITOR)
    path = f"/v1/audit/conversations/{conversation}/reveal"
    api.client(auditor).post(path, json={"reason": REASON}).raise_for_status()
    app = open_app(auditor, "conversation", conversation=conversation, revealed="1")
    assert "I am Maria Gonzalez." in texts(app)
    api.set(access_grants, access_grants.c.kind == "reveal", expires_at=datetime.now(UTC))
    app.run()
    assert "The reveal is over" in texts(app)
    assert "Maria" not in texts(app)


def test_a_reveal_that_runs_out_while_the_page_is_open_is_no_denial_and_no_use_of_the_log_in(
    open_app: Open, api: Api, conversation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    auditor = api.person(Role.AUDITOR)
    path = f"/v1/audit/conversations/{conversation}/reveal"
    api.client(auditor).post(path, json={"reason": REASON}).raise_for_status()
    app = open_app(auditor, "conversation", conversation=conversation, revealed="1")
    assert "I am Maria Gonzalez." in texts(app)
    before = unused_for_long(api, auditor)
    run_out(api, monkeypatch)
    tick(app)
    assert "The reveal is over" in texts(app)
    assert "Maria" not in texts(app)
    assert "revealed" not in app.query_params
    assert not api.audit("access.denied")
    assert api.count(sessions, sessions.c.user_id == auditor.id, sessions.c.last_seen_at != before) == 0


class InAnHour(datetime):
    """The time as it will be then."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
        return datetime.now(tz) + timedelta(hours=1)


def run_out(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """What may be read unmasked is over, for the gateway and for the page."""
    api.set(access_grants, access_grants.c.ended_at.is_(None), expires_at=datetime.now(UTC))
    monkeypatch.setattr(countdown, "datetime", InAnHour)


def unused_for_long(api: Api, person: Person) -> datetime:
    """Since when nobody has used this person's log-ins, from now on."""
    since = datetime.now(UTC) - timedelta(minutes=10)
    api.set(sessions, sessions.c.user_id == person.id, last_seen_at=since)
    return since


def test_an_erased_conversation_says_so_plainly(open_app: Open, api: Api, conversation: str) -> None:
    api.set(data_keys, data_keys.c.owner_id == conversation, wrapped_key=None)
    app = open_app(api.person(Role.AUDITOR), "conversation", conversation=conversation)
    assert "were erased" in app.info[0].value
    assert ":orange-badge[:material/shield: replaced]" in texts(app)
    assert not any(each.label.startswith("Yes: reveal") for each in app.button)


def test_a_former_answer_and_a_failed_one_are_told_apart(open_app: Open, api: Api) -> None:
    client = api.log_in()
    asked = ask_async(client)
    again = f"/v1/conversations/{asked['conversation_id']}/regenerate"
    api.answer("An answer.")
    client.post(again).raise_for_status()
    api.answer("Another answer.")
    client.post(again).raise_for_status()
    api.finish(api.claim(), EventKind.FAILED, error="bug")
    shown = texts(open_app(api.person(Role.AUDITOR), "conversation", conversation=asked["conversation_id"]))
    assert shown.count("replaced by a later answer") == 1
    assert "**This answer failed** (bug)" in shown


def test_an_admin_breaks_the_glass_reads_and_ends_it(open_app: Open, api: Api, conversation: str) -> None:
    admin = api.person(Role.ADMIN)
    app = open_app(admin, "emergency")
    assert "No conversation was opened" in texts(app)
    app.text_input(key="glass-id").set_value(conversation)
    app.text_area(key="glass-reason").set_value(REASON)
    app.slider(key="glass-minutes").set_value(30)
    button(app, "Open the conversation").click().run()
    assert "I am Maria Gonzalez." in texts(app)
    assert "open for 29:5" in texts(app) or "open for 30:00" in texts(app)
    again = open_app(admin, "emergency", grant=str(app.query_params["grant"]))
    assert "I am Maria Gonzalez." in texts(again)
    button(again, "End").click().run()
    assert "Maria" not in texts(again)
    assert "is over" in again.error[0].value


def test_an_emergency_access_that_runs_out_while_the_page_is_open_is_no_denial_and_no_use_of_the_log_in(
    open_app: Open, api: Api, conversation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    admin = api.person(Role.ADMIN)
    body = {"conversation_id": conversation, "reason": REASON, "minutes": 5}
    grant = api.client(admin).post("/v1/break-glass", json=body).json()["id"]
    app = open_app(admin, "emergency", grant=grant)
    assert "I am Maria Gonzalez." in texts(app)
    before = unused_for_long(api, admin)
    run_out(api, monkeypatch)
    tick(app)
    assert "The emergency access is over." in texts(app)
    assert "Maria" not in texts(app)
    assert not api.audit("access.denied")
    assert api.count(sessions, sessions.c.user_id == admin.id, sessions.c.last_seen_at != before) == 0


def test_what_the_gateway_refuses_stays_written(open_app: Open, api: Api, conversation: str) -> None:
    app = open_app(api.person(Role.ADMIN), "emergency")
    app.text_input(key="glass-id").set_value(conversation)
    app.text_area(key="glass-reason").set_value("Too few")
    button(app, "Open the conversation").click().run()
    assert "fewer than 10 characters" in app.error[0].value
    assert app.text_area(key="glass-reason").value == "Too few"


def test_every_page_of_an_auditors_tells_of_it_until_one_acknowledges(
    open_app: Open, api: Api, conversation: str
) -> None:
    body = {"conversation_id": conversation, "reason": REASON, "minutes": 30}
    admin, auditor = api.person(Role.ADMIN), api.person(Role.AUDITOR)
    api.client(admin).post("/v1/break-glass", json=body).raise_for_status()
    for page in ("log", "conversation", "guard", "account"):
        assert "1 conversation was opened by an admin" in open_app(auditor, page).error[0].value, page
    assert not open_app(admin, "system").get("page_link")
    app = open_app(auditor, "emergency")
    assert "[NAME] lies unconscious in the ward." in {each.value for each in app.get("text")}
    assert plain_markdown(admin.name) in texts(app)
    button(app, "Acknowledge").click().run()
    assert "was opened by an admin" not in texts(app)
    assert "acknowledged by an auditor" in texts(app)


def test_what_a_program_sent_along_is_marked_as_not_written_here(open_app: Open, api: Api) -> None:
    said = [
        ("system", "Be brief."),
        ("user", "Hello"),
        ("assistant", "Hi."),
        ("user", "I want to kill myself."),
    ]
    body = {"model": "demo", "messages": [{"role": role, "content": text} for role, text in said]}
    told = api.log_in().post("/v1/chat/completions", json=body).json()["medichat"]
    app = open_app(api.person(Role.AUDITOR), "conversation", conversation=told["conversation_id"])
    shown = texts(app)
    assert "instructions of the program that asked" in shown
    assert shown.count("sent along by the program that asked") == 2
    assert shown.count("whether MediChat wrote it is not known") == 1
