"""What a training is judged to take for the vision tower, by what the tower of a small model keeps."""

from itertools import accumulate
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch.profiler import profile

from models.demo.shape import IMAGE_SIZE, IMAGE_TOKENS, new_model
from services.worker_train.attention import attend_in_blocks
from services.worker_train.base import lora_config, pack
from services.worker_train.batches import PackedCollator
from services.worker_train.estimate import Estimate, Shapes, estimate
from services.worker_train.loss import answer_with_loss
from services.worker_train.speed import operations_per_second
from shared.training.recipe import Recipe
from tests.tiny_model import tiny_tokenizer

PICTURES = 16


def adapted(recipe: Recipe) -> PeftModel:
    """The demo's shape with the recipe's adapter, as the trainer gets it ready."""
    model = new_model(len(tiny_tokenizer())).requires_grad_(False).train()
    model.config.use_cache = False
    if recipe.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    made = get_peft_model(model, lora_config(recipe))
    assert isinstance(made, PeftModel)
    return made


def kept_by_the_tower(recipe: Recipe) -> int:
    """Bytes that the vision tower keeps of a pass for the way back, its weights not counted."""
    model = adapted(recipe)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}
    inside = False

    def enter(*_: object) -> None:
        nonlocal inside
        inside = True

    def leave(*_: object) -> None:
        nonlocal inside
        inside = False

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage().data_ptr()
        if inside and storage not in weights:
            kept[storage] = tensor
        return tensor

    tower = model.get_base_model().model.vision_tower
    tower.register_forward_pre_hook(enter)
    tower.register_forward_hook(leave)
    ids = torch.full((PICTURES, IMAGE_TOKENS + 2), 9)
    ids[:, 1:-1] = model.config.image_token_id
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(
            input_ids=ids,
            token_type_ids=ids.eq(model.config.image_token_id).long(),
            pixel_values=torch.zeros(PICTURES, 3, IMAGE_SIZE, IMAGE_SIZE),
            labels=ids,
        )
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def judged(
    recipe: Recipe,
    pictures: int,
    *,
    largest_pass: int = 1000,
    longest_row: int = 100,
    look: tuple[int, int] = (0, 0),
    device: str = "cuda",
) -> float:
    """Bytes in float32; on a GPU, whose memory is not taken to be scattered, unless told otherwise."""
    found = estimated(
        recipe, pictures, largest_pass=largest_pass, longest_row=longest_row, look=look, device=device
    )
    return found.memory_mb * 1e6


def estimated(
    recipe: Recipe,
    pictures: int = 0,
    *,
    largest_pass: int = 1000,
    longest_row: int = 100,
    look: tuple[int, int] = (0, 0),
    device: str = "cpu",
    speed: float = 1e11,
) -> Estimate:
    """What a training of the demo's shape in float32 is judged to take."""
    config = new_model(len(tiny_tokenizer())).config
    return estimate(
        recipe,
        Shapes.of(config, 6_300_000),
        largest_pass=largest_pass,
        longest_row=longest_row,
        largest_look=look[0],
        longest_held_out=look[1],
        pictures=pictures,
        tokens=100_000,
        look_tokens=0,
        device=device,
        weight_bytes=4,
        free=0,
        total=0,
        speed=speed,
    )


