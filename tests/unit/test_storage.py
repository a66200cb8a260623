"""Files in storage: whole or not there; sealed streams that notice every change."""

import gc
import io
from pathlib import Path

import pytest

from shared.privacy.envelope import CannotDecrypt, DataKey, Envelope
from shared.privacy.sealed import FRAME_BYTES, SealedFile, SealedReader, SealedWriter
from shared.storage import Storage

TEXT = b"Mrs Example takes ten milligrams.\n" * 80_000  # several frames


@pytest.fixture
def key() -> DataKey:
    return Envelope({1: b"k" * 32}).new_data_key("key-1")[0]


def sealed(key: DataKey, data: bytes, place: str = "here") -> bytes:
    sink = io.BytesIO()
    with SealedWriter(sink, key, place=place) as writer:
        for start in range(0, len(data), 70_000):
            writer.write(data[start : start + 70_000])
    return sink.getvalue()


def opened(key: DataKey, data: bytes, place: str = "here") -> bytes:
    with io.BufferedReader(SealedReader(io.BytesIO(data), key, place=place)) as reader:
        return reader.read()


@pytest.mark.parametrize("length", [0, 1, FRAME_BYTES, FRAME_BYTES + 1, len(TEXT)])
def test_what_is_sealed_is_read_back_and_not_readable_before(key: DataKey, length: int) -> None:
    data = sealed(key, TEXT[:length])
    assert opened(key, data) == TEXT[:length]
    assert b"Example" not in data


def test_lines_are_read_one_by_one(key: DataKey) -> None:
    reader = io.BufferedReader(SealedReader(io.BytesIO(sealed(key, TEXT)), key, place="here"))
    assert sum(1 for _ in reader) == 80_000


def test_a_cut_a_swap_an_edit_and_another_place_are_refused(key: DataKey) -> None:
    data = sealed(key, TEXT)
    frame = FRAME_BYTES + 28 + 4
    first, second, rest = data[8 : 8 + frame], data[8 + frame : 8 + 2 * frame], data[8 + 2 * frame :]
    wrong = {
        "cut within a frame": data[:-5],
        "cut between frames": data[: 8 + frame],
        "swapped": data[:8] + second + first + rest,
        "edited": data[:100] + bytes([data[100] ^ 1]) + data[101:],
        "longer": data + b"x",
        "another kind of file": b"{}",
        "empty": b"",
    }
    for damaged in wrong.values():
        with pytest.raises(CannotDecrypt):
            opened(key, damaged)
    with pytest.raises(CannotDecrypt):
        opened(key, data, place="there")


def test_a_stream_that_was_left_behind_is_not_whole(key: DataKey) -> None:
    sink = io.BytesIO()
    writer = SealedWriter(sink, key, place="here")
    writer.write(b"the first half")
    del writer
    gc.collect()
    with pytest.raises(CannotDecrypt):
        opened(key, sink.getvalue())


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    with storage.create("datasets/a/raw") as file:
        file.write(b"whole")
        assert not storage.exists("datasets/a/raw")
    with pytest.raises(ZeroDivisionError), storage.create("datasets/a/half") as file:
        file.write(b"half" * (1 // 0))
    assert storage.list("datasets") == ["datasets/a/raw"]
    with storage.open("datasets/a/raw") as file:
        assert file.read() == b"whole"
    assert storage.size("datasets/a/raw") == 5


def test_what_is_being_written_lies_beside_its_place_and_is_not_listed(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    with storage.create("datasets/a/raw") as file:
        file.write(b"x")
        assert len(list((tmp_path / "datasets" / "a").iterdir())) == 1
        assert storage.list("datasets") == []


def test_a_folder_is_deleted_with_all_in_it_and_again(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    with storage.create("datasets/a/raw") as file:
        file.write(b"x")
    storage.delete("datasets/a")
    storage.delete("datasets/a")
    assert storage.list("datasets") == []


@pytest.mark.parametrize("path", ["", "../x", "a/../../x", "/etc/passwd", "a//b"])
def test_nothing_outside_the_storage_is_reached(tmp_path: Path, path: str) -> None:
    with pytest.raises(ValueError, match="not a path"):
        Storage(str(tmp_path)).open(path)


def sealed_file(key: DataKey, data: bytes) -> SealedFile:
    return SealedFile(io.BytesIO(sealed(key, data)), key, place="here")


@pytest.mark.parametrize("length", [0, 1, FRAME_BYTES, FRAME_BYTES + 1, 2 * FRAME_BYTES, len(TEXT)])
def test_a_sealed_file_is_read_from_any_place(key: DataKey, length: int) -> None:
    with io.BufferedReader(sealed_file(key, TEXT[:length])) as file:
        assert file.read() == TEXT[:length]
        for place in (length // 2, 0, max(length - 5, 0), length):
            file.seek(place)
            assert file.read(50) == TEXT[:length][place : place + 50]
        assert file.seek(0, io.SEEK_END) == length


def test_a_sealed_file_that_was_cut_or_changed_is_refused(key: DataKey) -> None:
    data = sealed(key, TEXT)
    frame = FRAME_BYTES + 28 + 4
    first, second = data[8 : 8 + frame], data[8 + frame : 8 + 2 * frame]
    wrong = [
        data[:-5],
        data[: 8 + frame],
        data[:8] + second + first + data[8 + 2 * frame :],
        data + b"x",
        b"{}",
    ]
    for damaged in (*wrong, data[:100] + bytes([data[100] ^ 1]) + data[101:], data[:8]):
        with pytest.raises(CannotDecrypt):
            io.BufferedReader(SealedFile(io.BytesIO(damaged), key, place="here")).read()
