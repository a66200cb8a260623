"""What the benchmarks measure with."""

import os

from benchmarks.serving import apart
from benchmarks.systems import peak_mb_of


def own_peak_mb() -> float:
    return peak_mb_of(os.getpid())


def test_the_peak_of_what_is_measured_apart_is_its_own() -> None:
    held = len(b"x" * 500_000_000)
    assert own_peak_mb() > held / 1e6
    assert apart(own_peak_mb) < held / 1e6
