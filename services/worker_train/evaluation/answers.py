"""Both models' greedy answers, and how near they come to the answers that are wanted (ROUGE-L).

It judges wording, not truth: ROUGE-L (Lin 2004) is the F-measure of the longest common subsequence of words.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rouge_score.rouge_scorer import RougeScorer  # type: ignore[import-untyped]

from services.worker_train.evaluation.bootstrap import Comparison, compare
from services.worker_train.evaluation.examinee import Examinee
from services.worker_train.evaluation.pace import Pace
from services.worker_train.evaluation.text import Encoded, Row

#: Samples shown from either end.
SHOWN = 10


@dataclass(frozen=True)
class Answered:
    """One question put to both models."""

    base: str
    candidate: str


@dataclass(frozen=True)
class Sample:
    """A held-out row with both answers side by side."""

    question: str
    reference: str
    base: str
    candidate: str
    rouge_l_base: float
    rouge_l_candidate: float


def ask_both(
    examinee: Examinee, prompts: Sequence[Encoded], *, max_new_tokens: int, pace: Pace, what: str
) -> list[Answered]:
    """The answers to as many of the prompts, in their order, as there is time for."""
    said: list[Answered] = []
    for batch in pace.batches(prompts, what):
        base, candidate = (
            examinee.answers(batch, adapted=adapted, max_new_tokens=max_new_tokens)
            for adapted in (False, True)
        )
        said += [Answered(*pair) for pair in zip(base, candidate, strict=True)]
    return said


def judge_wording(rows: Sequence[Row], said: Sequence[Answered]) -> list[Sample]:
    """Each answered row with the ROUGE-L of both answers."""
    scorer = RougeScorer(["rougeL"], use_stemmer=False)

    def near(row: Row, answer: str) -> float:
        return float(scorer.score(row.answer, answer)["rougeL"].fmeasure)

    return [
        Sample(
            row.question,
            row.answer,
            pair.base,
            pair.candidate,
            near(row, pair.base),
            near(row, pair.candidate),
        )
        for row, pair in zip(rows, said, strict=False)
    ]


def rouge_l(rows: Sequence[Row], samples: Sequence[Sample], *, seed: int) -> Comparison:
    """Mean ROUGE-L of both models."""
    return compare(
        [sample.rouge_l_base for sample in samples],
        [sample.rouge_l_candidate for sample in samples],
        groups=[row.group for row in rows[: len(samples)]],
        seed=seed,
    )


def best_and_worst(samples: Sequence[Sample], shown: int = SHOWN) -> dict[str, list[dict[str, Any]]]:
    """The candidate's answers nearest to and farthest from the reference; none is in both lists."""
    ordered = [asdict(sample) for sample in sorted(samples, key=lambda each: -each.rouge_l_candidate)]
    best = min(shown, (len(ordered) + 1) // 2)
    worst = min(shown, len(ordered) - best)
    return {"best": ordered[:best], "worst": ordered[len(ordered) - worst :][::-1]}
