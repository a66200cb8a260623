"""MedGemma 4B's true shapes with random weights, trained for a few steps on a GPU. Its words mean nothing.

Reports tokens/s, peak memory and the share of the card's bfloat16 peak that the arithmetic of training
comes to. The cases are presets, with their optimiser; each pass is a step. Moments that a paged optimiser
keeps, two bytes for a trained weight, are managed by the driver and not in the peak.
"""

import gc
import resource
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from services.worker_train.memory import is_out_of_memory
from shared.model_shapes import GEMMA_4B
from shared.training.recipe import Recipe, load_preset

#: Dense bfloat16 peak of a card by a part of its name, in FLOP/s.
PEAKS = {
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
    "4090": 165e12,
}
STEPS, QUICK_STEPS, WARM_UP = 8, 2, 3
#: A preset, and what differs from it.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "lora_bf16": ("lora-bf16", {}),
    "lora_bf16_kept": ("lora-bf16", {"batch_size": 4, "gradient_checkpointing": False}),
    "qlora": ("qlora", {"batch_size": 8}),
    "qlora_batch_1": ("qlora", {}),
}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What every case is measured on."""

    device: torch.device
    #: Shapes of a Gemma 3.
    config: Any
    #: Of a row.
    tokens: int
    #: That count, after those of the warm-up.
    steps: int
    warm_up: int
    #: The device's bfloat16 peak in FLOP/s, where it is known.
    peak: float | None


def measure(*, quick: bool) -> dict[str, Any] | str:
    """Every case, or why there is none."""
    if not torch.cuda.is_available():
        return "not measured: there is no GPU"
    card = torch.cuda.get_device_name()
    peak = next((flops for part, flops in PEAKS.items() if part in card), None)
    setting = Setting(
        device=torch.device("cuda"),
        config=medgemma_4b_config(),
        tokens=2048,
        steps=QUICK_STEPS if quick else STEPS,
        warm_up=WARM_UP,
        peak=peak,
    )
    return {"card": card, "bf16_peak_tflops": peak / 1e12 if peak else None, **measure_cases(setting)}


def measure_cases(setting: Setting) -> dict[str, dict[str, Any] | str]:
    """The figures of every case, or that the memory was too small for it."""
    found: dict[str, dict[str, Any] | str] = {}
    for name, (preset, changes) in CASES.items():
        gc.collect()  # a model whose forward was replaced holds itself
        _count_afresh(setting.device)
        try:
            found[name] = _case(load_preset(preset).changed(changes), setting)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            found[name] = "out of memory"
    return found


def peak_bytes(device: torch.device) -> int:
    """Most memory that this process has held on the device so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _count_afresh(device: torch.device) -> None:
    """Let the peak be of what is held from now on."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _case(recipe: Recipe, setting: Setting) -> dict[str, Any]:
    model = _adapted(recipe, setting)
    _count_afresh(setting.device)
    seconds = _seconds_per_step(model, recipe, setting)
    once, done = (
        _flops(model, recipe.batch_size, setting.tokens, checkpointing=checkpointing)
        for checkpointing in (False, recipe.gradient_checkpointing)
    )
    return {
        "preset": recipe.preset,
        "batch_size": recipe.batch_size,
        "gradient_checkpointing": recipe.gradient_checkpointing,
        "optimiser": str(recipe.optimiser),
        "tokens_per_s": round(recipe.batch_size * setting.tokens / seconds),
        "peak_gb": round(peak_bytes(setting.device) / 1e9, 2),
        "mfu": round(once / seconds / setting.peak, 3) if setting.peak else None,
        "hfu": round(done / seconds / setting.peak, 3) if setting.peak else None,
    }


def _seconds_per_step(model: Any, recipe: Recipe, setting: Setting) -> float:
    """The median of the steps that count."""
    device = setting.device
    optimiser = _optimiser(model, recipe, device)
    batch = _batch(recipe.batch_size, setting)
    times = []
    for _ in range(setting.warm_up + setting.steps):
        _wait(device)
        started = time.monotonic()
        with torch.autocast(device.type, dtype=torch.bfloat16):
            loss = model(**batch) / batch["labels"].numel()
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        _wait(device)
        times.append(time.monotonic() - started)
    return sorted(times[setting.warm_up :])[setting.steps // 2]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _optimiser(model: Any, recipe: Recipe, device: torch.device) -> Any:
    """The one that the trainer would make."""
    from transformers import Trainer

    from services.worker_train.trainer import arguments

    with tempfile.TemporaryDirectory() as folder:
        chosen = arguments(recipe, Path(folder), device=device, dtype=torch.bfloat16, evaluates=False)
    kind, options = Trainer.get_optimizer_cls_and_kwargs(chosen, model)
    return kind([weight for weight in model.parameters() if weight.requires_grad], **options)


def _adapted(recipe: Recipe, setting: Setting) -> Any:
    """The model with its adapter, on the device, quantised where the recipe says so."""
    from peft import get_peft_model
    from transformers import Gemma3ForConditionalGeneration

    from services.worker_train.base import lora_config, pack
    from services.worker_train.loss import answer_with_loss

    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with setting.device:
            model = Gemma3ForConditionalGeneration(setting.config)
    finally:
        torch.set_default_dtype(torch.float32)
    model.requires_grad_(False)
    if recipe.quantisation == "nf4":
        _quantise(model, setting.device)
    pack(model)
    model = get_peft_model(model, lora_config(recipe))
    if recipe.quantisation == "nf4":  # as TRL does with the adapter of a quantised model
        for weight in model.parameters():
            weight.data = weight.data.to(torch.bfloat16) if weight.requires_grad else weight.data
    if recipe.gradient_checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    answer_with_loss(model.get_base_model())
    return model.train()


def _quantise(model: Any, device: torch.device) -> None:
    """Every linear layer but the output's in NF4 with double quantisation, as `from_pretrained` would."""
    import bitsandbytes as bnb

    for name, layer in list(model.named_modules()):
        if not isinstance(layer, torch.nn.Linear) or layer is model.get_output_embeddings():
            continue
        small = bnb.nn.Linear4bit(
            layer.in_features,
            layer.out_features,
            bias=False,
            compute_dtype=torch.bfloat16,
            compress_statistics=True,
            quant_type="nf4",
        )
        small.weight = bnb.nn.Params4bit(
            layer.weight.data.cpu(), requires_grad=False, compress_statistics=True, quant_type="nf4"
        )
        small.bias = layer.bias
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, small.to(device))
    model.is_loaded_in_4bit = True  # PEFT asks for it


