"""The process that opens pictures: what it gives, and what it does not let a file do."""

from typing import Any

import pytest
from PIL import Image

from shared import opening
from shared.opening import open_apart
from shared.pictures import BrokenPicture, PictureBomb, prepare
from tests.drawn import encoded

RED = encoded(Image.new("RGB", (9, 7), "red"))
#: More pixels than any camera's in a few bytes.
BOMB = encoded(Image.new("1", (20_000, 20_000)))


def many_scans(number: int) -> bytes:
    """A JPEG whose last look at the picture comes again and again, as a progressive one may have it."""
    whole = encoded(Image.new("RGB", (2000, 2000), "red"), "JPEG", progressive=True)
    scan = whole[whole.rfind(b"\xff\xda") : -2]
    return whole[:-2] + scan * number + whole[-2:]


def test_it_gives_what_the_gateway_would_make_of_it() -> None:
    assert open_apart(RED) == prepare(RED)


def test_it_says_what_to_do_about_a_picture_that_cannot_be_used() -> None:
    with pytest.raises(BrokenPicture) as refused:
        open_apart(encoded(Image.new("L", (30_001, 1))))
    assert "a side of more than 30,000" in str(refused.value.advice)
    with pytest.raises(PictureBomb):
        open_apart(BOMB)


def test_a_file_that_takes_long_to_unpack_is_given_up() -> None:
    with pytest.raises(BrokenPicture) as refused:
        open_apart(many_scans(20_000), cpu_s=1)
    assert "save it anew" in str(refused.value.advice)


def test_a_file_that_takes_much_memory_is_given_up() -> None:
    with pytest.raises(PictureBomb):
        open_apart(encoded(Image.new("RGB", (4000, 4000))), memory=100 * 2**20)


def test_a_process_that_does_not_end_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "_PATIENCE_S", 0.01)
    with pytest.raises(BrokenPicture, match="Too much work"):
        open_apart(RED)


def test_it_is_told_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interpreter that is told where its files are by the environment starts with nothing else of it."""
    monkeypatch.setenv("MEDICHAT_MASTER_KEY", "secret")
    given: list[dict[str, str]] = []
    run = opening.subprocess.run

    def noted(*what: Any, env: dict[str, str], **how: Any) -> Any:
        given.append(env)
        return run(*what, env=env, **how)

    monkeypatch.setattr(opening.subprocess, "run", noted)
    open_apart(RED)
    assert {name for each in given for name in each} == {
        "PYTHONPATH",
        "OPENBLAS_NUM_THREADS",
        "OMP_NUM_THREADS",
    }
