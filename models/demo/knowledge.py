"""What the demo model is taught: the conditions and the off-topic questions, read from ``data/``.

Knows nothing of tokens or of training; it checks the data and says which questions are held out.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import yaml

Kind = Literal["what", "symptoms", "care", "when"]
KINDS: tuple[Kind, ...] = get_args(Kind)
DATA = Path(__file__).parents[2] / "data"
UNKNOWN = (
    "I don't know about that. I can only answer questions about the conditions I was trained on; "
    "please ask a doctor or pharmacist."
)
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")


class DataError(ValueError):
    """The training data breaks one of its rules; the message names the entry."""


@dataclass(frozen=True, kw_only=True)
class Condition:
    """One condition: four answers, three trained questions and one held-out question for each."""

    name: str
    answers: dict[Kind, str]
    questions: dict[Kind, tuple[str, ...]]
    held_out: dict[Kind, str]


@dataclass(frozen=True, kw_only=True)
class OffTopic:
    """Questions that the model must decline, and names of conditions that it was not taught."""

    train: tuple[str, ...]
    held_out: tuple[str, ...]
    untaught: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Knowledge:
    """Everything in ``data/``, checked, with the SHA-256 of the files it was read from."""

    conditions: tuple[Condition, ...]
    off_topic: OffTopic
    sha256: str

    def held_out_questions(self) -> Iterator[tuple[str, str]]:
        """Each held-out question with its reference answer, in the order of the files."""
        for condition in self.conditions:
            for kind in KINDS:
                yield condition.held_out[kind], condition.answers[kind]


def words(text: str) -> list[str]:
    """The lower-cased words of ``text``; punctuation is dropped."""
    return _WORD.findall(text.lower())


def four_grams(text: str) -> set[tuple[str, ...]]:
    """Every run of four words in ``text``."""
    found = words(text)
    return {tuple(found[start : start + 4]) for start in range(len(found) - 3)}


def held_out_four_grams(knowledge: Knowledge) -> frozenset[tuple[str, ...]]:
    """The runs of four words that no trained question may contain."""
    asked = (question for question, _ in knowledge.held_out_questions())
    return frozenset(
        gram for question in (*asked, *knowledge.off_topic.held_out) for gram in four_grams(question)
    )


def load_knowledge(folder: Path = DATA) -> Knowledge:
    """Read and check ``folder``.

    Raises:
        DataError: an entry is incomplete, a name is used twice, or a held-out question shares a run of four
            words with a trained one.
    """
    files = sorted((folder / "conditions").glob("*.yaml"))
    conditions = tuple(
        _condition(entry)
        for file in files
        for entry in yaml.load(file.read_text("utf-8"), Loader=yaml.CSafeLoader)
    )
    names = [condition.name.lower() for condition in conditions]
    if len(set(names)) != len(names):
        raise DataError(
            f"conditions named twice: {sorted({name for name in names if names.count(name) > 1})}"
        )
    file = folder / "off_topic.yaml"
    off_topic = OffTopic(
        **{
            key: tuple(value)
            for key, value in yaml.load(file.read_text("utf-8"), Loader=yaml.CSafeLoader).items()
        }
    )
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in (*files, file))).hexdigest()
    knowledge = Knowledge(conditions=conditions, off_topic=off_topic, sha256=digest)
    _check_held_out(knowledge)
    return knowledge


def _condition(entry: dict[str, object]) -> Condition:
    try:
        condition = Condition(
            name=str(entry["name"]),
            answers={kind: " ".join(str(entry["answers"][kind]).split()) for kind in KINDS},  # type: ignore[index]
            questions={kind: tuple(map(str, entry["questions"][kind])) for kind in KINDS},  # type: ignore[index]
            held_out={kind: str(entry["held_out"][kind]) for kind in KINDS},  # type: ignore[index]
        )
    except KeyError as error:
        raise DataError(f"{entry.get('name')}: lacks {error}") from error
    for kind in KINDS:
        if len(condition.questions[kind]) != 3:
            raise DataError(f"{condition.name}: {kind} needs three trained questions")
    return condition


def _check_held_out(knowledge: Knowledge) -> None:
    trained = [
        *(
            question
            for condition in knowledge.conditions
            for kind in KINDS
            for question in condition.questions[kind]
        ),
        *knowledge.off_topic.train,
    ]
    shared = _shared(trained, held_out_four_grams(knowledge))
    if shared:
        raise DataError("share four words in a row with a held-out question: " + "; ".join(sorted(shared)))


def _shared(questions: Iterable[str], grams: frozenset[tuple[str, ...]]) -> list[str]:
    return [question for question in questions if not grams.isdisjoint(four_grams(question))]
