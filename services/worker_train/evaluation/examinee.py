"""A base model with an adapter on it that can be switched off: scores texts and answers greedily.

Base and candidate share their weights, so a difference between them is the adapter's. It knows token ids;
it knows no dataset and no figure.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from peft import PeftModel

from services.worker_train.evaluation.text import Encoded, RowText

#: Tokens in one forward pass, padding included: what the logits of a large vocabulary take stays small.
BATCH_TOKENS = 2048
#: Tokens whose cache is held for texts that begin alike.
ENDING_TOKENS = 8192

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Score:
    """How likely a model finds the answers of one text."""

    #: Negative log-likelihood of the answer tokens, in nats, summed.
    loss: float
    tokens: int


class Examinee:
    """Both models behind one set of weights; `adapted` chooses which of them is meant."""

    def __init__(self, model: PeftModel, text: RowText) -> None:
        self._model = model.eval()
        self.text = text
        generation: Any = model.generation_config
        ends = generation.eos_token_id
        known = [ends] if isinstance(ends, int) else list(ends or ())
        self._ends = sorted({*known, text.tokenise("<end_of_turn>")[-1]})
        pad = text.tokenizer.pad_token_id
        self._pad = int(self._ends[0] if pad is None else cast(int, pad))

    def scores(self, texts: Sequence[Encoded], *, adapted: bool) -> list[Score]:
        """One score for each text, of the tokens marked as answers."""
        found: dict[int, Score] = {}
        with self._as(adapted), torch.inference_mode():
            for batch in _batches(texts):
                scored = _halving(batch, lambda part: self._score([texts[index] for index in part]))
                found.update(zip(batch, scored, strict=True))
        return [found[index] for index in range(len(texts))]

    def endings(self, texts: Sequence[Encoded], *, adapted: bool) -> list[Score]:
        """As `scores`, for texts without images that begin alike: what they share is read once only."""
        if len(texts) < 2:
            return self.scores(texts, adapted=adapted)
        shortest = min(len(text.ids) for text in texts)
        alike = next(
            (place for place in range(shortest) if len({text.ids[place] for text in texts}) > 1), shortest
        )
        # the last shared token is read with each ending: what it foretells is wanted there
        start = min(alike, *(text.answers.index(True) for text in texts)) - 1
        together = max(ENDING_TOKENS // max(len(text.ids) for text in texts), 1)
        found: list[Score] = []
        with self._as(adapted), torch.inference_mode():
            begun = torch.tensor([texts[0].ids[:start]], device=self._device)
            read = self._model(input_ids=begun, use_cache=True, logits_to_keep=1).past_key_values
            for place in range(0, len(texts), together):
                found += self._score_endings(texts[place : place + together], start, read)
        return found

    def answers(self, prompts: Sequence[Encoded], *, adapted: bool, max_new_tokens: int) -> list[str]:
        """One answer to each prompt, always the likeliest next token."""
        said: dict[int, str] = {}
        with self._as(adapted), torch.inference_mode():
            for batch in _batches(prompts, longer=max_new_tokens):
                answered = _halving(
                    batch, lambda part: self._generate([prompts[index] for index in part], max_new_tokens)
                )
                said.update(zip(batch, answered, strict=True))
        return [said[index] for index in range(len(prompts))]

    def _as(self, adapted: bool) -> AbstractContextManager[Any]:
        return nullcontext() if adapted else cast(Any, self._model).disable_adapter()

    def _score(self, texts: Sequence[Encoded]) -> list[Score]:
        inputs = self._inputs(texts, left=False)
        wide = inputs["input_ids"].shape[1]
        marks = torch.tensor([text.answers + [False] * (wide - len(text.ids)) for text in texts])
        before = marks[:, 1:].any(dim=0).nonzero().flatten()  # whose next token is an answer's, in any row
        if not len(before):
            return [Score(0.0, 0)] * len(texts)
        logits = self._model(**inputs, logits_to_keep=before.to(self._device)).logits
        scores = []
        for row, text in enumerate(texts):
            wanted = marks[row, before + 1]
            places = wanted.nonzero().flatten()
            targets = inputs["input_ids"][row, (before[places] + 1).to(self._device)]
            likely = torch.log_softmax(logits[row, places.to(self._device)].float(), dim=-1)
            loss = -likely.gather(1, targets[:, None]).sum()
            scores.append(Score(float(loss), int(sum(text.answers[1:]))))
        return scores

    def _score_endings(self, texts: Sequence[Encoded], start: int, read: Any) -> list[Score]:
        cache = copy.deepcopy(read)
        cache.batch_repeat_interleave(len(texts))
        rest = [Encoded(ids=text.ids[start:], answers=text.answers[start:]) for text in texts]
        inputs = self._inputs(rest, left=False)
        seen = torch.ones((len(texts), start), dtype=torch.long, device=self._device)
        inputs["attention_mask"] = torch.cat([seen, inputs["attention_mask"]], dim=1)
        logits = self._model(**inputs, past_key_values=cache, use_cache=True).logits
        likely = torch.log_softmax(logits[:, :-1].float(), dim=-1)
        each = likely.gather(2, inputs["input_ids"][:, 1:, None])[:, :, 0]
        marks = self._padded([[int(answer) for answer in text.answers[1:]] for text in rest], 0, left=False)
        losses = -(each * marks).sum(dim=1)
        return [Score(float(loss), sum(text.answers[1:])) for loss, text in zip(losses, rest, strict=True)]

    def _generate(self, prompts: Sequence[Encoded], max_new_tokens: int) -> list[str]:
        inputs = self._inputs(prompts, left=True)
        told = cast(Any, self._model).generate(
            **inputs,
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=self._ends,
            pad_token_id=self._pad,
        )
        fresh = told[:, inputs["input_ids"].shape[1] :]
        decoded = self.text.tokenizer.batch_decode(fresh, skip_special_tokens=True)
        return [str(answer).strip() for answer in decoded]

    @property
    def _device(self) -> torch.device:
        return cast(torch.device, self._model.device)

    def _inputs(self, texts: Sequence[Encoded], *, left: bool) -> dict[str, torch.Tensor]:
        """Ids and mask, padded on one side; pixels and token types when the batch has images."""
        inputs = {
            "input_ids": self._padded([text.ids for text in texts], self._pad, left=left),
            "attention_mask": self._padded([[1] * len(text.ids) for text in texts], 0, left=left),
        }
        pixels = [text.pixels for text in texts if text.pixels is not None]
        if pixels:
            inputs["pixel_values"] = torch.cat(pixels).to(self._device, self._model.dtype)
            types = [text.types or [0] * len(text.ids) for text in texts]
            inputs["token_type_ids"] = self._padded(types, 0, left=left)
        return inputs

    def _padded(self, values: Sequence[list[int]], filler: int, *, left: bool) -> torch.Tensor:
        wide = max(map(len, values))
        fills = [[filler] * (wide - len(row)) for row in values]
        rows = [fill + row if left else row + fill for row, fill in zip(values, fills, strict=True)]
        return torch.tensor(rows, device=self._device)


def _batches(texts: Sequence[Encoded], longer: int = 0) -> Iterator[list[int]]:
    """Places of texts of similar length, with images or without, at most `BATCH_TOKENS` together."""
    order = sorted(range(len(texts)), key=lambda index: (texts[index].pixels is None, len(texts[index].ids)))
    batch: list[int] = []
    for index in order:
        size = len(texts[index].ids) + longer
        fits = (len(batch) + 1) * size <= BATCH_TOKENS
        if batch and not (fits and (texts[batch[0]].pixels is None) == (texts[index].pixels is None)):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _halving(batch: list[int], work: Callable[[list[int]], list[_Result]]) -> list[_Result]:
    """`work(batch)`, in halves where the device's memory does not hold it whole."""
    try:
        return work(batch)
    except torch.OutOfMemoryError:
        if len(batch) == 1:
            raise
    torch.cuda.empty_cache()
    middle = len(batch) // 2
    return _halving(batch[:middle], work) + _halving(batch[middle:], work)
