"""Finds training answers that come out again word for word. It knows token ids, not what they say.

Fifty tokens in a row are no chance (Carlini et al. 2023, "Quantifying Memorization Across Neural Language
Models"); what the base recites as well it did not learn from these rows.
"""

from collections.abc import Sequence
from typing import Any

from services.worker_train.evaluation.answers import Answered
from services.worker_train.evaluation.text import Row, RowText

SPAN_TOKENS = 50


def longest_common_run(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the longest run of tokens that both hold."""
    longest, row = 0, [0] * (len(right) + 1)
    for token in left:
        before = row
        row = [0] * (len(right) + 1)
        for place, other in enumerate(right):
            if token == other:
                row[place + 1] = before[place] + 1
                longest = max(longest, row[place + 1])
    return longest


def measure_verbatim(
    text: RowText, rows: Sequence[Row], said: Sequence[Answered], span: int = SPAN_TOKENS
) -> dict[str, Any]:
    """How many training answers each model recites for `span` tokens when it is asked their question.

    `learnt` counts those that the candidate recites and the base does not. Answers shorter than the span
    cannot count; `long_enough` says how many could.
    """
    base, candidate, learnt, long_enough, longest = 0, 0, 0, 0, 0
    for row, pair in zip(rows, said, strict=False):
        wanted = text.tokenise(row.answer)
        if len(wanted) < span:
            continue
        long_enough += 1
        runs = [longest_common_run(wanted, text.tokenise(answer)) for answer in (pair.base, pair.candidate)]
        base += runs[0] >= span
        candidate += runs[1] >= span
        learnt += runs[1] >= span > runs[0]
        longest = max(longest, runs[1])
    return {
        "rows": len(said),
        "long_enough": long_enough,
        "span_tokens": span,
        "base": base,
        "candidate": candidate,
        "learnt": learnt,
        "longest_run": longest,
    }
