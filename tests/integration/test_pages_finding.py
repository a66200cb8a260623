"""The auditors' pages that find conversations and export, in Streamlit's own test runner."""

from collections.abc import Iterator
from datetime import UTC, date, datetime

import pytest
from streamlit.testing.v1 import AppTest

from shared.auth.roles import Role
from shared.db.tables import sessions
from shared.privacy.search_index import index_waiting
from tests.pages import button, open_with, served_by, texts
from tests.support import PASSWORD, Api, Person

PAST = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def dialect() -> str:
    """The pages know no database."""
    return "sqlite"


@pytest.fixture
def auditor(api: Api) -> Person:
    return api.person(Role.AUDITOR)


@pytest.fixture
def written(api: Api) -> list[str]:
    """Two conversations that can be found by their words."""
    ids = api.write_history(api.person(), ["Warfarin with milk", "What is asthma?"])
    gateway = api.gateway
    index_waiting(gateway.database, gateway.envelope, gateway.clock)
    return ids


@pytest.fixture
def page(api: Api, auditor: Person, written: list[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[AppTest]:
    with served_by(api, monkeypatch):
        yield open_with(monkeypatch, api.browser_token(auditor), page="conversations")


def search(app: AppTest, words: str) -> None:
    app.text_input(key="find-words").set_value(words)
    button(app, "Search").click().run()


def test_the_newest_are_shown_and_words_find_fewer(page: AppTest, written: list[str], api: Api) -> None:
    assert all(each in texts(page) for each in written)
    search(page, "milk warfarin")
    assert written[0] in texts(page)
    assert written[1] not in texts(page)
    assert "Warfarin with milk" not in texts(page)
    assert len(api.audit("conversations.searched")) == 2
    search(page, "nonsense")
    assert "No conversation matches." in texts(page)


def test_what_a_reviewer_said_finds_fewer_and_can_be_kept(page: AppTest, api: Api, auditor: Person) -> None:
    page.selectbox(key="find-review_verdict").set_value("unsafe")
    page.selectbox(key="find-review_category").set_value("dosing")
    button(page, "Search").click().run()
    assert "No conversation matches." in texts(page)
    next(each for each in page.text_input if each.label.startswith("Name of")).set_value("Unsafe").run()
    button(page, "Keep").click().run()
    (view,) = api.client(auditor).get("/v1/audit/views").json()["items"]
    assert view["filters"] == {"review_verdict": "unsafe", "review_category": "dosing"}


def test_a_search_without_a_word_in_it_says_so(page: AppTest) -> None:
    search(page, "?!")
    assert any("at least one" in each.value for each in page.error)
    search(page, "asthma")
    assert not page.error


def test_looking_at_the_page_again_searches_no_second_time(page: AppTest, api: Api) -> None:
    page.run()
    assert len(api.audit("conversations.searched")) == 1


def test_a_search_is_kept_applied_and_deleted(page: AppTest, written: list[str]) -> None:
    page.selectbox(key="find-flagged").set_value("did nothing")
    days = (date(2026, 1, 1), date(2090, 12, 31))
    page.date_input(key="find-days").set_value(days)
    search(page, "milk")
    next(each for each in page.text_input if each.label.startswith("Name of")).set_value("Milk").run()
    button(page, "Keep").click().run()
    assert "Your views (1)" in [each.label for each in page.expander]
    page.selectbox(key="find-flagged").set_value("any")
    page.date_input(key="find-days").set_value(())
    search(page, "asthma")
    button(page, "Apply").click().run()
    assert page.text_input(key="find-words").value == "milk"
    assert page.selectbox(key="find-flagged").value == "did nothing"
    assert page.date_input(key="find-days").value == days
    assert written[0] in texts(page)
    assert written[1] not in texts(page)
    button(page, "Yes: delete").click().run()
    assert "Your views (0)" in [each.label for each in page.expander]


@pytest.mark.parametrize("path", ["conversations", "log"])
def test_an_export_asks_for_the_password_and_then_offers_the_file(
    page: AppTest, api: Api, auditor: Person, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = open_with(monkeypatch, api.browser_token(auditor), page=path)
    api.set(sessions, sessions.c.user_id == auditor.id, reauthenticated_at=PAST)
    button(app, "Make the file").click().run()
    assert not app.get("download_button")
    next(each for each in app.text_input if each.label == "Your password").set_value(PASSWORD)
    button(app, "Go on").click().run()
    button(app, "Make the file").click().run()
    (saving,) = app.get("download_button")
    assert ".csv (" in saving.proto.label
    assert len(api.audit("log.exported")) == 1


def test_the_log_is_filtered_by_what_it_is_about(
    page: AppTest, api: Api, auditor: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = open_with(monkeypatch, api.browser_token(auditor), page="log")
    app.text_input(key="object").set_value(f"user:{auditor.id}").run()
    assert "No event matches." in texts(app)
