"""Requests with pictures, on the demo model: what the engine sees, gives, refuses, stops and survives."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.utils.hooks import RemovableHandle
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.continuous_batching.requests import RequestState

from models.demo.pictures import QUESTIONS, SIDES, Side, answer, draw_picture
from services.worker_infer.engines.base import FinishReason, GenerationRequest, Sampling, TokenStream
from services.worker_infer.engines.errors import EngineCrashed, EngineUnavailable, OutOfMemory, RequestTooLong
from services.worker_infer.engines.picture_batch import PictureBatch
from services.worker_infer.engines.pictures import PictureEngine, PictureLimits
from services.worker_infer.engines.sampling import next_tokens
from services.worker_infer.engines.view import make_view
from services.worker_infer.fitting import share_for_pictures
from services.worker_infer.loading import LoadedModel, load_model
from shared.catalogue import CATALOGUE
from tests.integration.test_engine_paged import LONG, NO_MEMORY, break_once, drained
from tests.integration.test_engine_sampling import scored
from tests.tiny_model import tiny_model

SOFT = 8
TOKENS = 16
LIMITS = PictureLimits(context_tokens=512, cache_tokens=4096, max_running=4)
#: So hot that the model hardly ever ends its answer.
ENDLESS = Sampling(temperature=10.0, seed=1)
Pixels = NDArray[np.float32]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def demo() -> LoadedModel:
    return load_model(CATALOGUE["demo"], device=torch.device("cpu"), dtype=torch.float32)


def started(
    demo: LoadedModel, limits: PictureLimits = LIMITS, beside: Callable[[], int] = lambda: 0
) -> PictureEngine:
    engine = PictureEngine(
        stop_token_ids=demo.stop_token_ids,
        soft_token_id=SOFT,
        tokens_per_picture=TOKENS,
        limits=limits,
        beside=beside,
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


def test_with_random_weights_and_a_short_window_answers_are_those_of_generate(
    engine: PictureEngine, demo: LoadedModel
) -> None:
    """The demo model says the same under many a wrong mask; random weights do not."""
    tiny, chance = replace(demo, model=tiny_model()), random.Random(3)
    shown = [7, *[SOFT] * TOKENS, 9]
    requests = []
    for name, before, after in (("one", 4, 9), ("two", 40, 3), ("three", 11, 70)):
        words = [chance.randrange(270, 350) for _ in range(before + after)]
        requests.append(request(name, [2, *words[:before], *shown, *words[before:]], pixels("left")))
    wanted = [generated(tiny, each) for each in requests]
    assert [drained(engine.submit(each, tiny.model)) for each in requests] == wanted
    assert [drained(stream) for stream in together(engine, tiny.model, requests)] == wanted


def test_it_sees_on_which_side_the_patch_lies(engine: PictureEngine, demo: LoadedModel) -> None:
    seen = [
        request(f"{side} {seed}", prompt(demo), pixels(side, seed=seed)) for side in SIDES for seed in (1, 2)
    ]
    said = [demo.tokenizer.decode(drained(stream)) for stream in together(engine, demo.model, seen)]
    assert said == [answer(side) for side in SIDES for _ in (1, 2)]


def test_a_cancelled_request_changes_no_answer_beside_it_and_costs_nothing_more(
    engine: PictureEngine, demo: LoadedModel
) -> None:
    first, second, third = asked(demo)
    streams = together(engine, demo.model, [first, second, third])
    next(streams[1])
    engine.cancel(second.request_id)
    assert [drained(streams[0]), drained(streams[2])] == [generated(demo, first), generated(demo, third)]
    assert len(drained(streams[1])) < len(generated(demo, second))
    assert streams[1].finish_reason is FinishReason.CANCELLED


def rows_of_passes(model: PreTrainedModel, rows: list[int]) -> RemovableHandle:
    """Note in `rows` how many rows each pass computes."""

    def note(_: object, args: object, kwargs: dict[str, torch.Tensor]) -> None:
        rows.append(len(kwargs["input_ids"]))

    return model.register_forward_pre_hook(note, with_kwargs=True)


def test_what_is_over_is_computed_no_more(engine: PictureEngine, demo: LoadedModel) -> None:
    rows: list[int] = []
    hook = rows_of_passes(demo.model, rows)
    streams = together(
        engine,
        demo.model,
        [replace(each, max_new_tokens=min(each.max_new_tokens, 9)) for each in asked(demo)],
    )
    assert [len(drained(stream)) for stream in streams] == [9, 9, 7]
    hook.remove()
    assert rows == [3] * 7 + [2] * 2
    assert engine.stats().cache_use == 0.0


def test_a_request_past_its_deadline_leaves_the_batch(engine: PictureEngine, demo: LoadedModel) -> None:
    first, second, _ = asked(demo)
    late = replace(second, deadline=time.monotonic())
    running, ended = together(engine, demo.model, [first, late])
    assert drained(running) == generated(demo, first)
    assert (drained(ended), ended.finish_reason) == ([], FinishReason.DEADLINE)


def test_a_seed_gives_the_same_answer_alone_and_among_others(
    engine: PictureEngine, demo: LoadedModel
) -> None:
    first, second, third = asked(demo)
    drawn = replace(first, sampling=Sampling(temperature=5.0, top_p=0.98, seed=11))
    alone = drained(engine.submit(drawn, demo.model))
    streams = together(engine, demo.model, [second, third, drawn])
    assert drained(streams[2]) == alone != generated(demo, first)
    assert drained(streams[0]) == generated(demo, second)
    other = replace(drawn, sampling=Sampling(temperature=5.0, top_p=0.98, seed=12))
    assert drained(engine.submit(other, demo.model)) != alone


def test_it_samples_as_the_paged_engine_does(demo: LoadedModel) -> None:
    scores = torch.randn((2, 50), generator=torch.Generator().manual_seed(1)) * 3
    sampling = Sampling(temperature=0.9, top_p=0.9, seed=4)
    state = RequestState(request_id="one", initial_tokens=[2])
    state.position_offset = 7
    state.logit_processor_kwargs = {"temperature": 0.9, "top_p": 0.9, "seed": 4}
    wanted = scored(scores[:1], [state]).argmax(dim=-1).tolist()
    assert next_tokens(scores, [(sampling, 7), (Sampling(), 3)]) == [*wanted, int(scores[1].argmax())]


def test_a_request_beyond_its_share_of_the_memory_is_refused(demo: LoadedModel) -> None:
    engine = started(demo, replace(LIMITS, cache_tokens=60))
    try:
        with pytest.raises(RequestTooLong, match="the KV cache for questions with pictures holds 60"):
            engine.submit(request("long", prompt(demo), pixels("left")), demo.model)
        engine._limits = LIMITS
        with pytest.raises(RequestTooLong, match="the model's context holds 512"):
            engine.submit(request("long", prompt(demo), pixels("left"), new=600), demo.model)
    finally:
        engine.close()


@pytest.mark.parametrize(
    ("affordable", "share"), [(100_000, 12_500), (9_000, 2_000), (4_000, 2_000), (3_999, 0), (10**7, 32_000)]
)
def test_pictures_get_a_small_share_with_room_for_one_answer_after_text_has_it_or_none(
    affordable: int, share: int
) -> None:
    assert share_for_pictures(affordable=affordable, context_tokens=2_000, requests=32) == share


def test_only_as_many_run_at_once_as_the_memory_has_room_for(demo: LoadedModel) -> None:
    each = [replace(wanted, max_new_tokens=12) for wanted in asked(demo)]
    room = max(len(wanted.prompt_token_ids) for wanted in each) + 12
    engine = started(demo, replace(LIMITS, cache_tokens=room))
    used: list[int] = []
    hook = demo.model.register_forward_pre_hook(lambda *_: used.append(engine._used_tokens()))
    try:
        streams = together(engine, demo.model, each)
        assert [drained(stream) for stream in streams] == [generated(demo, wanted) for wanted in each]
    finally:
        engine.close()
        hook.remove()
    assert max(used) <= room


def test_a_request_that_comes_later_need_not_wait_for_the_end_of_the_first(
    engine: PictureEngine, demo: LoadedModel
) -> None:
    first, _, third = asked(demo)
    running = engine.submit(replace(first, max_new_tokens=LONG, sampling=ENDLESS), demo.model)
    next(running)
    later = engine.submit(third, demo.model)
    assert drained(later) == generated(demo, third)
    assert engine.stats().running == 1
    running.close()


def test_a_prompt_without_the_place_of_its_pictures_is_refused(
    engine: PictureEngine, demo: LoadedModel
) -> None:
    with pytest.raises(ValueError, match="soft tokens"):
        engine.submit(request("one", prompt(demo), pixels("left", "right")), demo.model)


def test_a_broken_pass_fails_its_own_requests_and_the_engine_goes_on(
    engine: PictureEngine, demo: LoadedModel
) -> None:
    broken = make_view(demo.model)
    first, second, third = asked(demo)
    fine = engine.submit(first, demo.model)
    next(fine)
    streams = together(engine, broken, [second, third])
    for stream in streams:
        next(stream)
    break_once(broken, RuntimeError("broken on purpose"))
    for stream in streams:
        with pytest.raises(EngineCrashed):
            drained(stream)
    assert [*drained(fine)] == generated(demo, first)[1:]
    assert drained(engine.submit(second, broken)) == generated(demo, second)
    assert (engine.stats().restarts, engine.stats().running, engine.health().ok) == (1, 0, True)


@pytest.mark.parametrize(("others", "error"), [(0, OutOfMemory), (1, EngineCrashed)])
def test_only_a_request_that_ran_alone_is_blamed_for_the_memory(
    engine: PictureEngine, demo: LoadedModel, others: int, error: type[Exception]
) -> None:
    view = make_view(demo.model)
    streams = together(engine, view, [replace(each, sampling=ENDLESS) for each in asked(demo)[: 1 + others]])
    for stream in streams:
        next(stream)
    break_once(view, NO_MEMORY)
    for stream in streams:
        with pytest.raises(error):
            drained(stream)


def test_one_beside_which_text_is_answered_is_not_blamed_for_the_memory(demo: LoadedModel) -> None:
    engine = started(demo, beside=lambda: 1)
    view = make_view(demo.model)
    stream = engine.submit(asked(demo)[0], view)
    next(stream)
    break_once(view, NO_MEMORY)
    with pytest.raises(EngineCrashed):
        drained(stream)
    engine.close()


def test_pixels_are_let_go_once_they_are_seen(demo: LoadedModel) -> None:
    batch = PictureBatch(demo.model, asked(demo))
    batch.advance()
    assert all(each.pixel_values is None for each in batch._requests)


def test_a_drain_that_comes_late_keeps_it_closed(demo: LoadedModel) -> None:
    engine = started(demo)
    engine.close()
    engine.drain()
    assert engine.health().detail == "closed"


def test_a_token_is_drawn_by_the_place_after_what_is_read(demo: LoadedModel) -> None:
    wanted = replace(asked(demo)[0], sampling=ENDLESS)
    scores: list[torch.Tensor] = []
    hook = demo.model.register_forward_hook(lambda *passed: scores.append(passed[-1].logits[:, -1].float()))
    batch = PictureBatch(demo.model, [wanted])
    drawn = [batch.advance()[0] for _ in range(3)]
    hook.remove()
    places = range(len(wanted.prompt_token_ids), len(wanted.prompt_token_ids) + 3)
    assert drawn == [next_tokens(each, [(ENDLESS, at)])[0] for each, at in zip(scores, places, strict=True)]


def test_one_that_shall_run_alone_does_so(engine: PictureEngine, demo: LoadedModel) -> None:
    first, second, third = asked(demo)
    rows: list[int] = []
    hook = rows_of_passes(demo.model, rows)
    streams = together(engine, demo.model, [first, replace(second, alone=True), third])
    given = [drained(stream) for stream in streams]
    hook.remove()
    assert given == [generated(demo, each) for each in (first, second, third)]
    assert max(rows) == 1


def test_drain_ends_everything_and_refuses_more(engine: PictureEngine, demo: LoadedModel) -> None:
    freed: list[str] = []
    streams = [
        engine.submit(each, demo.model, on_end=lambda name=each.request_id: freed.append(name))
        for each in asked(demo)
    ]
    next(streams[0])
    engine.drain()
    for stream in streams:
        drained(stream)
        assert stream.finish_reason is FinishReason.DRAINED
    with pytest.raises(EngineUnavailable, match="draining"):
        engine.submit(asked(demo)[0], demo.model)
    engine.close()
    assert sorted(freed) == ["cut", "long", "short"]


def test_close_leaves_no_thread_behind(demo: LoadedModel) -> None:
    before = set(threading.enumerate())
    engine = started(demo)
    next(engine.submit(asked(demo)[0], demo.model))
    engine.close()
    assert set(threading.enumerate()) <= before
