"""The keys and values that each policy file may hold. It does not know what a pattern means.

Lists of patterns may hold lists, which stand for shared groups, so they are looked into by policy_check.py.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictStr

from shared.guard.facts_schema import DosesFile, FactsFile, InteractionsFile
from shared.guard.knobs import Knobs, Number
from shared.guard.rules import Where
from shared.guard.verdict import Action, Audience, Category, Severity


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


#: What is done about a question, by what it was found to be.
QUESTION_ACTIONS = {
    Category.CRISIS: Action.CRISIS,
    Category.EMERGENCY: Action.CRISIS,
    Category.HARMFUL_REQUEST: Action.REFUSE,
    Category.INJECTION: Action.REFUSE,
    Category.LANGUAGE: Action.REFUSE,
}
#: An answer may be of these; of the others only a question.
_OF_ANSWERS = frozenset(Category) - (QUESTION_ACTIONS.keys() - {Category.LANGUAGE}) - {Category.IDENTIFIERS}


def _question_id(text: str) -> str:
    return _rule_id(text, QUESTION_ACTIONS.keys())


def _answer_id(text: str) -> str:
    return _rule_id(text, _OF_ANSWERS)


def _rule_id(text: str, categories: Collection[str]) -> str:
    category, _, rest = text.partition(".")
    if category not in categories or not rest:
        raise ValueError("a rule's id is CATEGORY.NAME, with one of the categories of its side")
    return text


Text = Annotated[StrictStr, Field(min_length=1)]
Patterns = Annotated[list[Any], Field(min_length=1)]
Groups = list[Patterns]
Score = Annotated[Number, Field(ge=0, le=1)]
Audiences = Annotated[list[Audience], Field(min_length=1)]
QuestionAction = Literal["crisis", "refuse"]
AnswerAction = Literal["append", "replace", "escalate"]


class LexiconFile(_Strict):
    """lexicon.yaml."""

    replacements: dict[str, Text]
    tags: dict[str, Text]


class RuleDefaults(_Strict):
    """What a rule of either side may leave out."""

    severity: Severity
    score: Score
    audiences: Audiences
    also: Groups
    nearby: Groups
    unless: list[Any]


class QuestionRuleDefaults(RuleDefaults):
    """What a rule for questions may leave out."""

    action: QuestionAction


class AnswerRuleDefaults(RuleDefaults):
    """What a rule for answers may leave out."""

    action: AnswerAction


class RuleFields(_Strict):
    """A rule of either side; what it leaves out is the file's default, not the one here."""

    any: Patterns
    severity: Severity = Severity.HIGH
    score: Score = 0.8
    audiences: Audiences = []
    also: Groups = []
    nearby: Groups = []
    unless: list[Any] = []


class QuestionRule(RuleFields):
    """A rule for questions."""

    id: Annotated[StrictStr, AfterValidator(_question_id)]
    action: QuestionAction = "crisis"


class AnswerRule(RuleFields):
    """A rule for answers."""

    id: Annotated[StrictStr, AfterValidator(_answer_id)]
    action: AnswerAction = "replace"


class ScopeFields(_Strict):
    """A scope."""

    where: Where
    any: Patterns
    not_after: list[Any] = []


class RulesFile(_Strict):
    """What the rules of both sides have."""

    macros: dict[str, Annotated[list[Text], Field(min_length=1)]]
    scopes: dict[str, ScopeFields]


class QuestionRulesFile(RulesFile):
    """rules_question.yaml."""

    defaults: QuestionRuleDefaults
    rules: Annotated[list[QuestionRule], Field(min_length=1)]


class AnswerRulesFile(RulesFile):
    """rules_answer.yaml."""

    defaults: AnswerRuleDefaults
    rules: Annotated[list[AnswerRule], Field(min_length=1)]
    referral: Annotated[list[Text], Field(min_length=1)]
    urgent: Annotated[list[Text], Field(min_length=1)]
    #: Policies from before these were asked have neither.
    advice_unless: list[Text] = []
    emergency_signs: list[Text] = []


class ResponsesFile(_Strict):
    """responses.yaml."""

    disclaimer: Text
    referral: Text
    not_checked: Text
    not_screened: Text | None = None
    unknown_language: Text | None = None
    injection: Text | None = None
    hidden: Text | None = None
    unanswered: Text | None = None
    replacements: dict[Category, Text]
    refusal: Text
    urgent: Text
    still_crisis: Text
    still_emergency: Text
    crisis: Text
    emergency: Text


class Lines(_Strict):
    """Where help is found in one locale."""

    emergency: Text
    crisis: Text
    advice: Text
    poison: Text


class ResourcesFile(_Strict):
    """resources.yaml."""

    default: Text
    aliases: dict[str, Text]
    locales: dict[str, Lines]


FILES: dict[str, type[BaseModel]] = {
    "doses.yaml": DosesFile,
    "facts.yaml": FactsFile,
    "interactions.yaml": InteractionsFile,
    "lexicon.yaml": LexiconFile,
    "policy.yaml": Knobs,
    "resources.yaml": ResourcesFile,
    "responses.yaml": ResponsesFile,
    "rules_answer.yaml": AnswerRulesFile,
    "rules_question.yaml": QuestionRulesFile,
}
