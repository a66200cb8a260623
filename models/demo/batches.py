"""Dialogues as tensors: token ids, which of them are answers, and pixels.

Knows nothing of where dialogues come from or how they are learnt.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import GemmaTokenizer

from models.demo.dialogues import Dialogue, Dialogues, Turn
from models.demo.pictures import Picture
from models.demo.shape import CONTEXT, IMAGE_TOKENS

#: Dialogues drawn at a time, then sorted by length so that little of a batch is padding.
_POOL = 96
_SOFT_TOKEN = "<image_soft_token>"
_PICTURE = f"\n\n<start_of_image>{_SOFT_TOKEN * IMAGE_TOKENS}<end_of_image>\n\n"


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Padded dialogues: B of them, each of T tokens, with P pictures in all."""

    #: (B, T) token ids, padded on the right.
    input_ids: Tensor
    #: (B, T) booleans: this token belongs to an answer, so the model is to predict it.
    is_answer: Tensor
    #: (B, T) ones at the tokens of a picture; None without pictures.
    token_type_ids: Tensor | None = None
    #: (P, 3, 64, 64) in [-1, 1]; None without pictures.
    pixel_values: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class _Encoded:
    ids: list[int]
    is_answer: list[bool]
    pictures: list[Picture]


def text_batches(dialogues: Dialogues, tokenizer: GemmaTokenizer, tokens: int) -> Iterator[Batch]:
    """Endless batches of dialogues without pictures, each of at most about ``tokens`` tokens with padding."""
    while True:
        pool = [encode(dialogues.text(), tokenizer) for _ in range(_POOL)]
        yield from (_collate(group, tokenizer) for group in dialogues.shuffled(_grouped(pool, tokens)))


def picture_batches(dialogues: Dialogues, tokenizer: GemmaTokenizer, count: int) -> Iterator[Batch]:
    """Endless batches of ``count`` dialogues about a picture each."""
    while True:
        yield _collate([encode(dialogues.picture(), tokenizer) for _ in range(count)], tokenizer)
