"""From a kept picture's file to the numbers that the model sees."""

import io

import numpy as np
import pytest
from PIL import Image
from transformers import AutoConfig, AutoProcessor

from models.demo.evaluate import WEIGHTS
from models.demo.pictures import draw_picture
from services.worker_infer.pixels import PictureReader, PictureUnreadable
from shared.pictures import MAX_PIXELS
from tests.drawn import encoded

READER = PictureReader(AutoConfig.from_pretrained(WEIGHTS))


def test_the_numbers_are_those_of_the_models_own_processor() -> None:
    drawn = Image.fromarray(draw_picture("left", np.random.default_rng(1)))
    sizes = [drawn, drawn.resize((90, 41)), drawn.resize((20, 30)).convert("L")]
    wanted = AutoProcessor.from_pretrained(WEIGHTS, backend="pil").image_processor(
        images=[each.convert("RGB") for each in sizes], return_tensors="np"
    )["pixel_values"]
    given = READER.read([encoded(each) for each in sizes])
    assert given.shape == (3, 3, 64, 64)
    assert given.dtype == np.float32
    assert np.array_equal(given, wanted)


def test_a_picture_of_the_right_size_is_only_scaled() -> None:
    drawn = draw_picture("right", np.random.default_rng(2))
    given = READER.read([encoded(Image.fromarray(drawn))])
    assert np.allclose(given[0].transpose(1, 2, 0), drawn / 127.5 - 1, atol=1e-6)


def test_what_does_not_open_is_refused_with_what_to_do() -> None:
    whole = encoded(Image.new("RGB", (64, 64), "red"))
    large = io.BytesIO()
    Image.new("1", (MAX_PIXELS // 1000 + 1, 1000)).save(large, "PNG")
    for broken in (b"no picture", whole[:-40], large.getvalue()):
        with pytest.raises(PictureUnreadable, match="send it again"):
            READER.read([whole, broken])
