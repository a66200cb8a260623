"""Reads the rows that the classifier learns from, and sets some of them aside. It knows no model."""

import json
import random
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from shared.guard.classifier import OUTPUT_LABELS, QUESTION_LABELS

DATA = Path(__file__).parent / "data"
#: Files most of whose rows look dangerous and are not, or ask for harm in an even tone.
LATEST = ("output/*_5.jsonl", "output/plain_2.jsonl", "input/requests_6.jsonl")
#: Files that were written since the trainings from the beginning; a training that goes on learns them.
SINCE = ("*/*_8.jsonl", "*/*_9.jsonl", "*/*_10.jsonl")
#: Rows that share this part of their three-word sequences are the same row.
NEAR = 0.7
#: So many rows in a row are set aside together.
NEIGHBOURS = 10


@dataclass(frozen=True)
class Row:
    """One labelled text."""

    #: What stands before the text; "" for a question.
    context: str
    text: str
    #: The danger's category or `safe`; of a question `crisis`, `emergency`, `refuse` or `allow`.
    label: str

    @property
    def is_question(self) -> bool:
        """Whether a person asks this; else it is said to one."""
        return self.label in QUESTION_LABELS


def read_rows(folder: Path = DATA, *, but: tuple[str, ...] = ()) -> list[Row]:
    """Every row of the folder, in a fixed order, without near duplicates and files that match `but`.

    Raises:
        ValueError: a row has an unknown label.
    """
    rows = [
        _row(json.loads(line))
        for path in sorted(folder.glob("*/*.jsonl"))
        if not any(path.match(pattern) for pattern in but)
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.strip()
    ]
    return list(without_near_duplicates(rows))


def _row(values: dict[str, str]) -> Row:
    if "expect" in values:
        label, known = values["expect"], QUESTION_LABELS
    else:
        label = values["category"] if values["label"] == "danger" else values["label"]
        known = OUTPUT_LABELS
    if label not in known:
        raise ValueError(f"the label {label!r} is not known")
    return Row(values.get("context", ""), values["text"], label)


def without_near_duplicates(rows: Iterable[Row]) -> Iterator[Row]:
    """The rows without those that nearly repeat an earlier one."""
    kept: list[set[str]] = []
    by_shingle: dict[str, list[int]] = defaultdict(list)
    for row in rows:
        own = shingles(f"{row.context} {row.text}")
        shared: dict[int, int] = defaultdict(int)
        for shingle in own:
            for number in by_shingle[shingle]:
                shared[number] += 1
        if any(count / len(own | kept[number]) >= NEAR for number, count in shared.items()):
            continue
        for shingle in own:
            by_shingle[shingle].append(len(kept))
        kept.append(own)
        yield row


def shingles(text: str) -> set[str]:
    """The sequences of three words of a text."""
    words = re.findall(r"\w+", text.lower())
    return {" ".join(words[at : at + 3]) for at in range(max(1, len(words) - 2))}


def set_aside(rows: list[Row], share: float, seed: int) -> tuple[list[Row], list[Row]]:
    """The rows to train on, and a part to calibrate with.

    Neighbours stay together: many were written as pairs that differ in a word, and one would tell the other.
    """
    blocks = [rows[at : at + NEIGHBOURS] for at in range(0, len(rows), NEIGHBOURS)]
    random.Random(seed).shuffle(blocks)
    cut = round(len(blocks) * share)
    return [row for block in blocks[cut:] for row in block], [row for block in blocks[:cut] for row in block]
