"""Confidence intervals hold the truth as often as they say, and pairing narrows them."""

import numpy as np
import pytest

from services.worker_train.evaluation.bootstrap import compare, compare_shares
from services.worker_train.evaluation.likelihood import perplexity


def test_the_interval_holds_the_true_difference_about_as_often_as_it_says() -> None:
    chance = np.random.default_rng(1)
    held, rounds = 0, 200
    for seed in range(rounds):
        hard = chance.normal(2.0, 1.0, 60)
        base, candidate = hard + chance.normal(0, 0.3, 60), hard + chance.normal(-0.1, 0.3, 60)
        found = compare(base, candidate, seed=seed, resamples=400).difference
        held += found.low <= -0.1 <= found.high
    assert 0.89 <= held / rounds <= 0.99


def test_pairing_makes_the_interval_of_the_difference_narrower() -> None:
    chance = np.random.default_rng(2)
    hard = chance.normal(2.0, 1.0, 80)
    base, candidate = hard + chance.normal(0, 0.1, 80), hard + chance.normal(0, 0.1, 80)
    paired = compare(base, candidate).difference
    unpaired = compare(base, candidate[::-1]).difference  # the same values, but not of the same rows
    assert paired.high - paired.low < 0.25 * (unpaired.high - unpaired.low)


def test_a_weighted_figure_is_the_ratio_of_the_sums() -> None:
    found = compare([2.0, 30.0], [1.0, 15.0], weights=[1, 10])
    assert found.base.value == pytest.approx(32 / 11)
    assert found.difference.value == pytest.approx(-16 / 11)


def test_perplexity_is_the_exponential_of_the_loss() -> None:
    losses = [1.0, 2.5, 0.5]
    loss = compare(losses, losses).base
    found = compare(losses, losses, transform=perplexity).base
    assert found.value == pytest.approx(np.exp(loss.value))
    assert found.low == pytest.approx(np.exp(loss.low))


def test_rows_of_one_patient_count_as_little_more_than_one() -> None:
    chance = np.random.default_rng(3)
    each = chance.normal(0, 1, 10)
    values = np.repeat(each, 8)
    alone = compare(values, values * 2).base
    together = compare(values, values * 2, groups=[f"p{n // 8}" for n in range(80)]).base
    assert together.high - together.low > 2 * (alone.high - alone.low)
    assert together.value == pytest.approx(alone.value)


def test_what_never_happened_may_still_happen() -> None:
    found = compare_shares([False] * 60, [True] * 60, scale=1000.0)
    assert (found.base.value, found.base.high) == (0.0, 50.0)
    assert (found.candidate.value, found.candidate.low) == (1000.0, 950.0)


def test_different_rows_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="same rows"):
        compare([1.0], [1.0, 2.0])
