"""The keys and values that each policy file may hold. It does not know what a pattern means.

Lists of patterns may hold lists, which stand for shared groups, so they are looked into by policy_check.py.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictStr

from shared.guard.facts_schema import DosesFile, FactsFile, InteractionsFile
from shared.guard.knobs import Knobs
from shared.guard.rules import Where
from shared.guard.verdict import Action, Audience, Category, Severity


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


def _rule_id(text: str) -> str:
    category, _, rest = text.partition(".")
    if category not in list(Category) or not rest:
        raise ValueError("a rule's id is CATEGORY.NAME, with one of the guard's categories")
    return text


Text = Annotated[StrictStr, Field(min_length=1)]
Patterns = Annotated[list[Any], Field(min_length=1)]
Groups = list[Patterns]


class LexiconFile(_Strict):
    """lexicon.yaml."""

    replacements: dict[str, Text]
    tags: dict[str, Text]


class RuleDefaults(_Strict):
    """What a rule may leave out."""

    action: Action
    severity: Severity
    score: float = Field(ge=0, le=1)
    audiences: list[Audience]
    also: Groups
    nearby: Groups
    unless: list[Any]


class RuleFields(_Strict):
    """A rule; what it leaves out is the file's default, not the one here."""

    id: Annotated[StrictStr, AfterValidator(_rule_id)]
    any: Patterns
    action: Action = Action.REPLACE
    severity: Severity = Severity.HIGH
    score: float = Field(0.8, ge=0, le=1)
    audiences: list[Audience] = []
    also: Groups = []
    nearby: Groups = []
    unless: list[Any] = []


class ScopeFields(_Strict):
    """A scope."""

    where: Where
    any: Patterns
    not_after: list[Any] = []


class QuestionRulesFile(_Strict):
    """rules_question.yaml."""

    defaults: RuleDefaults
    macros: dict[str, Annotated[list[Text], Field(min_length=1)]]
    scopes: dict[str, ScopeFields]
    rules: Annotated[list[RuleFields], Field(min_length=1)]


class AnswerRulesFile(QuestionRulesFile):
    """rules_answer.yaml."""

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
