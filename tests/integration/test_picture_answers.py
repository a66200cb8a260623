"""What the worker gives the model to see: the pictures of a question and of what was said before."""

import base64
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from sqlalchemy import select, text, update

from models.demo.shape import IMAGE_TOKENS
from shared.db.engine import connect
from shared.db.tables import pictures
from shared.jobs.lifecycle import State
from shared.jobs.records import Job
from tests.clinic import Clinic, open_clinic
from tests.conftest import MakeApi
from tests.drawn import encoded, image

SAFE = "Asthma narrows the airways. "
REFERRAL = "Please see a doctor about it."
SOFT = "<image_soft_token>"
#: Takes about a third of what a question may take, in tokens.
LONG = "Is a fever harmless? " * 180


@pytest.fixture
def clinic(make_api: MakeApi) -> Iterator[Clinic]:
    with open_clinic(make_api) as opened:
        yield opened


def colours(clinic: Clinic, number: int) -> list[tuple[int, ...]]:
    """Of each picture that the model saw; they have one colour each."""
    pixels = clinic.engine.requests[number].pixel_values
    assert pixels is not None
    assert pixels.shape[1:] == (3, 64, 64)
    return [tuple(np.rint((each[:, 0, 0] + 1) * 127.5).astype(int).tolist()) for each in pixels]


def soft_tokens(clinic: Clinic, number: int) -> int:
    """Of how many pictures the prompt holds the place."""
    ids = clinic.engine.requests[number].prompt_token_ids
    soft = clinic.worker._tools.model.text._backend.token_to_id(SOFT)
    assert ids.count(soft) % IMAGE_TOKENS == 0
    return ids.count(soft) // IMAGE_TOKENS


def talk(clinic: Clinic, *questions: tuple[str, Sequence[str]]) -> list[Job]:
    """Ask one question after the other in one conversation, each with pictures of these colours."""
    answered: list[Job] = []
    for query, shown in questions:
        clinic.engine.script += [SAFE]
        body: dict[str, object] = {"images": [image(colour, (64, 64)) for colour in shown]}
        if answered:
            body["conversation_id"] = answered[0].conversation_id
        answered.append(clinic.answered(clinic.ask(query, **body)))
    return answered


RED, LIME, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def test_the_model_sees_the_pictures_of_a_question_in_their_order(clinic: Clinic) -> None:
    (job,) = talk(clinic, ("What are these?", ["red", "blue"]))
    assert job.state is State.SUCCEEDED
    assert colours(clinic, 0) == [RED, BLUE]
    assert soft_tokens(clinic, 0) == 2
    assert job.prompt_tokens == len(clinic.engine.requests[0].prompt_token_ids)


def test_a_question_without_pictures_goes_on_without_pixels(clinic: Clinic) -> None:
    talk(clinic, ("What is asthma?", []))
    assert clinic.engine.requests[0].pixel_values is None


def test_a_later_question_still_sees_the_pictures_of_earlier_ones(clinic: Clinic) -> None:
    talk(clinic, ("What is it?", ["red"]), ("And this?", ["lime", "blue"]), ("Which is worse?", []))
    assert colours(clinic, 1) == colours(clinic, 2) == [RED, LIME, BLUE]
    assert soft_tokens(clinic, 2) == 3


def test_pictures_go_with_the_turn_that_no_longer_fits(clinic: Clinic) -> None:
    talk(clinic, (LONG, ["red"]), (LONG, ["lime"]), (LONG, ["blue"]), ("And now?", []))
    asked = clinic.prompt(3).count("Is a fever harmless?") // 180
    assert 0 < asked < 3
    assert colours(clinic, 3) == [RED, LIME, BLUE][-asked:]
    assert soft_tokens(clinic, 3) == asked


def test_an_answer_that_goes_on_sees_the_pictures_again(clinic: Clinic) -> None:
    job_id, api = clinic.ask("What is it?", images=[image("red")]), clinic.api
    claimed = api.claim()
    api.release(claimed, SAFE)
    with api.gateway.database.write() as connection:
        api.gateway.jobs.drain(connection, claimed.claim)
    clinic.engine.script += [REFERRAL]
    assert clinic.answered(job_id).state is State.SUCCEEDED
    assert clinic.prompt(0).rstrip().endswith(SAFE.strip())
    assert colours(clinic, 0) == [RED]


def spoil(clinic: Clinic, conversation_id: str | None, data: bytes | None) -> None:
    """As an owner of the server, keep `data` in the picture's place; None: bytes that no key opens."""
    assert conversation_id is not None
    owner = connect(clinic.api.settings.database_owner_url)
    with closing(owner), owner.write() as connection:
        key = clinic.api.gateway.conversations.key(connection, conversation_id)
        picture_id = connection.execute(select(pictures.c.id)).scalar_one()
        sealed = key.encrypt_bytes(data or b"", place=f"picture:{picture_id}" if data else "elsewhere")
        held = (
            "pictures_no_update" if connection.dialect.name == "sqlite" else "pictures_no_change ON pictures"
        )
        connection.execute(text(f"DROP TRIGGER {held}"))
        connection.execute(update(pictures).values(ciphertext=sealed))


@pytest.mark.parametrize("data", [b"no picture", None], ids=["no picture", "no key opens it"])
def test_a_picture_that_cannot_be_opened_ends_the_job_at_once(clinic: Clinic, data: bytes | None) -> None:
    job_id = clinic.ask("What is it?", images=[image("red")])
    spoil(clinic, clinic.job(job_id).conversation_id, data)
    job = clinic.answered(job_id)
    assert (job.state, job.attempt, job.error) == (State.FAILED, 1, "picture-unreadable")
    assert clinic.engine.requests == []


def test_a_model_that_reads_no_pictures_is_asked_nothing(clinic: Clinic) -> None:
    job_id = clinic.ask("What is it?", images=[image("red")])
    tools = clinic.worker._tools
    clinic.worker._tools = replace(tools, model=replace(tools.model, pictures=None))
    job = clinic.answered(job_id)
    assert (job.state, job.attempt, job.error) == (State.FAILED, 1, "no-pictures")
    assert clinic.engine.requests == []


def test_a_file_of_another_kind_reaches_the_model_too(clinic: Clinic) -> None:
    photo = base64.b64encode(encoded(Image.new("L", (64, 64), 128), "JPEG")).decode()
    clinic.engine.script += [SAFE]
    assert clinic.answered(clinic.ask("What is it?", images=[photo])).state is State.SUCCEEDED
    assert colours(clinic, 0) == [(128, 128, 128)]
