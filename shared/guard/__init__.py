"""The guard: judges questions and answers, and gates an answer while it is written.

It knows text and policy, and reads its packaged policy once; it knows no model, no job and no user.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from shared.guard.gate import Gate, Release
from shared.guard.lexicon import Lexicon
from shared.guard.patterns import compile_pattern
from shared.guard.question import screen_question
from shared.guard.responses import Responses
from shared.guard.rules import RuleSet, build_rules
from shared.guard.verdict import Action, Audience, Category, Severity, Side, Verdict

__all__ = [
    "Action",
    "Audience",
    "Category",
    "Gate",
    "Guard",
    "Release",
    "Responses",
    "Severity",
    "Side",
    "Verdict",
    "load_guard",
]

_POLICY_FILES = (
    "lexicon.yaml",
    "rules_answer.yaml",
    "rules_question.yaml",
    "responses.yaml",
    "resources.yaml",
)


class Guard:
    """The whole guard under one policy. Holds no state of any conversation: share one among threads.

    Args:
        policy: the text of each policy file, by name.

    Raises:
        ValueError: a policy file is malformed.
    """

    def __init__(self, policy: dict[str, str]) -> None:
        #: Twelve hexadecimal digits that change with any word of the policy.
        self.policy_version = hashlib.sha256(
            "\0".join(f"{name}\0{policy[name]}" for name in sorted(policy)).encode()
        ).hexdigest()[:12]
        documents: dict[str, Any] = {name: yaml.safe_load(text) for name, text in policy.items()}
        words = documents["lexicon.yaml"]
        self._lexicon = Lexicon(
            {tag: [entry.strip() for entry in text.split(",")] for tag, text in words["tags"].items()},
            words["replacements"],
        )
        answer, question = documents["rules_answer.yaml"], documents["rules_question.yaml"]
        self._answer_rules = RuleSet(Side.ANSWER, self._lexicon, build_rules(answer))
        self._question_rules = RuleSet(Side.QUESTION, self._lexicon, build_rules(question))
        self._referral = tuple(compile_pattern(source, answer["macros"]) for source in answer["referral"])
        self._texts = documents["responses.yaml"]
        self._resources = documents["resources.yaml"]

    def judge_answer(self, text: str, context: str = "", audience: Audience = Audience.PATIENT) -> Verdict:
        """The verdict on one sentence of an answer; `context` is what stands before it in that answer."""
        return self._answer_rules.judge(text, context, audience)

    def screen_question(self, text: str, audience: Audience = Audience.PATIENT) -> Verdict:
        """Whether a person in crisis or in an emergency asks: action `crisis`; the category says which."""
        return screen_question(self._question_rules, text, audience)

    def refers(self, text: str) -> bool:
        """Whether a text of an answer sends its reader to a clinician."""
        tagged = self._lexicon.read(text)
        return any(pattern.found(tagged) for pattern in self._referral)

    def responses(self, locale: str = "intl") -> Responses:
        """The safe texts for one locale."""
        return Responses(self._texts, self._resources, locale)

    def gate(
        self,
        audience: Audience = Audience.PATIENT,
        released_so_far: str = "",
        *,
        locale: str = "intl",
        clock: Callable[[], float] = time.monotonic,
    ) -> Gate:
        """A gate for one answer; `released_so_far` is what was already shown of it."""
        return Gate(
            self.judge_answer,
            audience,
            responses=self.responses(locale),
            refers=self.refers,
            clock=clock,
            released_so_far=released_so_far,
        )


@cache
def load_guard() -> Guard:
    """The guard under the packaged policy, which is read once per process."""
    folder = files("shared.guard")
    return Guard({name: (folder / name).read_text(encoding="utf-8") for name in _POLICY_FILES})
