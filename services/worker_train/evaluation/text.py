"""Turns a dataset's rows into token ids, with a mark on the tokens that answer. It knows no model.

What people wrote cannot become a control token, so the turns of the chat format can be found in the ids.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from PIL import Image
from transformers import PreTrainedTokenizerFast, ProcessorMixin

_TURN, _END = "<start_of_turn>", "<end_of_turn>"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A question with the answer that is wanted, and what was said before."""

    #: `role` and `content` each; the last is the assistant's, whose answer is wanted.
    messages: tuple[dict[str, str], ...]
    #: Reads the image that is shown with the first question: decoded, hundreds of them would fill the memory.
    image: Callable[[], Image.Image] | None = None
    #: Rows of the same group (a patient) are not independent.
    group: str | None = None

    @property
    def question(self) -> str:
        """What was asked last."""
        return self.messages[-2]["content"]

    @property
    def answer(self) -> str:
        """The answer that is wanted."""
        return self.messages[-1]["content"]


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """A text as a model reads it."""

    ids: list[int]
    #: For each id whether it is part of an answer, its end-of-turn included.
    answers: list[bool]
    #: 1 × channels × height × width; None without an image.
    pixels: torch.Tensor | None = None
    #: For each id 1 when it stands for a piece of the image.
    types: list[int] | None = None


class RowText:
    """One model's way from rows to token ids."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        *,
        system: str,
        processor: ProcessorMixin | None = None,
        max_tokens: int,
    ) -> None:
        """`system` is put before rows without a system text; `max_tokens` is what the model can read."""
        self.tokenizer = tokenizer
        self._processor = processor
        self._system = system
        self.max_tokens = max_tokens
        specials = sorted([*tokenizer.all_special_tokens, _TURN, _END], key=len, reverse=True)
        self._special = re.compile("|".join(re.escape(token) for token in dict.fromkeys(specials)))
        self._header = self.tokenise(f"{_TURN}model\n")
        self._end = self.tokenise(_END)[-1]

    def whole(self, row: Row) -> Encoded:
        """The row with its answers."""
        return self._encode(row.messages, row.image, open_end=False)

    def prompt(self, row: Row) -> Encoded:
        """The row up to the place where its last answer starts."""
        return self._encode(row.messages[:-1], row.image, open_end=True)

    def asked(self, question: str) -> Encoded:
        """A question on its own, as a person would ask it."""
        return self._encode(({"role": "user", "content": question},), None, open_end=True)

    def tokenise(self, text: str) -> list[int]:
        """Token ids of `text` alone."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _encode(
        self, messages: Sequence[dict[str, str]], read: Callable[[], Image.Image] | None, *, open_end: bool
    ) -> Encoded:
        image = read() if read is not None else None
        chat = self._chat(messages, image)
        if image is None:
            rendered = self.tokenizer.apply_chat_template(
                chat, tokenize=False, add_generation_prompt=open_end
            )
            ids = self.tokenise(cast(str, rendered))  # the template writes BOS itself
            return Encoded(ids=ids, answers=self._mark(ids))
        made: Any = cast(Any, self._processor).apply_chat_template(
            chat, add_generation_prompt=open_end, tokenize=True, return_dict=True, return_tensors="pt"
        )
        ids = made["input_ids"][0].tolist()
        types = made["token_type_ids"][0].tolist()
        return Encoded(ids=ids, answers=self._mark(ids), pixels=made["pixel_values"], types=types)

    def _chat(self, messages: Sequence[dict[str, str]], image: Image.Image | None) -> list[dict[str, Any]]:
        said: list[dict[str, Any]] = [
            {
                "role": message["role"],
                "content": [{"type": "text", "text": self._as_plain(message["content"])}],
            }
            for message in messages
        ]
        if self._system and said[0]["role"] != "system":
            said.insert(0, {"role": "system", "content": [{"type": "text", "text": self._system}]})
        if image is not None:
            first = next(message for message in said if message["role"] == "user")
            first["content"].insert(0, {"type": "image", "image": image})
        return said

    def _as_plain(self, text: str) -> str:
        return self._special.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)

    def _mark(self, ids: list[int]) -> list[bool]:
        """True from behind each header of the model's turn to the end of that turn."""
        marks, inside, width = [False] * len(ids), False, len(self._header)
        for place, token in enumerate(ids):
            inside = inside or (place >= width and ids[place - width : place] == self._header)
            marks[place] = inside
            inside = inside and token != self._end
        return marks
