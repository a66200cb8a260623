"""Tells what each layer of a guard says about one text, and what comes of it. It stores nothing."""

from __future__ import annotations

from dataclasses import dataclass

from shared.guard import Guard
from shared.guard.verdict import Audience, Side, Verdict


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """What a guard makes of one text."""

    #: By the name of the layer.
    layers: dict[str, Verdict]
    #: What counts, all layers together.
    verdict: Verdict
    #: What is said in place of the text, or at once to the question; None when the text itself is shown.
    instead: str | None
    #: Whether the text itself sends its reader to a clinician.
    refers: bool


def explain(
    guard: Guard, side: Side, text: str, *, context: str, audience: Audience, locale: str
) -> Explanation:
    """Judge `text`, which follows `context`, as an answer's sentence or as a question."""
    layers = {name: judge(text, context, audience) for name, judge in guard.layers(side).items()}
    responses = guard.responses(locale)
    if side is Side.ANSWER:
        verdict = guard.judge_answer(text, context, audience)
        instead = None if verdict.allowed else responses.replacement(verdict.category)
    else:
        verdict = guard.screen_question(text, audience)
        instead = None if verdict.allowed else responses.for_question(verdict.category)
    return Explanation(layers=layers, verdict=verdict, instead=instead, refers=guard.refers(text))
