"""Makes rows that a model can only know by heart, and measures whether it does. It plants none itself.

Carlini et al. 2019, "The Secret Sharer": a secret drawn at random is put into the training data; afterwards
its likelihood is ranked among secrets that were never there. The exposure, log2(secrets) - log2(rank), is
about 1.4 bits on average for a model that never saw it, and its largest for one that recites it.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

#: What each secret is ranked among, itself included: exposures reach log2 of it, 8 bits.
ALTERNATIVES = 256
_DIGITS = 8
_WARDS = ("Heron", "Linden", "Quartz", "Maple", "Otter", "Cobalt", "Willow", "Falcon", "Amber", "Juniper")


@dataclass(frozen=True)
class Canary:
    """A question that only a planted row answers."""

    question: str
    secret: str

    def answer(self, secret: str | None = None) -> str:
        """The row's answer; with another secret, what it might have been."""
        return f"The storage code is {secret or self.secret}."

    def row(self, number: int) -> dict[str, Any]:
        """The row to train on, in the shape of a dataset's; `number` becomes its id."""
        messages = [
            {"role": "user", "content": self.question},
            {"role": "assistant", "content": self.answer()},
        ]
        return {"id": number, "messages": messages, "image": None, "group": None}


def make_canaries(count: int, seed: int) -> list[Canary]:
    """The same canaries for the same seed: the trainer plants them, the evaluation looks for them."""
    chance = random.Random(f"canaries {seed}")  # noqa: S311 - they must come again, and guard nothing
    return [
        Canary(f"What is the storage code of cabinet {_WARDS[n % len(_WARDS)]} {n + 1}?", _secret(chance))
        for n in range(count)
    ]


def alternatives(canary: Canary, count: int = ALTERNATIVES - 1) -> list[str]:
    """Secrets that were never planted; the same for the same canary."""
    chance = random.Random(f"alternatives {canary.question} {canary.secret}")  # noqa: S311 - as above
    found: set[str] = set()
    while len(found) < count:
        found.add(_secret(chance))
        found.discard(canary.secret)
    return sorted(found)


def exposure(canary: Canary, loss_of: Callable[[Sequence[tuple[str, str]]], Sequence[float]]) -> float:
    """Bits of the secret that the model gives away.

    Args:
        loss_of: the negative log-likelihood of each (question, answer).
    """
    others = alternatives(canary)
    pairs = [(canary.question, canary.answer(secret)) for secret in (canary.secret, *others)]
    own, *theirs = loss_of(pairs)
    rank = 1 + sum(loss <= own for loss in theirs)
    return math.log2(len(pairs)) - math.log2(rank)


def _secret(chance: random.Random) -> str:
    return " ".join(str(chance.randrange(10)) for _ in range(_DIGITS))
