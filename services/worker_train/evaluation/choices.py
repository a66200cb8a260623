"""Multiple-choice questions answered by log-likelihood: the likeliest of yes, no and maybe counts as said.

Rows are as PubMedQA's labelled ones (Jin et al. 2019): `question`, `context` and `answer`.
"""

import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.worker_train.child import Refused
from services.worker_train.duplicates import digest
from services.worker_train.evaluation.bootstrap import compare_shares
from services.worker_train.evaluation.examinee import Examinee
from services.worker_train.evaluation.pace import Pace
from services.worker_train.evaluation.rows import Record
from services.worker_train.evaluation.text import Encoded, Row

CHOICES = ("yes", "no", "maybe")
#: MediChat's own questions.
CHOICES_FILE = Path(__file__).resolve().parents[3] / "data" / "choices.jsonl"
#: What the setting says where no questions are to be asked.
_NONE = "none"
_LABEL = re.compile(r"\s*question\s*:", re.IGNORECASE)


@dataclass(frozen=True)
class Choice:
    """A question about a text, and which of `CHOICES` is right."""

    question: str
    context: str
    answer: str


def read_chosen(setting: str) -> list[Choice]:
    """The questions that MEDICHAT_EVALUATION_CHOICES stands for: those of a file, MediChat's own where it is
    empty, or none. Raises Refused, as `read_choices`.
    """
    if setting == _NONE:
        return []
    return read_choices(Path(setting) if setting else CHOICES_FILE)


def read_choices(file: Path) -> list[Choice]:
    """The questions of a JSONL file, which may be gzipped (`.gz`). Raises Refused, naming the line, for one
    that cannot be used.
    """
    try:
        raw = file.read_bytes()
        text = (gzip.decompress(raw) if file.suffix == ".gz" else raw).decode()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise Refused(
            "choices-unreadable",
            "The file of choices cannot be read: check its path. It is UTF-8, and gzipped if it ends in .gz.",
        ) from error
    lines = text.split("\n")  # a text may hold other line separators
    return [_choice(number, line) for number, line in enumerate(lines, start=1) if line.strip()]


def _choice(number: int, line: str) -> Choice:
    try:
        record = json.loads(line)
        found = Choice(record["question"], record["context"], record["answer"])
        good = found.answer in CHOICES and isinstance(found.question, str) and isinstance(found.context, str)
    except (ValueError, TypeError, KeyError):
        good = False
    if not good:
        raise Refused(
            "choices-unreadable",
            f"Line {number} of the file of choices needs question, context and answer (yes, no or maybe).",
        )
    return found


def without_learnt(found: Sequence[Choice], learnt: Iterable[Record]) -> list[Choice]:
    """The questions that no learnt row asks, in order: of one that was asked the answer may be recited.

    A row asks a question that is all that its user says, or a line or paragraph of its own, as where a
    context goes before it; case, white space and the word "Question:" are not looked at.
    """
    wanted = {digest(choice.question) for choice in found}
    asked = {mark for record in learnt for mark in _asked(record) if mark in wanted}
    return [choice for choice in found if digest(choice.question) not in asked]


def _asked(record: Record) -> Iterator[bytes]:
    for said in record["messages"]:
        if said["role"] == "user":
            text = said["content"]
            for part in {text, *text.split("\n\n"), *text.split("\n")}:
                yield digest(_LABEL.sub("", part, count=1))


def measure_choices(examinee: Examinee, asked: Sequence[Choice], *, pace: Pace, seed: int) -> dict[str, Any]:
    """The share of questions answered rightly, beside that of always giving the most frequent answer."""
    right: dict[bool, list[bool]] = {False: [], True: []}
    for batch in pace.batches(asked, "choices"):
        for choice in batch:
            texts = _texts(examinee, choice)
            for adapted, hits in right.items():
                losses = [score.loss for score in examinee.endings(texts, adapted=adapted)]
                hits.append(CHOICES[losses.index(min(losses))] == choice.answer)
    answered = asked[: len(right[True])]
    frequent = Counter(choice.answer for choice in answered).most_common(1)[0][1]
    return {
        "rows": len(answered),
        **compare_shares(right[False], right[True], seed=seed).to_json(),
        "always_the_most_frequent": frequent / len(answered),
    }


def _texts(examinee: Examinee, choice: Choice) -> list[Encoded]:
    """The question followed by each of the choices; a context too long for the model loses its start."""
    context = choice.context
    while True:
        asked = f"{context}\n\nQuestion: {choice.question}\nAnswer with one word: yes, no or maybe."
        said = ({"role": "user", "content": asked}, {"role": "assistant", "content": "maybe"})
        longest = len(examinee.text.whole(Row(messages=said)).ids)
        if longest <= examinee.text.max_tokens or not context:
            break
        context = context[max(len(context) // 8, 1) :]
    return [
        examinee.text.whole(Row(messages=(said[0], {"role": "assistant", "content": answer})))
        for answer in CHOICES
    ]
