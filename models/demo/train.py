"""The training: first the vision tower learns to tell left from right, then all weights learn the dialogues.

Without the first part the answers were learnt long before the tower showed anything, and the language model
had learnt to look away from pictures.

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

    #: Updates of all weights; each sees one batch.
    steps: int
    #: Updates of the vision tower alone, before those; each sees 32 pictures.
    sight_steps: int
    #: Highest learning rate. Twice this did not learn faster; half of it left answers unlearnt.
    learning_rate: float = 2e-3
    #: Share of the steps in which the rate rises to its highest; it then falls in a straight line to zero.
    warm_up: float = 0.04
    weight_decay: float = 0.05
    #: Every this many steps a batch of pictures takes the place of a batch of text.
    picture_every: int = 8


def train_sight(
    model: Gemma3ForConditionalGeneration, draw: Callable[[], tuple[Tensor, Tensor]], recipe: Recipe
) -> None:
    """Train the vision tower of ``model`` and its projection in place, by a classifier that is then dropped.

    ``draw`` gives (B, 3, 64, 64) pixels in [-1, 1] and (B,) sides as numbers.
    """
    tower, projector = model.model.vision_tower, model.model.multi_modal_projector
    width = projector.mm_input_projection_weight.shape[0]
    with torch.no_grad():  # it comes as zeros, to be loaded over
        projector.mm_input_projection_weight.normal_(0, width**-0.5)
    classifier = torch.nn.Linear(projector.mm_input_projection_weight.shape[1], 2)
    parameters = [*tower.parameters(), *projector.parameters(), *classifier.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate / 2, betas=(0.9, 0.98), fused=True)
    for _ in range(recipe.sight_steps):
        pixels, sides = draw()
        seen = projector(tower(pixel_values=pixels).last_hidden_state)
        cross_entropy(classifier(seen.mean(dim=1)), sides).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def train_dialogues(
    model: Gemma3ForConditionalGeneration,
    text: Iterator[Batch],
    pictures: Iterator[Batch],
    recipe: Recipe,
    say: Callable[[str], None],
) -> None:
    """Train all of ``model`` in place; ``say`` is told of the progress."""
    model.train()
    optimizer = torch.optim.AdamW(_groups(model, recipe.weight_decay), betas=(0.9, 0.98), fused=True)
    started, seen, recent = time.monotonic(), 0, {"text": 0.0, "pictures": 0.0}
    for step in range(recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * pace(step, recipe)
        kind = "pictures" if step % recipe.picture_every == recipe.picture_every - 1 else "text"
        batch = next(pictures if kind == "pictures" else text)
        loss = answer_loss(model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seen += batch.input_ids.numel()
        recent[kind] = 0.9 * (recent[kind] or loss.item()) + 0.1 * loss.item()
        if (step + 1) % 50 == 0 or step + 1 == recipe.steps:
            passed = time.monotonic() - started
            losses = ", ".join(f"{name} {value:.4f}" for name, value in recent.items())
            say(f"step {step + 1}/{recipe.steps}: {losses}; {passed:.0f} s, {seen / passed:.0f} tokens/s")
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
