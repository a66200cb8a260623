"""Finds a person in crisis or in an emergency in what they ask. It does not know what is answered."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from shared.guard.rules import CONTEXT_CHARS, RuleSet, gravity
from shared.guard.sentences import sentences_of
from shared.guard.verdict import Audience, Category, Verdict

#: Longer questions are read in overlapping parts of this many characters.
PART_CHARS = 6000
_OVERLAP = 400
#: A sentence ends here at the latest: what begins amid one reads like the start of another.
_SENTENCE_CHARS = 1000
#: So many lines of so few words are a list, whose entries ("Burns, Choking") say nothing by themselves.
_ENTRIES, _ENTRY_WORDS = 3, 2


def screen_question(rules: RuleSet, text: str, context: str, audience: Audience) -> Verdict:
    """The gravest verdict on the question as a whole, and on each of its sentences; `context` is not read.

    What lifts a rule ("the app that you mentioned") speaks only for its own sentence, and what is only
    looked for at a start stands at that of any. Linear in the length of `text`.
    """
    worst = Verdict.ALLOWED_QUESTION
    for verdict in _verdicts(rules, text, audience):
        worst = max(worst, verdict, key=_need)
        if worst.category is Category.CRISIS:
            break
    return worst


def _verdicts(rules: RuleSet, text: str, audience: Audience) -> Iterator[Verdict]:
    for start in range(0, max(len(text) - _OVERLAP, 1), PART_CHARS - _OVERLAP):
        yield rules.judge(text[start : start + PART_CHARS], "", audience)
    sentences, start = sentences_of(text, _SENTENCE_CHARS), 0
    is_list = sum(map(_is_entry, sentences)) >= _ENTRIES
    for sentence in sentences if len(sentences) > 1 else ():
        if is_list and _is_entry(sentence):
            start += len(sentence)
            continue
        before = text[max(start - CONTEXT_CHARS, 0) : start]
        verdict = rules.judge(sentence, before, audience)
        if verdict.span is not None:
            first, end = verdict.span
            verdict = replace(verdict, span=(start + first, start + end))
        yield verdict
        start += len(sentence)


def _is_entry(sentence: str) -> bool:
    """Whether it is a line of a word or two, without an end."""
    line = sentence.strip()
    return "\n" not in line and 0 < len(line.split()) <= _ENTRY_WORDS and not line.endswith((".", "!", "?"))


def _need(verdict: Verdict) -> tuple[bool, int, bool, float]:
    """What orders verdicts on a question: of two that are equally grave a crisis counts for more."""
    stops, severity, score = gravity(verdict)
    return stops, severity, verdict.category is Category.CRISIS, score
