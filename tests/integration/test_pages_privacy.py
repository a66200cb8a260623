"""The dashboard's ways to one's data, to erasure and to holds, against a real gateway."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import pytest
from sqlalchemy import insert, select
from streamlit.testing.v1 import AppTest

from shared.auth.roles import Role
from shared.db.tables import data_keys, sessions
from shared.db.tables_privacy import dataset_conversations, legal_holds
from shared.db.tables_training import adapters
from tests.pages import button, open_with, served_by, texts
from tests.registry import add_adapter, sha_of
from tests.support import PASSWORD, Api, Person
from tests.training import School
from tests.uploads import REPORT, check, uploaded

Open = Callable[..., AppTest]
PAST = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def dialect() -> str:
    """The pages know no database."""
    return "sqlite"


@pytest.fixture
def open_app(api: Api, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """Opens the dashboard as this person, at a page and a conversation."""

    def open_(person: Person, page: str = "", **query: str) -> AppTest:
        return open_with(monkeypatch, api.browser_token(person), page=page, **query)

    with served_by(api, monkeypatch):
        yield open_


def erased(api: Api) -> int:
    return api.count(data_keys, data_keys.c.destroyed_at.is_not(None))


def test_a_person_erases_a_conversation_and_is_told_how_that_differs_from_removing(
    open_app: Open, api: Api
) -> None:
    person = api.person()
    (conversation,) = api.write_history(person, ["Is it gout?"])
    app = open_app(person, c=conversation)
    assert "Removing takes it out of your history. The audit log keeps it." in texts(app)
    assert "It cannot be undone." in texts(app)
    assert button(app, "Erase for good").disabled
    app.checkbox(key=f"understood-{conversation}").check().run()
    app.button(key="erase").click().run()
    assert "Erased for good: 1 conversation." in texts(app)
    assert "No conversations yet." in texts(app)
    assert erased(api) == 1


def test_adapters_that_had_seen_an_erased_conversation_are_named(open_app: Open, api: Api) -> None:
    person, admin = api.person(), api.person(Role.ADMIN)
    (conversation,) = api.write_history(person, ["Is it gout?"])
    add_adapter(api, admin, sha256=sha_of("a"), name="from-reviews")
    with api.gateway.database.write() as connection:
        dataset = connection.execute(select(adapters.c.dataset_id)).scalar_one()
        row = {"dataset_id": dataset, "conversation_id": conversation}
        connection.execute(insert(dataset_conversations).values(**row))
    app = open_app(person, c=conversation)
    app.checkbox(key=f"understood-{conversation}").check().run()
    app.button(key="erase").click().run()
    assert "from-reviews** 1 (candidate)" in app.warning[0].value.replace("\u2060", "").replace("\\", "")


def test_what_is_held_stays_and_the_page_says_whom_to_ask(open_app: Open, api: Api) -> None:
    person = api.person()
    (conversation,) = api.write_history(person, ["Is it gout?"])
    body = {"subject": f"user:{person.id}", "reference": "1"}
    api.log_in(Role.ADMIN).post("/v1/holds", json=body).raise_for_status()
    app = open_app(person, c=conversation)
    app.checkbox(key=f"understood-{conversation}").check().run()
    app.button(key="erase").click().run()
    assert "Ask your admin" in app.error[0].value
    assert not erased(api)


def test_the_account_says_what_the_file_of_ones_data_leaves_out(open_app: Open, api: Api) -> None:
    shown = texts(open_app(api.person(), "account"))
    assert "Left out are what the guard kept back, what others wrote, and their names" in shown


def test_the_password_is_asked_for_where_the_gateway_asks(open_app: Open, api: Api) -> None:
    person = api.person()
    app = open_app(person, "account")
    api.set(sessions, sessions.c.user_id == person.id, reauthenticated_at=PAST)
    button(app, "Put my data together").click().run()
    assert not app.get("download_button")
    next(each for each in app.text_input if each.label == "Your password").set_value(PASSWORD)
    button(app, "Go on").click().run()
    button(app, "Put my data together").click().run()
    assert len(app.get("download_button")) == 1
    assert len(api.audit("data.exported")) == 1


def test_a_person_erases_their_account_by_typing_its_name(open_app: Open, api: Api) -> None:
    person = api.person()
    api.write_history(person, ["Is it gout?"])
    app = open_app(person, "account")
    assert button(app, "Erase for good").disabled
    field(app, "to go on").set_value("somebody else").run()
    assert button(app, "Erase for good").disabled
    field(app, "to go on").set_value(person.name).run()
    button(app, "Erase for good").click().run()
    assert "log in again" in texts(app)
    assert erased(api) == 1


def field(app: AppTest, label: str):  # type: ignore[no-untyped-def]
    return next(each for each in app.text_input if label in each.label)


def test_an_admin_erases_a_person_by_typing_their_name(open_app: Open, api: Api) -> None:
    admin, person = api.person(Role.ADMIN), api.person()
    api.write_history(person, ["Is it gout?"])
    app = open_app(admin, "people")
    field(app, "to go on").set_value(person.name).run()
    button(app, "Erase for good").click().run()
    assert "Erased for good: 1 conversation" in texts(app)
    assert erased(api) == 1


def test_an_admin_holds_a_person_and_lifts_the_hold(open_app: Open, api: Api) -> None:
    admin, person = api.person(Role.ADMIN), api.person()
    app = open_app(admin, "people")
    assert "Nothing is held." in texts(app)
    app.selectbox(key="hold-person").select_index([admin.name, person.name].index(person.name))
    field(app, "Number of the case").set_value("2026-C-0417")
    button(app, "Place the hold").click().run()
    app.run()
    assert api.count(legal_holds, legal_holds.c.subject == f"user:{person.id}") == 1
    assert any("2026-C-0417" in str(each.value) for each in app.dataframe)
    button(app, "Yes: lift the hold").click().run()
    assert "Nothing is held." in texts(app)


def test_an_auditor_holds_a_conversation_by_its_id_and_is_told_what_is_wrong(
    open_app: Open, api: Api
) -> None:
    (conversation,) = api.write_history(api.person(), ["Is it gout?"])
    app = open_app(api.person(Role.AUDITOR), "holds")
    for id in ("nonsense", conversation):
        field(app, "Its id").set_value(id)
        field(app, "Number of the case").set_value("2026-1")
        button(app, "Place the hold").click().run()
        if id == "nonsense":
            assert app.error
    app.run()
    assert api.count(legal_holds, legal_holds.c.subject == f"conversation:{conversation}") == 1


def test_an_admin_erases_a_dataset_and_the_page_says_that_it_is_gone(open_app: Open, api: Api) -> None:
    school = School(api)
    dataset = uploaded(school.client)
    check(api, report=REPORT)
    app = open_app(school.admin, "data", d=dataset)
    button(app, "Yes: erase").click().run()
    assert "its key was destroyed" in texts(app)
    assert not [each for each in app.button if each.label == "Yes: erase"]
    assert erased(api) == 1
