"""Drives a system of systems.py with so many questions at a time. It does not know what answers them."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from string import ascii_lowercase
from typing import Any

from benchmarks import report
from benchmarks.systems import QUESTIONS, Answer


@dataclass
class Run:
    """One system under one number of concurrent requests."""

    system: str
    concurrency: int
    answers: list[Answer] = field(default_factory=list)
    wall_s: float = 0.0
    peak_mb: float = 0.0

    def row(self) -> dict[str, Any]:
        first = [answer.first_sentence_s * 1000 for answer in self.answers]
        return {
            "system": self.system,
            "concurrency": self.concurrency,
            "adapters": 0,
            "tokens_per_answer": round(sum(a.tokens for a in self.answers) / len(self.answers), 1),
            "tokens_per_s": round(sum(answer.tokens for answer in self.answers) / self.wall_s, 1),
            "first_sentence_ms_p50": round(report.percentile(first, 0.5), 1),
            "first_sentence_ms_p95": round(report.percentile(first, 0.95), 1),
            "peak_mb": round(self.peak_mb),
        }


def questions(requests: int) -> list[str]:
    """As many different questions. Told apart by letters: the guard may take a number for a temperature."""
    letters = (f"{first}{second}" for first in ascii_lowercase for second in ascii_lowercase)
    return [
        f"{QUESTIONS[i % len(QUESTIONS)]} ({name})" for i, name in zip(range(requests), letters, strict=False)
    ]


def drive(run: Run, ask: Callable[[str], Answer], requests: int) -> None:
    """Add `requests` questions to a run, as many at a time as its concurrency says."""
    begun = time.perf_counter()
    with ThreadPoolExecutor(run.concurrency) as pool:
        run.answers += pool.map(ask, questions(requests))
    run.wall_s += time.perf_counter() - begun
