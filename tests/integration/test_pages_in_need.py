"""A person in need whose question is not taken reads on the page where help is found, before all else."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from streamlit.testing.v1 import AppTest

from services.api import patience
from services.ui.text import answer_markdown
from shared.auth.roles import Role
from shared.db.tables import users
from shared.guard.verdict import Category
from shared.prompts import HELP
from tests.conftest import MakeApi
from tests.pages import button, open_with, served_by, texts
from tests.support import Api

CRISIS = "I want to kill myself"
BANNER = "**The guard answered at once.** No model wrote this."


@pytest.fixture
def dialect() -> str:
    """The pages know no database."""
    return "sqlite"


@contextmanager
def opened(api: Api, monkeypatch: pytest.MonkeyPatch) -> Iterator[AppTest]:
    """The page of a person who has asked nothing yet."""
    with served_by(api, monkeypatch):
        yield open_with(monkeypatch, api.browser_token(api.person()))


def ask(app: AppTest, question: str) -> None:
    app.chat_input[0].set_value(question).run()


def assert_help_is_before(app: AppTest, api: Api, told: str) -> None:
    """Marked as what the guard says in a crisis, and above what is told of the question."""
    shown = [each.value for each in app.main if each.type in ("markdown", "alert", "error", "warning")]
    help_text = api.gateway.guard.responses(api.settings.locale).for_question(Category.CRISIS)
    banner = shown.index(BANNER)
    assert shown[banner + 1] == answer_markdown(help_text)
    assert banner < next(place for place, each in enumerate(shown) if told in each)
    assert texts(app).count(BANNER) == 1


def test_where_help_is_found_is_shown_when_the_database_takes_no_question(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "PATIENCE_S", 0.3)
    with opened(api, monkeypatch) as app, api.gateway.database.write():
        ask(app, CRISIS)
        assert_help_is_before(app, api, "It is not known whether your question arrived")
        button(app, "Discard").click().run()
        assert BANNER not in texts(app)


def test_where_help_is_found_is_shown_when_the_question_cannot_be_used(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(api, monkeypatch) as app:
        ask(app, "I want to kill\vmyself")
        assert_help_is_before(app, api, "control characters")


def test_where_help_is_found_is_shown_when_the_page_itself_cannot_be(
    make_api: MakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = make_api(requests_per_minute=2)  # enough to draw the page once
    with opened(api, monkeypatch) as app:
        ask(app, CRISIS)
        assert_help_is_before(app, api, "Too many requests")
        assert_help_is_before(app, api, "**Not sent yet.**")
        assert_help_is_before(app, api, CRISIS)


def test_where_help_is_found_is_shown_when_another_text_must_be_accepted_first(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(api, monkeypatch) as app:
        api.set(users, users.c.role == Role.USER, consented_at=None, consent_version=None)
        ask(app, CRISIS)
        assert_help_is_before(app, api, "**Not sent yet.** It is offered again after this.")
        assert button(app, "Continue")


def test_who_could_not_be_judged_is_told_whom_to_call(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(api, monkeypatch) as app:
        api.close()
        ask(app, CRISIS)
        assert HELP in texts(app)
        app.run()
        assert HELP in texts(app), "not shown once"
