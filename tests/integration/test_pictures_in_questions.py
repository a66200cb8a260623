"""Questions with pictures: what is taken, what is refused, who sees them."""

import base64
import socket
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from PIL import Image
from sqlalchemy import func, select

from services.api import middleware
from shared.auth.roles import Role
from shared.db.tables import audit_events, conversations, pictures
from shared.privacy.envelope import KeyDestroyed
from tests.conftest import MakeApi
from tests.drawn import colour_of, encoded, image
from tests.integration.test_access import details_of
from tests.support import Api, ask_async, assert_problem, wait_until

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


def test_nobody_who_is_not_logged_in_may_send_a_large_body(api: Api) -> None:
    body = {"query": "What is this?", "images": ["A" * 1_000_000]}
    client = api.client()
    assert_problem(client.post("/predict", json=body), 401, "not-authenticated")
    client.headers["Authorization"] = "Bearer nobody"
    assert_problem(client.post("/predict", json=body), 401, "not-authenticated")


def test_nothing_of_a_body_is_read_that_nobody_known_sends(api: Api) -> None:
    at = httpx.URL(api.url)
    head = f"POST /predict HTTP/1.1\r\nHost: {at.host}\r\nContent-Length: 50000000\r\n\r\n"
    with socket.create_connection((at.host, at.port or 80), timeout=10) as connection:
        connection.sendall(head.encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 401")


def test_a_model_that_reads_none_says_so(make_api: MakeApi) -> None:
    api = make_api(model="gemma-1b")
    response = api.log_in().post("/predict", json={"query": "What is this?", "images": [image()]})
    assert "reads no pictures" in assert_problem(response, 422, "invalid-input")
    assert kept(api, conversations) == 0


@pytest.mark.parametrize("sent", [image(), BROKEN])
def test_a_person_in_need_is_answered_at_once_whatever_picture_comes_along(api: Api, sent: str) -> None:
    response = api.log_in().post("/predict", json={"query": "I want to kill myself", "images": [sent]})
    assert response.status_code == 200
    assert response.json()["guard"]["action"] == "crisis"
    assert kept(api) == 0  # none was opened


def test_a_person_in_need_reads_where_help_is_though_the_pictures_are_too_large(api: Api) -> None:
    body = {"query": "I want to kill myself", "images": ["A" * 60_000_000]}
    detail = assert_problem(api.log_in().post("/predict", json=body), 413, "body-too-large")
    assert api.gateway.help_line in detail


def test_a_large_body_is_base64_only(api: Api) -> None:
    client = api.log_in()
    numbers, blanks = b'{"query":"?","images":[' + b"1," * 300_000 + b"1]}", b'{"query":"' + b" " * 600_000
    for body in (numbers, blanks + b'"}'):
        response = client.post("/predict", content=body, headers={"Content-Type": "application/json"})
        assert "besides pictures" in assert_problem(response, 413, "body-too-large")


def test_a_large_body_that_does_not_come_is_given_up(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "_SLOWEST_S", 0.1)
    monkeypatch.setattr(middleware, "_SLOWEST_BYTES", 10**9)
    token, at = api.token(api.person()), httpx.URL(api.url)
    head = (
        f"POST /predict HTTP/1.1\r\nHost: {at.host}\r\nAuthorization: Bearer {token}\r\n"
        "Content-Type: application/json\r\nContent-Length: 1000000\r\n\r\n"
    )
    with socket.create_connection((at.host, at.port or 80), timeout=10) as connection:
        connection.sendall(head.encode() + b'{"query":')
        assert connection.recv(1000).startswith(b"HTTP/1.1 408")
    wait_until(lambda: not api.app.state.large_bodies.held, 10, "for its room to be free")


def test_one_persons_large_bodies_take_little_room_at_a_time(api: Api) -> None:
    person = api.person()
    token, at = api.token(person), httpx.URL(api.url)
    head = (
        f"POST /predict HTTP/1.1\r\nHost: {at.host}\r\nAuthorization: Bearer {token}\r\n"
        "Content-Type: application/json\r\nContent-Length: 51000000\r\n\r\n"
    )
    with ExitStack() as stack:
        first, second = (
            stack.enter_context(socket.create_connection((at.host, at.port or 80), timeout=10)) for _ in "12"
        )
        first.sendall(head.encode())
        wait_until(lambda: api.app.state.large_bodies.held, 10, "for the first to be let in")
        second.sendall(head.encode())
        assert second.recv(1000).startswith(b"HTTP/1.1 429")
    wait_until(lambda: not api.app.state.large_bodies.held, 10, "for the first to be let go")


def test_another_answer_is_to_the_same_pictures(api: Api) -> None:
    client = api.log_in()
    conversation = ask_async(client, images=[image()])["conversation_id"]
    before = images_of(client, conversation)
    api.answer("A mole.")
    assert client.post(f"/v1/conversations/{conversation}/regenerate").status_code == 202
    api.answer("A freckle.")
    assert images_of(client, conversation) == before


def test_after_an_erasure_nobody_opens_a_picture(api: Api) -> None:
    client = api.log_in()
    conversation = ask_async(client, images=[image()])["conversation_id"]
    (picture,) = images_of(client, conversation)
    with api.gateway.database.read() as connection:
        key = api.gateway.conversations.key(connection, conversation)
    api.answer("A mole.")
    client.post(f"/v1/conversations/{conversation}/erase").raise_for_status()
    response = client.get(f"/v1/conversations/{conversation}/images/{picture['id']}")
    assert_problem(response, 404, "not-found")
    with api.gateway.database.read() as connection:
        with pytest.raises(KeyDestroyed):
            api.gateway.conversations.key(connection, conversation)
        sealed = connection.execute(
            select(pictures.c.ciphertext).where(pictures.c.id == picture["id"])
        ).scalar_one()
    assert key.decrypt_bytes(sealed, place=f"picture:{picture['id']}"), "only the key is gone"


# -- auditors, and admins in an emergency


def test_an_auditor_sees_a_picture_only_while_a_reveal_is_open_and_each_look_is_an_event(api: Api) -> None:
    conversation, picture = shown_to_nobody(api)
    auditor = api.person(Role.AUDITOR)
    client = api.client(auditor)
    place = f"/v1/audit/conversations/{conversation}"
    masked = client.get(place).json()["turns"][0]["images"]
    assert [each["id"] for each in masked] == [picture]
    assert_problem(client.get(f"{place}/images/{picture}"), 403, "not-allowed")
    client.post(f"{place}/reveal", json={"reason": "She fainted on the ward."}).raise_for_status()
    shown = client.get(f"{place}/images/{picture}")
    assert colour_of(shown.content) == RED
    event = api.audit("conversation.revealed")[-1]
    assert details_of(event)["image"] == picture
    assert_problem(client.get(f"{place}/images/{conversation}"), 404, "not-found")
    _, foreign = shown_to_nobody(api)
    assert_problem(client.get(f"{place}/images/{foreign}"), 404, "not-found")


def test_an_admin_sees_a_picture_in_an_emergency_only_and_each_look_is_an_event(api: Api) -> None:
    conversation, picture = shown_to_nobody(api)
    admin = api.log_in(Role.ADMIN)
    body = {"conversation_id": conversation, "reason": "She fainted on the ward.", "minutes": 30}
    grant = f"/v1/break-glass/{admin.post('/v1/break-glass', json=body).json()['id']}"
    assert colour_of(admin.get(f"{grant}/images/{picture}").content) == RED
    assert details_of(api.audit("break_glass.read")[-1])["image"] == picture
    assert_problem(api.log_in(Role.ADMIN).get(f"{grant}/images/{picture}"), 404, "not-found")
    admin.post(f"{grant}/end").raise_for_status()
    assert_problem(admin.get(f"{grant}/images/{picture}"), 403, "not-allowed")


def shown_to_nobody(api: Api) -> tuple[str, str]:
    """The ids of a conversation, and of its picture."""
    owner = api.log_in()
    conversation = str(ask_async(owner, images=[image("red")])["conversation_id"])
    return conversation, str(images_of(owner, conversation)[0]["id"])
