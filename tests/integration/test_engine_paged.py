"""The paged engine, on a real model with random weights: what it gives, refuses, stops and survives."""

import random
import threading
import time
from collections.abc import Iterator

import pytest
import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.continuous_batching import ContinuousBatchingManager

from services.worker_infer.engines.base import FinishReason, GenerationRequest, Sampling, TokenStream
from services.worker_infer.engines.errors import EngineCrashed, EngineUnavailable, OutOfMemory, RequestTooLong
from services.worker_infer.engines.manager import PagedLimits
from services.worker_infer.engines.paged import PagedEngine
from tests.tiny_model import WINDOW, tiny_model

STOPS = [1, 6]
LONG = 400


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def plain_model() -> PreTrainedModel:
    return tiny_model()


@pytest.fixture
def engine() -> Iterator[PagedEngine]:
    yield from started(PagedLimits(context_tokens=512, cache_tokens=4096, max_running=4, batch_tokens=32))


@pytest.fixture
def one_slot() -> Iterator[PagedEngine]:
    yield from started(PagedLimits(context_tokens=512, cache_tokens=1024, max_running=1))


def started(limits: PagedLimits, model: PreTrainedModel | None = None) -> Iterator[PagedEngine]:
    engine = PagedEngine(model or tiny_model(), stop_token_ids=STOPS, limits=limits)
    engine.start()
    try:
        yield engine
    finally:
        engine.close()


def prompts(count: int, seed: int = 1) -> list[list[int]]:
    """Prompts of 1 to 3 windows, so that prefills are cut into steps and windows slide."""
    rng = random.Random(seed)
    return [
        [2, *(rng.randrange(270, 350) for _ in range(rng.randrange(5, 3 * WINDOW)))] for _ in range(count)
    ]


def request(name: str, prompt: list[int], new: int = 40, **rest: object) -> GenerationRequest:
    return GenerationRequest(request_id=name, prompt_token_ids=prompt, max_new_tokens=new, **rest)  # type: ignore[arg-type]


def drained(stream: TokenStream) -> list[int]:
    return [token_id for token_ids in stream for token_id in token_ids]


def generated(model: PreTrainedModel, prompt: list[int], new: int = 40) -> list[int]:
    """What `generate` says, one prompt at a time, without what ends it."""
    ids = torch.tensor([prompt])
    config = GenerationConfig(do_sample=False, max_new_tokens=new, eos_token_id=STOPS, pad_token_id=0)
    output = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    return [token_id for token_id in output[0, len(prompt) :].tolist() if token_id not in STOPS]


def test_concurrent_greedy_answers_equal_generate(engine: PagedEngine, plain_model: PreTrainedModel) -> None:
    asked = prompts(12)
    streams = [engine.submit(request(str(number), prompt)) for number, prompt in enumerate(asked)]
    assert [drained(stream) for stream in streams] == [generated(plain_model, prompt) for prompt in asked]


def test_the_text_only_class_equals_generate() -> None:
    limits = PagedLimits(context_tokens=512, cache_tokens=2048, max_running=4)
    for engine in started(limits, tiny_model(text_only=True)):
        asked = prompts(3)
        streams = [engine.submit(request(str(number), prompt)) for number, prompt in enumerate(asked)]
        plain = tiny_model(text_only=True)
        assert [drained(stream) for stream in streams] == [generated(plain, prompt) for prompt in asked]


def test_a_cache_too_small_for_all_changes_no_answer(plain_model: PreTrainedModel) -> None:
    limits = PagedLimits(context_tokens=512, cache_tokens=128, max_running=4, page_tokens=8, batch_tokens=32)
    for engine in started(limits):
        asked = prompts(6)
        streams = [engine.submit(request(str(number), prompt)) for number, prompt in enumerate(asked)]
        assert [drained(stream) for stream in streams] == [generated(plain_model, prompt) for prompt in asked]


def test_an_answer_ends_before_the_stop_token(plain_model: PreTrainedModel) -> None:
    prompt = prompts(1)[0]
    whole = generated(plain_model, prompt)
    stop = whole[9]
    engine = PagedEngine(
        tiny_model(), stop_token_ids=[stop], limits=PagedLimits(context_tokens=512, cache_tokens=1024)
    )
    engine.start()
    try:
        stream = engine.submit(request("stop", prompt))
        assert drained(stream) == whole[: whole.index(stop)]
        assert stream.finish_reason is FinishReason.STOP
    finally:
        engine.close()


def test_an_answer_ends_at_its_length(engine: PagedEngine) -> None:
    stream = engine.submit(request("length", prompts(1)[0], new=7))
    assert len(drained(stream)) == 7
    assert stream.finish_reason is FinishReason.LENGTH


