"""The pages of the review, run by Streamlit's own test runner against a real gateway."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import select
from streamlit.testing.v1 import AppTest

from services.ui.views import review_form
from shared.auth.roles import Role
from shared.db.tables import data_keys, sessions
from shared.db.tables_review import reviews
from shared.guard.verdict import Verdict
from shared.review.rules import HOLD
from tests.conftest import MakeApi
from tests.integration.test_reviews import CORRECTED, PAST, REPLACED, answered, judge, queued
from tests.pages import button, charts, open_with, served_by, texts
from tests.support import PASSWORD, Api, Person

Open = Callable[..., AppTest]


@pytest.fixture
def dialect() -> str:
    """The pages know no database."""
    return "sqlite"


@pytest.fixture
def api(make_api: MakeApi) -> Api:
    """A gateway whose queue holds what a test puts there and nothing else."""
    return make_api(reconcile_s=600, review_sample_percent=0, review_double_percent=0)


@pytest.fixture
def open_app(api: Api, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """Opens a page as this person."""

    def open_(person: Person, page: str = "review", **query: str) -> AppTest:
        return open_with(monkeypatch, api.browser_token(person), page=page, **query)

    with served_by(api, monkeypatch):
        yield open_


def key_of(app: AppTest, label: str) -> str:
    shortcut: str = button(app, label).proto.shortcut
    return shortcut


def at(app: AppTest, name: str = "r") -> str:
    """What the page's address names."""
    value = app.query_params[name]
    return value if isinstance(value, str) else str(value[-1])


def mine(auditor: httpx.Client, item: str) -> Any:
    return auditor.get(f"/v1/reviews/{item}").json()["mine"]


def test_an_empty_queue_says_so(open_app: Open, api: Api) -> None:
    app = open_app(api.person(Role.AUDITOR))
    assert "Nothing waits to be reviewed" in texts(app)
    assert button(app, "Look again")


def test_an_answer_is_taken_judged_and_given_and_the_next_one_comes(open_app: Open, api: Api) -> None:
    auditor = api.person(Role.AUDITOR)
    client = api.client(auditor)
    first, second = (queued(api, client, answered(api, verdict)) for verdict in (REPLACED, Verdict.ALLOWED))
    app = open_app(auditor)
    assert "**2 wait for you** :gray-badge[asked for: 2]" in texts(app)
    button(app, "Review the next one").click().run()
    assert "I am \\[NAME\\]" in texts(app)
    assert "Take fifty" in texts(app)
    button(app, "Unsafe").click().run()
    assert mine(client, first)["verdict"] == "unsafe", "each change is kept at once"
    button(app, "Dosing").click().run()
    button(app, "No, a false alarm").click().run()
    app.text_area[0].set_value(CORRECTED).run()
    assert "Saved" in texts(app)
    assert mine(client, first)["given_at"] is None
    button(app, "Give and next").click().run()
    given = mine(client, first)
    assert (given["verdict"], given["category"], given["guard_right"]) == ("unsafe", "dosing", False)
    assert given["corrected"] == CORRECTED
    assert given["given_at"]
    assert at(app) == second
    assert not app.text_area[0].value


def test_every_choice_has_a_key_and_no_two_have_the_same(open_app: Open, api: Api) -> None:
    auditor = api.person(Role.AUDITOR)
    client = api.client(auditor)
    judge(client, queued(api, client, answered(api)), verdict="safe")
    queued(api, client, answered(api, REPLACED))
    app = open_app(auditor)
    button(app, "Review the next one").click().run()
    button(app, "Unsafe").click().run()
    assert [key_of(app, label) for label in ("Safe", "Unsafe", "Wrong", "Incomplete")] == list("1234")
    keys = [each.proto.shortcut.lower() for each in app.button if each.proto.shortcut]
    assert len(keys) == len(set(keys)) == 4 + 11 + 2 + 3
    assert not {"c", "r"} & set(keys)


def test_a_reload_comes_back_to_the_same_answer_with_the_draft(open_app: Open, api: Api) -> None:
    auditor = api.person(Role.AUDITOR)
    client = api.client(auditor)
    for _ in range(2):
        queued(api, client, answered(api))
    app = open_app(auditor)
    button(app, "Review the next one").click().run()
    item = at(app)
    button(app, "Wrong").click().run()
    app.text_area[1].set_value("A thought.").run()
    for query in ({"r": item}, {}):
        again = open_app(auditor, **query)
        assert at(again) == item
        assert button(again, "Wrong").proto.type == "primary"
        assert again.text_area[1].value == "A thought."


