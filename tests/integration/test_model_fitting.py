"""What the catalogue says of its models is what their classes come to, in every format; no weight is held.

The models are made on torch's meta device by the code that a worker loads them with.
"""

import json
from collections.abc import Iterator
from functools import lru_cache

import bitsandbytes as bnb
import pytest
import torch
import transformers
from transformers import Gemma3Config, Gemma3TextConfig, PreTrainedModel

from services.worker_infer.engines.attention import PAGED_CPU_ATTENTION
from services.worker_infer.engines.manager import PagedLimits, cache_bytes_per_token, make_manager
from services.worker_infer.fitting import Placement, cache_room
from services.worker_infer.loading import make_model, open_model
from shared import model_shapes
from shared.catalogue import CATALOGUE, Quantisation
from shared.settings import Settings
from tests.tiny_model import tiny_model

META = torch.device("meta")
BF16, FP32 = torch.bfloat16, torch.float32
FORMATS = [(FP32, Quantisation.NONE), (BF16, Quantisation.NONE), (BF16, Quantisation.NF4)]


@pytest.fixture(autouse=True)
def _no_word_on_missing_weights() -> Iterator[None]:
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    yield
    transformers.logging.set_verbosity(before)


def placed(name: str, dtype: torch.dtype, quantisation: Quantisation) -> Placement:
    return Placement(entry=CATALOGUE[name], device=META, dtype=dtype, quantisation=quantisation)


def build(placement: Placement) -> PreTrainedModel:
    """The model as a worker makes it, but of its sizes alone."""
    fields = placement.entry.shape.config_fields()
    config = Gemma3Config(**fields) if placement.entry.reads_images else Gemma3TextConfig(**fields)
    return make_model(placement, None, config=config, state_dict={})


@lru_cache
def nf4_bytes() -> float:
    """What bitsandbytes takes for a weight, scales included: of a layer that it really quantises."""
    weight = bnb.nn.Params4bit(
        torch.randn(1024, 1024), requires_grad=False, compress_statistics=True, quant_type="nf4"
    ).to("cpu")
    state = weight.quant_state
    assert state is not None
    held = weight.nbytes + state.absmax.nbytes + state.state2.absmax.nbytes
    return held / 1024**2


def bytes_of(model: PreTrainedModel) -> float:
    """Of every weight as it will be held: a layer of bitsandbytes in 4 bits, all others as they are."""
    small = {id(layer.weight) for layer in model.modules() if isinstance(layer, bnb.nn.Linear4bit)}
    return sum(
        weight.numel() * (nf4_bytes() if id(weight) in small else weight.itemsize)
        for weight in model.parameters()
    )


@pytest.mark.parametrize(("dtype", "quantisation"), FORMATS, ids=["float32", "bfloat16", "nf4"])
@pytest.mark.parametrize("name", CATALOGUE)
def test_a_model_has_the_weights_and_takes_the_memory_that_the_catalogue_says(
    name: str, dtype: torch.dtype, quantisation: Quantisation
) -> None:
    placement = placed(name, dtype, quantisation)
    model = build(placement)
    assert type(model).__name__ == placement.entry.model_class
    assert {weight.device.type for weight in model.parameters()} == {"meta"}
    # the output layer is the table of embeddings, and is counted once
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert sum(weight.numel() for weight in model.parameters()) == placement.entry.parameters
    assert placement.weight_bytes == pytest.approx(bytes_of(model), rel=0.02)
    assert model.dtype is dtype
    each = cache_bytes_per_token(model)
    text = placement.entry.shape.text
    assert each == model_shapes.cache_bytes_per_token(text, dtype.itemsize) > 0


def test_embeddings_and_output_stay_whole_in_four_bits_and_the_vision_tower_does_not() -> None:
    model = build(placed("medgemma-4b", BF16, Quantisation.NF4))
    small = {name for name, layer in model.named_modules() if isinstance(layer, bnb.nn.Linear4bit)}
    whole = {name for name, layer in model.named_modules() if type(layer) is torch.nn.Linear}
    assert whole == {"lm_head"}
    assert any("vision_tower" in name for name in small)
    assert model.get_input_embeddings().weight.dtype is BF16
    assert len(small) == 34 * 7 + 27 * 6


