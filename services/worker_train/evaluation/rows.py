"""Draws rows to measure on, from a dataset's or from a file. It knows no model."""

import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from services.worker_train.child import Refused
from services.worker_train.duplicates import digest
from services.worker_train.evaluation.text import Row
from services.worker_train.reading import lines_of

Record = dict[str, Any]
_Drawn = TypeVar("_Drawn")


def read_file(file: Path) -> Iterator[Record]:
    """The rows of a JSONL file in the shape of a dataset's. Raises Refused, naming the line, and OSError."""
    with file.open("rb") as stream:
        for number, line in lines_of(stream):
            if line.strip():
                yield _checked(line, number)


def _checked(line: str, number: int) -> Record:
    try:
        record = json.loads(line)
        roles = [message["role"] for message in record["messages"] if message["content"].strip()]
        good = roles[-2:] == ["user", "assistant"]
    except (ValueError, TypeError, KeyError, AttributeError):
        good = False
    if not good:
        raise Refused(
            "rows-unreadable",
            f"Line {number} of the rows needs `messages` that end with a question and its answer.",
        )
    group, image = record.get("group"), record.get("image")
    if not isinstance(group, str | int | float | None) or not isinstance(image, str | None):
        raise Refused(
            "rows-unreadable",
            f"Line {number} of the rows has a `group` or an `image` that is no name: write a text, or none.",
        )
    return dict(record)


def draw(records: Iterable[_Drawn], count: int, seed: int) -> list[_Drawn]:
    """At most `count` records in an order of chance, each as likely as any other, in flat memory.

    Reservoir sampling (Vitter 1985, algorithm R).
    """
    chance = random.Random(seed)  # noqa: S311 - the same rows must come for the same seed
    kept: list[_Drawn] = []
    for number, record in enumerate(records):
        if number < count:
            kept.append(record)
        elif (place := chance.randrange(number + 1)) < count:
            kept[place] = record
    chance.shuffle(kept)
    return kept


class Unseen:
    """Leaves out the rows of another dataset whose question was learnt: there an adapter may recite.

    As in the check of a dataset, where rows of one question stay on one side of the split. What precedes the
    question (a system's text, a picture) is part of it; case and white space are not.
    """

    def __init__(self, learnt: Iterable[Record]) -> None:
        self._learnt = {_question(record) for record in learnt}
        #: How many rows were left out.
        self.left_out = 0

    def among(self, records: Iterable[Record]) -> Iterator[Record]:
        """The rows that were not learnt, in order."""
        for record in records:
            if _question(record) in self._learnt:
                self.left_out += 1
            else:
                yield record


def _question(record: Record) -> bytes:
    asked = takewhile(lambda said: said["role"] != "assistant", record["messages"])
    return digest(record.get("image") or "", *(said["content"] for said in asked))


def to_rows(records: Sequence[Record], image: Callable[[str], Image.Image] | None = None) -> list[Row]:
    """The records as rows; `image` fetches a picture by SHA-256 whenever it is looked at, and without it rows
    with one are left out.
    """
    rows = []
    for record in records:
        shown = record.get("image")
        if shown is None or image is not None:
            rows.append(
                Row(
                    messages=tuple(
                        {"role": said["role"], "content": said["content"]} for said in record["messages"]
                    ),
                    image=partial(image, shown) if shown is not None and image is not None else None,
                    group=record.get("group"),
                )
            )
    return rows
