"""The training loop: shows the model its batches and lowers the loss on their answers.

Knows nothing of conditions or questions; equal seeds, steps and thread counts give equal weights.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import Gemma3ForConditionalGeneration

from models.demo.batches import Batch


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How long and how fast to learn."""

    #: Updates of the weights; each sees one batch.
    steps: int
    #: Highest learning rate. Twice this did not learn faster; half of it left answers unlearnt.
    learning_rate: float = 2e-3
    #: Share of the steps in which the rate rises to its highest; it then falls in a straight line to zero.
    warm_up: float = 0.04
    weight_decay: float = 0.05
    #: Every this many steps a batch of pictures takes the place of a batch of text.
    picture_every: int = 8


def train(
    model: Gemma3ForConditionalGeneration,
    text: Iterator[Batch],
    pictures: Iterator[Batch],
    recipe: Recipe,
    say: Callable[[str], None],
) -> None:
    """Train ``model`` in place; ``say`` is told of the progress."""
    model.train()
    optimizer = torch.optim.AdamW(_groups(model, recipe.weight_decay), betas=(0.9, 0.98), fused=True)
    started, seen, recent = time.monotonic(), 0, 0.0
    for step in range(recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * pace(step, recipe)
        batch = next(pictures if step % recipe.picture_every == recipe.picture_every - 1 else text)
        loss = answer_loss(model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seen += batch.input_ids.numel()
        recent = loss.item() if step == 0 else 0.95 * recent + 0.05 * loss.item()
        if (step + 1) % 50 == 0 or step + 1 == recipe.steps:
            passed = time.monotonic() - started
            speed = seen / passed
            say(f"step {step + 1}/{recipe.steps} loss {recent:.3f} {passed:.0f} s {speed:.0f} tokens/s")
    model.eval()


def pace(step: int, recipe: Recipe) -> float:
    """The share of the highest learning rate at ``step``: up, then straight down."""
    rise = max(1, math.ceil(recipe.steps * recipe.warm_up))
    return min((step + 1) / rise, (recipe.steps - step) / max(1, recipe.steps - rise))


def answer_loss(model: Gemma3ForConditionalGeneration, batch: Batch) -> Tensor:
    """Mean cross-entropy of the answers' tokens, each predicted from all before it."""
    hidden = model.model(
        input_ids=batch.input_ids,
        token_type_ids=batch.token_type_ids,
        pixel_values=batch.pixel_values,
        use_cache=False,
    ).last_hidden_state
    wanted = batch.is_answer[:, 1:]
    return cross_entropy(model.lm_head(hidden[:, :-1][wanted]), batch.input_ids[:, 1:][wanted])


def _groups(model: Gemma3ForConditionalGeneration, weight_decay: float) -> list[dict[str, object]]:
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
