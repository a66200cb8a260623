"""What becomes of a recipe's knobs: the adapter's configuration and the trainer's arguments."""

from pathlib import Path
from typing import Any

import pytest
import torch

from services.worker_train import base
from services.worker_train.trainer import arguments
from shared.catalogue import find_model
from shared.training.recipe import Recipe
from tests.tiny_training import write_model


def told(recipe: Recipe, device: str = "cpu") -> Any:
    """The trainer's arguments."""
    return arguments(
        recipe, Path("checkpoints"), device=torch.device(device), dtype=torch.float32, evaluates=True
    )


@pytest.mark.parametrize(
    ("changes", "name", "value"),
    [
        ({"r": 3}, "r", 3),
        ({"alpha": 7.5}, "lora_alpha", 7.5),
        ({"dropout": 0.25}, "lora_dropout", 0.25),
        ({"rslora": True}, "use_rslora", True),
        ({"dora": True}, "use_dora", True),
        ({"target": "all-linear"}, "target_modules", "all-linear"),
    ],
)
def test_a_knob_of_the_adapter_changes_its_configuration(
    changes: dict[str, Any], name: str, value: Any
) -> None:
    assert getattr(base.lora_config(Recipe(**changes)), name) == value
    assert getattr(base.lora_config(Recipe()), name) != value


@pytest.mark.parametrize(
    ("changes", "name", "value"),
    [
        ({"epochs": 1.5}, "num_train_epochs", 1.5),
        ({"max_steps": 9}, "max_steps", 9),
        ({"batch_size": 8}, "per_device_train_batch_size", 8),
        ({"batch_size": 8}, "per_device_eval_batch_size", 8),
        ({"accumulation": 3}, "gradient_accumulation_steps", 3),
        ({"learning_rate": 0.5}, "learning_rate", 0.5),
        ({"warmup_ratio": 0.25}, "warmup_steps", 0.25),
        ({"schedule": "linear"}, "lr_scheduler_type", "linear"),
        ({"schedule": "constant"}, "lr_scheduler_type", "constant_with_warmup"),
        ({"weight_decay": 0.1}, "weight_decay", 0.1),
        ({"max_grad_norm": 0.3}, "max_grad_norm", 0.3),
        ({"gradient_checkpointing": False}, "gradient_checkpointing", False),
        ({"optimiser": "adamw-8bit"}, "optim", "adamw_8bit"),
        ({"eval_steps": 7}, "eval_steps", 7),
        ({"save_steps": 7}, "save_steps", 7),
        ({"seed": 7}, "seed", 7),
        ({"seed": 7}, "data_seed", 7),
        ({"target": "all-linear"}, "ddp_find_unused_parameters", True),
    ],
)
def test_a_knob_of_the_training_changes_an_argument(changes: dict[str, Any], name: str, value: Any) -> None:
    assert getattr(told(Recipe(**changes)), name) == value
    assert getattr(told(Recipe()), name) != value


@pytest.mark.parametrize(
    ("optimiser", "on_cpu", "on_gpu"),
    [
        ("adamw", "adamw_torch_fused", "adamw_torch_fused"),
        ("adamw-8bit", "adamw_8bit", "adamw_8bit"),
        ("paged-adamw", "adamw_torch_fused", "paged_adamw_32bit"),
        ("paged-adamw-8bit", "adamw_8bit", "paged_adamw_8bit"),
    ],
)
def test_a_paged_optimiser_is_one_on_a_gpu_only(optimiser: str, on_cpu: str, on_gpu: str) -> None:
    recipe = Recipe(optimiser=optimiser)
    assert told(recipe).optim == on_cpu
    assert told(recipe, device="cuda").optim == on_gpu


def test_the_scales_of_four_bits_are_quantised_too(tmp_path: Path) -> None:
    source = base.Source(entry=find_model("demo"), folder=write_model(tmp_path))
    model = base.open_model(source, device=torch.device("cpu"), dtype=torch.float32, nf4=True, packed=False)
    states = [
        module.weight.quant_state for module in model.modules() if type(module).__name__ == "Linear4bit"
    ]
    assert len(states) > 4 * 7
    assert all(state.nested and state.quant_type == "nf4" for state in states)
