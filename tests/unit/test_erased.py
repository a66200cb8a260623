"""The list of destroyed data keys, kept beside the checkpoints of the log."""

from pathlib import Path

import pytest

from shared.ids import new_id
from shared.privacy.erased import note_erased, read_erased
from shared.storage import Storage


@pytest.mark.parametrize("kind", ["folder", "object store"])
def test_what_was_noted_is_read_by_whoever_opens_the_place(tmp_path: Path, kind: str) -> None:
    url = str(tmp_path) if kind == "folder" else f"memory://{new_id()}"
    first, second = new_id(), new_id()
    note_erased(Storage(url), [first, second])
    note_erased(Storage(url), [second])
    assert read_erased(Storage(url)) == {first, second}


def test_nothing_was_erased_in_a_new_place(tmp_path: Path) -> None:
    assert read_erased(Storage(str(tmp_path / "none"))) == set()


def test_only_ids_are_listed_and_read(tmp_path: Path) -> None:
    place = Storage(str(tmp_path))
    with pytest.raises(ValueError, match="not the id"):
        note_erased(place, [new_id(), "../elsewhere"])
    assert not (tmp_path / "erased").exists()
    with place.create("erased/README.txt") as file:
        file.write(b"?")
    assert read_erased(place) == set()