def test_a_look_is_one_event_however_often_the_page_is_drawn(open_app: Open, api: Api) -> None:
    auditor = api.person(Role.AUDITOR)
    queued(api, api.client(auditor), answered(api))
    app = open_app(auditor)
    button(app, "Review the next one").click().run()
    button(app, "Wrong").click().run()
    app.run()
    assert [len(api.audit(action)) for action in ("review.opened", "review.read")] == [1, 0]


def test_what_is_missing_is_said_and_nothing_is_given(open_app: Open, api: Api) -> None:
    auditor = api.person(Role.AUDITOR)
    client = api.client(auditor)
    item = queued(api, client, answered(api))
    app = open_app(auditor)
    button(app, "Review the next one").click().run()
    button(app, "Give and next").click().run()
    assert "Choose a verdict first" in texts(app)
    assert mine(client, item)["given_at"] is None


def test_what_could_not_be_saved_stays_on_the_page_and_says_so(open_app: Open, api: Api) -> None:
    auditor, other = api.person(Role.AUDITOR), api.log_in(Role.AUDITOR)
    item = queued(api, api.client(auditor), answered(api))
    app = open_app(auditor)
    button(app, "Review the next one").click().run()
    api.set(reviews, reviews.c.item_id == item, taken_at=PAST)
    other.put(f"/v1/reviews/{item}", json={"verdict": "safe"}).raise_for_status()
    app.text_area[1].set_value("A thought.").run()
    assert "Others review this answer" in texts(app)
    assert "What you wrote is not saved." in texts(app)
    assert app.text_area[1].value == "A thought."
    other.post(f"/v1/reviews/{item}/release").raise_for_status()
    button(app, "Save again").click().run()
    assert "not saved" not in texts(app)


def test_what_another_tab_saved_survives_and_is_shown(open_app: Open, api: Api) -> None:
    auditor = api.person(Role.AUDITOR)
    client = api.client(auditor)
    item = queued(api, client, answered(api))
    client.post("/v1/reviews/next")
    app = open_app(auditor, r=item)
    client.put(f"/v1/reviews/{item}", json={"corrected": CORRECTED}).raise_for_status()
    button(app, "Wrong").click().run()
    assert app.text_area[0].value == CORRECTED
    button(app, "Incomplete").click().run()
    kept = mine(client, item)
    assert (kept["verdict"], kept["corrected"]) == ("incomplete", CORRECTED)


def test_what_cannot_be_saved_can_be_discarded_to_go_on(open_app: Open, api: Api) -> None:
    auditor, other = api.person(Role.AUDITOR), api.log_in(Role.AUDITOR)
    item = queued(api, other, answered(api))
    app = open_app(auditor, r=item)
    judge(other, item, verdict="safe")
    app.text_area[1].set_value("A thought.").run()
    assert "copy it to keep it" in texts(app)
    button(app, "Skip").click().run()
    assert at(app) == item, "it would be lost"
    button(app, "Yes: discard").click().run()
    assert not app.text_area[1].value
    button(app, "Skip").click().run()
    assert "r" not in app.query_params


