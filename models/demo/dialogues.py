"""Training dialogues: who asks what, after what, and what the model should answer.

Knows nothing of tokens; it draws questions and pictures and pairs them with their answers.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from models.demo import pictures
from models.demo.knowledge import KINDS, UNKNOWN, Condition, Kind, Knowledge
from models.demo.pictures import Picture
from models.demo.questions import Asker
from shared.settings import SYSTEM_PROMPT

_OTHER_SYSTEM_PROMPTS = (
    "You are a helpful medical assistant.",
    "You answer questions about health. You are not a doctor.",
    "Answer briefly and kindly. Do not make a diagnosis.",
    "You help patients of a small clinic. If you are not sure, say so.",
)
Card = tuple[Condition, Kind]
Thing = TypeVar("Thing")
UNNAMED = "I don't know which condition you mean. Please name it, or ask a doctor or pharmacist."
#: How many turns a dialogue has, and how often.
_LENGTHS = {1: 30, 2: 20, 3: 15, 4: 10, 6: 10, 8: 5, 12: 3, 18: 2}


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One question, with or without a picture, and its answer."""

    question: str
    answer: str
    picture: Picture | None = None
    #: Whether the picture stands before the question or after it.
    picture_first: bool = True


@dataclass(frozen=True, kw_only=True)
class Dialogue:
    """A system text (empty for none) and the turns after it."""

    system: str
    turns: tuple[Turn, ...]


class Dialogues:
    """An endless supply of dialogues; equal seeds give equal dialogues."""

    def __init__(self, knowledge: Knowledge, seed: int) -> None:
        self._chance = random.Random(seed)
        self._asker = Asker(knowledge, self._chance)
        self._painter = np.random.default_rng(seed)
        self._deck = self._dealt([(condition, kind) for condition in knowledge.conditions for kind in KINDS])

    def text(self) -> Dialogue:
        """A dialogue without pictures."""
        length = self._chance.choices(tuple(_LENGTHS), tuple(_LENGTHS.values()))[0]
        turns = []
        topic: Condition | None = None
        for _ in range(length):
            turn, topic = self._turn(topic)
            turns.append(turn)
        return Dialogue(system=self._system(), turns=tuple(turns))

    def picture(self) -> Dialogue:
        """A dialogue whose only question is about a picture."""
        side, drawn = self.drawn()
        turn = Turn(
            question=self._asker.typed(self._chance.choice(pictures.QUESTIONS)),
            answer=pictures.answer(side),
            picture=drawn,
            picture_first=self._chance.random() < 0.7,
        )
        return Dialogue(system=self._system(), turns=(turn,))

    def drawn(self) -> tuple[pictures.Side, Picture]:
        """A picture and the side of its patch."""
        side = self._chance.choice(pictures.SIDES)
        return side, pictures.draw_picture(side, self._painter)

    def shuffled(self, things: list[Thing]) -> list[Thing]:
        """``things`` in an order drawn from the same seed as the dialogues."""
        return self._chance.sample(things, len(things))

    def _turn(self, topic: Condition | None) -> tuple[Turn, Condition | None]:
        """The next turn, and the condition that it leaves the talk on."""
        which = self._chance.random()
        if which < 0.2:
            return self._said(self._asker.off_topic(), UNKNOWN), None
        if which < 0.21:
            return self._said(self._chance.choice(pictures.QUESTIONS), pictures.NO_PICTURE), None
        if which < 0.23 or (which < 0.3 and topic):
            kind = self._chance.choice(KINDS)
            return self._said(self._asker.follow_up(kind), topic.answers[kind] if topic else UNNAMED), topic
        condition, kind = next(self._deck)
        return self._said(self._asker.about(condition, kind), condition.answers[kind]), condition

    def _said(self, question: str, answer: str) -> Turn:
        return Turn(question=self._asker.typed(question), answer=answer)

    def _system(self) -> str:
        which = self._chance.random()
        if which < 0.7:
            return SYSTEM_PROMPT
        return "" if which < 0.9 else self._chance.choice(_OTHER_SYSTEM_PROMPTS)

    def _dealt(self, cards: list[Card]) -> Iterator[Card]:
        """Every card once in a random order, then again, without end."""
        while True:
            yield from self.shuffled(cards)
