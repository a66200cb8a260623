"""What the benchmarks measure with."""

import os
import sys
from types import ModuleType

import pytest

from benchmarks.serving import apart
from benchmarks.systems import peak_mb_of


def own_peak_mb() -> float:
    return peak_mb_of(os.getpid())


def test_the_peak_of_what_is_measured_apart_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    # a fresh process loads its parent's program again: none of what a test of a page left in its place
    monkeypatch.setitem(sys.modules, "__main__", ModuleType("__main__"))
    held = len(b"x" * 500_000_000)
    assert own_peak_mb() > held / 1e6
    assert apart(own_peak_mb) < held / 1e6