def test_a_request_beyond_the_context_is_refused_with_the_numbers(engine: PagedEngine) -> None:
    with pytest.raises(
        RequestTooLong, match=r"500 prompt tokens and up to 100 .* 600; the model's context holds 512"
    ):
        engine.submit(request("long", [2] * 500, new=100))


def test_a_request_beyond_the_whole_cache_is_refused() -> None:
    limits = PagedLimits(context_tokens=4096, cache_tokens=64, max_running=2, page_tokens=8)
    for engine in started(limits):
        with pytest.raises(RequestTooLong, match="the whole KV cache holds"):
            engine.submit(request("long", [2] * 3000, new=900))
        assert len(drained(engine.submit(request("next", prompts(1)[0], new=5)))) == 5


def test_cancel_ends_the_stream_and_gives_the_slot_to_the_next(one_slot: PagedEngine) -> None:
    first, second = prompts(2)
    running = one_slot.submit(request("first", first, new=LONG))
    next(running)
    waiting = one_slot.submit(request("second", second, new=5))
    assert (one_slot.stats().running, one_slot.stats().waiting) == (1, 1)
    one_slot.cancel("first")
    assert len(drained(waiting)) == 5
    assert len(drained(running)) < LONG
    assert running.finish_reason is FinishReason.CANCELLED


def test_cancel_frees_the_cache(engine: PagedEngine) -> None:
    first, second = prompts(2)
    next(engine.submit(request("first", first, new=LONG)))
    engine.cancel("first")
    drained(engine.submit(request("second", second, new=5)))
    assert engine.stats().cache_use == 0.0


def test_a_waiting_request_can_be_cancelled(one_slot: PagedEngine) -> None:
    running = one_slot.submit(request("first", prompts(1)[0], new=LONG))
    waiting = one_slot.submit(request("second", prompts(1)[0]))
    one_slot.cancel("second")
    assert (drained(waiting), waiting.finish_reason) == ([], FinishReason.CANCELLED)
    running.close()


def test_an_id_can_be_used_again_after_a_cancel(one_slot: PagedEngine, plain_model: PreTrainedModel) -> None:
    prompt = prompts(1)[0]
    next(one_slot.submit(request("same", prompt, new=LONG)))
    one_slot.cancel("same")
    assert drained(one_slot.submit(request("same", prompt))) == generated(plain_model, prompt)


def test_an_id_in_use_is_refused(engine: PagedEngine) -> None:
    prompt = prompts(1)[0]
    with (
        engine.submit(request("same", prompt, new=LONG)),
        pytest.raises(ValueError, match="in the engine already"),
    ):
        engine.submit(request("same", prompt))


def test_leaving_the_block_early_cancels(engine: PagedEngine) -> None:
    with engine.submit(request("left", prompts(1)[0], new=LONG)) as stream:
        next(stream)
    drained(stream)
    assert stream.finish_reason is FinishReason.CANCELLED
    assert engine.stats().running == 0


def test_a_running_request_ends_at_its_deadline(engine: PagedEngine) -> None:
    stream = engine.submit(request("late", prompts(1)[0], new=LONG, deadline=time.monotonic() + 0.05))
    assert len(drained(stream)) < LONG
    assert stream.finish_reason is FinishReason.DEADLINE
    assert engine.stats().running == 0


def test_a_waiting_request_ends_at_its_deadline(one_slot: PagedEngine) -> None:
    with one_slot.submit(request("first", prompts(1)[0], new=LONG)):
        waiting = one_slot.submit(request("late", prompts(1)[0], deadline=time.monotonic()))
        assert (drained(waiting), waiting.finish_reason) == ([], FinishReason.DEADLINE)


def test_a_request_that_shall_run_alone_waits_for_those_before_it_and_holds_up_the_next(
    engine: PagedEngine, plain_model: PreTrainedModel
) -> None:
    first, second, third = prompts(3)
    running = engine.submit(request("first", first, new=LONG))
    next(running)
    alone = engine.submit(request("alone", second, new=LONG, alone=True))
    after = engine.submit(request("after", third))
    assert (engine.stats().running, engine.stats().waiting) == (1, 2)
    engine.cancel("first")
    next(alone)
    assert (engine.stats().running, engine.stats().waiting) == (1, 1)
    engine.cancel("alone")
    assert drained(after) == generated(plain_model, third)


def break_once(model: PreTrainedModel, error: BaseException) -> None:
    """Make the next forward pass raise."""

    def breaking(*_: object) -> None:
        hook.remove()
        raise error

    hook = model.register_forward_pre_hook(breaking)


