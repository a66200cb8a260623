"""Says how far two reviewers agree beyond chance. It does no I/O, and does not know what they review."""

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from shared.intervals import Z


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Cohen's kappa of pairs of verdicts."""

    #: Pairs.
    n: int
    #: Share of the pairs that agree; None for no pairs.
    observed: float | None
    #: 1 is full agreement, 0 what chance gives; None for no pairs, and where all say the same of everything.
    kappa: float | None
    #: Its standard error, and the ends of its 95 % interval.
    error: float | None
    low: float | None
    high: float | None


def agreement(pairs: Sequence[tuple[Hashable, Hashable]]) -> Agreement:
    """Kappa (Cohen, 1960) with its standard error for large samples (Fleiss, Cohen and Everitt, 1969)."""
    n = len(pairs)
    if not n:
        return Agreement(n=0, observed=None, kappa=None, error=None, low=None, high=None)
    cells = {pair: count / n for pair, count in Counter(pairs).items()}
    first = {name: count / n for name, count in Counter(one for one, _ in pairs).items()}
    second = {name: count / n for name, count in Counter(other for _, other in pairs).items()}
    observed = sum(share for (one, other), share in cells.items() if one == other)
    chance = sum(share * second.get(name, 0) for name, share in first.items())
    if chance >= 1:
        return Agreement(n=n, observed=observed, kappa=None, error=None, low=None, high=None)
    kappa = (observed - chance) / (1 - chance)
    on_diagonal = sum(
        share * ((1 - chance) - (first[one] + second[one]) * (1 - observed)) ** 2
        for (one, other), share in cells.items()
        if one == other
    )
    off_diagonal = (1 - observed) ** 2 * sum(
        share * (second.get(one, 0) + first.get(other, 0)) ** 2
        for (one, other), share in cells.items()
        if one != other
    )
    rest = (observed * chance - 2 * chance + observed) ** 2
    error = math.sqrt(max(0.0, on_diagonal + off_diagonal - rest) / n) / (1 - chance) ** 2
    low, high = max(-1.0, kappa - Z * error), min(1.0, kappa + Z * error)
    return Agreement(n=n, observed=observed, kappa=kappa, error=error, low=low, high=high)
