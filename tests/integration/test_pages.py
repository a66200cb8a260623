"""The dashboard's pages, run by Streamlit's own test runner against a real gateway."""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from select import select
from threading import Thread
from urllib.parse import urlsplit

import httpx
import pytest
from streamlit.testing.v1 import AppTest

from services.api.routers import me
from services.api.routers.conversations import SEARCHED, UNREADABLE
from services.ui import client, session
from services.ui.text import plain_markdown
from shared.auth.roles import AccountStatus, Role
from shared.db.tables import data_keys, jobs
from shared.guard.gate import REFERRAL_ADDED
from shared.guard.verdict import Action, Category, Severity, Side, Verdict
from shared.jobs.lifecycle import EventKind, Kind
from shared.registration import Registration
from tests.conftest import MakeApi
from tests.pages import button, charts, open_with, served_by, texts, tick, to_page
from tests.support import PASSWORD, Api, Person, ask_async, closed_after

Open = Callable[..., AppTest]


@pytest.fixture
def dialect() -> str:
    """The pages know no database."""
    return "sqlite"


@pytest.fixture
def open_app(api: Api, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """Opens the dashboard as this person, or with no log-in, at a page and a conversation."""

    def open_(
        person: Person | None = None, *, conversation: str | None = None, token: str = "", page: str = ""
    ) -> AppTest:
        cookie = token or (api.browser_token(person) if person else None)
        return open_with(
            monkeypatch, cookie, page=page, **({} if conversation is None else {"c": conversation})
        )

    with served_by(api, monkeypatch):
        yield open_


def test_without_a_log_in_there_is_only_the_way_to_it(open_app: Open) -> None:
    app = open_app()
    assert "Log in to ask" in texts(app)
    assert not app.button
    assert not app.chat_input


def test_an_ended_log_in_leads_to_a_new_one(open_app: Open) -> None:
    app = open_app(token="mcs_nonsense")
    assert "log in again" in texts(app).lower()


def end_log_in(api: Api, token: str) -> None:
    """As a click on the way out does it, in another tab."""
    headers = {"Authorization": f"Bearer {token}"}
    api.client().post("/v1/auth/logout", headers=headers).raise_for_status()


def test_a_page_that_looks_at_nothing_is_hidden_too_once_the_log_in_was_ended_elsewhere(
    open_app: Open, api: Api
) -> None:
    person = api.person()
    api.write_history(person, ["What is gout?"])
    token = api.browser_token(person)
    app = open_app(token=token)
    assert opened(app) == ["What is gout?"]
    end_log_in(api, token)
    tick(app)
    assert "log in again" in texts(app)
    assert not app.button


def test_a_question_not_sent_is_not_shown_without_a_log_in_and_offered_to_its_writer_again(
    open_app: Open, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    person = api.person()
    token = api.browser_token(person)
    app = open_app(token=token)
    end_log_in(api, token)
    app.chat_input[0].set_value("A private question").run()
    assert "**What you asked last was not sent.**" in texts(app)
    assert "A private question" not in texts(app)
    again = api.browser_token(person)
    monkeypatch.setattr(session, "token", lambda: again)
    app.run()
    button(app, "Send again").click().run()
    assert api.count(jobs) == 1


def test_what_a_page_keeps_is_forgotten_when_another_person_logs_in(
    open_app: Open, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.log_in(Role.ADMIN).post("/v1/guard/stop", json={"reason": "Wrong doses."}).raise_for_status()
    app = open_app(api.person())
    app.chat_input[0].set_value("A private question").run()
    assert "A private question" in texts(app)
    another = api.browser_token(api.person())
    monkeypatch.setattr(session, "token", lambda: another)
    app.run()
    assert app.chat_input
    assert "A private question" not in texts(app)


def test_what_a_page_asks_goes_past_a_proxy_that_the_machine_names(
    open_app: Open, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.getsockname()[1]}")
        assert open_app(api.person()).chat_input
        asked, _, _ = select([proxy], [], [], 0)
    assert not asked


def test_the_consent_stands_before_the_first_question_and_is_asked_once(open_app: Open, api: Api) -> None:
    person = api.person(consented=False)
    app = open_app(person)
    assert "not a doctor" in texts(app)
    assert button(app, "Continue").disabled
    app.checkbox[0].check().run()
    button(app, "Continue").click().run()
    assert app.chat_input
    assert not open_app(person).checkbox


def test_a_yes_to_a_text_of_before_is_none_to_the_one_that_took_its_place(
    open_app: Open, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = open_app(api.person(consented=False))
    app.checkbox[0].check().run()
    monkeypatch.setattr(me, "CONSENT_VERSION", "another")
    button(app, "Continue").click().run()
    assert "The text has changed" in texts(app)
    assert not app.checkbox[0].value
    assert button(app, "Continue").disabled
    assert not app.chat_input


def test_a_text_that_changes_while_it_is_accepted_is_shown_anew_in_words_for_a_person(
    open_app: Open, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = open_app(api.person(consented=False))
    app.checkbox[0].check().run()

    def change(request: httpx.Request) -> None:
        if request.method == "POST":
            monkeypatch.setattr(me, "CONSENT_VERSION", "another")

    client._connections().event_hooks["request"].append(change)
    button(app, "Continue").click().run()
    assert "The text has changed" in texts(app)
    assert not app.error
    app.checkbox[0].check().run()
    button(app, "Continue").click().run()
    assert app.chat_input


def test_a_new_conversation_has_a_disclaimer_and_something_to_start_with(open_app: Open, api: Api) -> None:
    app = open_app(api.person())
    assert "not a doctor" in app.info[0].value
    assert any("asthma" in each.label for each in app.button)
    assert "No conversations yet." in texts(app)


def test_a_question_becomes_a_job_and_its_answer_appears(open_app: Open, api: Api) -> None:
    app = open_app(api.person())
    app.chat_input[0].set_value("What is asthma?").run()
    assert "Waiting for a free worker" in texts(app)
    api.answer("Asthma narrows the airways.")
    app.run()
    assert "Asthma narrows the airways." in texts(app)
    assert "Waiting" not in texts(app)


def test_a_question_may_be_as_long_as_the_gateway_takes_it(
    make_api: MakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = make_api(max_query_chars=30_000)
    with served_by(api, monkeypatch):
        app = open_with(monkeypatch, api.browser_token(api.person()))
    assert app.chat_input[0].proto.max_chars == 30_000


def test_an_example_is_asked_by_a_click(open_app: Open, api: Api) -> None:
    app = open_app(api.person())
    app.button(key="example-0").click().run()
    assert "What are the symptoms of asthma?" in texts(app)


def test_a_running_answer_shows_what_is_released_and_can_be_stopped(open_app: Open, api: Api) -> None:
    person = api.person()
    asked = ask_async(api.client(person))
    api.release(api.claim(), "First sentence.")
    app = open_app(person, conversation=asked["conversation_id"])
    assert "First sentence." in texts(app)
    app.button(key="stop").click().run()
    assert "Stopping" in texts(app)


def test_a_stopped_answer_keeps_what_was_released(open_app: Open, api: Api) -> None:
    person = api.person()
    asked = ask_async(api.client(person))
    job = api.claim()
    api.release(job, "First sentence.")
    api.finish(job, EventKind.CANCELLED)
    app = open_app(person, conversation=asked["conversation_id"])
    assert "First sentence." in texts(app)
    assert "You stopped this answer." in texts(app)


def test_a_failed_answer_says_why_and_can_be_tried_again(open_app: Open, api: Api) -> None:
    person = api.person()
    asked = ask_async(api.client(person))
    api.finish(api.claim(), EventKind.FAILED, error="internal", error_detail="Tell your admin.")
    app = open_app(person, conversation=asked["conversation_id"])
    assert "Tell your admin." in texts(app)
    button(app, "Try again").click().run()
    api.answer("Now it works.")
    app.run()
    assert "Now it works." in texts(app)


def test_an_answer_can_be_regenerated_and_rated(open_app: Open, api: Api) -> None:
    person = api.person()
    asked = ask_async(api.client(person))
    api.answer("Once.")
    app = open_app(person, conversation=asked["conversation_id"])
    app.feedback[0].set_value(1).run()
    conversation = api.client(person).get(f"/v1/conversations/{asked['conversation_id']}").json()
    assert conversation["messages"][-1]["feedback"] == "up"
    button(app, "Regenerate").click().run()
    api.answer("Twice.")
    app.run()
    assert "Twice." in texts(app)
    assert "Once." not in texts(app)


def test_a_thumb_shows_what_was_rated_in_another_tab_and_not_what_was_refused(
    open_app: Open, api: Api
) -> None:
    person = api.person()
    asked = ask_async(api.client(person))
    api.answer("Once.")
    app = open_app(person, conversation=asked["conversation_id"])
    conversation = api.client(person).get(f"/v1/conversations/{asked['conversation_id']}").json()
    path = f"/v1/messages/{conversation['messages'][-1]['id']}/feedback"
    api.client(person).put(path, json={"rating": "down"}).raise_for_status()
    tick(app)
    assert app.feedback[0].value == 0

    hold = {"subject": f"conversation:{asked['conversation_id']}", "reference": "2026-C-0417"}
    api.log_in(Role.AUDITOR).post("/v1/holds", json=hold).raise_for_status()
    app.feedback[0].set_value(1).run()
    assert "cannot be changed" in app.toast[0].value
    assert app.feedback[0].value == 0


def test_to_regenerate_what_runs_already_is_refused_in_words_and_the_page_catches_up(
    open_app: Open, api: Api
) -> None:
    person = api.person()
    path = f"/v1/conversations/{ask_async(api.client(person))['conversation_id']}"
    api.answer("Once.")
    app = open_app(person, conversation=path.rpartition("/")[2])
    api.client(person).post(f"{path}/regenerate").raise_for_status()  # in another tab
    button(app, "Regenerate").click().run()
    assert "An answer is still being written" in app.toast[0].value
    assert "Waiting for a free worker" in texts(app)
    assert app.chat_input


def test_the_guards_answer_in_a_crisis_is_marked(open_app: Open, api: Api) -> None:
    app = open_app(api.person())
    app.chat_input[0].set_value("I want to kill myself").run()
    assert any("The guard answered at once" in each.value for each in app.error)
    assert "local emergency number" in texts(app)


REPLACED = Verdict(
    side=Side.ANSWER, action=Action.REPLACE, category=Category.DOSING, severity=Severity.HIGH, source="a.rule"
)


@pytest.mark.parametrize(
    ("verdict", "told"),
    [
        (REPLACED, "**The guard stepped in** (dosing)"),
        (REFERRAL_ADDED, "**The guard added the last sentence**"),
    ],
)
def test_what_the_guard_did_is_marked_while_the_answer_is_written_and_afterwards(
    open_app: Open, api: Api, verdict: Verdict, told: str
) -> None:
    person = api.person()
    asked = ask_async(api.client(person))
    job = api.claim()
    api.release(job, "Paracetamol helps.")
    app = open_app(person, conversation=asked["conversation_id"])
    assert told not in texts(app)
    api.release(job, " See a doctor.", 2, verdict=verdict, suppressed="Take fifty.")
    app.run()
    assert app.button(key="stop")
    assert told in texts(app)
    api.finish(job)
    app.run()
    assert button(app, "Regenerate")
    assert told in texts(app)
    assert "fifty" not in texts(app)


def test_what_people_type_is_shown_as_typed(open_app: Open, api: Api) -> None:
    app = open_app(api.person())
    app.chat_input[0].set_value("**bold** <b>html</b> ![x](http://example.org/x.png) $x$").run()
    shown = next(each.value for each in app.markdown if "bold" in each.value and "x.png" in each.value)
    assert "\\*\\*bold" in shown
    assert "\\<b>" in shown.replace("\\>", ">")
    assert "!\\[" in shown or "\\!\\[" in shown


def test_an_answer_cannot_make_the_browser_fetch_anything(open_app: Open, api: Api) -> None:
    person = api.person()
    asked = ask_async(api.client(person))
    api.answer("See ![x](http://example.org/leak.png) <img src=x> and **this**.")
    app = open_app(person, conversation=asked["conversation_id"])
    shown = next(each.value for each in app.markdown if "leak.png" in each.value)
    assert "!\\[x\\]" in shown
    assert "\\<img" in shown
    assert "**this**" in shown


def test_a_question_that_was_not_sent_is_kept_for_another_try(open_app: Open, api: Api) -> None:
    person = api.person()
    asked = ask_async(api.client(person))
    api.answer("Done.")
    app = open_app(person, conversation=asked["conversation_id"])
    busy = api.client(person)
    path = f"/v1/conversations/{asked['conversation_id']}/messages"
    busy.post(path, json={"query": "From another tab"})
    app.chat_input[0].set_value("From this tab").run()
    assert "was not sent" in texts(app)
    assert "From this tab" in texts(app)
    api.answer("For the other tab.")
    button(app, "Send again").click().run()
    api.answer("For this tab.")
    app.run()
    assert "For this tab." in texts(app)
    assert "was not sent" not in texts(app)


def test_a_question_to_a_conversation_that_is_gone_can_begin_a_new_one(open_app: Open, api: Api) -> None:
    person = api.person()
    gone = ask_async(api.client(person))["conversation_id"]
    api.answer("Done.")
    app = open_app(person, conversation=gone)
    api.client(person).delete(f"/v1/conversations/{gone}").raise_for_status()
    app.chat_input[0].set_value("And at night?").run()
    assert "was not sent" in texts(app)
    assert not app.chat_input
    button(app, "Send again").click().run()
    api.answer("At night too.")
    app.run()
    assert app.query_params["c"] != [gone]
    assert "At night too." in texts(app)
    assert "was not sent" not in texts(app)


def test_a_conversation_that_can_no_longer_be_read_is_said_and_can_be_removed(
    open_app: Open, api: Api
) -> None:
    person = api.person()
    lost = ask_async(api.client(person))["conversation_id"]
    api.answer("Done.")
    api.set(data_keys, data_keys.c.owner_id == lost, wrapped_key=None)
    app = open_app(person, conversation=lost)
    assert "can no longer be read" in texts(app)
    assert not app.chat_input
    assert button(app, UNREADABLE)
    button(app, "Remove from my history").click().run()
    assert app.chat_input
    assert api.client(person).get("/v1/conversations").json()["items"] == []


def test_history_finds_opens_renames_and_removes(open_app: Open, api: Api) -> None:
    person = api.person()
    for query in ("What is asthma?", "What is gout?"):
        ask_async(api.client(person), query)
        api.answer("An answer.")
    app = open_app(person)
    app.text_input(key="search").set_value("gout").run()
    (found,) = [each for each in app.button if each.key and each.key.startswith("open-")]
    found.click().run()
    assert "What is gout?" in texts(app)
    title = next(each for each in app.text_input if each.label == "Title")
    title.set_value("Sore toe")
    app.button(key="rename").click().run()
    assert any("Sore toe" in each.value for each in app.subheader)
    app.button(key="hide").click().run()
    assert len(api.client(person).get("/v1/conversations").json()["items"]) == 1


def test_the_way_out_stands_above_the_history_however_long_it_is(open_app: Open, api: Api) -> None:
    person = api.person()
    api.write_history(person, ["What is gout?"])
    beside = list(open_app(person).sidebar)
    way_out = next(place for place, each in enumerate(beside) if "Log out" in str(each.proto))
    history = next(place for place, each in enumerate(beside) if "What is gout?" in str(each.proto))
    assert way_out < history


def test_the_whole_history_can_be_reached(open_app: Open, api: Api) -> None:
    person = api.person()
    api.write_history(person, [f"Question number {number}?" for number in range(132)])
    app = open_app(person)
    for shown in (30, 130):
        assert len(opened(app)) == shown
        button(app, "Show older").click().run()
    assert opened(app) == [f"Question number {number}?" for number in range(131, -1, -1)]
    assert not [each for each in app.button if each.label == "Show older"]


def test_a_search_says_where_it_ended_and_goes_further(open_app: Open, api: Api) -> None:
    person = api.person()
    api.write_history(person, ["What is gout?", *["What is asthma?"] * SEARCHED])
    app = open_app(person)
    app.text_input(key="search").set_value("gout").run()
    assert "Nothing found among the newest." in texts(app)
    button(app, "Search further").click().run()
    assert opened(app) == ["What is gout?"]
    assert not [each for each in app.button if each.label == "Search further"]
    app.text_input(key="search").set_value("a word that nobody wrote").run()
    button(app, "Search further").click().run()
    assert "Nothing found." in texts(app)


def opened(app: AppTest) -> list[str]:
    """The titles of the conversations that the sidebar offers, from the top."""
    return [each.label for each in app.button if each.key and each.key.startswith("open-")]


def test_somebody_elses_conversation_is_not_shown(open_app: Open, api: Api) -> None:
    asked = ask_async(api.log_in(), "A secret question?")
    app = open_app(api.person(), conversation=asked["conversation_id"])
    assert "no conversation of yours" in texts(app)
    assert "secret" not in texts(app)


@pytest.mark.parametrize("id", ["\x01", "x/regenerate", ""])
def test_an_address_that_names_no_conversation_says_so(open_app: Open, api: Api, id: str) -> None:
    app = open_app(api.person(), conversation=id)
    assert "no conversation of yours" in texts(app)
    assert not app.exception
    assert button(app, "New conversation")


def test_a_gateway_that_is_away_is_said_and_what_it_keeps(open_app: Open, api: Api) -> None:
    app = open_app(api.person())
    api.close()
    app.run()
    assert "cannot be reached" in texts(app)
    assert "what was asked and answered before is kept by the gateway" in texts(app)
    assert "Not sent yet" not in texts(app)
    assert button(app, "Try again")


def test_a_question_typed_while_the_gateway_is_away_is_kept_and_offered_once_it_is_back(
    open_app: Open, api: Api
) -> None:
    person = api.person()
    asked = ask_async(api.client(person))
    api.answer("Done.")
    app = open_app(person, conversation=asked["conversation_id"])
    api.close()
    app.chat_input[0].set_value("What about *children*?").run()
    assert "**Not sent yet.**" in texts(app)
    assert "What about \\*children\\*?" in texts(app)
    app.run()
    assert "What about" in texts(app)
    with closed_after(Api(api.settings)) as back:
        app.run()
        assert "was not sent" in texts(app)
        button(app, "Send again").click().run()
        assert "was not sent" not in texts(app)
        said = back.client(person).get(f"/v1/conversations/{asked['conversation_id']}").json()["messages"]
    assert [each["text"] for each in said if each["role"] == "user"][1:] == ["What about *children*?"]


@contextmanager
def hanging_up(api: Api) -> Iterator[int]:
    """The port of a gateway that is gone before it answers what is sent to it; reading it still answers."""

    def pass_on(page: socket.socket) -> None:
        sent = False
        with page, socket.create_connection(("127.0.0.1", urlsplit(api.url).port)) as gateway:
            while True:
                for ready in select([page, gateway], [], [])[0]:
                    data = ready.recv(65536)
                    sent = sent or data.startswith(b"POST ")
                    if not data or (sent and ready is gateway):
                        return
                    (gateway if ready is page else page).sendall(data)

    def take_all() -> None:
        with suppress(OSError):
            while True:
                Thread(target=pass_on, args=(server.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        Thread(target=take_all, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


def ask_in_vain(app: AppTest, api: Api, question: str) -> None:
    """Have a question arrive, whose page is not told of it."""
    straight = client._connections().base_url
    with hanging_up(api) as port:
        client._connections().base_url = f"http://127.0.0.1:{port}"
        app.chat_input[0].set_value(question).run()
        client._connections().base_url = straight


def test_a_question_whose_fate_is_not_known_is_not_said_to_be_unsent(open_app: Open, api: Api) -> None:
    person = api.person()
    app = open_app(person)
    ask_in_vain(app, api, "What is gout?")
    assert "It is not known whether your question arrived" in texts(app)
    assert "was not sent" not in texts(app)
    button(app, "Send again").click().run()
    assert api.count(jobs) == 1, "it was there already"
    assert "It is not known" not in texts(app)


def test_a_question_sent_again_shows_how_it_ended_meanwhile(open_app: Open, api: Api) -> None:
    person = api.person()
    app = open_app(person)
    ask_in_vain(app, api, "What is gout?")
    asker = api.client(person)
    asker.post(f"/v1/jobs/{asker.get('/v1/jobs').json()['items'][0]['id']}/cancel").raise_for_status()
    button(app, "Send again").click().run()
    assert "You stopped this answer." in texts(app)
    assert "not sent" not in texts(app)
    assert api.count(jobs) == 1


def test_a_question_of_a_conversation_that_is_gone_is_asked_anew_as_another(open_app: Open, api: Api) -> None:
    person, admin = api.person(), api.log_in(Role.ADMIN)
    path = f"/v1/conversations/{ask_async(api.client(person))['conversation_id']}"
    api.answer("Done.")
    app = open_app(person, conversation=path.rpartition("/")[2])
    ask_in_vain(app, api, "What is gout?")
    api.client(person).delete(path).raise_for_status()
    admin.post("/v1/guard/stop", json={"reason": "Wrong doses."}).raise_for_status()
    button(app, "Send again").click().run()
    assert "There is no conversation of yours" in texts(app)
    button(app, "Send again").click().run()
    assert "Your question was not sent" in texts(app)
    assert "There is no conversation of yours" not in texts(app), "it is where it can be answered"
    admin.post("/v1/guard/start").raise_for_status()
    button(app, "Send again").click().run()
    assert "What is gout?" in texts(app)
    assert "not sent" not in texts(app)
    assert api.count(jobs) == 3


def test_each_question_that_was_not_sent_is_kept_in_its_own_conversation(open_app: Open, api: Api) -> None:
    app = open_app(api.person())
    api.close()
    app.chat_input[0].set_value("What is gout?").run()
    with closed_after(Api(api.settings)) as back:
        app.run()
        back.close()
        app.chat_input[0].set_value("What is asthma?").run()
    assert "What is gout?" in texts(app)
    assert "What is asthma?" in texts(app)
    with closed_after(Api(api.settings)):
        button(app, "Try again").click().run()
        assert [each.label for each in app.button].count("Send again") == 2
        app.button(key="discard-0").click().run()
        button(app, "Send again").click().run()
        assert "What is asthma?" in texts(app)
        assert "What is gout?" not in texts(app)


@pytest.mark.parametrize(
    ("role", "title"), [(Role.USER, "Jobs"), (Role.ADMIN, "System"), (Role.AUDITOR, "Log")]
)
def test_each_role_has_its_own_pages(open_app: Open, api: Api, role: Role, title: str) -> None:
    app = open_app(api.person(role))
    if role is Role.USER:
        assert app.chat_input
    else:
        assert app.title[0].value == title
        assert not app.chat_input


def test_the_job_list_shows_live_states_and_cancels(open_app: Open, api: Api) -> None:
    person = api.person()
    ask_async(api.client(person))
    app = open_app(person, page="jobs")
    assert "queued, asked" in texts(app)
    button(app, "Cancel").click().run()
    assert "cancelled, asked" in texts(app)


def test_the_job_list_says_which_question_and_goes_on_when_asked(open_app: Open, api: Api) -> None:
    person = api.person()
    for number in range(21):
        ask_async(api.client(person), f"Question number {number}?")
        api.answer("An answer.")
    app = open_app(person, page="jobs")
    headings = [each.value for each in app.markdown if each.value.startswith("**")]
    assert headings == [f"**Question number {number}?**" for number in range(20, 0, -1)]
    button(app, "Show more").click().run()
    assert "**Question number 0?**" in texts(app)
    assert not [each for each in app.button if each.label == "Show more"]


def test_the_job_list_tells_the_questions_of_one_conversation_apart(open_app: Open, api: Api) -> None:
    person = api.person()
    client = api.client(person)
    path = f"/v1/conversations/{ask_async(client, 'What is asthma?')['conversation_id']}"
    api.answer("An answer.")
    long = "And what about children " + "who cough at night " * 10
    client.post(f"{path}/messages", json={"query": long})
    api.answer("Another answer.")
    app = open_app(person, page="jobs")
    newer, older = [each.value for each in app.markdown if each.value.startswith("**")]
    assert newer.startswith("**And what about children who cough at night")
    assert newer.endswith("…**")
    assert older == "**What is asthma?**"
    client.delete(path)
    assert texts(open_app(person, page="jobs")).count("**Removed from your history**") == 2


@pytest.mark.parametrize(
    ("role", "page", "path"), [("user", "jobs", "/v1/jobs"), ("admin", "", "/v1/system")]
)
def test_a_page_that_merely_watches_does_not_keep_an_unused_log_in_alive(
    open_app: Open, api: Api, role: str, page: str, path: str
) -> None:
    asked: list[httpx.Request] = []
    client._connections().event_hooks["request"].append(asked.append)
    open_app(api.person(Role(role)), page=page)
    assert {request.headers.get("X-MediChat-Poll") for request in asked if request.url.path == path} == {"1"}
    assert {request.headers.get("X-MediChat-Poll") for request in asked if request.url.path == "/v1/me"} == {
        None
    }


def test_an_admin_lets_somebody_in_and_sees_the_password_once(open_app: Open, api: Api) -> None:
    app = open_app(api.person(Role.ADMIN), page="people")
    next(each for each in app.text_input if each.label == "Name").set_value("nurse.kim")
    button(app, "Make the account").click().run()
    assert "nurse.kim can log in" in texts(app)
    password = app.code[0].value
    form = {"username": "nurse.kim", "password": password}
    assert api.client().post("/v1/auth/token", data=form).status_code == 200
    app.run()
    assert password not in texts(app)


def test_a_new_password_is_shown_though_the_gateway_went_away_before_it_was(open_app: Open, api: Api) -> None:
    app = open_app(api.person(Role.ADMIN), page="people")
    made: list[str] = []

    def go_away(request: httpx.Request) -> None:
        if request.method == "POST":
            made.append(request.url.path)
        elif made and request.url.path == "/v1/users":
            api.close()

    client._connections().event_hooks["request"].append(go_away)
    next(each for each in app.text_input if each.label == "Name").set_value("nurse.kim")
    button(app, "Make the account").click().run()
    assert made == ["/v1/users"]
    assert button(app, "Try again")
    client._connections().event_hooks["request"].remove(go_away)
    with closed_after(Api(api.settings)):
        button(app, "Try again").click().run()
    assert "nurse.kim can log in" in texts(app)
    assert app.code[0].value


def let_in(app: AppTest, name: str = "nurse.kim") -> None:
    next(each for each in app.text_input if each.label == "Name").set_value(name)
    button(app, "Make the account").click().run()


def make_key(app: AppTest) -> None:
    next(each for each in app.text_input if each.label.startswith("What is it for")).set_value("tablet")
    button(app, "Make a key").click().run()


@pytest.mark.parametrize(
    ("role", "page", "act", "read"),
    [
        (Role.ADMIN, "people", let_in, "/v1/holds"),
        (Role.AUDITOR, "", lambda app: button(app, "Say yes").click().run(), "/v1/audit/events"),
        (Role.USER, "account", make_key, "/v1/api-keys"),
    ],
)
def test_what_is_shown_only_now_is_shown_until_its_page_was_drawn_whole(
    open_app: Open, api: Api, role: Role, page: str, act: Callable[[AppTest], object], read: str
) -> None:
    api.person(Role.AUDITOR, status=AccountStatus.PENDING)
    app = open_app(api.person(role), page=page)
    made: list[str] = []

    def go_away(request: httpx.Request) -> None:
        if request.method == "POST":
            made.append(request.url.path)
        elif made and request.url.path == read:
            api.close()

    client._connections().event_hooks["request"].append(go_away)
    act(app)
    assert made
    assert button(app, "Try again")
    client._connections().event_hooks["request"].remove(go_away)
    with closed_after(Api(api.settings)):
        button(app, "Try again").click().run()
        assert app.code[0].value
        app.run()
    assert not app.code


def test_what_is_shown_only_now_is_forgotten_with_its_page(open_app: Open, api: Api) -> None:
    app = open_app(api.person(Role.ADMIN), page="people")

    def go_away(request: httpx.Request) -> None:
        if request.url.path == "/v1/holds":
            api.close()

    client._connections().event_hooks["request"].append(go_away)
    let_in(app)
    assert button(app, "Try again")
    client._connections().event_hooks["request"].remove(go_away)
    with closed_after(Api(api.settings)):
        to_page(app, "account")
        to_page(app, "people")
    assert "nurse.kim can log in" not in texts(app)
    assert not app.code


def test_a_name_that_cannot_be_one_is_refused_in_words(open_app: Open, api: Api) -> None:
    app = open_app(api.person(Role.ADMIN), page="people")
    let_in(app, "nurse kim")
    told = "name: may hold letters, digits and . @ + - _ only, and no blanks"
    assert [each.value for each in app.error] == [plain_markdown(told)]


def test_what_another_admin_changed_meanwhile_is_not_undone(open_app: Open, api: Api) -> None:
    kim, admin = api.person(), api.person(Role.ADMIN)
    app = open_app(admin, page="people")
    elsewhere = api.client(admin)
    elsewhere.patch(f"/v1/users/{kim.id}", json={"role": "admin"}).raise_for_status()
    app.run()
    audience = [each for each in app.selectbox if each.label == "Answers are written for a"][-1]
    audience.set_value("clinician").run()
    button(app, "Save").click().run()
    found = next(each for each in elsewhere.get("/v1/users").json()["items"] if each["id"] == kim.id)
    assert (found["role"], found["audience"]) == ("admin", "clinician")


def test_an_admin_sees_that_no_worker_is_alive(open_app: Open, api: Api) -> None:
    app = open_app(api.person(Role.ADMIN))
    assert any("No worker is alive" in each.value for each in app.error)
    assert [each.label for each in app.metric] == ["Waiting", "Running", "Workers alive", "Oldest waits"]


def test_a_worker_that_trains_is_not_taken_for_one_that_answers(open_app: Open, api: Api) -> None:
    database, clock = api.gateway.database, api.gateway.clock
    Registration(database, clock, "train@host:1").enter(Kind.TRAIN, "demo", {})
    admin = api.person(Role.ADMIN)
    app = open_app(admin)
    assert any("No worker is alive" in each.value for each in app.error)
    assert [each.value for each in app.metric if each.label == "Workers alive"] == ["0"]
    assert "Training workers alive: 1" in texts(app)
    Registration(database, clock, "infer@host:2").enter(Kind.INFER, "demo", {})
    app = open_app(admin)
    assert not app.error
    assert [each.value for each in app.metric if each.label == "Workers alive"] == ["1"]
    assert list(app.dataframe[0].value["kind"]) == ["train", "infer"]


def test_the_workers_are_plotted_beside_the_queue_with_since_when(open_app: Open, api: Api) -> None:
    Registration(api.gateway.database, api.gateway.clock, "infer@host:1").enter(Kind.INFER, "demo", {})
    ask_async(api.log_in())
    app = open_app(api.person(Role.ADMIN))
    assert "Since this page was opened" in texts(app)
    (chart,) = charts(app)
    assert chart["encoding"]["color"]["sort"] == ["waiting", "running", "workers alive"]
    point = app.session_state["depths"][-1]
    assert (point["waiting"], point["running"], point["workers alive"]) == (1, 0, 1)


def test_an_admin_sees_plots_that_hold_at_rest_too(open_app: Open, api: Api) -> None:
    admin = api.person(Role.ADMIN)
    (depth,) = charts(open_app(admin))
    assert depth["encoding"]["y"]["scale"]["domain"] == [0, 4]
    assert depth["encoding"]["y"]["axis"] == {"format": "d", "tickMinStep": 1}
    assert depth["encoding"]["x"]["axis"]["format"] == "%H:%M:%S"
    ask_async(api.log_in())
    api.answer("An answer.")
    _, latency = charts(open_app(admin))
    assert latency["encoding"]["y"]["scale"]["domain"][0] == 0
    assert latency["encoding"]["color"]["legend"]["labelLimit"] == 0


def test_an_auditor_filters_the_log_and_says_yes_to_a_new_auditor(open_app: Open, api: Api) -> None:
    ask_async(api.log_in())
    waiting = api.person(Role.AUDITOR, status=AccountStatus.PENDING)
    app = open_app(api.person(Role.AUDITOR))
    app.text_input(key="action").set_value("question.asked").run()
    assert list(app.dataframe[0].value["what"]) == ["question.asked"]
    button(app, "Say yes").click().run()
    client_ = api.client()
    form = {"username": waiting.name, "password": app.code[0].value}
    assert client_.post("/v1/auth/token", data=form).status_code == 200


def test_a_password_that_another_set_is_told_to_its_owner_and_to_auditors(open_app: Open, api: Api) -> None:
    person, admin = api.person(), api.person(Role.ADMIN)
    assert "password was set" not in texts(open_app(person, page="account"))
    api.client(admin).post(f"/v1/users/{person.id}/password").raise_for_status()
    assert "Your password was set by an admin" in texts(open_app(person, page="account"))
    app = open_app(api.person(Role.AUDITOR))
    assert "1 account was logged in to with a password that somebody else set." in texts(app)
    (row,) = next(each.value for each in app.dataframe if "set by" in each.value).to_dict("records")
    assert (row["account"], row["set by"]) == (person.name, admin.name)


def test_ones_password_is_changed_only_when_typed_twice_alike(open_app: Open, api: Api) -> None:
    person = api.person()
    app = open_app(person, page="account")
    for label, value in (
        ("Current password", PASSWORD),
        ("New password", "a new long passphrase"),
        ("New password again", "another long passphrase"),
    ):
        next(each for each in app.text_input if each.label == label).set_value(value)
    button(app, "Change password").click().run()
    assert "differ" in texts(app)
    form = {"username": person.name, "password": PASSWORD}
    assert api.client().post("/v1/auth/token", data=form).status_code == 200


def test_a_key_that_was_not_made_is_said_in_plain_words_and_not_called_made(open_app: Open, api: Api) -> None:
    app = open_app(api.person(), page="account")
    next(each for each in app.text_input if each.label.startswith("What is it for")).set_value("  ")
    button(app, "Make a key").click().run()
    assert [each.value for each in app.error] == ["name: is empty; write something"]
    assert not app.success
    assert not app.code


def test_an_api_key_is_made_shown_once_and_revoked(open_app: Open, api: Api) -> None:
    app = open_app(api.person(), page="account")
    next(each for each in app.text_input if each.label.startswith("What is it for")).set_value("tablet")
    button(app, "Make a key").click().run()
    by_key = api.client()
    by_key.headers["Authorization"] = f"Bearer {app.code[0].value}"
    assert by_key.get("/v1/me").status_code == 200
    (hint,) = app.dataframe[0].value["begins with"]
    assert app.code[0].value.startswith(hint)
    assert app.selectbox[0].options == [f"tablet ({hint}…)"]
    button(app, "Revoke this key").click().run()
    assert by_key.get("/v1/me").status_code == 401


def test_what_a_program_sent_along_is_marked_and_cannot_be_rated(open_app: Open, api: Api) -> None:
    person = api.person()
    said = [("user", "Hello"), ("assistant", "Hi."), ("user", "I want to kill myself.")]
    body = {"model": "demo", "messages": [{"role": role, "content": text} for role, text in said]}
    told = api.client(person).post("/v1/chat/completions", json=body).json()["medichat"]
    app = open_app(person, conversation=told["conversation_id"])
    assert "whether it is one of MediChat's is not known" in texts(app)
    assert len(app.get("feedback")) == 1