def medgemma_4b_config() -> Any:
    """The shapes of google/medgemma-4b-it."""
    from transformers import Gemma3Config

    return Gemma3Config(**GEMMA_4B.config_fields())


def _batch(rows: int, setting: Setting) -> dict[str, Any]:
    """Rows behind one another."""
    device, vocabulary = setting.device, setting.config.get_text_config().vocab_size
    ids = torch.randint(10, vocabulary - 64, (1, rows * setting.tokens), device=device)
    positions = torch.arange(setting.tokens, device=device).repeat(rows)[None]
    return {
        "input_ids": ids,
        "labels": ids.masked_fill(positions == 0, -100),
        "position_ids": positions,
        "segments": [setting.tokens] * rows,
    }


def _flops(model: Any, rows: int, row_tokens: int, *, checkpointing: bool) -> float:
    """Arithmetic of one step: forward, the gradient by the inputs, and again the forward when checkpointing.

    The frozen weights have no gradient, so a linear layer costs 2 + 2 operations a weight and token, not 2
    + 4.
    """
    text = model.config.get_text_config()
    layers = sum(
        weights for name, weights in _linear_sizes(model) if "language_model" in name and "lora_" not in name
    )
    head = text.vocab_size * text.hidden_size
    tokens = rows * row_tokens
    width = text.num_attention_heads * text.head_dim
    seen = 0.0
    for kind in text.layer_types:
        window = text.sliding_window if kind == "sliding_attention" else row_tokens
        seen += sum(min(position + 1, window) for position in range(row_tokens))
    attention = 2 * 2 * width * seen * rows
    forward = 2 * layers * tokens + attention
    backward = 2 * layers * tokens + 2 * attention
    return forward * (2 if checkpointing else 1) + backward + 2 * 2 * head * tokens


def _linear_sizes(model: Any) -> list[tuple[str, int]]:
    return [
        (name, module.in_features * module.out_features)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    ]