@pytest.mark.parametrize("name", [entry.name for entry in CATALOGUE.values() if entry.reads_images])
def test_a_picture_takes_as_many_tokens_as_the_catalogue_says(name: str) -> None:
    entry = CATALOGUE[name]
    vision = entry.shape.vision
    assert vision is not None
    model = build(placed(name, BF16, Quantisation.NONE))
    pixels = torch.empty(1, 3, vision.image_size, vision.image_size, dtype=BF16, device=META)
    seen = model.get_image_features(pixel_values=pixels).pooler_output  # type: ignore[operator]
    assert seen.shape == (1, entry.shape.image_tokens, entry.shape.text.hidden_size)
    assert entry.shape.image_tokens == (16 if name == "demo" else 256)


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_model_is_made_with_an_attention_that_pictures_bear(name: str) -> None:
    config = build(placed(name, BF16, Quantisation.NONE)).config
    parts = [config, *(getattr(config, part) for part in config.sub_configs)]
    assert {part._attn_implementation for part in parts} == {"sdpa"}


def test_answers_are_served_from_pages_and_scores_and_pictures_without() -> None:
    engine = open_model(Settings(model="demo", device="cpu", max_adapters_loaded=1)).engine
    engine.start()
    try:
        served, scorer = engine._base._model.config, engine._scorer.config  # type: ignore[attr-defined]
        assert served.text_config._attn_implementation == PAGED_CPU_ATTENTION
        assert served.vision_config._attn_implementation == "sdpa"
        assert scorer.text_config._attn_implementation == "sdpa"
    finally:
        engine.close()


def test_the_cache_takes_what_its_tokens_say_and_a_long_answer_less() -> None:
    """As `cache_bytes_per_token` tells: layers of sliding attention keep no more than their window."""
    model, limits = tiny_model(), PagedLimits(context_tokens=512, cache_tokens=512)
    manager, longest = make_manager(model, {1}, limits, lambda _: None)
    processor = manager.batch_processor
    assert processor is not None
    cache, wanted = processor.cache, limits.cache_tokens * cache_bytes_per_token(model)
    assert 0 <= cache.num_sectors * cache.bytes_per_sector - wanted < cache.bytes_per_sector
    assert cache.cache_tensor.nbytes == (cache.num_sectors + 2) * cache.bytes_per_sector
    assert longest > 1.5 * limits.cache_tokens


def test_the_demo_model_has_the_sizes_that_the_catalogue_says() -> None:
    entry = CATALOGUE["demo"]
    assert entry.folder is not None
    written = json.loads((entry.folder / "config.json").read_text(encoding="utf-8"))
    made = build(placed("demo", FP32, Quantisation.NONE)).config.to_dict()
    for part, sizes in entry.shape.config_fields().items():
        if isinstance(sizes, dict):
            known = {name for name in sizes if name != "sliding_window_pattern"}
            assert {name: written[part][name] for name in known} == {name: sizes[name] for name in known}
    assert made["text_config"]["layer_types"] == written["text_config"]["layer_types"]
    assert written["mm_tokens_per_image"] == entry.shape.image_tokens


def test_a_model_that_is_read_has_the_room_that_was_foreseen_of_its_sizes() -> None:
    settings = Settings(model="demo", device="cpu")
    placement = Placement.of(settings)
    opened = open_model(settings)
    text = opened.engine._scorer.config.get_text_config()  # type: ignore[attr-defined]
    foreseen = cache_room(placement, settings, placement.entry.shape.text, free_bytes=1 << 30)
    assert foreseen == cache_room(placement, settings, text, free_bytes=1 << 30)
    assert foreseen.context_tokens == opened.context_tokens