@pytest.mark.parametrize("target", ["language", "all-linear"])
@pytest.mark.parametrize("gradient_checkpointing", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_the_estimate_covers_what_the_tower_keeps(
    target: str, gradient_checkpointing: bool, dropout: float
) -> None:
    recipe = Recipe(target=target, gradient_checkpointing=gradient_checkpointing, dropout=dropout)
    assert kept_by_the_tower(recipe) < taken_by_the_tower(recipe)


def taken_by_the_tower(recipe: Recipe) -> float:
    """Bytes that the estimate adds for pictures."""
    return judged(recipe, PICTURES) - judged(recipe, 0)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_the_estimate_is_near_what_a_trained_tower_keeps(dropout: float) -> None:
    recipe = Recipe(target="all-linear", gradient_checkpointing=False, dropout=dropout)
    assert taken_by_the_tower(recipe) < 2 * kept_by_the_tower(recipe)
    for change in ({"target": "language"}, {"gradient_checkpointing": True}):
        assert taken_by_the_tower(recipe.changed(change)) < 0.7 * taken_by_the_tower(recipe)


def test_the_estimate_counts_the_towers_adapter() -> None:
    recipe = Recipe(target="all-linear", r=512)
    weights = sum(
        parameter.numel()
        for name, parameter in adapted(recipe).named_parameters()
        if "vision_tower" in name and "lora_" in name
    )
    language = recipe.changed({"target": "language"})
    # each with its gradient and two moments, in float32
    assert judged(recipe, 0) - judged(language, 0) == pytest.approx(16 * weights, rel=0.01)


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_the_estimate_covers_what_attention_in_blocks_keeps(gradient_checkpointing: bool) -> None:
    recipe = Recipe(gradient_checkpointing=gradient_checkpointing)
    text = new_model(len(tiny_tokenizer())).config.get_text_config()
    length, heads = 1000, text.num_attention_heads
    states = [
        torch.randn(1, count, length, text.head_dim, requires_grad=True)
        for count in (heads, text.num_key_value_heads, text.num_key_value_heads)
    ]
    weights, queries = 0, 0

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal weights, queries
        # rows, keys and values have as many matrices as there are heads of keys
        if tensor.dtype is torch.float32 and tensor.dim() == 3 and tensor.shape[0] == heads:
            weights += tensor.nbytes
            queries += tensor.shape[1]
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        attend_in_blocks(*states, 0.1, None)
    layers = 1 if gradient_checkpointing else text.num_hidden_layers
    assert text.num_key_value_heads != heads
    assert queries == length
    grown = judged(recipe, 0, longest_row=length, device="cpu") - judged(
        recipe, 0, longest_row=1, device="cpu"
    )
    assert layers * weights < grown


def test_the_estimate_covers_a_look_at_rows_longer_than_those_that_are_learnt() -> None:
    length, count = 300, 4
    model = adapted(Recipe()).eval()
    pack(model.get_base_model())
    answer_with_loss(model.get_base_model())
    look = PackedCollator()([{"input_ids": [9] * length, "labels": [9] * length}] * count)
    with torch.no_grad(), profile(profile_memory=True) as profiler:
        model(**look)
    peak = max(accumulate(event.nbytes() for event in profiler.profiler.kineto_results.events()))
    without, judged_to_take = (
        judged(Recipe(), 0, largest_pass=1, longest_row=1, look=each)
        for each in ((0, 0), (count * length, length))
    )
    assert peak < judged_to_take - without < 1.6 * peak
    assert judged(Recipe(), 0, look=(500, 100)) == judged(Recipe(), 0), "learning takes more than such a look"


def test_the_time_is_that_of_the_devices_own_speed() -> None:
    slow, fast = (estimated(Recipe(), speed=speed).seconds for speed in (1e9, 1e11))
    assert slow == pytest.approx(100 * fast, rel=0.05)


@pytest.mark.parametrize(("changes", "longer"), [({"quantisation": "nf4"}, 1.33), ({"dora": True}, 2.0)])
def test_the_time_knows_what_the_knobs_say_that_they_cost(changes: dict[str, Any], longer: float) -> None:
    plain, other = (estimated(Recipe(**each), speed=1e9).seconds for each in ({}, changes))
    assert other == pytest.approx(longer * plain, rel=0.01)


def test_a_device_is_measured_by_a_product_of_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(100))
    monkeypatch.setattr("services.worker_train.speed.time.perf_counter", lambda: next(now))
    speed = operations_per_second(torch.device("cpu"), torch.float32, inner=64, outer=32)
    assert speed == 2 * 512 * 64 * 32 / 0.5, "two products took a second of this clock"
