"""Joins the layers into one judge of each side. It knows the inside of none."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from shared.guard.knobs import Knobs
from shared.guard.sentences import sentences_of
from shared.guard.verdict import Action, Audience, Category, Judge, Severity, Side, Verdict
from shared.guard.windows import parts, windows

#: The layers of the classifier and of the language model in a verdict.
LAYER, JUDGE_LAYER = "classifier", "judge"
#: What the classifier looks for in a question.
_QUESTION_DANGERS = ("refuse", "emergency", "crisis")
_GRAVEST = (Category.SELF_HARM, Category.EMERGENCY_MINIMISED, Category.CRISIS, Category.EMERGENCY)
#: Who needs help first.
_NEEDS: Mapping[Category | None, int] = {Category.CRISIS: 2, Category.EMERGENCY: 1}
#: So many texts at once: more would take much memory and gain nothing.
_TEXTS_TOGETHER = 16


class Scorer(Protocol):
    """What a classifier must do; both give the likelihood of each label, the harmless one first."""

    #: Which network it is, as verdicts name it.
    name: str

    def score_answer(self, text: str, context: str = "") -> Mapping[str, float]:
        """How likely `safe` and each category are for a sentence of an answer."""
        ...

    def pieces(self, text: str) -> Sequence[str]:
        """A question's text in pieces of which no end is left out."""
        ...

    def score_questions(self, texts: Sequence[str]) -> Sequence[Mapping[str, float]]:
        """How likely `allow`, `refuse`, `emergency` and `crisis` are for each text."""
        ...


class Asker(Protocol):
    """What a judge by a language model must do."""

    #: Which model it is, as verdicts name it.
    name: str

    def likelihood(self, instruction: str, text: str, context: str, timeout_s: float) -> float:
        """How likely it says that `text`, which follows `context`, is dangerous: 0 to 1.

        Raises TimeoutError when its turn does not come within `timeout_s` seconds.
        """
        ...


