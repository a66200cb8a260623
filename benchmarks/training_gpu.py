"""MedGemma 4B's true shapes with random weights, trained for a few steps on a GPU. Its words mean nothing.

Reports tokens/s, peak memory and the share of the card's bfloat16 peak that the arithmetic of training
comes to.
"""

import time
from typing import Any

import torch

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
STEPS, WARM_UP = 8, 3
TOKENS = 2048
CASES = {
    "lora_bf16": {"quantisation": "none", "batch_size": 8, "gradient_checkpointing": True},
    "lora_bf16_kept": {"quantisation": "none", "batch_size": 4, "gradient_checkpointing": False},
    "qlora": {"quantisation": "nf4", "batch_size": 8, "gradient_checkpointing": True},
    "qlora_batch_1": {"quantisation": "nf4", "batch_size": 1, "gradient_checkpointing": True},
}


def measure(*, quick: bool) -> dict[str, Any] | str:
    """Every case, or why there is none."""
    if not torch.cuda.is_available():
        return "not measured: there is no GPU"
    card = torch.cuda.get_device_name()
    peak = next((flops for part, flops in PEAKS.items() if part in card), None)
    found: dict[str, Any] = {"card": card, "bf16_peak_tflops": peak / 1e12 if peak else None}
    for name, changes in CASES.items():
        found[name] = _case(changes, peak, steps=WARM_UP + (2 if quick else STEPS))
    return found


def _case(changes: dict[str, Any], peak: float | None, *, steps: int) -> dict[str, Any]:
    from services.worker_train import base
    from shared.training.recipe import load_preset

    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    recipe = load_preset("lora-bf16").changed(changes)
    model = _adapted(recipe, base.lora_config(recipe))
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=recipe.learning_rate, fused=True)
    batch = _batch(recipe.batch_size, model.config.get_text_config().vocab_size)
    times = []
    for _ in range(steps):
        torch.cuda.synchronize()
        started = time.monotonic()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = model(**batch) / batch["labels"].numel()
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        times.append(time.monotonic() - started)
    seconds = sorted(times[WARM_UP:])[len(times[WARM_UP:]) // 2]
    tokens = recipe.batch_size * TOKENS
    flops = _flops(model, recipe.batch_size, checkpointing=False)
    result = {
        "batch_size": recipe.batch_size,
        "gradient_checkpointing": recipe.gradient_checkpointing,
        "tokens_per_s": round(tokens / seconds),
        "peak_gb": round(torch.cuda.max_memory_reserved() / 1e9, 2),
        "mfu": round(flops / seconds / peak, 3) if peak else None,
        "hfu": round(
            _flops(model, recipe.batch_size, checkpointing=recipe.gradient_checkpointing) / seconds / peak, 3
        )
        if peak
        else None,
    }
    del model, optimiser, trained, batch, loss
    return result


def _adapted(recipe: Any, lora: Any) -> Any:
    """The model with its adapter, on the GPU, quantised where the recipe says so."""
    from peft import get_peft_model
    from transformers import Gemma3ForConditionalGeneration

    from services.worker_train.base import pack
    from services.worker_train.loss import answer_with_loss

    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda"):
            model = Gemma3ForConditionalGeneration(medgemma_4b_config())
    finally:
        torch.set_default_dtype(torch.float32)
    model.requires_grad_(False)
    if recipe.quantisation == "nf4":
        _quantise(model.model.language_model)
    pack(model)
    model = get_peft_model(model, lora)
    if recipe.gradient_checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    answer_with_loss(model.get_base_model())
    return model.train()


def _quantise(model: torch.nn.Module) -> None:
    """Every linear layer in NF4 with double quantisation, as `from_pretrained` would."""
    import bitsandbytes as bnb

    for name, layer in list(model.named_modules()):
        if not isinstance(layer, torch.nn.Linear):
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
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, small.to("cuda"))
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


def medgemma_4b_config() -> Any:
    """The shapes of google/medgemma-4b-it."""
    from transformers import Gemma3Config

    return Gemma3Config(
        text_config={
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "num_hidden_layers": 34,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "query_pre_attn_scalar": 256,
            "sliding_window": 1024,
            "vocab_size": 262_208,
            "max_position_embeddings": 131_072,
        },
        vision_config={
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
            "image_size": 896,
            "patch_size": 14,
            "vision_use_head": False,
        },
        mm_tokens_per_image=256,
    )


def _batch(rows: int, vocabulary: int) -> dict[str, Any]:
    """Rows of 2,048 tokens behind one another."""
    ids = torch.randint(10, vocabulary - 64, (1, rows * TOKENS), device="cuda")
    positions = torch.arange(TOKENS, device="cuda").repeat(rows)[None]
    return {
        "input_ids": ids,
        "labels": ids.masked_fill(positions == 0, -100),
        "position_ids": positions,
        "segments": [TOKENS] * rows,
    }


def _flops(model: Any, rows: int, *, checkpointing: bool) -> float:
    """Arithmetic of one step: forward, the gradient by the inputs, and again the forward when checkpointing.

    The frozen weights have no gradient, so a linear layer costs 2 + 2 operations a weight and token, not 2
    + 4.
    """
    text = model.config.get_text_config()
    layers = sum(
        weights for name, weights in _linear_sizes(model) if "language_model" in name and "lora_" not in name
    )
    head = text.vocab_size * text.hidden_size
    tokens = rows * TOKENS
    width = text.num_attention_heads * text.head_dim
    seen = 0.0
    for kind in text.layer_types:
        window = text.sliding_window if kind == "sliding_attention" else TOKENS
        seen += sum(min(position + 1, window) for position in range(TOKENS))
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