# The library passes an Exception on to its requests; at a SystemExit its thread dies without a word.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("error", [RuntimeError("broken on purpose"), SystemExit()])
def test_after_a_crash_running_requests_fail_and_the_engine_works_again(
    plain_model: PreTrainedModel, error: BaseException
) -> None:
    model = tiny_model()
    limits = PagedLimits(context_tokens=512, cache_tokens=1024, max_running=1)
    for engine in started(limits, model):
        prompt = prompts(1)[0]
        running = engine.submit(request("running", prompt, new=LONG))
        waiting = engine.submit(request("waiting", prompt))
        next(running)
        break_once(model, error)
        with pytest.raises(EngineCrashed):
            drained(running)
        assert drained(waiting) == generated(plain_model, prompt)
        assert drained(engine.submit(request("after", prompt))) == generated(plain_model, prompt)
        assert engine.stats().restarts == 1
        assert engine.health().ok


NO_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def test_a_request_that_alone_runs_out_of_memory_is_told_so() -> None:
    model = tiny_model()
    for engine in started(PagedLimits(context_tokens=512, cache_tokens=1024), model):
        running = engine.submit(request("alone", prompts(1)[0], new=LONG))
        next(running)
        break_once(model, NO_MEMORY)
        with pytest.raises(OutOfMemory, match="Shorten"):
            drained(running)
        assert len(drained(engine.submit(request("after", prompts(1)[0], new=5)))) == 5


def test_of_several_requests_none_is_blamed_for_the_memory() -> None:
    model = tiny_model()
    for engine in started(PagedLimits(context_tokens=512, cache_tokens=4096, max_running=4), model):
        streams = [engine.submit(request(str(n), prompt, new=LONG)) for n, prompt in enumerate(prompts(2))]
        for stream in streams:
            next(stream)
        break_once(model, NO_MEMORY)
        for stream in streams:
            with pytest.raises(EngineCrashed):
                drained(stream)


class StumblingEngine(PagedEngine):
    """Its next start fails when told so."""

    error: Exception | None = None

    def _start_manager(self) -> ContinuousBatchingManager:
        error, self.error = self.error, None
        if error is not None:
            raise error
        return super()._start_manager()


@pytest.mark.parametrize("error", [TypeError("broken on purpose"), OSError()])
def test_an_engine_that_cannot_start_again_at_once_tries_on(error: Exception) -> None:
    model = tiny_model()
    limits = PagedLimits(context_tokens=512, cache_tokens=1024)
    engine = StumblingEngine(model, stop_token_ids=STOPS, limits=limits)
    engine.start()
    running = engine.submit(request("running", prompts(1)[0], new=LONG))
    next(running)
    engine.error = error
    break_once(model, RuntimeError("broken on purpose"))
    with pytest.raises(EngineCrashed):
        drained(running)
    assert len(drained(engine.submit(request("after", prompts(1)[0], new=5)))) == 5
    assert engine.error is None
    engine.close()


def test_a_seed_gives_the_same_answer_alone_and_among_others(
    engine: PagedEngine, plain_model: PreTrainedModel
) -> None:
    sampling = Sampling(temperature=0.9, top_p=0.95, seed=11)
    asked = prompts(4)
    alone = drained(engine.submit(request("alone", asked[0], sampling=sampling)))
    crowd = [engine.submit(request(f"greedy {number}", prompt)) for number, prompt in enumerate(asked[1:])]
    among = engine.submit(request("among", asked[0], sampling=sampling))
    assert drained(among) == alone
    assert [drained(stream) for stream in crowd] == [generated(plain_model, prompt) for prompt in asked[1:]]


def test_another_seed_gives_another_answer(engine: PagedEngine) -> None:
    prompt = prompts(1)[0]
    answers = {
        tuple(
            drained(engine.submit(request(str(seed), prompt, sampling=Sampling(temperature=1.0, seed=seed))))
        )
        for seed in range(4)
    }
    assert len(answers) == 4


def test_drain_ends_everything_and_refuses_more(one_slot: PagedEngine) -> None:
    running = one_slot.submit(request("first", prompts(1)[0], new=LONG))
    waiting = one_slot.submit(request("second", prompts(1)[0]))
    next(running)
    one_slot.drain()
    for stream in (running, waiting):
        drained(stream)
        assert stream.finish_reason is FinishReason.DRAINED
    assert not one_slot.health().ok
    with pytest.raises(EngineUnavailable, match="draining"):
        one_slot.submit(request("third", prompts(1)[0]))


def test_many_threads_each_get_their_own_answer(engine: PagedEngine, plain_model: PreTrainedModel) -> None:
    asked = prompts(10, seed=3)
    answers: dict[int, list[int]] = {}

    def ask(number: int) -> None:
        with engine.submit(request(str(number), asked[number], new=20)) as stream:
            answers[number] = drained(stream)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {number: generated(plain_model, prompt, 20) for number, prompt in enumerate(asked)}


def test_close_leaves_no_thread_behind() -> None:
    before = set(threading.enumerate())
    for engine in started(PagedLimits(context_tokens=512, cache_tokens=1024)):
        drained(engine.submit(request("only", prompts(1)[0], new=3)))
    assert set(threading.enumerate()) <= before
