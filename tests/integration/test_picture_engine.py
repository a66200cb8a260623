"""Requests with pictures, on the demo model: what the engine sees, gives, refuses, stops and survives."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import GenerationConfig, PreTrainedModel

from models.demo.pictures import QUESTIONS, SIDES, Side, answer, draw_picture
from services.worker_infer.engines.base import GenerationRequest, TokenStream
from services.worker_infer.engines.pictures import PictureEngine, PictureLimits
from services.worker_infer.loading import LoadedModel, load_model
from shared.catalogue import CATALOGUE
from tests.integration.test_engine_paged import drained

SOFT = 8
TOKENS = 16
LIMITS = PictureLimits(context_tokens=512, cache_tokens=4096, max_running=4)
Pixels = NDArray[np.float32]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def demo() -> LoadedModel:
    return load_model(CATALOGUE["demo"], device=torch.device("cpu"), dtype=torch.float32)


def started(demo: LoadedModel, limits: PictureLimits = LIMITS) -> PictureEngine:
    engine = PictureEngine(
        stop_token_ids=demo.stop_token_ids, soft_token_id=SOFT, tokens_per_picture=TOKENS, limits=limits
    )
    engine.start()
    return engine


@pytest.fixture
def engine(demo: LoadedModel) -> Iterator[PictureEngine]:
    engine = started(demo)
    yield engine
    engine.close()


def pixels(*sides: Side, seed: int = 5) -> Pixels:
    """Pictures as the vision tower reads them."""
    painter = np.random.default_rng(seed)
    drawn = np.stack([draw_picture(side, painter) for side in sides])
    scaled: Pixels = (drawn.transpose(0, 3, 1, 2) / np.float32(127.5) - 1).astype(np.float32)
    return scaled


def prompt(demo: LoadedModel, question: str = QUESTIONS[0], pictures: int = 1) -> list[int]:
    shown = f"\n\n<start_of_image>{'<image_soft_token>' * TOKENS}<end_of_image>\n\n" * pictures
    text = f"<bos><start_of_turn>user\n{shown}{question}<end_of_turn>\n<start_of_turn>model\n"
    ids: list[int] = demo.tokenizer.encode(text, add_special_tokens=False)
    return ids


def request(
    name: str, token_ids: list[int], seen: Pixels, new: int = 40, **rest: object
) -> GenerationRequest:
    return GenerationRequest(
        request_id=name, prompt_token_ids=token_ids, max_new_tokens=new, pixel_values=seen, **rest
    )  # type: ignore[arg-type]


def generated(demo: LoadedModel, wanted: GenerationRequest) -> list[int]:
    """What `generate` says to the same request, without what ends it."""
    ids = torch.tensor([wanted.prompt_token_ids])
    output = demo.model.generate(
        ids,
        pixel_values=torch.from_numpy(wanted.pixel_values),
        token_type_ids=ids.eq(SOFT).long(),
        attention_mask=torch.ones_like(ids),
        generation_config=GenerationConfig(
            do_sample=False,
            max_new_tokens=wanted.max_new_tokens,
            eos_token_id=sorted(demo.stop_token_ids),
            pad_token_id=0,
        ),
    )
    return [token for token in output[0, ids.shape[1] :].tolist() if token not in demo.stop_token_ids]


def asked(demo: LoadedModel) -> list[GenerationRequest]:
    """Three requests of different lengths and with different numbers of pictures."""
    long = "My grandmother asked me to look at this. " * 12
    return [
        request("short", prompt(demo), pixels("left")),
        request("long", prompt(demo, long + QUESTIONS[1], pictures=2), pixels("right", "left")),
        request("cut", prompt(demo, QUESTIONS[6]), pixels("right"), new=7),
    ]


def test_alone_each_greedy_answer_is_that_of_generate(engine: PictureEngine, demo: LoadedModel) -> None:
    for each in asked(demo):
        assert drained(engine.submit(each, demo.model)) == generated(demo, each)


def together(
    engine: PictureEngine, model: PreTrainedModel, requests: list[GenerationRequest]
) -> list[TokenStream]:
    """Streams of requests that are computed in one batch: the engine's thread sees none before all wait."""
    with engine._changed:
        return [engine.submit(each, model) for each in requests]


def test_in_one_batch_each_greedy_answer_is_that_of_generate(
    engine: PictureEngine, demo: LoadedModel
) -> None:
    streams = together(engine, demo.model, asked(demo))
    assert [drained(stream) for stream in streams] == [generated(demo, each) for each in asked(demo)]


def test_it_sees_on_which_side_the_patch_lies(engine: PictureEngine, demo: LoadedModel) -> None:
    seen = [
        request(f"{side} {seed}", prompt(demo), pixels(side, seed=seed)) for side in SIDES for seed in (1, 2)
    ]
    said = [demo.tokenizer.decode(drained(stream)) for stream in together(engine, demo.model, seen)]
    assert said == [answer(side) for side in SIDES for _ in (1, 2)]
