"""Between a conversation's words and a model's token ids: prompts in Gemma's chat format, and answers back.

Knows the tokenizer and its chat template; nothing of engines, jobs or the guard.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from transformers import PreTrainedTokenizerFast

from shared.errors import PromptTooLong

_PICTURE_MARK, _SOFT_TOKEN, _PICTURE_END = "<start_of_image>", "<image_soft_token>", "<end_of_image>"
_BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")


@dataclass(frozen=True, kw_only=True)
class Turn:
    """Something said earlier in the conversation."""

    #: "user" or "assistant".
    role: str
    text: str
    #: How many pictures came with it.
    pictures: int = 0


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What the model shall read."""

    token_ids: list[int]
    #: The places of the turns that are in it, in order: with their pictures, as the question is with its own.
    kept: tuple[int, ...]


class ChatText:
    """One tokenizer's way from a conversation to token ids and back; threads may share it."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, *, picture_tokens: int = 0) -> None:
        """`picture_tokens` stand for one picture; 0 for a model that reads none.

        Only what does not change the tokenizer is called, so threads need no lock.
        """
        self._tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer
        specials = sorted(
            {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
            | set(tokenizer.all_special_tokens)
            | ({_PICTURE_MARK, _SOFT_TOKEN, _PICTURE_END} & tokenizer.get_vocab().keys()),
            key=len,
            reverse=True,
        )
        self._special = re.compile("|".join(re.escape(token) for token in specials))
        self._special_ids = frozenset(self._backend.token_to_id(token) for token in specials)
        self._reads_pictures = picture_tokens > 0
        #: As Gemma 3's processor lays a picture out.
        self._picture = f"\n\n{_PICTURE_MARK}{_SOFT_TOKEN * picture_tokens}{_PICTURE_END}\n\n"
        self._byte_ids = frozenset(
            token_id for piece, token_id in tokenizer.get_vocab().items() if _BYTE_PIECE.fullmatch(piece)
        )

    def prompt(
        self,
        *,
        system: str,
        turns: Sequence[Turn],
        question: str,
        budget_tokens: int,
        released: str = "",
        pictures: int = 0,
    ) -> Prompt:
        """Token ids from BOS to the place where the answer starts, or goes on after `released`.

        Of `turns`, questions and answers in pairs are kept, and the oldest pairs are left out, with their
        pictures, until at most `budget_tokens` remain. `pictures` come with the question. What people wrote
        cannot become a control token.

        Raises:
            PromptTooLong: system text, question, its pictures and `released` alone take more than
                `budget_tokens`.
        """
        asked = Turn(role="user", text=question, pictures=pictures)

        def encode(places: Sequence[int]) -> list[int]:
            return self._encode(system, [*(turns[place] for place in places), asked], released)

        places = self._answered(turns)
        whole = encode(places)
        if len(whole) <= budget_tokens:
            return Prompt(token_ids=whole, kept=tuple(places))
        shortest = encode([])
        if len(shortest) > budget_tokens:
            shown, fewer = (" and its pictures", ", send fewer pictures") if pictures else ("", "")
            raise PromptTooLong(
                f"The question takes {len(shortest)} tokens with the system text{shown}, and {budget_tokens} "
                f"are left for it. Shorten the question{fewer} or ask for a shorter answer."
            )
        # Fewer pairs never make a longer prompt: find the fewest to leave out by halving.
        too_few, enough, best = 0, len(places) // 2, shortest
        while enough - too_few > 1:
            middle = (too_few + enough) // 2
            attempt = encode(places[2 * middle :])
            if len(attempt) <= budget_tokens:
                enough, best = middle, attempt
            else:
                too_few = middle
        return Prompt(token_ids=best, kept=tuple(places[2 * enough :]))

    def first_token(self, text: str) -> int:
        """The id with which `text` begins at the start of an answer."""
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return ids[0]

    def count(self, text: str) -> int:
        """How many tokens a text of an answer takes."""
        return len(self._backend.encode(self._as_plain(text), add_special_tokens=False).ids)

    def detokeniser(self) -> "Detokeniser":
        """A fresh one for one answer."""
        return Detokeniser(self)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of `token_ids` without control tokens."""
        text: str = self._backend.decode(list(token_ids), skip_special_tokens=True)
        return text

    def is_special(self, token_id: int) -> bool:
        """Whether the id is a control token, which has no text."""
        return token_id in self._special_ids

    def is_byte(self, token_id: int) -> bool:
        """Whether the id stands for one byte of a character that the vocabulary lacks."""
        return token_id in self._byte_ids

    def _encode(self, system: str, turns: Sequence[Turn], released: str) -> list[int]:
        messages: list[dict[str, Any]] = []
        if system:
            messages.append({"role": "system", "content": self._as_plain(system)})
        messages += [{"role": turn.role, "content": self._content(turn)} for turn in turns]
        rendered = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        rendered = str(rendered).replace(_PICTURE_MARK, self._picture)
        # The template writes BOS itself.
        encoded = self._backend.encode(f"{rendered}{self._as_plain(released)}", add_special_tokens=False)
        ids: list[int] = encoded.ids
        return ids

    def _content(self, turn: Turn) -> str | list[dict[str, str]]:
        """A turn as the chat template takes it; the template writes the mark of each picture where it stands.

        Pictures come before the words about them, as in Google's notebook that fine-tunes MedGemma and in our
        own training: every word of the question is then read with the picture in sight.
        """
        text = self._as_plain(turn.text)
        if not turn.pictures:
            return text
        return [{"type": "image"}] * turn.pictures + [{"type": "text", "text": text}]

    def _answered(self, turns: Sequence[Turn]) -> list[int]:
        """The places of each question and the answer right after it: roles must alternate in the format.

        A question whose pictures this model cannot read is as good as none.
        """
        return [
            either
            for place, (asked, answered) in enumerate(pairwise(turns))
            if asked.role == "user" and answered.role == "assistant"
            if self._reads_pictures or not asked.pictures
            for either in (place, place + 1)
        ]

    def _as_plain(self, text: str) -> str:
        """`text` with a space inside every control token that it spells, which makes it ordinary words."""
        return self._special.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)


class Detokeniser:
    """Turns one answer's token ids into text as they come.

    All outputs joined are the decoded whole: nothing that was given out is ever changed by what follows.
    """

    def __init__(self, chat_text: ChatText) -> None:
        self._chat_text = chat_text
        self._pending: list[int] = []

    def feed(self, token_ids: Sequence[int]) -> str:
        """The text that is certain now; a run of byte pieces waits for its end: it decodes as a whole."""
        self._pending += [token_id for token_id in token_ids if not self._chat_text.is_special(token_id)]
        certain = len(self._pending)
        while certain and self._chat_text.is_byte(self._pending[certain - 1]):
            certain -= 1
        ready, self._pending = self._pending[:certain], self._pending[certain:]
        return self._chat_text.decode(ready)

    def close(self) -> str:
        """What was still held back."""
        rest, self._pending = self._pending, []
        return self._chat_text.decode(rest)
