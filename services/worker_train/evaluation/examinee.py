"""A base model with an adapter on it that can be switched off: scores texts and answers greedily.

Base and candidate share their weights, so a difference between them is the adapter's. It knows token ids;
it knows no dataset and no figure.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from peft import PeftModel

from services.worker_train.evaluation.text import Encoded, RowText

#: Tokens in one forward pass, padding included: what the logits of a large vocabulary take stays small.
BATCH_TOKENS = 2048

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
        wide = max(len(text.ids) for text in texts)

        def padded(values: Iterable[list[int]], filler: int) -> torch.Tensor:
            rows = []
            for row in values:
                fill = [filler] * (wide - len(row))
                rows.append(fill + row if left else row + fill)
            return torch.tensor(rows, device=self._device)

        inputs = {
            "input_ids": padded((text.ids for text in texts), self._pad),
            "attention_mask": padded(([1] * len(text.ids) for text in texts), 0),
        }
        pixels = [text.pixels for text in texts if text.pixels is not None]
        if pixels:
            inputs["pixel_values"] = torch.cat(pixels).to(self._device, self._model.dtype)
            inputs["token_type_ids"] = padded((text.types or [0] * len(text.ids) for text in texts), 0)
        return inputs


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
