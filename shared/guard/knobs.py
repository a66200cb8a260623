"""What a policy asks of the rules for each audience (policy.yaml). It knows no rule and no text."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictStr, ValidationInfo, field_validator

from shared.guard.rules import Rule
from shared.guard.verdict import Action, Audience, Category, Severity

#: Texts are screened for these whatever a policy says.
_ALWAYS_ON = frozenset(
    (
        Category.CRISIS,
        Category.EMERGENCY,
        Category.HARMFUL_REQUEST,
        Category.INJECTION,
        Category.LANGUAGE,
    )
)


def _may_change(categories: list[Category]) -> list[Category]:
    if _ALWAYS_ON.intersection(categories):
        raise ValueError("crisis, emergency, harmful requests, injection and language are always looked for")
    return categories


#: A number and nothing that only reads like one: YAML's `on` and `yes` would else be 1.
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
#: From which score of a window on a question is stopped under a policy that does not say so.
_WINDOW = {"refuse": 0.5, "emergency": 0.7, "crisis": 0.5}
Categories = Annotated[list[Category], AfterValidator(_may_change)]


class AudienceKnobs(BaseModel):
    """What one audience is protected from, and how."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    #: Categories that are not looked for.
    ignore: Categories
    #: Categories whose sentences are shown with a referral instead of replaced.
    refer: Categories
    #: Rules with a lower score do not count.
    least_score: Number = Field(ge=0, le=0.8)

    def action(self, category: Category, action: Action, severity: Severity, score: float) -> Action:
        """What is done about a finding, ALLOW for one that does not count. A critical one stays as it is."""
        if severity is Severity.CRITICAL or category in _ALWAYS_ON:
            return action
        if category in self.ignore or score < self.least_score:
            return Action.ALLOW
        return Action.APPEND if action is Action.REPLACE and category in self.refer else action


class Audiences(BaseModel):
    """The knobs of every audience."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    patient: AudienceKnobs
    clinician: AudienceKnobs


class ClassifierKnobs(BaseModel):
    """From which score of the classifier on a text is stopped, 0 to 1."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    #: A sentence against which no rule speaks.
    alone: Number = Field(gt=0, le=1)
    #: A sentence that is shown and flagged for a reviewer; 1 flags none.
    flag: Number = Field(1.0, gt=0, le=1)
    #: A sentence that a rule would stop: below this the classifier has it let through.
    with_rule: Number = Field(ge=0, le=1)
    #: A question, by what it would be.
    refuse: Number = Field(gt=0, le=1)
    emergency: Number = Field(gt=0, le=1)
    crisis: Number = Field(gt=0, le=1)
    #: The same for a window, which is a sentence of a longer question with what stands right before it. A
    #: policy from before there were windows has none of these.
    window_refuse: Number | None = Field(None, gt=0, le=1)
    window_emergency: Number | None = Field(None, gt=0, le=1)
    window_crisis: Number | None = Field(None, gt=0, le=1)

    @field_validator("with_rule")
    @classmethod
    def _not_above_alone(cls, with_rule: float, info: ValidationInfo) -> float:
        if with_rule > info.data.get("alone", 1):
            raise ValueError("above `alone` a rule's finding would free what is stopped without it")
        return with_rule

    @property
    def reads_answers(self) -> bool:
        """Whether anything can come of what it says about a sentence."""
        return self.alone < 1 or self.flag < 1 or self.with_rule > 0

    def question(self) -> dict[str, float]:
        """The thresholds for questions, by label."""
        return {"refuse": self.refuse, "emergency": self.emergency, "crisis": self.crisis}

    def window(self) -> dict[str, float]:
        """The thresholds for windows; where the policy has none, not below those for questions."""
        own = {"refuse": self.window_refuse, "emergency": self.window_emergency, "crisis": self.window_crisis}
        return {
            label: max(_WINDOW[label], whole) if (threshold := own[label]) is None else threshold
            for label, whole in self.question().items()
        }


class JudgeKnobs(BaseModel):
    """When the base model is asked about a sentence that the classifier doubts, and what."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    #: From which score of the classifier on it is asked, up to `alone`; 1 never asks it.
    ask_from: Number = Field(ge=0, le=1)
    #: From which likelihood of "yes" on the sentence is stopped.
    stop_from: Number = Field(gt=0, le=1)
    #: How long it may take, waiting included, in seconds; beside the time of the sentence.
    time_budget_s: Number = Field(2.0, gt=0, le=10)
    #: What it is asked; the sentence and the text before it follow.
    instruction: StrictStr = Field(min_length=1)


class Knobs(BaseModel):
    """The whole of policy.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    #: How long the verdict on one sentence may take, in seconds.
    sentence_time_budget_s: Number = Field(gt=0, le=5)
    classifier: ClassifierKnobs
    #: What becomes of names and numbers of persons in a question before the model reads it.
    identifiers: Literal["hide", "keep"] = "hide"
    #: None: no model is asked.
    judge: JudgeKnobs | None = None
    audiences: Audiences

    def of(self, audience: Audience) -> AudienceKnobs:
        """The knobs of one audience."""
        return self.audiences.patient if audience is Audience.PATIENT else self.audiences.clinician

    def applied_to(self, rules: Iterable[Rule]) -> list[Rule]:
        """The rules as they count for each audience; a rule is split where audiences differ."""
        return [each for rule in rules for each in self._split(rule)]

    def _split(self, rule: Rule) -> list[Rule]:
        by_action: dict[Action, set[Audience]] = {}
        for audience in Audience:
            if audience in rule.audiences:
                action = self.of(audience).action(rule.category, rule.action, rule.severity, rule.score)
                by_action.setdefault(action, set()).add(audience)
        by_action.pop(Action.ALLOW, None)
        return [
            replace(rule, action=action, audiences=frozenset(audiences))
            for action, audiences in by_action.items()
        ]
