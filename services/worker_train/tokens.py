"""Rows as token ids in Gemma's chat format, and which of them are learnt. It knows no model and no training.

The text is rendered by an own template (templates/gemma3_training.jinja), which gives the same bytes as the
model's and marks what the assistant says. Google's template has no such marks, and a trainer that looks for
them finds none: it then learns nothing, or the questions too, without a word. So every row is checked here,
as it will be learnt. No row is cut: one that is too long for the recipe is left out as a whole.
"""

import re
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from PIL import Image
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from services.worker_train.child import Refused
from services.worker_train.rows import Row

TEMPLATE = (Path(__file__).parent / "templates" / "gemma3_training.jinja").read_text(encoding="utf-8")
_END_OF_TURN = "<end_of_turn>"
_SOFT_TOKEN = "<image_soft_token>"
_OF_PICTURES = ("<start_of_image>", _SOFT_TOKEN, "<end_of_image>")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One row, ready to be learnt: five bytes a token, since a dataset has hundreds of millions."""

    ids: "array[int]"
    #: For each id 1 when the model is to learn to say it, else 0.
    learnt: bytes
    picture: Callable[[], Image.Image] | None = None
    #: The row's, see `Row`.
    unit: bytes = b""


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """Turns rows into samples."""

    tokenizer: PreTrainedTokenizerFast
    max_tokens: int
    #: Put in front of rows that have no system text; empty for none.
    system: str = ""
    #: Learn the questions too.
    train_on_all: bool = False
    #: Tokens that stand for one picture; 0 for a model that reads none.
    picture_tokens: int = 0

    def render(self, row: Row) -> tuple[str, list[tuple[int, int]]]:
        """The row's text, and where in it the assistant speaks, as (start, end) in characters."""
        messages: list[dict[str, Any]] = [
            {**turn, "content": self._as_plain(turn["content"])} for turn in row.messages
        ]
        if self.system and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": self.system})
        if row.picture is not None:
            asked = next(turn for turn in messages if turn["role"] == "user")
            asked["content"] = [{"type": "image"}, {"type": "text", "text": asked["content"]}]
        rendered, spoken = cast(Any, render_jinja_template)(
            [messages],
            chat_template=TEMPLATE,
            return_assistant_tokens_mask=True,
            bos_token=self.tokenizer.bos_token,
            picture=f"\n\n<start_of_image>{_SOFT_TOKEN * self.picture_tokens}<end_of_image>\n\n",
        )
        return rendered[0], list(spoken[0])

    def encode(self, row: Row) -> Sample:
        """The row's tokens, however many; see `encode_all` for what is left out and refused."""
        text, spoken = self.render(row)
        encoded = self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
        learnt = bytearray(len(encoded.ids))
        if self.train_on_all:
            learnt[:] = (token not in self._of_pictures for token in encoded.ids)
        else:
            turn = 0
            for index, (start, end) in enumerate(encoded.offsets):
                while turn < len(spoken) and start >= spoken[turn][1]:
                    turn += 1
                learnt[index] = turn < len(spoken) and spoken[turn][0] <= start and end <= spoken[turn][1]
        return Sample(ids=array("i", encoded.ids), learnt=bytes(learnt), picture=row.picture, unit=row.unit)

    def encode_all(self, rows: Sequence[Row]) -> list[Sample]:
        """The rows of at most `max_tokens` tokens as samples; the others are left out.

        Raises:
            Refused: a row that would not teach where an answer ends, or a picture that this model cannot
                read.
        """
        if not self.picture_tokens and any(row.picture is not None for row in rows):
            raise Refused(
                "no-pictures", "The data has pictures, and this model reads none: choose another model."
            )
        samples = [sample for sample in map(self.encode, rows) if len(sample.ids) <= self.max_tokens]
        if not all(map(self._teaches_to_stop, samples)):
            raise Refused(
                "no-end-of-turn",
                "The tokenizer's chat format does not mark where an answer ends, so the model would never "
                "learn to stop; use a Gemma 3 model.",
            )
        return samples

    def _teaches_to_stop(self, sample: Sample) -> bool:
        """Whether an answer's end is among what is learnt; the first token of a row is predicted by none."""
        return any(
            wanted and token == self._end
            for token, wanted in zip(sample.ids[1:], sample.learnt[1:], strict=True)
        )

    @cached_property
    def _end(self) -> int:
        return cast(int, self.tokenizer.convert_tokens_to_ids(_END_OF_TURN))

    @cached_property
    def _of_pictures(self) -> frozenset[int]:
        """What stands for a picture: no words, and nothing that the model is ever to say."""
        vocabulary = self.tokenizer.get_vocab()
        return frozenset(vocabulary[token] for token in _OF_PICTURES if token in vocabulary)

    @cached_property
    def _specials(self) -> re.Pattern[str]:
        specials = {str(token) for token in self.tokenizer.added_tokens_decoder.values() if token.special}
        ordered = sorted(specials | set(self.tokenizer.all_special_tokens), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, ordered)))

    def _as_plain(self, text: str) -> str:
        """`text` with a space inside every control token that it spells, as when answering."""
        return self._specials.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)
