"""Ways to ask: the trained phrasings, lent from one condition to the next, with the slips that people type.

Knows nothing of answers. No question that leaves here shares a run of four words with a held-out one.
"""

import random
import re
from collections.abc import Callable

from models.demo.knowledge import KINDS, Condition, Kind, Knowledge, four_grams, held_out_four_grams

_NAME = "{name}"
_PRONOUNS = ("it", "this", "that")
_OPENINGS = (
    "Hi, ",
    "Hello, ",
    "Please tell me: ",
    "I have a question. ",
    "Sorry to ask, ",
    "Quick question: ",
    "So, ",
)
_CLOSINGS = (" Thanks.", " Thank you!", " I am worried.", " Please help.", " My mother asks.")
_ONSETS = (
    "b",
    "br",
    "c",
    "d",
    "dr",
    "f",
    "g",
    "gl",
    "h",
    "k",
    "l",
    "m",
    "n",
    "p",
    "pl",
    "r",
    "s",
    "t",
    "tr",
    "v",
    "z",
)
_VOWELS = ("a", "e", "i", "o", "u", "ae", "ea", "oi")
_CODAS = ("b", "d", "l", "lm", "m", "n", "nt", "r", "rk", "s", "t", "x")
_ENDINGS = ("itis", "osis", "emia", "oma", "algia", "opathy", "ia", "us")
_SUFFIXES = ("", "", "", " disease", " syndrome", " fever", " disorder", " infection", " pain", " attacks")
_PREFIXES = ("", "", "", "chronic ", "acute ", "a ", "high ", "low ", "type 3 ", "severe ")


class Asker:
    """Draws questions from a seeded generator.

    ``knowledge`` gives the phrasings and what is held out; ``chance`` is the only source of randomness.
    """

    def __init__(self, knowledge: Knowledge, chance: random.Random) -> None:
        self._chance = chance
        self._forbidden = held_out_four_grams(knowledge)
        self._frames = {kind: _frames(knowledge.conditions, kind) for kind in KINDS}
        self._untaught = knowledge.off_topic.untaught
        self._declined = knowledge.off_topic.train

    def about(self, condition: Condition, kind: Kind) -> str:
        """A question of this kind about this condition, in its own wording or one lent from another."""

        def draw() -> str:
            if self._chance.random() < 0.5:
                return self._chance.choice(condition.questions[kind])
            return self._named(kind, condition.name)

        return self._allowed(draw)

    def follow_up(self, kind: Kind) -> str:
        """A question that names no condition: it asks about the one before."""
        return self._allowed(lambda: self._named(kind, self._chance.choice(_PRONOUNS)))

    def off_topic(self) -> str:
        """A question that must be declined: off the topics, about an untaught illness or an invented one."""

        def draw() -> str:
            which = self._chance.random()
            if which < 0.4:
                return self._chance.choice(self._declined)
            kind = self._chance.choice(KINDS)
            return self._named(kind, self._chance.choice(self._untaught) if which < 0.6 else self._invented())

        return self._allowed(draw)

    def typed(self, question: str) -> str:
        """``question`` as a person might type it: other case, no mark, a slip, a greeting."""
        return self._allowed(lambda: self._typed(question))

    def _allowed(self, draw: Callable[[], str]) -> str:
        for _ in range(100):
            question = draw()
            if self._forbidden.isdisjoint(four_grams(question)):
                return question
        raise RuntimeError("every wording drawn shares four words with a held-out question")

    def _named(self, kind: Kind, name: str) -> str:
        question = self._chance.choice(self._frames[kind]).replace(_NAME, name)
        return question[:1].upper() + question[1:]

    def _typed(self, question: str) -> str:
        chance = self._chance
        if chance.random() < 0.08:
            question = _slip(question, chance)
        if chance.random() < 0.06:
            question = chance.choice(_OPENINGS) + question[:1].lower() + question[1:]
        if chance.random() < 0.04:
            question = question + chance.choice(_CLOSINGS)
        if chance.random() < 0.25:
            question = question.lower()
        if chance.random() < 0.25:
            question = question.rstrip("?.!") or question
        return question

    def _invented(self) -> str:
        chance = self._chance
        syllables = (chance.choice(_ONSETS) + chance.choice(_VOWELS) for _ in range(chance.choice((1, 1, 2))))
        stem = (
            "".join(syllables)
            + chance.choice(_CODAS)
            + (chance.choice(_ENDINGS) if chance.random() < 0.6 else "")
        )
        return chance.choice(_PREFIXES) + stem + chance.choice(_SUFFIXES)


def _frames(conditions: tuple[Condition, ...], kind: Kind) -> tuple[str, ...]:
    """The phrasings of ``kind`` that name their condition, with a slot in the name's place."""
    frames: dict[str, None] = {}
    for condition in conditions:
        name = re.compile(rf"(?<!\w){re.escape(condition.name)}(?!\w)", re.IGNORECASE)
        for question in condition.questions[kind]:
            if name.search(question):
                frames[name.sub(_NAME, question)] = None
    return tuple(frames)


def _slip(question: str, chance: random.Random) -> str:
    """``question`` with one letter dropped, doubled or swapped with the next."""
    at = chance.randrange(len(question))
    letter, after = question[at], question[at + 1 : at + 2]
    if not letter.isalpha():
        return question
    edited = chance.choice((after, letter + letter + after, after + letter))
    return question[:at] + edited + question[at + 2 :]
