"""Scores a text with a small neural network on ONNX Runtime. It does not know what is done with a score.

The network (models/guard) is MiniLM with a layer for answers and one for questions, at 8 bits a weight.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from tokenizers import Encoding, Tokenizer

#: What a sentence of an answer can be; the first says that nothing is wrong.
OUTPUT_LABELS = (
    "safe",
    "medication_change",
    "dosing",
    "diagnosis",
    "emergency_minimised",
    "discourage_care",
    "interaction",
    "false_cure",
    "self_harm",
    "illicit_self_procedure",
    "false_authority",
)
#: What a question can be.
QUESTION_LABELS = ("allow", "refuse", "emergency", "crisis")
#: Longer texts are scored in pieces, and of the text before them the end is read; in tokens.
MAX_TOKENS = 192
_MAX_CONTEXT_TOKENS = 24
FOLDER = Path(__file__).resolve().parents[2] / "models" / "guard"
NETWORK, TOKENIZER, CARD = "guard.int8.onnx", "tokenizer.json", "classifier.json"


class Reader:
    """Turns texts into the network's input."""

    def __init__(self, file: Path) -> None:
        self._tokenizer: Tokenizer = Tokenizer.from_file(str(file))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._start, self._end = map(self._id, ("[CLS]", "[SEP]"))

    def read(self, context: str, text: str) -> tuple[list[int], list[int]]:
        """Ids and types of `[CLS] context [SEP] text [SEP]`; of the context the end is kept."""
        before, judged = self._ids(context)[-_MAX_CONTEXT_TOKENS:], self._ids(text)
        judged = judged[: MAX_TOKENS - 3 - len(before)]
        first = [self._start, *before, self._end]
        second = [*judged, self._end]
        return first + second, [0] * len(first) + [1] * len(second)

    def pieces(self, text: str, context: str = "") -> list[str]:
        """The text, halved at a blank until each piece is read whole behind the context."""
        room = MAX_TOKENS - 3 - min(len(self._ids(context)), _MAX_CONTEXT_TOKENS)
        if len(text) < 2 or len(self._ids(text)) <= room:
            return [text]
        middle = max(text.rfind(" ", 0, len(text) // 2 + 1), 0) or len(text) // 2
        return [*self.pieces(text[:middle], context), *self.pieces(text[middle:], context)]

    def batch(self, texts: Sequence[tuple[str, str]]) -> dict[str, np.ndarray[Any, np.dtype[np.int64]]]:
        """(N, L) arrays for pairs of context and text, padded to the longest."""
        read = [self.read(context, text) for context, text in texts]
        longest = max(len(ids) for ids, _ in read)
        made = {
            name: np.zeros((len(read), longest), dtype=np.int64)
            for name in ("input_ids", "attention_mask", "token_type_ids")
        }
        for number, (ids, types) in enumerate(read):
            made["input_ids"][number, : len(ids)] = ids
            made["attention_mask"][number, : len(ids)] = 1
            made["token_type_ids"][number, : len(ids)] = types
        return made

    def _id(self, token: str) -> int:
        number = self._tokenizer.token_to_id(token)
        if number is None:
            raise ValueError(f"the tokenizer has no {token}")
        return number

    def _ids(self, text: str) -> list[int]:
        encoded: Encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return encoded.ids


class Classifier:
    """The network; safe to share between threads.

    Raises:
        FileNotFoundError, ValueError: a file of the folder is missing, or is not what its card says.
    """

    def __init__(self, folder: Path = FOLDER) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # a sentence is too short to share, and the model needs the cores
        options.inter_op_num_threads = 1
        self.card: Mapping[str, Any] = json.loads((folder / CARD).read_text(encoding="utf-8"))
        network = (folder / NETWORK).read_bytes()
        digest = hashlib.sha256(network).hexdigest()
        if digest != self.card["sha256"]:
            raise ValueError(f"{folder / NETWORK} is not the file that {CARD} names")
        #: As verdicts name it.
        self.name = f"classifier-{digest[:12]}"
        self._reader = Reader(folder / TOKENIZER)
        self._session = onnxruntime.InferenceSession(network, options, providers=["CPUExecutionProvider"])

    def score_answer(self, text: str, context: str = "") -> dict[str, float]:
        """How likely each of OUTPUT_LABELS is for a sentence, for the least safe piece of a longer one; the
        sum is 1.
        """
        pieces = [(context, piece) for piece in self._reader.pieces(text, context)]
        return dict(zip(OUTPUT_LABELS, min(self._scores("answer", pieces)), strict=True))

    def pieces(self, text: str) -> list[str]:
        """The text of a question in pieces that are read whole."""
        return self._reader.pieces(text)

    def score_questions(self, texts: Sequence[str]) -> list[dict[str, float]]:
        """How likely each of QUESTION_LABELS is for each text; the sums are 1."""
        scores = self._scores("question", [("", text) for text in texts])
        return [dict(zip(QUESTION_LABELS, each, strict=True)) for each in scores]

    def _scores(self, side: str, texts: Sequence[tuple[str, str]]) -> list[list[float]]:
        (logits,) = self._session.run([side], self._reader.batch(texts))
        powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
        scores: list[list[float]] = (powers / powers.sum(axis=-1, keepdims=True)).tolist()
        return scores


@cache
def load_classifier() -> Classifier:
    """The packaged classifier, loaded once per process."""
    return Classifier()
