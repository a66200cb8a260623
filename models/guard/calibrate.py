"""Judges rows that were set aside, and finds the score from which the classifier stops a sentence."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from models.guard.network import Network
from models.guard.rows import Row
from models.guard.train import to_batch
from shared.guard.classifier import OUTPUT_LABELS, QUESTION_LABELS, Reader


@dataclass(frozen=True)
class Judged:
    """A row and how likely each label is for it."""

    row: Row
    scores: dict[str, float]

    @property
    def harmless(self) -> float:
        """The score of `safe` or `allow`."""
        return next(iter(self.scores.values()))

    @property
    def label(self) -> str:
        """The likeliest label."""
        return max(self.scores, key=self.scores.__getitem__)


def judge_all(network: Network, reader: Reader, rows: Sequence[Row]) -> list[Judged]:
    """Every row under the network in full precision."""
    judged = []
    with torch.inference_mode():
        for row in rows:
            batch = to_batch([row], reader)
            scores = network(**batch.inputs)[batch.questions][0].softmax(-1).tolist()
            labels = QUESTION_LABELS if row.is_question else OUTPUT_LABELS
            judged.append(Judged(row, dict(zip(labels, scores, strict=True))))
    return judged


def pick_thresholds(judged: Sequence[Judged], false_alarms: float) -> dict[str, Any]:
    """Scores that this share of harmless texts reaches: `alone` of sentences, and each danger of questions.

    A sentence that a rule speaks against needs less: `with_rule` is what ten times that share reaches.
    """
    sentences = [1 - each.harmless for each in judged if each.row.label == OUTPUT_LABELS[0]]
    found: dict[str, Any] = {
        "alone": _reached_by(sentences, false_alarms),
        "with_rule": _reached_by(sentences, 10 * false_alarms),
    }
    harmless = [each for each in judged if each.row.label == QUESTION_LABELS[0]]
    found["question"] = {
        label: _reached_by([each.scores[label] for each in harmless], false_alarms)
        for label in QUESTION_LABELS[1:]
    }
    return found


def _reached_by(scores: Sequence[float], share: float) -> float:
    highest = sorted(scores, reverse=True)
    return round(highest[int(len(highest) * share)] + 1e-4, 4)


def figures(judged: Sequence[Judged], thresholds: dict[str, Any]) -> dict[str, Any]:
    """What the classifier alone catches, by label, and what it stops wrongly."""
    told: dict[str, Counter[bool]] = {}
    for each in judged:
        told.setdefault(each.row.label, Counter())[is_stopped(each, thresholds)] += 1
    return {
        label: {"n": counts.total(), "stopped": round(counts[True] / counts.total(), 4)}
        for label, counts in sorted(told.items())
    }


def is_stopped(judged: Judged, thresholds: dict[str, Any]) -> bool:
    """Whether the classifier alone stops this row's text."""
    if judged.row.is_question:
        return any(judged.scores[label] >= least for label, least in thresholds["question"].items())
    return 1 - judged.harmless >= float(thresholds["alone"])


def agreement(one: Sequence[Judged], other: Sequence[Judged]) -> float:
    """The share of rows for which both find the same label likeliest."""
    same = sum(a.label == b.label for a, b in zip(one, other, strict=True))
    return round(same / max(len(one), 1), 4)
