"""Finds what is wrong with a policy before it is used, and the line where it stands. It judges nobody."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from shared.errors import PolicyRefused
from shared.guard.facts_check import check_facts
from shared.guard.located import Located, Place
from shared.guard.pattern_check import PatternCheck, strings
from shared.guard.policy import MOST_CHARS
from shared.guard.policy_schema import FILES, QUESTION_ACTIONS, Lines
from shared.guard.verdict import Category

#: A number carries this class by itself; see lexicon.py.
_NUMBER = "num"


def check_policy(texts: Mapping[str, str]) -> None:
    """Check every file of a whole policy.

    Args:
        texts: the text of each of `POLICY_FILES`, by name.

    Raises:
        PolicyRefused: the first thing that is wrong, with file, line and reason; it quotes nothing.
    """
    for name, text in texts.items():
        if len(text) > MOST_CHARS:
            raise PolicyRefused(name, 1, f"the file has more than {MOST_CHARS:,} characters")
    located = {name: _parsed(name, text) for name, text in texts.items()}
    tags = {*located["lexicon.yaml"].document["tags"], _NUMBER}
    _check_responses(located["responses.yaml"], located["resources.yaml"])
    for name in ("rules_answer.yaml", "rules_question.yaml"):
        _RulesCheck(located[name], tags).check()
    check_facts(located, tags)


def _parsed(name: str, text: str) -> Located:
    """The file, if its keys and values are those that it may have."""
    located = Located(name, text)
    try:
        FILES[name].model_validate(located.document)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        raise located.refusal(first["loc"], _reason(first)) from None
    return located


def _reason(error: ErrorDetails) -> str:
    """What must be different, in words of ours where pydantic's are about Python."""
    if error["type"] == "extra_forbidden":
        return "the key is not known here"
    if error["type"] == "missing":
        return f"the key {error['loc'][-1]!r} is missing"
    if error["type"] in ("model_type", "model_attributes_type", "dict_type"):
        return "keys with values belong here"
    message = error["msg"].removeprefix("Value error, ")
    return message[:1].lower() + message[1:]


def _check_responses(responses: Located, resources: Located) -> None:
    document = resources.document
    if document["default"] not in document["locales"]:
        raise resources.refusal(("default",), "this is none of the locales")
    for alias, locale in document["aliases"].items():
        if locale not in document["locales"]:
            raise resources.refusal(("aliases", alias), "this is none of the locales")
    for place, text in strings(responses, responses.document, ()):
        try:
            fields = [part[1:] for part in string.Formatter().parse(text) if part[1] is not None]
        except ValueError:
            raise responses.refusal(place, "a brace that opens or closes nothing") from None
        # a format or a conversion, as in {name:d} or {name!r}, can fail when the text is due
        if any(name not in Lines.model_fields or form or conversion for name, form, conversion in fields):
            known = ", ".join(f"{{{name}}}" for name in Lines.model_fields)
            reason = f"only {known} are filled in, with nothing after the name"
            raise responses.refusal(place, reason)


class _RulesCheck:
    """The rules of one side: whether their patterns mean something and everything is there that they name."""

    def __init__(self, located: Located, tags: set[str]) -> None:
        self._located = located
        self._macros: dict[str, Sequence[str]] = located.document["macros"]
        self._patterns = PatternCheck(located, tags, self._macros)

    def check(self) -> None:
        """Raises PolicyRefused."""
        document = self._located.document
        for name, sources in self._macros.items():
            self._check_no_circle(name, ())
            for number, source in enumerate(sources):
                self._patterns.check_elements(("macros", name, number), source)
        self._patterns.check_scopes(document["scopes"])
        for part in ("referral", "urgent", "emergency_signs"):
            self._patterns.check((part,), document.get(part, []))
        self._patterns.check_names(("advice_unless",), document.get("advice_unless", []), document["scopes"])
        self._check_rule(("defaults",), document["defaults"])
        ids: set[str] = set()
        for number, rule in enumerate(document["rules"]):
            if rule["id"] in ids:
                raise self._located.refusal(("rules", number, "id"), "another rule has the same id")
            ids.add(rule["id"])
            self._check_rule(("rules", number), rule)
            if self._located.name == "rules_question.yaml":
                self._check_action(number, {**document["defaults"], **rule})

    def _check_rule(self, place: Place, rule: Mapping[str, Any]) -> None:
        for part in ("any", "also", "nearby"):
            self._patterns.check((*place, part), rule.get(part, []))
        self._patterns.check_names(
            (*place, "unless"), rule.get("unless", []), self._located.document["scopes"]
        )

    def _check_action(self, number: int, rule: Mapping[str, Any]) -> None:
        """Whether a rule for questions, its defaults filled in, ends as questions of its category do."""
        if rule["action"] != QUESTION_ACTIONS[Category(rule["id"].partition(".")[0])]:
            reason = "crisis and emergency go with the action crisis, the other categories with refuse"
            own = self._located.document["rules"][number]
            raise self._located.refusal(("rules", number, "action" if "action" in own else "id"), reason)

    def _check_no_circle(self, name: str, above: tuple[str, ...]) -> None:
        if name in above:
            raise self._located.refusal(("macros", above[0]), "the macro names itself, or one that names it")
        for source in self._macros.get(name, ()):
            for element in source.split():
                inner = element.rstrip("?")
                if inner[:1] == "<" and inner[-1:] == ">":
                    self._check_no_circle(inner[1:-1], (*above, name))
