"""Tells what each layer of a guard says about one text, and what comes of it. It stores nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
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
    #: Whether a judge by a language model would be asked about it, where there is one; none is asked here.
    doubted: bool
    #: How long the verdict took, in milliseconds; what each layer says by itself is not in it.
    ms: float


def explain(
    guard: Guard,
    side: Side,
    text: str,
    *,
    context: str,
    audience: Audience,
    locale: str,
    clock: Callable[[], float] = time.perf_counter,
) -> Explanation:
    """Judge `text`, which follows `context`, as an answer's sentence or as a question.

    `clock` gives seconds.
    """
    # before its layers: what they read of a text is kept, and would make the whole look quicker than it is
    begun = clock()
    if side is Side.ANSWER:
        verdict = guard.judge_answer(text, context, audience)
    else:
        verdict = guard.screen_question(text, audience)
    ms = (clock() - begun) * 1000
    responses = guard.responses(locale)
    if side is Side.ANSWER:
        instead = None if verdict.allowed else responses.replacement(verdict.category)
    else:
        instead = None if verdict.allowed else responses.for_question(verdict.category)
    return Explanation(
        layers={name: judge(text, context, audience) for name, judge in guard.layers(side).items()},
        verdict=verdict,
        instead=instead,
        refers=guard.refers(text),
        doubted=side is Side.ANSWER and guard.doubts(text, context, audience),
        ms=ms,
    )
