"""Fine-tunes the network on rows. It knows no file."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from models.guard.network import Network
from models.guard.rows import Row
from shared.guard.classifier import OUTPUT_LABELS, QUESTION_LABELS, Reader


@dataclass(frozen=True)
class Recipe:
    """How long and how fast to learn."""

    epochs: int = 4
    batch: int = 32
    #: Of the encoder; the new layers learn ten times as fast.
    rate: float = 8e-5
    warm_up: float = 0.1
    smoothing: float = 0.05
    seed: int = 1


@dataclass(frozen=True)
class Batch:
    """Rows of one side, as tensors."""

    inputs: dict[str, Tensor]
    #: (N,) numbers of labels.
    labels: Tensor
    questions: bool


def train(
    network: Network, rows: list[Row], reader: Reader, recipe: Recipe, say: Callable[[str], None]
) -> None:
    """Learn all the rows; batches are of like length and of one side.

    The word embeddings stay as they are: half of all weights, of which a batch moves next to none. That,
    fused steps and bfloat16 (where the processor multiplies in it; others do so very slowly) took a step on
    two cores from 6.2 s to 0.35 s.
    """
    able = torch.cpu.get_capabilities()
    fast = any(able.get(name) for name in ("avx512_bf16", "amx_bf16"))
    rng = random.Random(recipe.seed)
    steps = recipe.epochs * sum(1 for _ in batches(rows, reader, recipe.batch, rng))
    network.encoder.embeddings.word_embeddings.requires_grad_(False)
    heads = [*network.answer.parameters(), *network.question.parameters()]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in network.encoder.parameters() if p.requires_grad], "lr": recipe.rate},
            {"params": heads, "lr": 10 * recipe.rate},
        ],
        weight_decay=0.01,
        fused=True,
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [recipe.rate, 10 * recipe.rate], total_steps=steps + 8, pct_start=recipe.warm_up
    )
    network.train()
    for epoch in range(recipe.epochs):
        total, count = 0.0, 0
        for batch in batches(rows, reader, recipe.batch, rng):
            with torch.autocast("cpu", torch.bfloat16, enabled=fast):
                logits = network(**batch.inputs)[batch.questions]
            loss = cross_entropy(logits.float(), batch.labels, label_smoothing=recipe.smoothing)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total, count = total + loss.item(), count + 1
        say(f"epoch {epoch + 1} of {recipe.epochs}: loss {total / count:.3f}")
    network.eval()


def mean_of(first: Network, second: Network, share: float) -> None:
    """Leave the mean of both networks' weights in the first; `share` is how much the second counts, 0 to 1.

    Trainings that began at the same weights end near enough to each other for that, and what one learnt by
    chance the other did not (Wortsman and others 2022, "Model soups", arXiv:2203.05482).
    """
    other = second.state_dict()
    mean = {name: torch.lerp(weight, other[name], share) for name, weight in first.state_dict().items()}
    first.load_state_dict(mean)


def batches(rows: list[Row], reader: Reader, size: int, rng: random.Random) -> Iterator[Batch]:
    """All rows once, in another order each time."""
    groups: list[list[Row]] = []
    for questions in (False, True):
        side = [row for row in rows if row.is_question is questions]
        rng.shuffle(side)
        # sorted within stretches: little padding, and yet another mix each time
        for start in range(0, len(side), 32 * size):
            stretch = sorted(
                side[start : start + 32 * size], key=lambda row: len(row.context) + len(row.text)
            )
            groups += [stretch[at : at + size] for at in range(0, len(stretch), size)]
    rng.shuffle(groups)
    for group in groups:
        yield to_batch(group, reader)


def to_batch(rows: list[Row], reader: Reader) -> Batch:
    """Rows of one side as tensors."""
    labels = QUESTION_LABELS if rows[0].is_question else OUTPUT_LABELS
    arrays = reader.batch([(row.context, row.text) for row in rows])
    return Batch(
        inputs={name: torch.from_numpy(array) for name, array in arrays.items()},
        labels=torch.tensor([labels.index(row.label) for row in rows]),
        questions=rows[0].is_question,
    )
