"""Checkpoints in the storage: whole or not there, the newest two, fetched by another host."""

from pathlib import Path

import pytest

from services.worker_train.mirror import Checkpoints
from shared.storage import Storage


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "storage"))


def checkpoints(storage: Storage, folder: Path, *steps: int) -> Checkpoints:
    """A host's folder with checkpoints, each of two files."""
    made = Checkpoints(storage, "run", folder)
    folder.mkdir(exist_ok=True)
    for step in steps:
        deep = folder / f"checkpoint-{step}" / "deep"
        deep.mkdir(parents=True)
        (deep / "weights").write_text(f"weights {step}")
        (deep.parent / "state").write_text(f"state {step}")
    return made


def test_another_host_fetches_the_newest(storage: Storage, tmp_path: Path) -> None:
    here = checkpoints(storage, tmp_path / "here", 10, 20)
    for step in (10, 20):
        here.mirror(step)
    there = checkpoints(storage, tmp_path / "there")
    assert there.fetch() == there.newest() == 20
    assert (there.folder / "checkpoint-20" / "deep" / "weights").read_text() == "weights 20"
    assert [path.name for path in there.folder.iterdir()] == ["checkpoint-20"]


def test_the_last_two_are_kept(storage: Storage, tmp_path: Path) -> None:
    here = checkpoints(storage, tmp_path / "here", 10, 20, 30)
    for step in (10, 20, 30):
        here.mirror(step)
    folders = {path.split("/")[3] for path in storage.list("runs/run")}
    assert folders == {"checkpoint-20", "checkpoint-30"}


def test_one_that_is_not_whole_is_not_fetched(storage: Storage, tmp_path: Path) -> None:
    here = checkpoints(storage, tmp_path / "here", 10, 20)
    for step in (10, 20):
        here.mirror(step)
    storage.delete("runs/run/checkpoints/checkpoint-20/WHOLE")
    assert checkpoints(storage, tmp_path / "there").fetch() == 10


def test_a_newer_one_of_this_host_is_not_replaced(storage: Storage, tmp_path: Path) -> None:
    here = checkpoints(storage, tmp_path / "here", 10, 20)
    here.mirror(10)
    assert here.fetch() == 20


def test_a_half_written_folder_is_no_checkpoint(storage: Storage, tmp_path: Path) -> None:
    here = checkpoints(storage, tmp_path / "here", 10)
    (here.folder / "checkpoint-20.partial").mkdir()
    assert here.newest() == 10


def test_deleting_forgets_all_of_them_everywhere(storage: Storage, tmp_path: Path) -> None:
    here = checkpoints(storage, tmp_path / "here", 10)
    here.mirror(10)
    here.delete()
    assert (here.newest(), storage.list("runs")) == (None, [])
