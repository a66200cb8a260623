"""Dialogues as tensors: token ids, which of them are answers, and pixels.

Knows nothing of where dialogues come from or how they are learnt.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import GemmaTokenizer

from models.demo.dialogues import Dialogue, Dialogues, Turn
from models.demo.pictures import SIDES, Picture
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
class Encoded:
    """One dialogue as token ids, each marked as part of an answer or not, with its pictures in order."""

    ids: list[int]
    is_answer: list[bool]
    pictures: list[Picture]


def text_batches(dialogues: Dialogues, tokenizer: GemmaTokenizer, tokens: int) -> Iterator[Batch]:
    """Endless batches of dialogues without pictures, each of at most about ``tokens`` tokens with padding."""
    while True:
        pool = [encode(dialogues.text(), tokenizer) for _ in range(_POOL)]
        for group in dialogues.shuffled(_grouped(pool, tokens)):
            yield _collate(group, tokenizer)


def picture_batches(dialogues: Dialogues, tokenizer: GemmaTokenizer, count: int) -> Iterator[Batch]:
    """Endless batches of ``count`` dialogues about a picture each."""
    while True:
        yield _collate([encode(dialogues.picture(), tokenizer) for _ in range(count)], tokenizer)


def side_batch(dialogues: Dialogues, count: int) -> tuple[Tensor, Tensor]:
    """``count`` pictures, and on which side the patch of each lies.

    Returns:
        (count, 3, 64, 64) pixels in [-1, 1], and (count,) indices into ``SIDES``.
    """
    drawn = [dialogues.drawn() for _ in range(count)]
    return _pixels([picture for _, picture in drawn]), torch.tensor([SIDES.index(side) for side, _ in drawn])


def encode(dialogue: Dialogue, tokenizer: GemmaTokenizer) -> Encoded:
    """The tokens of ``dialogue`` in Gemma's chat format, as the chat template would give them."""
    ids: list[int] = []
    is_answer: list[bool] = []
    for text, answered in _pieces(dialogue):
        piece = tokenizer.encode(text, add_special_tokens=False)
        ids += piece
        is_answer += [answered] * len(piece)
    shown = [turn.picture for turn in dialogue.turns if turn.picture is not None]
    return Encoded(ids=ids[:CONTEXT], is_answer=is_answer[:CONTEXT], pictures=shown)


def _pieces(dialogue: Dialogue) -> Iterator[tuple[str, bool]]:
    """The text of ``dialogue`` in pieces, each with whether the model is to learn to say it."""
    opening = "<bos>"
    preface = dialogue.system + "\n\n" if dialogue.system else ""
    for turn in dialogue.turns:
        yield (
            f"{opening}<start_of_turn>user\n{preface}{_asked(turn)}<end_of_turn>\n<start_of_turn>model\n",
            False,
        )
        yield f"{turn.answer}<end_of_turn>", True
        opening, preface = "\n", ""


def _asked(turn: Turn) -> str:
    if turn.picture is None:
        return turn.question
    return _PICTURE + turn.question if turn.picture_first else turn.question + _PICTURE


def _grouped(pool: list[Encoded], tokens: int) -> list[list[Encoded]]:
    """``pool`` in groups of like length, each of at most ``tokens`` tokens when padded."""
    groups: list[list[Encoded]] = [[]]
    for sample in sorted(pool, key=lambda sample: len(sample.ids)):
        if groups[-1] and (len(groups[-1]) + 1) * len(sample.ids) > tokens:
            groups.append([])
        groups[-1].append(sample)
    return groups


def _collate(samples: list[Encoded], tokenizer: GemmaTokenizer) -> Batch:
    length = max(len(sample.ids) for sample in samples)
    ids = torch.full((len(samples), length), tokenizer.pad_token_id, dtype=torch.long)
    is_answer = torch.zeros((len(samples), length), dtype=torch.bool)
    for row, sample in enumerate(samples):
        ids[row, : len(sample.ids)] = torch.tensor(sample.ids)
        is_answer[row, : len(sample.ids)] = torch.tensor(sample.is_answer)
    shown = [picture for sample in samples for picture in sample.pictures]
    if not shown:
        return Batch(input_ids=ids, is_answer=is_answer)
    soft = tokenizer.convert_tokens_to_ids(_SOFT_TOKEN)
    is_picture = (ids == soft).long()
    return Batch(input_ids=ids, is_answer=is_answer, token_type_ids=is_picture, pixel_values=_pixels(shown))


def _pixels(shown: list[Picture]) -> Tensor:
    return torch.from_numpy(np.stack(shown)).permute(0, 3, 1, 2).float() / 127.5 - 1
