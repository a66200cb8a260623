"""Requests with pictures beside those without, and under adapters: what runs where, and what stays held."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from services.worker_infer.adapters import AdapterCopies
from services.worker_infer.engines.base import FinishReason, GenerationRequest
from services.worker_infer.engines.manager import PagedLimits, cache_bytes_per_token
from services.worker_infer.engines.view import linear_layers
from services.worker_infer.engines.views import AdapterEngine
from services.worker_infer.loading import LoadedModel, load_model
from shared.catalogue import CATALOGUE
from shared.storage import Storage
from shared.training.adapter_files import hash_files
from tests.integration import test_engine_paged as paged
from tests.integration.test_engine_paged import drained
from tests.integration.test_picture_engine import ENDLESS, LIMITS, asked, generated, pixels, prompt, request
from tests.support import wait_until
from tests.tiny_adapter import REVISION, with_adapter, write_adapter

SEEDS = (1, 2)
TEXT_LIMITS = PagedLimits(context_tokens=512, cache_tokens=2048, max_running=4, batch_tokens=64)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def fresh() -> LoadedModel:
    return load_model(CATALOGUE["demo"], device=torch.device("cpu"), dtype=torch.float32)


@pytest.fixture(scope="module")
def demo() -> LoadedModel:
    """What `generate` is asked with; no engine has it."""
    return fresh()


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("storage")
    (folder / "adapters").mkdir()
    return folder


@pytest.fixture(scope="module")
def adapters(stored: Path) -> list[str]:
    return [write_adapter(fresh().model, stored / "adapters", seed) for seed in SEEDS]


def adapted(seed: int) -> LoadedModel:
    """The demo model under an adapter, as PEFT makes it."""
    loaded = fresh()
    model: PreTrainedModel = with_adapter(loaded.model, seed).base_model.model
    return replace(loaded, model=model)


@pytest.fixture
def engine(stored: Path, tmp_path: Path) -> Iterator[AdapterEngine]:
    loaded = fresh()
    copies = AdapterCopies(
        Storage(str(stored)),
        tmp_path / "copies",
        files_hash=lambda sha256: hash_files(stored / "adapters" / sha256),
        base_revision=REVISION,
        base_layers=linear_layers(loaded.model),
    )
    made = AdapterEngine(
        loaded.model,
        stop_token_ids=loaded.stop_token_ids,
        limits=TEXT_LIMITS,
        view_limits=TEXT_LIMITS,
        max_views=1,
        source=copies,
        free_bytes=lambda: 1 << 40,
        picture_limits=LIMITS,
    )
    made.start()
    yield made
    made.close()


def text_request(name: str, demo: LoadedModel, **rest: object) -> GenerationRequest:
    ids = demo.tokenizer.encode(
        "<bos><start_of_turn>user\nWhat is asthma?<end_of_turn>\n<start_of_turn>model\n",
        add_special_tokens=False,
    )
    return paged.request(name, ids, new=30, **rest)


def endless(demo: LoadedModel, **rest: object) -> GenerationRequest:
    """A request with a picture whose answer does not end before the test does."""
    return request("endless", prompt(demo), pixels("left"), new=400, sampling=ENDLESS, **rest)


@contextmanager
def held_up(model: PreTrainedModel) -> Iterator[threading.Event]:
    """While this lasts, the model's next pass waits before it begins; the event tells that it does."""
    begun, go_on = threading.Event(), threading.Event()

    def wait(*_: object) -> None:
        begun.set()
        go_on.wait(60)

    hook = model.register_forward_pre_hook(wait)
    try:
        yield begun
    finally:
        hook.remove()
        go_on.set()


def test_text_is_answered_while_a_picture_is_looked_at(engine: AdapterEngine, demo: LoadedModel) -> None:
    first = asked(demo)[0]
    with held_up(engine._scorer) as begun:
        looking = engine.submit(first)
        assert begun.wait(60)
        assert drained(engine.submit(text_request("text", demo)))
    assert drained(looking) == generated(demo, first)


def test_a_picture_is_looked_at_while_text_is_answered(engine: AdapterEngine, demo: LoadedModel) -> None:
    writing = engine.submit(text_request("text", demo, sampling=ENDLESS))
    next(writing)
    first = asked(demo)[0]
    assert drained(engine.submit(first)) == generated(demo, first)
    drained(writing)


def test_an_adapter_answers_on_pictures_too(
    engine: AdapterEngine, demo: LoadedModel, adapters: list[str]
) -> None:
    first, second, _ = asked(demo)
    base = engine.submit(first)
    given = drained(engine.submit(replace(first, request_id="under it", adapter=adapters[0])))
    assert drained(base) == generated(demo, first)
    assert given == generated(adapted(SEEDS[0]), first) != generated(demo, first)
    assert drained(engine.submit(replace(second, adapter=adapters[0]))) == generated(
        adapted(SEEDS[0]), second
    )


def test_an_adapter_stays_while_a_picture_is_looked_at_under_it(
    engine: AdapterEngine, demo: LoadedModel, adapters: list[str]
) -> None:
    looking = engine.submit(endless(demo, adapter=adapters[0]))
    next(looking)
    answers: list[list[int]] = []
    other = replace(asked(demo)[0], adapter=adapters[1])
    thread = threading.Thread(target=lambda: answers.append(drained(engine.submit(other))))
    with held_up(engine._views[adapters[0]].scorer) as begun:
        assert begun.wait(60)
        thread.start()
        wait_until(lambda: engine.stats().waiting == 1)
        looking.close()
        assert engine._views[adapters[0]].users == 1, "a pass for it is still under way"
    thread.join()
    assert engine.stats().adapters == [adapters[1]]
    assert answers == [generated(adapted(SEEDS[1]), other)]
    engine.forget(adapters[1])
    assert engine.stats().adapters == []


def test_it_tells_how_much_memory_pictures_may_still_take(engine: AdapterEngine, demo: LoadedModel) -> None:
    each = cache_bytes_per_token(demo.model)
    idle = engine.stats().wanted_bytes
    assert idle == (TEXT_LIMITS.cache_tokens + LIMITS.cache_tokens) * each
    looking = engine.submit(endless(demo))
    next(looking)
    assert engine.stats().wanted_bytes < idle
    looking.close()


def test_drain_ends_what_looks_at_pictures(engine: AdapterEngine, demo: LoadedModel) -> None:
    looking = engine.submit(endless(demo))
    next(looking)
    engine.drain()
    drained(looking)
    assert looking.finish_reason is FinishReason.DRAINED
    assert not engine.health().ok


def test_a_model_without_a_share_for_pictures_takes_none(engine: AdapterEngine, demo: LoadedModel) -> None:
    engine._pictures.close()
    engine._pictures = None
    with pytest.raises(ValueError, match="reads no pictures"):
        engine.submit(asked(demo)[0])