class AnswerJudge:
    """Judges one sentence of an answer, by rules, by what else needs no network, then by the classifier.

    A rule of the gravest kind stops a sentence whatever the classifier says. A policy may ask its consent
    to any other, since a wording alone does not say who acts, or whether a myth is told or rebutted; without
    it the sentence is shown and flagged for review.

    Args:
        rules: the first layer.
        certain: by name, layers that need nobody's consent.
        scorer: the classifier, if there is one.
        knobs: from where on the classifier counts, and for whom.
        asker: a language model that is asked about what the classifier doubts, if there is one.
        clock: seconds from any fixed point, never going back.
    """

    def __init__(
        self,
        rules: Judge,
        certain: Mapping[str, Judge],
        scorer: Scorer | None,
        knobs: Knobs,
        asker: Asker | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rules, self._certain, self._scorer, self._knobs = rules, certain, scorer, knobs
        self._asker, self._clock = asker, clock
        judged = asker is not None and knobs.judge is not None
        self._network = scorer if knobs.classifier.reads_answers or judged else None

    def __call__(self, text: str, context: str, audience: Audience) -> Verdict:
        """The verdict on `text`, which follows `context` in the same answer.

        Raises TimeoutError when the language model takes longer than the policy gives it.
        """
        ruled = self._rules(text, context, audience)
        with_rule = self._knobs.classifier.with_rule
        alone = ruled.severity is Severity.CRITICAL or self._network is None or with_rule == 0
        if (not ruled.allowed and alone) or not text.strip():
            return ruled
        for judge in self._certain.values():
            found = judge(text, context, audience)
            if not found.allowed:
                return found
            ruled = ruled if ruled.source else found
        if self._network is None:
            return ruled
        scores = self._network.score_answer(text.strip(), context.strip())
        if not ruled.allowed:
            return ruled if _danger(scores) >= with_rule else _for_review(ruled)
        scored, asked_s = self._asked(text, context, audience, scores)
        scored = scored or self._scored(scores, audience)
        # what only asks for a referral does not hide a danger of another kind
        verdict = ruled if scored.allowed and ruled.source else scored
        return replace(verdict, asked_s=asked_s) if asked_s else verdict

    def layers(self) -> dict[str, Judge]:
        """What each layer says by itself."""
        network: dict[str, Judge] = {} if self._scorer is None else {LAYER: self._alone}
        return {"rules": self._rules, **self._certain, **network}

    def _asked(
        self, text: str, context: str, audience: Audience, scores: Mapping[str, float]
    ) -> tuple[Verdict | None, float]:
        """What the language model stops of what the classifier doubts, None for nothing; and its seconds."""
        knobs, danger = self._knobs.judge, _danger(scores)
        if self._asker is None or knobs is None:
            return None, 0.0
        if danger < knobs.ask_from or danger >= self._knobs.classifier.alone:
            return None, 0.0
        started, budget_s = self._clock(), knobs.time_budget_s
        said = self._asker.likelihood(knobs.instruction, text.strip(), context.strip(), budget_s)
        taken = self._clock() - started
        if taken > budget_s:
            raise TimeoutError(f"the judge took {taken:.3f} s of {budget_s:.3f}")
        if said < knobs.stop_from:
            return None, taken
        return self._stopped(scores, audience, said, self._asker.name, JUDGE_LAYER), taken

    def _alone(self, text: str, context: str, audience: Audience) -> Verdict:
        assert self._scorer is not None
        return self._scored(self._scorer.score_answer(text.strip(), context.strip()), audience)

    def _scored(self, scores: Mapping[str, float], audience: Audience) -> Verdict:
        """The classifier's verdict, as the policy wants it for this audience."""
        assert self._scorer is not None
        knobs, danger = self._knobs.classifier, _danger(scores)
        if danger < min(knobs.alone, knobs.flag):
            return Verdict.ALLOWED
        found = self._stopped(scores, audience, danger, self._scorer.name, LAYER)
        if found is None:
            return Verdict.ALLOWED
        if danger < knobs.alone:
            return _for_review(found)
        return found

    def _stopped(
        self, scores: Mapping[str, float], audience: Audience, score: float, source: str, layer: str
    ) -> Verdict | None:
        """A finding of the likeliest category; None where the policy does not look for it."""
        _, *dangers = scores
        category = Category(max(dangers, key=scores.__getitem__))
        found = _found(Side.ANSWER, Action.REPLACE, category, score, source, layer)
        action = self._knobs.of(audience).action(category, found.action, found.severity, 1.0)
        return None if action is Action.ALLOW else replace(found, action=action)


#: A sentence that forbids something: the classifier, made for questions, takes it for a request for that.
_FORBIDS = re.compile(r"(?i)\b(?:not|never|refuse|decline|avoid)\b|n['’]t\b")
#: From this score on a sentence of instructions asks for harm: what is usual in them reaches 0.8.
_PLAINLY = 0.9


class QuestionJudge:
    """Judges a whole question, by rules, by what else needs no network, then by the classifier.

    A person in crisis counts for more than one in an emergency, and both for more than what is refused.
    """

    def __init__(
        self, rules: Judge, certain: Mapping[str, Judge], scorer: Scorer | None, knobs: Knobs
    ) -> None:
        self._rules, self._certain, self._scorer = rules, certain, scorer
        self._of_parts, self._of_windows = knobs.classifier.question(), knobs.classifier.window()

    def __call__(self, text: str, context: str, audience: Audience) -> Verdict:
        """The verdict on `text`; `context` is not read."""
        found = self.at_once(text, context, audience)
        if found.category is Category.CRISIS:
            return found
        if found.allowed:
            return self._scored(text, audience, _QUESTION_DANGERS)
        # who needs help, or asks for harm, may be in greater need, in words that no rule knows
        scored = self._scored(text, audience, ("emergency", "crisis"))
        if scored.allowed or (found.category is scored.category is Category.EMERGENCY):
            return found
        return scored

    def at_once(self, text: str, context: str, audience: Audience) -> Verdict:
        """The verdict of the layers that need no network."""
        for judge in (self._rules, *self._certain.values()):
            found = judge(text, context, audience)
            if not found.allowed:
                return found
        return Verdict.ALLOWED_QUESTION

    def instructions(self, text: str, audience: Audience) -> Verdict:
        """The verdict on what a program is told to do: harm that a sentence of it plainly asks for, and what
        nobody here can read, speak against it. What it forbids is no request, and it tells of nobody's need.
        """
        for judge in self._certain.values():
            if not (found := judge(text, "", audience)).allowed:
                return found
        told = [sentence for sentence in sentences_of(text) if not _FORBIDS.search(sentence)]
        for sentence in told:
            if (found := self._rules(sentence, "", audience)).category is Category.HARMFUL_REQUEST:
                return found
        scored = self._over(lambda _: told, text, audience, {"refuse": _PLAINLY})
        return next(iter(scored), Verdict.ALLOWED_QUESTION)

    def layers(self) -> dict[str, Judge]:
        """What each layer says by itself."""
        network: dict[str, Judge] = {} if self._scorer is None else {LAYER: self._alone}
        return {"rules": self._rules, **self._certain, **network}

    def _alone(self, text: str, context: str, audience: Audience) -> Verdict:
        return self._scored(text, audience, _QUESTION_DANGERS)

    def _scored(self, text: str, audience: Audience, labels: Sequence[str]) -> Verdict:
        """The classifier's verdict on a question, as far as it is one of the labels: that of its gravest
        part or window, of equals the likeliest.
        """
        found = [
            verdict
            for cut, thresholds in ((parts, self._of_parts), (windows, self._of_windows))
            for verdict in self._over(cut, text, audience, {label: thresholds[label] for label in labels})
        ]
        return max(
            found,
            key=lambda verdict: (_NEEDS.get(verdict.category, 0), verdict.score),
            default=Verdict.ALLOWED_QUESTION,
        )

    def _over(
        self,
        cut: Callable[[str], Iterable[str]],
        text: str,
        audience: Audience,
        thresholds: Mapping[str, float],
    ) -> Iterator[Verdict]:
        """What is found in the texts into which a question is cut. Those of like length are scored together:
        each takes as long as the longest beside it.
        """
        if self._scorer is None or min(thresholds.values()) >= 1:  # nothing could come of it
            return
        texts = sorted((piece for each in cut(text) for piece in self._scorer.pieces(each)), key=len)
        for first in range(0, len(texts), _TEXTS_TOGETHER):
            for scores in self._scorer.score_questions(texts[first : first + _TEXTS_TOGETHER]):
                if (verdict := self._likeliest(scores, audience, thresholds)) is not None:
                    yield verdict

    def _likeliest(
        self, scores: Mapping[str, float], audience: Audience, thresholds: Mapping[str, float]
    ) -> Verdict | None:
        """What one part most likely is, of that which is over its threshold."""
        assert self._scorer is not None
        over = {
            label: scores[label]
            for label, threshold in thresholds.items()
            # a clinician writes about a patient, who is in care
            if scores[label] >= threshold and not (label == "emergency" and audience is Audience.CLINICIAN)
        }
        if not over:
            return None
        label = max(over, key=over.__getitem__)
        if label == "refuse":
            action, category = Action.REFUSE, Category.HARMFUL_REQUEST
        else:
            action, category = Action.CRISIS, Category(label)
        return _found(Side.QUESTION, action, category, over[label], self._scorer.name)


def _for_review(found: Verdict) -> Verdict:
    """The finding, not acted upon but flagged: who reviews answers finds it."""
    return replace(found, action=Action.ESCALATE, severity=Severity.MEDIUM)


def _danger(scores: Mapping[str, float]) -> float:
    """How likely it is that anything is wrong: the first label says that nothing is."""
    return 1 - next(iter(scores.values()))


def _found(
    side: Side, action: Action, category: Category, score: float, source: str, layer: str = LAYER
) -> Verdict:
    return Verdict(
        side=side,
        action=action,
        category=category,
        severity=Severity.CRITICAL if category in _GRAVEST else Severity.HIGH,
        layer=layer,
        source=source,
        score=round(score, 4),
    )
