"""Checkpoints in the storage: whole or not there, the newest two, fetched by another host."""

import json
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from services.worker_train.mirror import Checkpoints
from shared.privacy.envelope import Envelope, new_master_key
from shared.storage import Storage

ENVELOPE = Envelope.from_base64(new_master_key())


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "storage"))


def checkpoints(storage: Storage, folder: Path, *steps: int, epoch: int = 1) -> Checkpoints:
    """A host's folder with checkpoints, each of two files."""
    made = Checkpoints(storage, ENVELOPE, "run", folder, epoch=epoch)
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
    assert (there.fetch(), there.newest()) == ((20, []), 20)
    assert (there.folder / "checkpoint-20" / "deep" / "weights").read_text() == "weights 20"
    assert [path.name for path in there.folder.iterdir()] == ["checkpoint-20"]


@pytest.mark.parametrize("blocks", [0, 2, 5])
def test_a_copy_that_is_stopped_leaves_nothing_of_it_and_the_one_before(
    storage: Storage, tmp_path: Path, blocks: int
) -> None:
    here = checkpoints(storage, tmp_path / "here", 10, 20)
    here.mirror(10)
    (here.folder / "checkpoint-20" / "deep" / "weights").write_bytes(bytes(5 << 20))
    before, asked = storage.list("runs"), iter(range(100))
    here.mirror(20, lambda: next(asked) >= blocks)
    assert next(asked) == blocks + 1, "it went on"
    assert storage.list("runs") == before
    assert not [*(tmp_path / "storage").rglob("*.part")]
    assert checkpoints(storage, tmp_path / "there").fetch() == (10, [])


def test_the_last_two_are_kept(storage: Storage, tmp_path: Path) -> None:
    here = checkpoints(storage, tmp_path / "here", 10, 20, 30)
    for step in (10, 20, 30):
        here.mirror(step)
    folders = {path.split("/")[4] for path in storage.list("runs/run")}
    assert folders == {"checkpoint-20", "checkpoint-30"}


def test_a_worker_that_lost_the_run_neither_replaces_nor_deletes_what_the_next_one_mirrors(
    storage: Storage, tmp_path: Path
) -> None:
    lost = checkpoints(storage, tmp_path / "lost", 10, 20, 30)
    new = checkpoints(storage, tmp_path / "new", 20, epoch=2)
    (new.folder / "checkpoint-20" / "state").write_text("of the new one")
    lost.mirror(10)
    new.mirror(20)
    lost.mirror(20)
    lost.mirror(30)
    third = checkpoints(storage, tmp_path / "third", epoch=3)
    assert third.fetch() == (20, [])
    assert (third.folder / "checkpoint-20" / "state").read_text() == "of the new one"


def test_the_next_attempt_removes_what_it_makes_superfluous(storage: Storage, tmp_path: Path) -> None:
    first = checkpoints(storage, tmp_path / "first", 10, 20)
    for step in (10, 20):
        first.mirror(step)
    checkpoints(storage, tmp_path / "next", 30, epoch=2).mirror(30)
    folders = {path.rsplit("/", 1)[0] for path in storage.list("runs/run") if path.endswith("WHOLE")}
    assert folders == {f"runs/run/checkpoints/{kept}" for kept in ("1/checkpoint-20", "2/checkpoint-30")}


def test_one_of_an_earlier_release_is_fetched(storage: Storage, tmp_path: Path) -> None:
    checkpoints(storage, tmp_path / "here", 10).mirror(10)
    stored = tmp_path / "storage" / "runs" / "run" / "checkpoints"
    (stored / "1" / "checkpoint-10").rename(stored / "checkpoint-10")
    assert checkpoints(storage, tmp_path / "there", epoch=2).fetch() == (10, [])


def test_one_that_is_not_whole_is_not_fetched(storage: Storage, tmp_path: Path) -> None:
    here = checkpoints(storage, tmp_path / "here", 10, 20)
    for step in (10, 20):
        here.mirror(step)
    storage.delete("runs/run/checkpoints/1/checkpoint-20/WHOLE")
    assert checkpoints(storage, tmp_path / "there").fetch() == (10, [])


def change_a_file(checkpoint: Path) -> None:
    (checkpoint / "deep" / "weights").write_text("other")


def lose_a_file(checkpoint: Path) -> None:
    (checkpoint / "state").unlink()


def list_the_hash_of_a_changed_file(checkpoint: Path) -> None:
    change_a_file(checkpoint)
    whole = json.loads((checkpoint / "WHOLE").read_text())
    whole["files"]["deep/weights"] = sha256(b"other").hexdigest()
    (checkpoint / "WHOLE").write_text(json.dumps(whole))


def put_another_in_its_place(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint)
    shutil.copytree(checkpoint.with_name("checkpoint-10"), checkpoint)


def take_its_seal(checkpoint: Path) -> None:
    names = list(json.loads((checkpoint / "WHOLE").read_text())["files"])
    (checkpoint / "WHOLE").write_text(json.dumps(names))


def seal_it_with_what_is_no_text(checkpoint: Path) -> None:
    (checkpoint / "WHOLE").write_text('{"files": {}, "seal": "\\ud800"}')


@pytest.mark.parametrize(
    "damage",
    [
        seal_it_with_what_is_no_text,
        change_a_file,
        lose_a_file,
        list_the_hash_of_a_changed_file,
        put_another_in_its_place,
        take_its_seal,
    ],
)
def test_one_that_is_not_as_it_was_mirrored_is_skipped(
    storage: Storage, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    here = checkpoints(storage, tmp_path / "here", 10, 20)
    for step in (10, 20):
        here.mirror(step)
    damage(tmp_path / "storage" / "runs" / "run" / "checkpoints" / "1" / "checkpoint-20")
    there = checkpoints(storage, tmp_path / "there")
    assert there.fetch() == (10, [20])
    assert [path.name for path in there.folder.iterdir()] == ["checkpoint-10"]


def test_what_is_no_checkpoint_of_ours_is_passed_over(storage: Storage, tmp_path: Path) -> None:
    here = checkpoints(storage, tmp_path / "here", 10, 20)
    here.mirror(10)
    stored = tmp_path / "storage" / "runs" / "run" / "checkpoints" / "1"
    shutil.copytree(stored / "checkpoint-10", stored / "checkpoint-10.bak")
    here.mirror(20)
    assert checkpoints(storage, tmp_path / "there").fetch() == (20, [])


def test_a_newer_one_of_this_host_is_not_replaced(storage: Storage, tmp_path: Path) -> None:
    here = checkpoints(storage, tmp_path / "here", 10, 20)
    here.mirror(10)
    assert here.fetch() == (20, [])


def test_a_half_written_folder_is_no_checkpoint(storage: Storage, tmp_path: Path) -> None:
    here = checkpoints(storage, tmp_path / "here", 10)
    (here.folder / "checkpoint-20.partial").mkdir()
    assert here.newest() == 10


def test_deleting_forgets_all_of_them_everywhere(storage: Storage, tmp_path: Path) -> None:
    here = checkpoints(storage, tmp_path / "here", 10)
    here.mirror(10)
    here.delete()
    assert (here.newest(), storage.list("runs")) == (None, [])
