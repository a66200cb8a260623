"""Several adapters at once on one model: each answers as it would alone, and fails, waits and goes alone."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from services.worker_infer.adapters import AdapterCopies
from services.worker_infer.engines.base import FinishReason, Sampling
from services.worker_infer.engines.errors import AdapterUnavailable, EngineCrashed, EngineUnavailable
from services.worker_infer.engines.manager import PagedLimits, cache_bytes_per_token
from services.worker_infer.engines.view import linear_layers, log_likelihoods, make_view, put_adapter
from services.worker_infer.engines.views import AdapterEngine
from services.worker_infer.fitting import share_cache
from services.worker_infer.loading import load_model
from shared.catalogue import CATALOGUE, Quantisation
from shared.errors import AdapterRefused
from shared.storage import Storage
from shared.training.adapter_files import check_adapter, hash_files
from tests.integration.test_engine_paged import LONG, STOPS, break_once, drained, generated, prompts, request
from tests.support import wait_until
from tests.tiny_adapter import REVISION, with_adapter, write_adapter
from tests.tiny_model import tiny_model, tiny_tokenizer

SEEDS = (1, 2, 3, 4)
LIMITS = PagedLimits(context_tokens=512, cache_tokens=2048, max_running=4, batch_tokens=32)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage with an adapter for each of SEEDS."""
    folder = tmp_path_factory.mktemp("storage")
    (folder / "adapters").mkdir()
    return folder


@pytest.fixture(scope="module")
def adapters(stored: Path) -> list[str]:
    return [write_adapter(tiny_model(), stored / "adapters", seed, dora=seed == 3) for seed in SEEDS]


@pytest.fixture(scope="module")
def alone(adapters: list[str]) -> dict[str | None, PreTrainedModel]:
    """The model under each adapter alone, as PEFT makes it, and under none."""
    found: dict[str | None, PreTrainedModel] = {None: tiny_model()}
    for seed, sha256 in zip(SEEDS, adapters, strict=True):
        found[sha256] = with_adapter(tiny_model(), seed, dora=seed == 3).base_model.model
    return found


Start = Callable[..., AdapterEngine]


@pytest.fixture
def start(stored: Path, tmp_path: Path) -> Iterator[Start]:
    made: list[AdapterEngine] = []

    def start(model: PreTrainedModel | None = None, **rest: object) -> AdapterEngine:
        model = model or tiny_model()
        copies = AdapterCopies(
            Storage(str(stored)),
            tmp_path / "copies",
            files_hash=lambda sha256: hash_files(stored / "adapters" / sha256),
            base_revision=REVISION,
            base_layers=linear_layers(model),
        )
        values: dict[str, object] = {
            "limits": LIMITS,
            "view_limits": LIMITS,
            "max_views": 3,
            "source": copies,
            "free_bytes": lambda: 1 << 40,
            **rest,
        }
        engine = AdapterEngine(model, stop_token_ids=STOPS, **values)  # type: ignore[arg-type]
        engine.start()
        made.append(engine)
        return engine

    yield start
    for engine in made:
        engine.close()


def test_a_view_shares_every_weight(alone: dict[str | None, PreTrainedModel]) -> None:
    model = tiny_model()
    view = make_view(model)
    ours, theirs = dict(model.named_parameters()), dict(view.named_parameters())
    assert {name: p.data_ptr() for name, p in ours.items()} == {n: p.data_ptr() for n, p in theirs.items()}
    assert {b.data_ptr() for b in model.buffers()} == {b.data_ptr() for b in view.buffers()}
    assert view.get_input_embeddings() is not model.get_input_embeddings()


def test_a_ready_adapter_shares_the_weights_of_the_base(start: Start, adapters: list[str]) -> None:
    model = tiny_model()
    engine = start(model)
    drained(engine.submit(request("one", prompts(1)[0], adapter=adapters[0])))
    mine = {parameter.data_ptr() for parameter in model.parameters()}
    view = engine._views[adapters[0]].engine._model
    for name, parameter in view.named_parameters():
        assert (parameter.data_ptr() in mine) == (".lora_" not in name), name


def test_base_and_three_adapters_together_each_equal_generate(
    start: Start, adapters: list[str], alone: dict[str | None, PreTrainedModel]
) -> None:
    engine = start()
    names = [None, *adapters[:3]] * 3
    asked = list(zip(names, prompts(len(names)), strict=True))
    streams = [engine.submit(request(str(n), prompt, adapter=name)) for n, (name, prompt) in enumerate(asked)]
    given = [drained(stream) for stream in streams]
    assert given == [generated(alone[name], prompt) for name, prompt in asked]
    assert generated(alone[adapters[0]], asked[0][1]) != given[0]
    assert engine.stats().adapters == sorted(adapters[:3])


