"""Questions with pictures: what is taken, what is refused, who sees them."""

import base64
from typing import Any

import httpx
import pytest
from PIL import Image
from sqlalchemy import func, select

from shared.auth.roles import Role
from shared.db.tables import audit_events, conversations, pictures
from tests.drawn import colour_of, encoded, image
from tests.support import Api, ask_async, assert_problem

RED, BLUE = (255, 0, 0), (0, 0, 255)


def images_of(client: httpx.Client, conversation_id: str) -> list[dict[str, Any]]:
    """Those of the conversation's first question."""
    said = client.get(f"/v1/conversations/{conversation_id}").json()["messages"]
    found: list[dict[str, Any]] = said[0]["images"]
    return found


def kept(api: Api, table: Any = pictures) -> int:
    with api.gateway.database.read() as connection:
        return int(connection.execute(select(func.count()).select_from(table)).scalar_one())


def test_a_question_keeps_its_pictures_in_their_order(api: Api) -> None:
    client = api.log_in()
    asked = ask_async(client, images=[image("red"), f"data:image/png;base64,{image('blue', (3, 4))}"])
    red, blue = images_of(client, asked["conversation_id"])
    assert [(each["width"], each["height"]) for each in (red, blue)] == [(9, 7), (3, 4)]
    shown = client.get(f"/v1/conversations/{asked['conversation_id']}/images/{blue['id']}")
    assert shown.headers["Content-Type"] == "image/png"
    assert shown.headers["Cache-Control"] == "private, no-store"
    assert colour_of(shown.content) == BLUE


def test_a_later_question_comes_with_pictures_of_its_own(api: Api) -> None:
    client = api.log_in()
    conversation = ask_async(client)["conversation_id"]
    api.answer("Asthma narrows the airways.")
    body = {"query": "And this?", "images": [image("red")]}
    assert client.post(f"/v1/conversations/{conversation}/messages", json=body).status_code == 202
    said = client.get(f"/v1/conversations/{conversation}").json()["messages"]
    assert [len(message["images"]) for message in said] == [0, 0, 1]


def test_pictures_are_stored_sealed(api: Api) -> None:
    ask_async(api.log_in(), images=[image("red")])
    with api.gateway.database.read() as connection:
        rows = connection.execute(select(pictures.c.ciphertext)).scalars().all()
    assert rows
    assert not any(b"PNG" in each for each in rows)


def test_nobody_else_sees_a_picture_and_the_try_is_logged(api: Api) -> None:
    owner, other = api.log_in(), api.log_in()
    theirs = ask_async(owner, images=[image()])["conversation_id"]
    own = ask_async(other, images=[image()])["conversation_id"]
    (picture,) = images_of(owner, theirs)
    for conversation in (theirs, own):
        response = other.get(f"/v1/conversations/{conversation}/images/{picture['id']}")
        assert_problem(response, 404, "not-found")
    with api.gateway.database.read() as connection:
        denied = audit_events.select().where(
            audit_events.c.action == "access.denied",
            audit_events.c.object.in_([f"conversation:{theirs}", f"image:{picture['id']}"]),
        )
        assert len(connection.execute(denied).all()) == 2


@pytest.mark.parametrize("role", [Role.ADMIN, Role.AUDITOR])
def test_no_other_role_reads_by_the_persons_route(api: Api, role: Role) -> None:
    owner = api.log_in()
    conversation = ask_async(owner, images=[image()])["conversation_id"]
    (picture,) = images_of(owner, conversation)
    response = api.log_in(role).get(f"/v1/conversations/{conversation}/images/{picture['id']}")
    assert_problem(response, 403, "not-allowed")


BROKEN = base64.b64encode(b"no picture").decode()
LARGE = base64.b64encode(b"x" * 10_000_001).decode()
BOMB = base64.b64encode(encoded(Image.new("1", (12_000, 12_000)))).decode()


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (BROKEN, "does not open"),
        ("?", "no base64"),
        ("", "does not open"),
        (LARGE, "more than 10 MB"),
        (LARGE + LARGE[:1_000_000], "more than 10 MB"),
        (BOMB, "far too large"),
    ],
)
def test_a_picture_that_cannot_be_used_is_named_and_nothing_is_stored(api: Api, sent: str, said: str) -> None:
    before = kept(api), kept(api, conversations)
    response = api.log_in().post("/predict", json={"query": "What is this?", "images": [image(), sent]})
    assert_problem(response, 422, "picture-refused")
    (field,) = response.json()["errors"]
    assert field["field"] == "body.images.1"
    assert said in field["message"]
    assert (kept(api), kept(api, conversations)) == before


def test_too_many_pictures_are_refused(api: Api) -> None:
    response = api.log_in().post("/predict", json={"query": "What is this?", "images": [image()] * 5})
    assert "at most 4 pictures" in assert_problem(response, 422, "invalid-input")


def test_four_pictures_of_the_largest_size_may_come_and_a_larger_body_may_not(api: Api) -> None:
    client = api.log_in()
    nearly = base64.b64encode(b"x" * 10_000_000).decode()
    response = client.post("/predict", json={"query": "What is this?", "images": [nearly] * 4})
    assert_problem(response, 422, "picture-refused")
    response = client.post("/predict", json={"query": "What is this?", "images": [nearly] * 5})
    assert_problem(response, 413, "body-too-large")


def test_the_same_question_with_the_same_pictures_is_the_same_job(api: Api) -> None:
    client = api.log_in()
    headers = {"Idempotency-Key": "k", "Prefer": "respond-async"}

    def ask(*images: str) -> httpx.Response:
        return client.post("/predict", json={"query": "What is this?", "images": images}, headers=headers)

    first, before = ask(image("red")), kept(api)
    assert ask(image("red")).json()["id"] == first.json()["id"]
    assert kept(api) == before
    for others in ((image("blue"),), (), (image("red"), image("red"))):
        assert_problem(ask(*others), 422, "idempotency-mismatch")
