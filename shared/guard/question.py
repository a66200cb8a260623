"""Finds a person in crisis or in an emergency in what they ask. It does not know what is answered."""

from __future__ import annotations

from shared.guard.rules import RuleSet, gravity
from shared.guard.verdict import Audience, Verdict

#: Longer questions are read in overlapping parts of this many characters.
PART_CHARS = 6000
_OVERLAP = 400


def screen_question(rules: RuleSet, text: str, context: str, audience: Audience) -> Verdict:
    """The gravest verdict on any part of the question; `context` is not read. Linear in its length."""
    worst = Verdict.ALLOWED_QUESTION
    for start in range(0, max(len(text) - _OVERLAP, 1), PART_CHARS - _OVERLAP):
        verdict = rules.judge(text[start : start + PART_CHARS], "", audience)
        worst = max(worst, verdict, key=gravity)
    return worst
