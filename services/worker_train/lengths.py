"""Counts the tokens that a row takes in a model's chat format. It loads a tokenizer, never a model."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from services.worker_train.fetching import unreadable
from services.worker_train.row_parts import Message
from shared.catalogue import CatalogueModel

#: Tokens of one picture in Gemma 3, and those around it.
_IMAGE_TOKENS, _AROUND_IMAGE = 256, 4


class Lengths:
    """One model's way of counting."""

    def __init__(self, entry: CatalogueModel, folder: Path | None = None) -> None:
        """Read the tokenizer of the entry, from `folder` when it is given.

        Raises:
            Refused: it is not there, or may not be read.
        """
        from transformers import AutoTokenizer

        folder = folder or entry.folder
        source: dict[str, Any] = {"trust_remote_code": False}
        source |= {"local_files_only": True} if folder else {"revision": entry.revision}
        try:
            tokenizer = cast(Any, AutoTokenizer).from_pretrained(str(folder or entry.hub_id), **source)
        except Exception as error:
            refusal = unreadable(error, "no-tokenizer", f"The tokenizer of {entry.name}")
            if refusal is None:
                raise
            raise refusal from None
        self._tokenizer = tokenizer
        self._encode = tokenizer.backend_tokenizer.encode_batch_fast
        self._image_tokens = _image_tokens(folder) + _AROUND_IMAGE
        specials = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
        longest_first = sorted(specials | set(tokenizer.all_special_tokens), key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest_first)))

    def plain(self, text: str) -> str:
        """`text` with a space inside every control token that it spells: they stay words, as when served."""
        return self._special.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)

    def count(self, messages: Sequence[Message], *, image: bool = False) -> int:
        """Tokens of the whole row, from BOS to the end of the last turn."""
        return self._count(messages, answering=False) + image * self._image_tokens

    def prompt(self, messages: Sequence[Message], *, image: bool = False) -> int:
        """Tokens before the last answer begins."""
        return self._count(messages[:-1], answering=True) + image * self._image_tokens

    def _count(self, messages: Sequence[Message], *, answering: bool) -> int:
        text = self._tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=answering
        )
        return len(self._encode([text], add_special_tokens=False)[0].ids)


def _image_tokens(folder: Path | None) -> int:
    """What the model's own files say of a picture's tokens, else Gemma 3's."""
    path = folder / "processor_config.json" if folder else None
    if path is None or not path.exists():
        return _IMAGE_TOKENS
    return int(json.loads(path.read_text(encoding="utf-8")).get("image_seq_length", _IMAGE_TOKENS))
