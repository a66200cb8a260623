"""The layer of what is known: ceilings of doses, and what is dangerous together. It asks nobody's consent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shared.guard.dose_facts import DoseFacts
from shared.guard.knobs import Knobs
from shared.guard.lexicon import Lexicon
from shared.guard.named_text import NamedText
from shared.guard.names import Names
from shared.guard.pair_facts import PairFacts, Wording
from shared.guard.rules import PatternCompiler, build_scopes
from shared.guard.verdict import Action, Audience, Category, Severity, Side, Verdict

#: The layer in a verdict.
LAYER = "facts"
#: How sure a verdict on a dose is: the figure is certain, how it is meant less so.
DOSE_SCORE = 0.9


class Facts:
    """A rail for answers: `facts(text, context, audience)`.

    Args:
        documents: the policy's parsed files, of which it reads doses.yaml, interactions.yaml, facts.yaml and,
            for macros and scopes, rules_answer.yaml.

    Raises:
        ValueError: a pattern or an amount is malformed.
    """

    def __init__(self, documents: Mapping[str, Any], lexicon: Lexicon, knobs: Knobs) -> None:
        self._lexicon, self._knobs = lexicon, knobs
        words, rules = documents["facts.yaml"], documents["rules_answer.yaml"]
        compiler = PatternCompiler(rules["macros"])
        scopes = build_scopes({**rules["scopes"], **words["scopes"]}, compiler)
        self._doses = DoseFacts(
            documents["doses.yaml"]["medicines"], [scopes[name] for name in words["dose"]["unless"]]
        )
        wordings = [
            Wording(one["score"], compiler.all(one["any"]), tuple(scopes[name] for name in one["unless"]))
            for one in words["pair"]
        ]
        self._pairs = PairFacts(documents["interactions.yaml"], wordings, compiler.all(words["together"]))
        self._names = Names([*self._doses.names, *self._pairs.names])

    def __call__(self, text: str, context: str, audience: Audience) -> Verdict:
        """The verdict on `text`, which follows `context` in the same answer. Linear in their lengths."""
        reading = NamedText(self._lexicon, self._names, text, context)
        if excess := self._doses.find(reading):
            source = f"dosing.{excess.medicine.replace(' ', '_')}.{excess.ceiling}"
            return self._verdict(Category.DOSING, source, DOSE_SCORE, (excess.start, excess.end), audience)
        if endorsed := self._pairs.find(reading):
            source = f"interaction.{endorsed.pair}"
            return self._verdict(
                Category.INTERACTION, source, endorsed.score, (endorsed.start, endorsed.end), audience
            )
        return Verdict.ALLOWED

    def _verdict(
        self, category: Category, source: str, score: float, span: tuple[int, int], audience: Audience
    ) -> Verdict:
        # shown to nobody with a referral: a figure over a ceiling is wrong, whoever reads it
        if self._knobs.of(audience).action(category, Action.REPLACE, Severity.HIGH, score) is Action.ALLOW:
            return Verdict.ALLOWED
        return Verdict(
            side=Side.ANSWER,
            action=Action.REPLACE,
            category=category,
            severity=Severity.HIGH,
            layer=LAYER,
            source=source,
            score=score,
            span=span,
        )
