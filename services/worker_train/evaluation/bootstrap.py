"""Confidence intervals by resampling rows (Efron 1979, the percentile method). It knows no model.

Base and candidate are resampled together: the rows that are hard for one are hard for the other, so the
interval of their difference is narrower than two independent ones would make it.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
LEVEL = 0.95

#: One mean for each resample.
Means = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A figure and the interval that holds the true one with the chosen confidence."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """One figure of both models on the same rows; `difference` is candidate minus base."""

    #: How many draws each resample makes: groups, and rows without one. It, not the number of rows, says how
    #: far the intervals can be trusted.
    units: int
    base: Interval
    candidate: Interval
    difference: Interval

    def to_json(self) -> dict[str, Any]:
        """The three intervals, and what they rest on, as JSON."""
        return asdict(self)


def compare(
    base: Sequence[float],
    candidate: Sequence[float],
    *,
    weights: Sequence[float] | None = None,
    groups: Sequence[object] | None = None,
    transform: Callable[[Means], Means] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Comparison:
    """Compare two models by `transform(sum of values / sum of weights)` over rows.

    Args:
        base: one value for each row, e.g. the negative log-likelihood of its answer.
        candidate: the same rows in the same order.
        weights: what each value is spread over, e.g. the answer's tokens; 1 each when left out.
        groups: rows of the same group (a patient) are drawn together; None stands for a group of its own.
        transform: turns an array of means into the figure, e.g. `numpy.exp`.
        level: the confidence, between 0 and 1.

    Raises:
        ValueError: there are no rows, or their numbers differ.
    """
    if not len(base) or len(base) != len(candidate):
        raise ValueError("base and candidate need the same rows, at least one")
    each = np.ones(len(base)) if weights is None else np.asarray(weights, dtype=np.float64)
    table = np.stack([np.asarray(base, dtype=np.float64), np.asarray(candidate, dtype=np.float64), each])
    table = _by_group(table, groups)
    figure = transform or (lambda means: means)

    count = table.shape[1]
    drawn = np.random.default_rng(seed).multinomial(count, [1 / count] * count, size=resamples)
    sums = drawn @ table.T  # resamples × (base, candidate, weight)
    total = table.sum(axis=1)
    bases, candidates = figure(sums[:, 0] / sums[:, 2]), figure(sums[:, 1] / sums[:, 2])
    own_base, own_candidate = figure(total[0:1] / total[2])[0], figure(total[1:2] / total[2])[0]
    return Comparison(
        units=count,
        base=_interval(own_base, bases, level),
        candidate=_interval(own_candidate, candidates, level),
        difference=_interval(own_candidate - own_base, candidates - bases, level),
    )


def compare_shares(
    base: Sequence[bool], candidate: Sequence[bool], *, scale: float = 1.0, seed: int = 0
) -> Comparison:
    """Compare how often something happened, as a share of the rows times `scale`.

    Resampling cannot see what never happened in the sample, so a share of 0 or 1 gets the interval of the
    rule of three: up to 3/n away (Hanley and Lippman-Hand 1983).
    """
    found = compare(
        [float(value) for value in base],
        [float(value) for value in candidate],
        transform=lambda means: means * scale,
        seed=seed,
    )
    reach = min(3 / len(base), 1.0) * scale
    return Comparison(
        units=found.units,
        base=_at_edge(found.base, scale, reach),
        candidate=_at_edge(found.candidate, scale, reach),
        difference=found.difference,
    )


def _at_edge(interval: Interval, scale: float, reach: float) -> Interval:
    if interval.value <= 0:
        return Interval(interval.value, interval.low, reach)
    if interval.value >= scale:
        return Interval(interval.value, scale - reach, interval.high)
    return interval


def _by_group(table: Means, groups: Sequence[object] | None) -> Means:
    """The columns summed over each group: rows of one group say little more than one of them."""
    if groups is None or all(group is None for group in groups):
        return table
    names = [("row", index) if group is None else ("group", group) for index, group in enumerate(groups)]
    places = {name: place for place, name in enumerate(dict.fromkeys(names))}
    summed = np.zeros((table.shape[0], len(places)))
    for column, name in enumerate(names):
        summed[:, places[name]] += table[:, column]
    return summed


def _interval(value: float, resampled: Means, level: float) -> Interval:
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(value), float(low), float(high))