def test_it_tells_how_much_memory_adapters_may_still_take(start: Start, adapters: list[str]) -> None:
    engine = start(max_views=2)
    each = LIMITS.cache_tokens * cache_bytes_per_token(tiny_model())
    wanted = [engine.stats().wanted_bytes]
    for name in adapters[:2]:
        drained(engine.submit(request(name, prompts(1)[0], adapter=name)))
        wanted.append(engine.stats().wanted_bytes)
    assert wanted == [2 * each, each, 0]


def test_cancels_and_evictions_change_no_other_answer(
    start: Start, adapters: list[str], alone: dict[str | None, PreTrainedModel]
) -> None:
    engine = start(max_views=2)
    rng = random.Random(5)
    asked = [(rng.choice([None, *adapters]), prompt, rng.random() < 0.3) for prompt in prompts(24, seed=9)]
    given: dict[int, list[int]] = {}

    def ask(number: int) -> None:
        name, prompt, leave = asked[number]
        with engine.submit(request(str(number), prompt, new=LONG if leave else 12, adapter=name)) as stream:
            given[number] = next(stream, []) if leave else drained(stream)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(asked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, (name, prompt, leave) in enumerate(asked):
        whole = generated(alone[name], prompt, 12)
        assert given[number][:12] == whole[: len(given[number])] if leave else given[number] == whole
    assert len(engine.stats().adapters) == 2
    assert engine.stats().running == engine.stats().waiting == 0


def test_the_one_idle_for_longest_makes_room(start: Start, adapters: list[str]) -> None:
    engine = start(max_views=2)
    for name in (adapters[0], adapters[1], adapters[0], adapters[3]):
        drained(engine.submit(request("one", prompts(1)[0], new=2, adapter=name)))
    assert engine.stats().adapters == sorted([adapters[0], adapters[3]])


def test_one_with_requests_is_never_closed_and_the_next_waits_for_it(
    start: Start, adapters: list[str], alone: dict[str | None, PreTrainedModel]
) -> None:
    engine = start(max_views=1)
    prompt = prompts(1)[0]
    running = engine.submit(request("first", prompt, new=60, adapter=adapters[0]))
    next(running)
    answers: list[list[int]] = []
    thread = threading.Thread(
        target=lambda: answers.append(drained(engine.submit(request("next", prompt, adapter=adapters[1]))))
    )
    thread.start()
    wait_until(lambda: engine.stats().waiting == 1)
    late = threading.Thread(  # the busy adapter takes no more before its turn comes again
        target=lambda: drained(engine.submit(request("late", prompt, new=3, adapter=adapters[0])))
    )
    late.start()
    drained(running)
    assert running.finish_reason is FinishReason.LENGTH or running.finish_reason is FinishReason.STOP
    thread.join()
    late.join()
    assert answers == [generated(alone[adapters[1]], prompt)]


def test_an_adapter_is_forgotten_once_nobody_uses_it(start: Start, adapters: list[str]) -> None:
    engine = start()
    running = engine.submit(request("one", prompts(1)[0], new=60, adapter=adapters[0]))
    next(running)
    thread = threading.Thread(target=lambda: engine.forget(adapters[0]))
    thread.start()
    drained(running)
    thread.join()
    assert running.finish_reason in (FinishReason.LENGTH, FinishReason.STOP)
    assert engine.stats().adapters == []


def test_nobody_counts_on_the_memory_of_one_that_is_still_being_forgotten(
    start: Start, adapters: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[str] = []
    closing, may_close = threading.Event(), threading.Event()

    def free_bytes() -> int:
        counted.append("after" if may_close.is_set() else "before")
        return 1 << 40

    engine = start(free_bytes=free_bytes)
    prompt = prompts(1)[0]
    drained(engine.submit(request("one", prompt, new=2, adapter=adapters[0])))
    leaving = engine._views[adapters[0]].engine
    close = leaving.close

    def close_slowly() -> None:
        closing.set()
        assert may_close.wait(30)
        close()

    monkeypatch.setattr(leaving, "close", close_slowly)
    thread = threading.Thread(target=lambda: engine.forget(adapters[0]))
    thread.start()
    assert closing.wait(30)
    counted.clear()
    hasty = request("two", prompt, new=2, adapter=adapters[1], deadline=time.monotonic())
    waited = engine.submit(hasty)  # loads at once, or would wait
    may_close.set()
    thread.join()
    assert (drained(waited), waited.finish_reason, counted) == ([], FinishReason.DEADLINE, [])
    assert len(drained(engine.submit(request("three", prompt, new=3, adapter=adapters[1])))) == 3
    assert counted == ["after"]


def test_who_waits_for_an_adapter_can_be_cancelled(start: Start, adapters: list[str]) -> None:
    engine = start(max_views=1)
    prompt = prompts(1)[0]
    ends: list[FinishReason | None] = []

    def wait() -> None:
        stream = engine.submit(request("waits", prompt, adapter=adapters[1]))
        drained(stream)
        ends.append(stream.finish_reason)

    with engine.submit(request("first", prompt, new=LONG, adapter=adapters[0])) as running:
        next(running)
        thread = threading.Thread(target=wait)
        thread.start()
        wait_until(lambda: engine.stats().waiting == 1)
        engine.cancel("waits")
        thread.join()
    assert ends == [FinishReason.CANCELLED]
    assert engine.stats().adapters == [adapters[0]]
    assert len(drained(engine.submit(request("again", prompt, new=3, adapter=adapters[0])))) == 3


def test_who_waits_for_an_adapter_ends_when_the_engine_drains(start: Start, adapters: list[str]) -> None:
    engine = start(max_views=1)
    prompt = prompts(1)[0]
    refused: list[BaseException] = []

    def wait() -> None:
        try:
            engine.submit(request("waits", prompt, adapter=adapters[1]))
        except EngineUnavailable as error:
            refused.append(error)

    running = engine.submit(request("first", prompt, new=LONG, adapter=adapters[0]))
    next(running)
    thread = threading.Thread(target=wait)
    thread.start()
    wait_until(lambda: engine.stats().waiting == 1)
    engine.drain()
    thread.join()
    drained(running)
    assert (len(refused), running.finish_reason) == (1, FinishReason.DRAINED)
    with pytest.raises(EngineUnavailable):
        engine.submit(request("more", prompt, adapter=adapters[0]))


def test_a_bad_adapter_fails_its_own_requests_only(
    start: Start, adapters: list[str], alone: dict[str | None, PreTrainedModel]
) -> None:
    engine = start()
    prompt = prompts(1)[0]
    with pytest.raises(AdapterUnavailable, match="SHA-256") as wrong:
        engine.submit(request("bad", prompt, adapter="nonsense"))
    assert not wrong.value.may_pass
    with pytest.raises(AdapterUnavailable, match="storage") as missing:
        engine.submit(request("bad", prompt, adapter="f" * 64))
    assert missing.value.may_pass
    assert drained(engine.submit(request("good", prompt, adapter=adapters[0]))) == generated(
        alone[adapters[0]], prompt
    )


def test_an_adapter_without_memory_is_refused_with_the_numbers(start: Start, adapters: list[str]) -> None:
    engine = start(free_bytes=lambda: 1 << 20)
    with pytest.raises(AdapterUnavailable, match="MiB are free: lower MEDICHAT_MAX_ADAPTERS_LOADED"):
        engine.submit(request("one", prompts(1)[0], adapter=adapters[0]))
    assert drained(engine.submit(request("base", prompts(1)[0], new=2)))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_crash_of_one_adapter_leaves_the_others_alone(
    start: Start, adapters: list[str], alone: dict[str | None, PreTrainedModel]
) -> None:
    engine = start()
    prompt = prompts(1)[0]
    names = [None, adapters[0], adapters[1]]
    streams = [engine.submit(request(str(name), prompt, new=60, adapter=name)) for name in names]
    next(streams[1])
    break_once(engine._views[adapters[0]].engine._model, RuntimeError("broken on purpose"))
    with pytest.raises(EngineCrashed):
        drained(streams[1])
    for name, stream in ((None, streams[0]), (adapters[1], streams[2])):
        assert drained(stream) == generated(alone[name], prompt, 60)
    again = engine.submit(request("again", prompt, adapter=adapters[0]))
    assert drained(again) == generated(alone[adapters[0]], prompt)
    assert engine.stats().restarts == 1


def test_a_seed_gives_the_same_answer_beside_other_adapters(start: Start, adapters: list[str]) -> None:
    engine, prompt = start(), prompts(1)[0]
    drawn = Sampling(temperature=0.9, top_p=0.95, seed=11)
    first = drained(engine.submit(request("alone", prompt, adapter=adapters[0], sampling=drawn)))
    others = [engine.submit(request(f"other {name}", prompt, adapter=name)) for name in (None, adapters[1])]
    assert drained(engine.submit(request("among", prompt, adapter=adapters[0], sampling=drawn))) == first
    for stream in others:
        drained(stream)


def test_scores_are_those_of_the_model_under_the_adapter(
    start: Start, adapters: list[str], alone: dict[str | None, PreTrainedModel]
) -> None:
    engine, tokens = start(), prompts(1)[0]
    with engine.submit(request("meanwhile", tokens, new=LONG, adapter=adapters[0])):
        for name in (None, adapters[0], adapters[2]):
            found = torch.tensor(engine.score(tokens, name))
            ids = torch.tensor([tokens])
            logits = alone[name](input_ids=ids).logits[0, :-1].log_softmax(-1)
            torch.testing.assert_close(found, logits.gather(1, ids[0, 1:, None])[:, 0], atol=1e-3, rtol=0)
    assert engine.score(tokens) != engine.score(tokens, adapters[0])


def test_what_may_come_next_is_compared_under_the_base_model(
    start: Start, adapters: list[str], alone: dict[str | None, PreTrainedModel]
) -> None:
    engine, tokens = start(), prompts(1)[0]
    with engine.submit(request("meanwhile", tokens, new=LONG, adapter=adapters[0])):
        found = engine.compare(tokens, [5, 9, 5])
    expected = alone[None](input_ids=torch.tensor([tokens])).logits[0, -1].log_softmax(-1)[[5, 9, 5]]
    torch.testing.assert_close(torch.tensor(found), expected, atol=1e-3, rtol=0)


def test_who_compares_waits_for_others_no_longer_than_was_said(start: Start) -> None:
    engine, tokens = start(), prompts(1)[0]
    with engine._one_score, pytest.raises(TimeoutError):
        engine.compare(tokens, [5, 9], 0.01)
    assert engine.compare(tokens, [5, 9], 0.01)


def test_the_cache_is_divided_so_that_each_adapter_has_room_for_an_answer() -> None:
    plenty = share_cache(affordable=10**7, context_tokens=8192, requests=32, views=3)
    assert plenty is not None
    assert (plenty.base_tokens, plenty.view_tokens, plenty.views) == (131072, 131072, 3)
    scarce = share_cache(affordable=5 * 8192, context_tokens=8192, requests=32, views=3)
    assert scarce is not None
    assert (scarce.base_tokens, scarce.views) == (20480, 2)
    assert scarce.base_tokens + scarce.views * scarce.view_tokens <= 5 * 8192
    assert share_cache(affordable=8191, context_tokens=8192, requests=32, views=3) is None


def test_log_likelihoods_do_not_depend_on_how_many_are_taken_at_once(
    monkeypatch: pytest.MonkeyPatch, alone: dict[str | None, PreTrainedModel]
) -> None:
    whole = log_likelihoods(alone[None], prompts(1)[0])
    monkeypatch.setattr("services.worker_infer.engines.view._SCORED_AT_ONCE", 3)
    assert log_likelihoods(alone[None], prompts(1)[0]) == pytest.approx(whole, abs=1e-4)


def test_a_view_of_4_bit_weights_shares_them_and_computes_the_same(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    base = load_model(
        CATALOGUE["demo"],
        folder=tmp_path,
        device=torch.device("cpu"),
        dtype=torch.float32,
        quantisation=Quantisation.NF4,
    ).model
    tokens = prompts(1)[0]
    before = log_likelihoods(base, tokens)
    (tmp_path / "adapters").mkdir()
    sha256 = write_adapter(tiny_model(), tmp_path / "adapters", 7)
    view = make_view(base)
    put_adapter(view, check_adapter(tmp_path / "adapters" / sha256, sha256=sha256, base_revision=REVISION))
    assert log_likelihoods(view, tokens) != pytest.approx(before, abs=1e-2)
    assert log_likelihoods(base, tokens) == before
    mine = {parameter.data_ptr() for parameter in base.parameters()}
    assert all((p.data_ptr() in mine) == (".lora_" not in name) for name, p in view.named_parameters())
    states = {id(state) for module in base.modules() if (state := getattr(module, "quant_state", None))}
    assert states
    assert {id(s) for module in view.modules() if (s := getattr(module, "quant_state", None))} == states


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    (tmp_path / "adapters").mkdir()
    sha256 = write_adapter(tiny_model(), tmp_path / "adapters", 7, scale=float("nan"))
    files = check_adapter(tmp_path / "adapters" / sha256, sha256=sha256, base_revision=REVISION)
    with pytest.raises(AdapterRefused, match="no finite numbers"):
        put_adapter(make_view(tiny_model()), files)
