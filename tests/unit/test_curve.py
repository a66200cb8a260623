"""What a page keeps of the curve of a long run."""

from itertools import pairwise
from typing import Any

import pytest

from services.ui.curve import FIGURES, MOST, thin
from shared.training import progress


def steps(last: int, **changes: dict[str, float]) -> list[dict[str, Any]]:
    """Steps in which nothing happens but the changes: `s7={"loss": 9.0}`."""
    usual = {"at": "2026-01-01T00:00:00Z", **dict.fromkeys(FIGURES), "loss": 1.0}
    return [{**usual, "step": step, **changes.get(f"s{step}", {})} for step in range(1, last + 1)]


def test_the_figures_are_those_that_are_stored() -> None:
    assert FIGURES == progress.FIGURES


def test_a_curve_that_is_not_long_is_kept_whole() -> None:
    whole = steps(MOST)
    assert thin(whole) == whole


@pytest.mark.parametrize("figure", FIGURES)
@pytest.mark.parametrize("extreme", [-9.0, 9.0])
def test_of_a_long_curve_a_few_thousand_steps_stay_the_ends_and_the_extremes_among_them(
    figure: str, extreme: float
) -> None:
    kept = {each["step"]: each for each in thin(steps(100_000, s54321={figure: extreme}))}
    assert len(kept) < MOST
    assert {1, 54_321, 100_000} <= kept.keys()
    assert list(kept) == sorted(kept)


def test_a_thinned_curve_that_grows_and_is_thinned_again_keeps_its_extremes_and_newest_look() -> None:
    whole = steps(60_000, s777={"loss": 9.0}, s59000={"eval_loss": 2.0}, s59100={"eval_loss": 1.0})
    kept: list[dict[str, Any]] = []
    for start in range(0, len(whole), 500):
        kept = thin([*kept, *whole[start : start + 500]])
        assert len(kept) <= MOST
    assert {1, 777, 59_000, 59_100, 60_000} <= {each["step"] for each in kept}
    gaps = [later["step"] - earlier["step"] for earlier, later in pairwise(kept)]
    assert max(gaps) < len(whole) / 60
