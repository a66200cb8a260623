"""The guard: judges questions and answers, and gates an answer while it is written.

It knows text and policy; it knows no job and no user. The network that scores texts is handed in. Which
policy counts at this moment is in shared/policies/live.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

import yaml

from shared.guard import facts, language
from shared.guard.classifier import load_classifier
from shared.guard.facts import Facts
from shared.guard.gate import Gate, Reading, Release
from shared.guard.knobs import Knobs
from shared.guard.language import LanguageJudge
from shared.guard.layers import AnswerJudge, Asker, QuestionJudge, Scorer
from shared.guard.lexicon import Lexicon
from shared.guard.patterns import Pattern
from shared.guard.policy import packaged_policy, version_of
from shared.guard.question import screen_question
from shared.guard.responses import Responses
from shared.guard.rules import PatternCompiler, RuleSet, ScopedText, build_rules, build_scopes
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
    "compile_guard",
    "load_guard",
    "packaged_policy",
]


class Guard:
    """The whole guard under one policy. Holds no state of any conversation: share one among threads.

    Args:
        policy: the text of each policy file, by name.
        scorer: the classifier; without it the layers before it decide alone.
        asker: a language model that is asked about what the classifier doubts, as far as the policy says.
        version: the name under which the policy is stored, when files were added to it since.

    Raises:
        ValueError: a policy file is malformed.
    """

    def __init__(
        self,
        policy: Mapping[str, str],
        scorer: Scorer | None = None,
        asker: Asker | None = None,
        version: str | None = None,
    ) -> None:
        #: Twelve hexadecimal digits that change with any word of the policy.
        self.policy_version = version or version_of(policy)
        documents: dict[str, Any] = {
            name: yaml.load(text, Loader=yaml.CSafeLoader) for name, text in policy.items()
        }
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
        certain: dict[str, Judge] = {
            facts.LAYER: Facts(documents, self._lexicon, self._knobs),
            language.LAYER: LanguageJudge(Side.ANSWER),
        }
        asked_by = partial(AnswerJudge, rules[Side.ANSWER].judge, certain, scorer, self._knobs)
        self._asked_by: Callable[[Asker], AnswerJudge] = asked_by
        self._answers = asked_by(asker)
        self._questions = QuestionJudge(
            partial(screen_question, rules[Side.QUESTION]),
            {language.LAYER: LanguageJudge(Side.QUESTION)},
            scorer,
            self._knobs,
        )
        compiler = PatternCompiler(answer["macros"])
        scopes = build_scopes(answer["scopes"], compiler)
        self._urgent = compiler.all(answer["urgent"])
        self._referral = compiler.all(answer["referral"])
        self._advice_unless = [scopes[name] for name in answer.get("advice_unless", ())]
        self._emergency_signs = compiler.all(answer.get("emergency_signs", ()))
        self._texts = documents["responses.yaml"]
        self._resources = documents["resources.yaml"]
        for locale in (*self._resources["locales"], self._resources["default"]):
            self.responses(locale)  # a text that cannot be filled in shall fail here, not when it is due

    def judge_answer(self, text: str, context: str = "", audience: Audience = Audience.PATIENT) -> Verdict:
        """The verdict on one sentence of an answer; `context` is what stands before it in that answer."""
        return self._answers(text, context, audience)

    def doubts(self, text: str, context: str = "", audience: Audience = Audience.PATIENT) -> bool:
        """Whether the layers before it leave the sentence to a judge by a language model, where there is one.

        No model is asked.
        """
        asked = _Mute()
        self._asked_by(asked)(text, context, audience)
        return asked.was_asked

    def screen_question(self, text: str, audience: Audience = Audience.PATIENT) -> Verdict:
        """Whether a person in crisis or in an emergency asks (action `crisis`), or for harm (`refuse`).

        Who is in need is found in what the first layers refuse too.
        """
        return self._questions(text, "", audience)

    def screen_at_once(self, text: str, audience: Audience = Audience.PATIENT) -> Verdict:
        """What the layers without a network say of a question: quick enough for one who waits.

        What they refuse may still be a crisis by `screen_question`.
        """
        return self._questions.at_once(text, "", audience)

    def screen_instructions(self, text: str, audience: Audience = Audience.PATIENT) -> Verdict:
        """Whether what a program is told to do asks for harm (`refuse`); it tells of nobody's need."""
        return self._questions.instructions(text, audience)

    @property
    def hides_identifiers(self) -> bool:
        """Whether the model shall read questions without what names a person."""
        return self._knobs.identifiers == "hide"

    def layers(self, side: Side) -> dict[str, Judge]:
        """Every layer that has a say on this side, by name; to see what each says by itself."""
        return self._answers.layers() if side is Side.ANSWER else self._questions.layers()

    def refers(self, text: str) -> bool:
        """Whether a text of an answer sends its reader to a clinician."""
        return self._advises(text, self._referral)

    def warns_of_emergency(self, text: str) -> bool:
        """Whether a text names signs of an emergency."""
        tagged = self._lexicon.read(text)
        return "/redflag" in tagged.keys or any(sign.found(tagged) for sign in self._emergency_signs)

    def urges(self, text: str) -> bool:
        """Whether a text of an answer sends its reader to urgent care."""
        return self._advises(text, self._urgent)

    def _advises(self, text: str, advice: Sequence[Pattern]) -> bool:
        return ScopedText(self._lexicon, text, "").first(advice, self._advice_unless) is not None

    def responses(self, locale: str = "intl") -> Responses:
        """The safe texts for one locale."""
        return Responses(self._texts, self._resources, locale)

    def gate(
        self,
        audience: Audience = Audience.PATIENT,
        released_so_far: str = "",
        *,
        question: str = "",
        state: Category | None = None,
        locale: str = "intl",
        clock: Callable[[], float] = time.monotonic,
        referral_due: bool = False,
        hidden: bool = False,
    ) -> Gate:
        """A gate for one answer; see `Gate` for what was already shown of it.

        With the `question`, an answer about signs of an emergency ends with what to do; with a `state`
        (`crisis` or `emergency`, found earlier in the conversation) it begins with where help is found.
        """
        return Gate(
            self.judge_answer,
            audience,
            responses=self.responses(locale),
            reader=Reading(self.refers, self.urges, self.warns_of_emergency),
            clock=clock,
            released_so_far=released_so_far,
            question=question,
            state=state,
            referral_due=referral_due,
            hidden=hidden,
            time_budget_s=self._knobs.sentence_time_budget_s,
        )


class _Mute:
    """Stands where a language model would, finds no danger in anything, and knows whether it was asked."""

    name = "nobody"

    def __init__(self) -> None:
        self.was_asked = False

    def likelihood(self, instruction: str, text: str, context: str, timeout_s: float) -> float:
        """Of a danger: none."""
        self.was_asked = True
        return 0.0


def compile_guard(policy: Mapping[str, str], asker: Asker | None = None, version: str | None = None) -> Guard:
    """A guard under this policy, with the packaged classifier. Raises ValueError for a malformed file."""
    return Guard(policy, load_classifier(), asker, version)


@cache
def load_guard() -> Guard:
    """The guard under the packaged policy, with the packaged classifier; made once per process."""
    return compile_guard(packaged_policy())
