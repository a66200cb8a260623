"""The guard: judges questions and answers, and gates an answer while it is written.

It knows text and policy; it knows no model, no job and no user. Which policy counts at this moment is in
shared/live_guard.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import yaml

from shared.guard.gate import Gate, Release
from shared.guard.knobs import Knobs
from shared.guard.lexicon import Lexicon
from shared.guard.patterns import compile_pattern
from shared.guard.policy import packaged_policy, version_of
from shared.guard.question import screen_question
from shared.guard.responses import Responses
from shared.guard.rules import RuleSet, build_rules
from shared.guard.verdict import Action, Audience, Category, Judge, Severity, Side, Verdict

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


class Guard:
    """The whole guard under one policy. Holds no state of any conversation: share one among threads.

    Args:
        policy: the text of each policy file, by name.

    Raises:
        ValueError: a policy file is malformed.
    """

    def __init__(self, policy: Mapping[str, str]) -> None:
        #: Twelve hexadecimal digits that change with any word of the policy.
        self.policy_version = version_of(policy)
        documents: dict[str, Any] = {name: yaml.safe_load(text) for name, text in policy.items()}
        words = documents["lexicon.yaml"]
        self._lexicon = Lexicon(
            {tag: [entry.strip() for entry in text.split(",")] for tag, text in words["tags"].items()},
            words["replacements"],
        )
        answer, question = documents["rules_answer.yaml"], documents["rules_question.yaml"]
        self._knobs = Knobs.model_validate(documents["policy.yaml"])
        rules = {
            side: RuleSet(side, self._lexicon, self._knobs.applied_to(build_rules(document)))
            for side, document in ((Side.ANSWER, answer), (Side.QUESTION, question))
        }
        self._answer_rules, self._question_rules = rules[Side.ANSWER], rules[Side.QUESTION]
        self._referral = tuple(compile_pattern(source, answer["macros"]) for source in answer["referral"])
        self._texts = documents["responses.yaml"]
        self._resources = documents["resources.yaml"]

    def judge_answer(self, text: str, context: str = "", audience: Audience = Audience.PATIENT) -> Verdict:
        """The verdict on one sentence of an answer; `context` is what stands before it in that answer."""
        return self._answer_rules.judge(text, context, audience)

    def screen_question(self, text: str, audience: Audience = Audience.PATIENT) -> Verdict:
        """Whether a person in crisis or in an emergency asks: action `crisis`; the category says which."""
        return screen_question(self._question_rules, text, audience)

    def layers(self, side: Side) -> dict[str, Judge]:
        """Every layer that has a say on this side, by name; to see what each says by itself."""
        rules = self._answer_rules if side is Side.ANSWER else self._question_rules
        return {"rules": rules.judge}

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
        referral_due: bool = False,
    ) -> Gate:
        """A gate for one answer; see `Gate` for what was already shown of it."""
        return Gate(
            self.judge_answer,
            audience,
            responses=self.responses(locale),
            refers=self.refers,
            clock=clock,
            released_so_far=released_so_far,
            referral_due=referral_due,
            time_budget_s=self._knobs.sentence_time_budget_s,
        )


@cache
def load_guard() -> Guard:
    """The guard under the packaged policy, which is read once per process."""
    return Guard(packaged_policy())