def test_a_page_that_stays_open_keeps_holding_the_answer(
    open_app: Open, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    auditor, other = api.person(Role.AUDITOR), api.log_in(Role.AUDITOR)
    queued(api, api.client(auditor), answered(api))
    app = open_app(auditor)
    button(app, "Review the next one").click().run()
    nearly_over = datetime.now(UTC) - HOLD + timedelta(minutes=1)
    for renewed_after_s, kept in ((3600, False), (0, True)):
        api.set(reviews, reviews.c.given_at.is_(None), taken_at=nearly_over)
        monkeypatch.setattr(review_form, "RENEW_S", renewed_after_s)
        app.run()
        with api.gateway.database.read() as connection:
            taken_at = connection.execute(select(reviews.c.taken_at)).scalar_one()
        assert (taken_at > nearly_over) is kept
    assert other.post("/v1/reviews/next").json() == {"item": None}


def test_what_is_skipped_goes_back_and_the_next_one_comes(open_app: Open, api: Api) -> None:
    auditor = api.person(Role.AUDITOR)
    client = api.client(auditor)
    first, second = (queued(api, client, answered(api)) for _ in range(2))
    app = open_app(auditor)
    button(app, "Review the next one").click().run()
    button(app, "Skip").click().run()
    assert at(app) == second
    judge(client, second, verdict="safe")
    app = open_app(auditor)
    button(app, "Review the next one").click().run()
    assert at(app) == first
    button(app, "Skip").click().run()
    assert "Nothing else waits" in app.toast[0].value
    assert "r" not in app.query_params


def test_that_nothing_which_waits_can_be_opened_is_said(open_app: Open, api: Api) -> None:
    auditor = api.person(Role.AUDITOR)
    job = answered(api)
    queued(api, api.client(auditor), job)
    app = open_app(auditor)
    api.set(data_keys, data_keys.c.owner_id == job.conversation_id, wrapped_key=b"damaged")
    button(app, "Review the next one").click().run()
    assert "Nothing that can be opened" in app.toast[0].value
    assert button(app, "Review the next one")


def test_the_last_one_given_can_be_taken_back(open_app: Open, api: Api) -> None:
    auditor = api.person(Role.AUDITOR)
    client = api.client(auditor)
    item = queued(api, client, answered(api))
    judge(client, item, verdict="wrong", note="A thought.")
    app = open_app(auditor)
    button(app, "Take back the last one (wrong)").click().run()
    assert at(app) == item
    assert app.text_area[1].value == "A thought."
    assert mine(client, item)["given_at"] is None


def test_a_second_reviewer_sees_the_first_ones_verdict_after_giving(open_app: Open, api: Api) -> None:
    first, auditor = api.log_in(Role.AUDITOR), api.person(Role.AUDITOR)
    item = queued(api, first, answered(api), wanted=2)
    judge(first, item, verdict="incomplete", note="A zebrafish.")
    app = open_app(auditor, r=item)
    assert "zebrafish" not in texts(app)
    button(app, "Wrong").click().run()
    button(app, "Give and next").click().run()
    app = open_app(auditor, r=item)
    assert "A zebrafish." in texts(app)
    assert "Verdict: **incomplete**" in texts(app)


def test_an_answer_is_put_into_the_queue_by_its_job(open_app: Open, api: Api) -> None:
    app = open_app(api.person(Role.AUDITOR))
    app.text_input[0].set_value(answered(api).id)
    button(app, "Ask for a review").click().run()
    assert "**1 wait for you**" in texts(app)


def test_the_report_says_what_was_found_and_draws_it(open_app: Open, api: Api) -> None:
    auditor, other = api.person(Role.AUDITOR), api.log_in(Role.AUDITOR)
    client = api.client(auditor)
    assert "No review was given" in texts(open_app(auditor, "reports"))
    for one, two in (("safe", "safe"), ("unsafe", "unsafe"), ("wrong", "safe")):
        item = queued(api, client, answered(api), wanted=2, sampled=True)
        judge(client, item, verdict=one, category="dosing")
        judge(other, item, verdict=two, category="dosing")
    judge(client, queued(api, client, answered(api, REPLACED)), verdict="safe", guard_right=False)
    app = open_app(auditor, "reports")
    assert "**Cohen's κ = 0.50**" in texts(app)
    assert "**33.3%** are unsafe (1 of 3" in texts(app)
    assert "let **1** unsafe answers through" in texts(app)
    assert "wrongly **1** times of 1" in texts(app)
    assert len(charts(app)) == 4


def test_the_export_asks_for_the_password_and_is_then_a_file(open_app: Open, api: Api) -> None:
    auditor = api.person(Role.AUDITOR)
    client = api.client(auditor)
    judge(client, queued(api, client, answered(api)), verdict="wrong", corrected=CORRECTED)
    app = open_app(auditor, "reports")
    api.set(sessions, sessions.c.user_id == auditor.id, reauthenticated_at=PAST)
    button(app, "Prepare a file").click().run()
    assert not app.get("download_button")
    app.text_input[0].set_value(PASSWORD)
    button(app, "Go on").click().run()
    button(app, "Prepare a file").click().run()
    assert app.get("download_button")[0].proto.label == "Download 1 rows"


def test_an_admin_makes_a_dataset_of_corrections_with_a_click(open_app: Open, api: Api) -> None:
    auditor, admin = api.log_in(Role.AUDITOR), api.person(Role.ADMIN)
    judge(auditor, queued(api, auditor, answered(api)), verdict="wrong", corrected=CORRECTED)
    app = open_app(admin, "data")
    app.text_input(key="reviews-name-0").set_value("Corrected")
    next(each for each in app.button if each.label == "Make and check").click().run()
    (dataset,) = api.client(admin).get("/v1/datasets").json()["items"]
    assert (dataset["name"], dataset["source"]) == ("Corrected", "reviews")
    assert at(app, "d") == dataset["id"]


def test_the_rows_of_such_a_dataset_are_not_offered_to_admins(monkeypatch: pytest.MonkeyPatch) -> None:
    app = AppTest.from_function(_rows_of_a_dataset)
    app.session_state["source"] = "reviews"
    assert "not shown to admins" in texts(app.run())
    assert not app.toggle
    app.session_state["source"] = "upload"
    assert "not shown to admins" not in texts(app.run())
    assert app.toggle


def _rows_of_a_dataset() -> None:
    import streamlit as st

    from services.ui.client import Gateway
    from services.ui.tuning import Tuning
    from services.ui.views import data_report

    data_report.show_rows(Tuning(Gateway("")), {"id": "d", "source": st.session_state["source"]})
