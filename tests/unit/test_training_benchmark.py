"""What the benchmark of training measures: each case as it is run in earnest, and none at another's cost."""

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from transformers import Gemma3Config

from benchmarks import training, training_gpu
from shared.training.recipe import load_preset

#: The parts of MedGemma, small enough for a moment on a processor.
SMALL = training_gpu.Setting(
    device=torch.device("cpu"),
    config=Gemma3Config(
        text_config={
            "hidden_size": 64,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 32,
            "vocab_size": 128,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        vision_config={
            "hidden_size": 64,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
            "vision_use_head": False,
        },
        mm_tokens_per_image=4,
    ),
    tokens=16,
    steps=1,
    warm_up=0,
    peak=1e12,
)


@pytest.fixture(autouse=True)
def _nothing_is_collected_unasked() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small a model only waits for more
    gc.disable()
    gc.freeze()  # and what is asked for is soon done
    yield
    gc.unfreeze()
    gc.enable()
    torch.set_num_threads(threads)


def test_every_case_is_measured_and_begins_without_the_model_of_the_one_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[Any] = []
    adapted = training_gpu._adapted

    def remembered(*args: Any) -> Any:
        assert not any(model() for model in made)
        model = adapted(*args)
        made.append(weakref.ref(model.get_base_model()))
        return model

    monkeypatch.setattr(training_gpu, "_adapted", remembered)
    found = training_gpu.measure_cases(SMALL)
    assert len(made) == len(found) == 4
    for case in found.values():
        assert isinstance(case, dict)
        assert case["tokens_per_s"] > 0
        assert case["hfu"] >= case["mfu"] >= 0


def test_qlora_is_measured_as_the_preset_trains() -> None:
    model = training_gpu._adapted(load_preset("qlora"), SMALL)
    parts = dict(model.get_base_model().named_modules())
    layer = parts["model.language_model.layers.0.mlp.up_proj"]
    assert isinstance(layer.base_layer, bnb.nn.Linear4bit)
    assert type(layer).__module__ == "peft.tuners.lora.bnb"
    assert {weight.dtype for weight in model.parameters() if weight.requires_grad} == {torch.bfloat16}
    assert layer.lora_dropout["default"].p == 0.05
    tower = [part for name, part in parts.items() if "vision_tower" in name]
    assert not any(type(part) is torch.nn.Linear for part in tower)
    optimiser = training_gpu._optimiser(model, load_preset("qlora"), SMALL.device)
    assert type(optimiser).__module__.startswith("bitsandbytes")


def test_a_case_that_finds_no_memory_says_so_and_costs_no_other() -> None:
    too_long = training_gpu.Setting(**{**vars(SMALL), "tokens": 1 << 48})
    assert set(training_gpu.measure_cases(too_long).values()) == {"out of memory"}


def test_on_a_gpu_the_peak_is_the_gpus_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda _: 5)
    assert training_gpu.peak_bytes(torch.device("cuda")) == 5
    assert training_gpu.peak_bytes(torch.device("cpu")) > 10_000_000


def test_as_many_answers_are_learnt_as_are_said_and_no_others(tmp_path: Path) -> None:
    rows = [
        {"question": f"What helps against a cold of {number} days?", "answer": "Rest. " * length}
        for number, length in enumerate((5, 2 * training.MAX_TOKENS) * 10)
    ]
    training.write_rows(rows, tmp_path, count=8, held_out=2)
    material = training.read_material(tmp_path)
    assert (len(material.train), len(material.validation)) == (8, 2)
    assert material.left_out == (0, 0)
