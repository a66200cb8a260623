"""The safe words: replacements, crisis and emergency texts. It does not know when they are due."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shared.guard.verdict import Category

#: What a policy of an earlier release lacks.
HIDDEN = "(Personal details in your question were not shown to the model.)"
UNANSWERED = "In an emergency call {emergency}; if you think of harming yourself, reach {crisis}."


class Responses:
    """The safe texts of one locale.

    Args:
        texts: the parsed `responses.yaml`.
        resources: the parsed `resources.yaml`.
        locale: "intl", "us", "gb", one of the aliases, or a language tag such as "en-GB"; an unknown one
            counts as the default.
    """

    def __init__(self, texts: Mapping[str, Any], resources: Mapping[str, Any], locale: str) -> None:
        known: Mapping[str, Mapping[str, str]] = resources["locales"]
        region = locale.lower().replace("_", "-").rpartition("-")[2]
        region = resources["aliases"].get(region, region)
        self.locale = region if region in known else str(resources["default"])
        self.resources = known[self.locale]
        self.disclaimer = self._filled(texts["disclaimer"])
        self.referral = self._filled(texts["referral"])
        self.crisis = self._filled(texts["crisis"])
        self.emergency = self._filled(texts["emergency"])
        self.refusal = self._filled(texts["refusal"])
        self.urgent = self._filled(texts["urgent"])
        self._still = {
            Category.CRISIS: self._filled(texts["still_crisis"]),
            Category.EMERGENCY: self._filled(texts["still_emergency"]),
        }
        self._not_checked = self._filled(texts["not_checked"])
        # policies that an earlier release stored have no texts of their own for these
        self._not_screened, self.unknown_language, self.injection = (
            self._filled(texts.get(name) or texts["not_checked"])
            for name in ("not_screened", "unknown_language", "injection")
        )
        self.hidden = self._filled(texts.get("hidden") or HIDDEN)
        self.unanswered = self._filled(texts.get("unanswered") or UNANSWERED)
        self._replacements = {
            Category(name): self._filled(text) for name, text in texts["replacements"].items()
        }

    def _filled(self, text: str) -> str:
        return text.format_map(self.resources)

    def replacement(self, category: Category | None) -> str:
        """What is said in place of a sentence of this category; of None: a sentence that was not checked."""
        return self._not_checked if category is None else self._replacements.get(category, self._not_checked)

    def for_question(self, category: Category | None) -> str:
        """What is said to a question that the guard answers itself; None: one that could not be checked.

        Raises:
            KeyError: no question is of this category.
        """
        said = {
            Category.CRISIS: self.crisis,
            Category.EMERGENCY: self.emergency,
            Category.HARMFUL_REQUEST: self.refusal,
            Category.INJECTION: self.injection,
            Category.LANGUAGE: self.unknown_language,
        }
        return self._not_screened if category is None else said[category]

    def still(self, state: Category) -> str:
        """What an answer begins with after a crisis or an emergency. Raises KeyError for anything else."""
        return self._still[state]
