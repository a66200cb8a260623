"""What a program that trains imports, and what it leaves out."""

import gc
import sys
from importlib.util import find_spec
from typing import Any

import pytest

from services.worker_train.finetune import wants_bitsandbytes
from services.worker_train.starting import importing, leave_out_bitsandbytes
from shared.training.recipe import Optimiser, Recipe


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, False),
        ({"quantisation": "nf4"}, True),
        *(({"optimiser": each.value}, True) for each in Optimiser if each is not Optimiser.ADAMW),
    ],
)
def test_bitsandbytes_is_wanted_by_a_recipe_that_computes_with_it(
    changes: dict[str, Any], wanted: bool
) -> None:
    plain = {"optimiser": "adamw", "quantisation": "none"}
    assert wants_bitsandbytes(Recipe().changed({**plain, **changes})) is wanted


def test_what_is_left_out_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "peft", raising=False)
    # put back by the end of the test, as it was
    monkeypatch.setitem(sys.modules, "bitsandbytes", sys)
    del sys.modules["bitsandbytes"]
    assert find_spec("bitsandbytes")
    leave_out_bitsandbytes()
    assert find_spec("bitsandbytes") is None


def test_what_was_imported_before_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", sys)
    leave_out_bitsandbytes()
    assert sys.modules["bitsandbytes"] is sys


def test_garbage_is_looked_for_again_after_an_import_that_failed() -> None:
    with pytest.raises(ImportError), importing():
        fail_to_import()
    assert gc.isenabled()


def fail_to_import() -> None:
    assert not gc.isenabled()
    raise ImportError
