"""Pictures on the dashboard: asked with, kept while not sent, shown to who asked and to who may see them."""

import base64
from collections.abc import Callable, Iterator

import pytest
from streamlit.testing.v1 import AppTest

from services.ui.views import pictures
from shared.auth.roles import Role
from shared.db.tables import jobs
from tests.conftest import MakeApi
from tests.drawn import colour_of, image
from tests.pages import button, open_with, served_by, texts
from tests.support import Api, ask_async

Open = Callable[..., AppTest]
RED, BLUE = (255, 0, 0), (0, 0, 255)
REASON = "To compare the answer with what was seen."


@pytest.fixture
def dialect() -> str:
    """The pages know no database."""
    return "sqlite"


@pytest.fixture
def open_app(api: Api, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    with served_by(api, monkeypatch):
        yield lambda person, page="", **query: open_with(
            monkeypatch, api.browser_token(person), page=page, **query
        )


def shown(app: AppTest) -> list[tuple[int, ...]]:
    """The colour of each picture on the page."""
    addresses = [address for each in app.get("image") for address in each.value]
    return [colour_of(base64.b64decode(address.partition("base64,")[2])) for address in addresses]


def drawn(colour: str) -> bytes:
    return base64.b64decode(image(colour))


def ask_with(app: AppTest, query: str, *files: bytes) -> AppTest:
    field = app.chat_input[0].set_value(query)
    for number, file in enumerate(files):
        field.upload(f"picture-{number}.png", file, "image/png")
    return app.run()


def test_pictures_are_asked_with_and_shown_below_the_question(open_app: Open, api: Api) -> None:
    app = ask_with(open_app(api.person()), "What are these?", drawn("red"), drawn("blue"))
    assert "What are these?" in texts(app)
    assert shown(app) == [RED, BLUE]


def test_whoever_writes_nothing_asks_what_is_seen(open_app: Open, api: Api) -> None:
    app = ask_with(open_app(api.person()), "", drawn("red"))
    assert pictures.WHAT_IS_SEEN in texts(app)
    assert shown(app) == [RED]


def test_a_file_that_is_no_picture_is_refused_and_the_question_stays(open_app: Open, api: Api) -> None:
    app = ask_with(open_app(api.person()), "What is this?", b"no picture")
    told = texts(app)
    assert "Send a PNG, JPEG, WebP or DICOM file" in told
    assert "What is this?" in told
    assert "With 1 picture." in told
    assert api.count(jobs) == 0


@pytest.mark.parametrize(
    ("settings", "offered"), [({}, True), ({"max_images": 0}, False), ({"model": "gemma-1b"}, False)]
)
def test_a_field_for_pictures_is_there_where_they_are_seen(
    make_api: MakeApi, monkeypatch: pytest.MonkeyPatch, settings: dict[str, object], offered: bool
) -> None:
    api = make_api(**settings)
    with served_by(api, monkeypatch):
        app = open_with(monkeypatch, api.browser_token(api.person()))
    assert (app.chat_input[0].proto.accept_file != 0) is offered
    assert (pictures.HINT in texts(app)) is offered


def test_an_auditor_sees_a_picture_only_while_identifiers_are_shown(open_app: Open, api: Api) -> None:
    app = open_app(api.person(Role.AUDITOR), "conversation", conversation=asked_with_a_picture(api))
    assert "With 1 picture, shown only where identifiers are" in texts(app)
    assert shown(app) == []
    app.text_area[0].set_value(REASON).run()
    button(app, "Yes: reveal identifiers").click().run()
    assert shown(app) == [RED]
    button(app, "Mask them again").click().run()
    assert shown(app) == []


def test_an_admin_sees_a_picture_in_an_emergency(open_app: Open, api: Api) -> None:
    app = open_app(api.person(Role.ADMIN), "emergency")
    app.text_input(key="glass-id").set_value(asked_with_a_picture(api))
    app.text_area(key="glass-reason").set_value(REASON)
    button(app, "Open the conversation").click().run()
    assert shown(app) == [RED]


def asked_with_a_picture(api: Api) -> str:
    """The id of the conversation."""
    return str(ask_async(api.log_in(), images=[image("red")])["conversation_id"])
