"""In what order samples are learnt, and how those of one pass lie together. It knows no words and no weights.

Text is packed: the samples of a pass lie behind one another in one row, and attention keeps them apart
(attention.py), so no arithmetic is spent on padding. Pictures need a mask of their own, so samples with
pictures are padded, and those of like length, of the rows of some steps, go together.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, cast

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import torch
from datasets import Dataset  # type: ignore[import-untyped]
from PIL import Image
from torch.utils.data import Sampler

from services.worker_train.tokens import Sample

#: The label of what is not to be predicted.
IGNORED = -100
#: Steps among which padded rows of like length are brought together.
_WINDOW = 8


class StepSampler(Sampler[int]):
    """The order of an epoch: the rows of each step are random, and dealt so that its passes are of like size.
    Where they are padded, the rows of `_WINDOW` steps are random, and each step has those of like length, be
    it the longer or the shorter ones.

    A step's gradient does not depend on how its rows are dealt to passes, so halving the batch and doubling
    the accumulation gives the same training. Equal seed and epoch give the equal order, which is all that a
    resumed run needs.
    """

    def __init__(
        self, lengths: Sequence[int], *, batch_size: int, passes: int, seed: int, packed: bool
    ) -> None:
        """`passes`: accumulation × processes, the passes of a step."""
        self._lengths, self._batch_size, self._passes = lengths, batch_size, passes
        self._seed, self._packed = seed, packed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer before each epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        chance = random.Random(f"{self._seed}:{self._epoch}")
        order = list(range(len(self._lengths)))
        chance.shuffle(order)
        step = self._batch_size * self._passes
        if not self._packed:
            order = self._alike(order, step, chance)
        for start in range(0, len(order), step):
            yield from self._dealt(order[start : start + step])

    def steps(self) -> int:
        """Steps of an epoch; the last may be short."""
        return -(-len(self) // (self._batch_size * self._passes))

    def largest_pass(self) -> int:
        """Most tokens of one pass in the first epoch, padding included."""
        self._epoch, before = 0, self._epoch
        order = list(self)
        self._epoch = before
        lengths = [self._lengths[index] for index in order]
        return largest_pass(lengths, self._batch_size, packed=self._packed)

    def _alike(self, order: list[int], step: int, chance: random.Random) -> list[int]:
        """The same rows, those of like length in one step; a short last step keeps its own."""
        whole = len(order) - len(order) % step
        alike: list[int] = []
        for start in range(0, whole, step * _WINDOW):
            window = sorted(
                order[start : min(start + step * _WINDOW, whole)], key=lambda index: self._lengths[index]
            )
            steps = [window[first : first + step] for first in range(0, len(window), step)]
            chance.shuffle(steps)
            alike += chain.from_iterable(steps)
        return alike + order[whole:]

    def _dealt(self, indices: list[int]) -> list[int]:
        longest_first = sorted(indices, key=lambda index: self._lengths[index], reverse=True)
        if not self._packed:
            return longest_first
        # The longest to the lightest pass that has room (Graham 1969); the last pass of an epoch may be
        # short.
        count = -(-len(indices) // self._batch_size)
        room = [self._batch_size] * count
        room[-1] -= count * self._batch_size - len(indices)
        passes: list[list[int]] = [[] for _ in range(count)]
        for index in longest_first:
            lightest = min(
                (number for number in range(count) if len(passes[number]) < room[number]),
                key=lambda number: sum(self._lengths[held] for held in passes[number]),
            )
            passes[lightest].append(index)
        return [index for dealt in passes for index in dealt]


def largest_pass(lengths: Sequence[int], batch_size: int, *, packed: bool) -> int:
    """Most tokens of one pass, padding included, over rows of these lengths in this order; 0 without rows."""
    passes = [lengths[start : start + batch_size] for start in range(0, len(lengths), batch_size)]
    return max((sum(each) if packed else max(each) * len(each) for each in passes), default=0)


def as_dataset(samples: Sequence[Sample]) -> Dataset:
    """Samples as columns in memory (nothing of them is written to a disk): `input_ids`, `labels`, `row`.

    A label is the id to be predicted, or IGNORED; the first of a sample is not, as nothing stands before it.
    """
    ends = np.cumsum([0, *(len(sample.ids) for sample in samples)])
    ids = np.fromiter(chain.from_iterable(sample.ids for sample in samples), np.int32, count=ends[-1])
    learnt = np.frombuffer(b"".join(sample.learnt for sample in samples), np.bool_)
    labels = np.where(learnt, ids, np.int32(IGNORED))
    labels[ends[:-1]] = IGNORED
    columns = {
        name: pa.LargeListArray.from_arrays(ends, of) for name, of in (("input_ids", ids), ("labels", labels))
    }
    return Dataset(pa.table({**columns, "row": np.arange(len(samples))}))


class PackedCollator:
    """Samples behind one another in one row of T tokens, each with positions of its own."""

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """`input_ids`, `labels`, `position_ids`, each (1, T); `segments`: the samples' lengths."""
        lengths = [len(sample["input_ids"]) for sample in samples]
        return {
            "input_ids": torch.tensor([[token for sample in samples for token in sample["input_ids"]]]),
            "labels": torch.tensor([[label for sample in samples for label in sample["labels"]]]),
            "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
            "segments": lengths,
        }


@dataclass(frozen=True, kw_only=True)
class PaddedCollator:
    """B samples in rows of equal length, with their pictures."""

    pad_id: int
    #: The token that a picture's features take the place of.
    soft_id: int | None = None
    #: Turns pictures into pixels; None for a model that reads none.
    image_processor: Any = None
    #: By `row`, what reads its picture.
    pictures: Sequence[Callable[[], Image.Image] | None] = ()

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """`input_ids`, `labels`, `attention_mask` (B, T), and with pictures `token_type_ids` and
        `pixel_values`.
        """
        length = max(len(sample["input_ids"]) for sample in samples)
        ids = torch.full((len(samples), length), self.pad_id)
        labels = torch.full((len(samples), length), IGNORED)
        mask = torch.zeros((len(samples), length), dtype=torch.long)
        for row, sample in enumerate(samples):
            count = len(sample["input_ids"])
            ids[row, :count] = torch.tensor(sample["input_ids"])
            labels[row, :count] = torch.tensor(sample["labels"])
            mask[row, :count] = 1
        batch: dict[str, Any] = {"input_ids": ids, "labels": labels, "attention_mask": mask}
        readers = [self.pictures[sample["row"]] for sample in samples] if self.pictures else []
        shown = [read() for read in readers if read is not None]
        if shown:
            batch["token_type_ids"] = ids.eq(cast(int, self.soft_id)).long()
            batch["pixel_values"] = self.image_processor(images=shown, return_tensors="pt")["pixel_values"]
        return batch
