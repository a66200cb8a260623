"""The list of legal holds, kept beside the checkpoints of the log."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from shared.errors import Conflict
from shared.ids import new_id
from shared.privacy.held import ListedHold, note_holds, read_holds
from shared.storage import Storage


def hold() -> ListedHold:
    return ListedHold(
        id=new_id(),
        subject=f"user:{new_id()}",
        reference="2026-C-17",
        placed_at=datetime(2026, 11, 2, 9, 30, tzinfo=UTC),
        placed_by=new_id(),
    )


@pytest.mark.parametrize("kind", ["folder", "object store"])
def test_what_was_noted_is_read_by_whoever_opens_the_place(tmp_path: Path, kind: str) -> None:
    url = str(tmp_path) if kind == "folder" else f"memory://{new_id()}"
    first, second = hold(), hold()
    note_holds(Storage(url), [first, second])
    lifted = second.model_copy(update={"lifted": True})
    note_holds(Storage(url), [lifted])
    note_holds(Storage(url), [second])  # as somebody who is late
    assert read_holds(Storage(url)) == [first, lifted]


def test_nothing_is_held_in_a_new_place(tmp_path: Path) -> None:
    assert read_holds(Storage(str(tmp_path / "none"))) == []


@pytest.mark.parametrize("text", ["", "{}", '["?"]', "of another hold"])
def test_a_file_that_is_no_hold_is_named(tmp_path: Path, text: str) -> None:
    place, other, name = Storage(str(tmp_path)), hold(), new_id()
    with place.create(f"holds/{name}") as file:
        file.write((other.model_dump_json() if "another" in text else text).encode())
    with pytest.raises(Conflict, match=name):
        read_holds(place)
