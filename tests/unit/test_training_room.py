"""What an evaluation takes of the memory, and when it waits, starts or is refused."""

from pathlib import Path

import pytest
import torch

from services.worker_train.child import Refused
from services.worker_train.estimate import Shapes, evaluation_bytes
from services.worker_train.evaluation.loading import take_room
from services.worker_train.room import MustWait, Room
from shared.memory import within_control_group

GB = 1e9
#: A device of 24 GB of which 15 are free, 5 of them for answers.
ROOM = Room(device=torch.device("cpu"), total=int(24 * GB), kept=int(5 * GB), free=int(10 * GB))
#: Gemma 3 4B.
SHAPES = Shapes(
    parameters=4_300_000_000,
    embedding=671_000_000,
    layers=34,
    hidden=2560,
    intermediate=10240,
    heads=8,
    kv_heads=4,
    head_dim=256,
    vocabulary=262_208,
)


def needed(*, nf4: bool = False, tokens: int = 2048, longest_row: int = 512) -> float:
    return evaluation_bytes(
        SHAPES,
        adapter_bytes=130_000_000,
        nf4=nf4,
        tokens=tokens,
        longest_row=longest_row,
        device="cuda",
        weight_bytes=2,
    )


def test_an_evaluation_takes_its_own_weights_and_a_batch_of_its_longest_rows() -> None:
    assert 8.6 * GB + 2 * GB < needed() < 8.6 * GB + 6 * GB
    assert needed(nf4=True) < needed() - 4 * GB
    assert needed(tokens=8192, longest_row=8192) > needed() + 20 * GB


def test_an_evaluation_that_fits_starts() -> None:
    take_room(ROOM, 10 * GB, nf4=False)


def test_an_evaluation_that_does_not_fit_beside_what_serves_waits() -> None:
    with pytest.raises(MustWait, match=r"10.0 GB of 24.0 GB are free, without 5.0 GB that answers may"):
        take_room(ROOM, 11 * GB, nf4=False)


def test_whom_nothing_starts_again_is_told_to_run_it_again() -> None:
    with pytest.raises(MustWait, match=r"answers may still need; run it again when there is room\.$"):
        take_room(ROOM, 11 * GB, nf4=False)


def test_an_evaluation_that_never_fits_is_refused_with_advice() -> None:
    with pytest.raises(Refused, match="MEDICHAT_QUANTISE=nf4") as refusal:
        take_room(ROOM, 25 * GB, nf4=False)
    assert refusal.value.reason == "does-not-fit"
    with pytest.raises(Refused, match=r"a larger device\.$"):
        take_room(ROOM, 25 * GB, nf4=True)


def group(folder: Path, *, limit: str, used: int, cached: int = 0) -> Path:
    """A control group as the kernel shows it."""
    folder.mkdir(parents=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon {used - cached}\ninactive_file {cached}\n")
    return folder


@pytest.mark.parametrize(
    ("pod", "container"),
    [("max", "50000000"), ("50000000", "max"), ("50000000", "60000000"), ("90000000", "50000000")],
)
def test_a_container_has_the_memory_that_it_and_what_it_lies_in_are_allowed(
    pod: str, container: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group(tmp_path / "pod", limit=pod, used=30_000_000, cached=10_000_000)
    own = group(tmp_path / "pod" / "container", limit=container, used=30_000_000, cached=10_000_000)
    monkeypatch.setattr("shared.memory.control_group", lambda: own)
    room = Room.on(torch.device("cpu"))
    assert (room.free, room.total) == (30_000_000, 50_000_000)


def test_a_group_without_a_limit_has_what_the_machine_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = group(tmp_path / "container", limit="max", used=30_000_000)
    monkeypatch.setattr("shared.memory.control_group", lambda: own)
    assert within_control_group(7, 9) == (7, 9)
    monkeypatch.setattr("shared.memory.control_group", lambda: tmp_path / "none")
    assert within_control_group(7, 9) == (7, 9)
