"""The training loops: they show the model its batches and lower the loss on their answers.

First the language is learnt, with a few pictures among the texts; then the vision tower learns to see for a
language model that stays as it is: learnt together, the tower never got beyond guessing.

Knows nothing of conditions or questions; equal seeds, steps and thread counts give equal weights.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.functional import cross_entropy
from transformers import Gemma3ForConditionalGeneration

from models.demo.batches import Batch


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How long and how fast to learn."""

    #: Updates of all weights; each sees one batch.
    steps: int
    #: Updates of the vision tower alone, after those. With 300 it named the side of 85 % of the pictures.
    sight_steps: int
    #: Highest learning rate. Twice this did not learn faster; half of it left answers unlearnt.
    learning_rate: float = 2e-3
    #: Share of the steps in which the rate rises to its highest; it then falls in a straight line to zero.
    warm_up: float = 0.04
    weight_decay: float = 0.05
    #: Every this many steps a batch of pictures takes the place of a batch of text.
    picture_every: int = 8


def train_language(
    model: Gemma3ForConditionalGeneration,
    text: Iterator[Batch],
    pictures: Iterator[Batch],
    recipe: Recipe,
    say: Callable[[str], None],
) -> None:
    """Train all of ``model`` in place; ``say`` is told of the progress."""

    def mixed() -> Iterator[Batch]:
        for step in range(recipe.steps):
            yield next(pictures if step % recipe.picture_every == recipe.picture_every - 1 else text)

    _train(model, list(model.parameters()), mixed(), recipe.steps, recipe, say)


def train_sight(
    model: Gemma3ForConditionalGeneration,
    pictures: Iterator[Batch],
    recipe: Recipe,
    say: Callable[[str], None],
) -> None:
    """Train the vision tower of ``model`` and its projection in place; the language stays as it is."""
    model.requires_grad_(False)
    seeing = [*model.model.vision_tower.parameters(), *model.model.multi_modal_projector.parameters()]
    for parameter in seeing:
        parameter.requires_grad_(True)
    _train(model, seeing, islice(pictures, recipe.sight_steps), recipe.sight_steps, recipe, say)
    model.requires_grad_(True)


def _train(
    model: Gemma3ForConditionalGeneration,
    parameters: list[Parameter],
    batches: Iterator[Batch],
    steps: int,
    recipe: Recipe,
    say: Callable[[str], None],
) -> None:
    model.train()
    optimizer = torch.optim.AdamW(_groups(parameters, recipe.weight_decay), betas=(0.9, 0.98), fused=True)
    started, seen, recent = time.monotonic(), 0, 0.0
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * pace(step, steps, recipe.warm_up)
        loss = answer_loss(model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seen += batch.input_ids.numel()
        recent = loss.item() if step == 0 else 0.95 * recent + 0.05 * loss.item()
        if (step + 1) % 50 == 0 or step + 1 == steps:
            passed = time.monotonic() - started
            say(f"step {step + 1}/{steps} loss {recent:.4f} {passed:.0f} s {seen / passed:.0f} tokens/s")
    model.eval()


def pace(step: int, steps: int, warm_up: float) -> float:
    """The share of the highest learning rate at ``step``: up, then straight down."""
    rise = max(1, math.ceil(steps * warm_up))
    return min((step + 1) / rise, (steps - step) / max(1, steps - rise))


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


def _groups(parameters: list[Parameter], weight_decay: float) -> list[dict[str, object]]:
    matrices = [parameter for parameter in parameters if parameter.ndim >= 2]
    vectors = [parameter for parameter in parameters if parameter.ndim < 2]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
