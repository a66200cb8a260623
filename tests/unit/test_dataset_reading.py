"""Files of rows: what they are is told by their bytes, and every broken one is refused with the place."""

import contextlib
import errno
import io
import json
import secrets
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, cast

import pyarrow
import pytest
from pyarrow import parquet

from services.worker_train import archive, hub, reading
from services.worker_train.child import Refused
from services.worker_train.validate import Upload
from shared.ids import new_id
from shared.privacy.envelope import Envelope, new_master_key
from shared.privacy.sealed import SealedWriter
from shared.storage import StorageAway

ROWS = [{"question": f"What is {name}?", "answer": f"{name}, a condition."} for name in ("asthma", "gout")]
MAX_BYTES = 10_000_000


def jsonl(rows: list[dict[str, Any]] = ROWS) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def as_parquet(rows: list[dict[str, Any]] = ROWS) -> bytes:
    sink = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return sink.getvalue()


def parquet_with_two_columns_of_one_name() -> bytes:
    sink = io.BytesIO()
    columns = [pyarrow.array(["a"]), pyarrow.array(["b"]), pyarrow.array(["c"])]
    parquet.write_table(pyarrow.table(columns, names=["question", "answer", "answer"]), sink)
    return sink.getvalue()


def zipped(members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", compression) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return sink.getvalue()


def read(data: bytes, max_bytes: int = MAX_BYTES) -> list[tuple[int, dict[str, Any]]]:
    return list(reading.open_source(io.BytesIO(data), max_bytes=max_bytes).rows)


def refusal(data: bytes, max_bytes: int = MAX_BYTES) -> Refused:
    with pytest.raises(reading.Broken) as caught:
        read(data, max_bytes)
    return caught.value


@pytest.mark.parametrize(
    "data",
    [
        jsonl(),
        b"\xef\xbb\xbf" + jsonl(),
        b'question,answer\r\n"What is asthma?","asthma, a condition."\r\n'
        b'What is gout?,"gout, a condition."\r\n',
        b"question;answer\nWhat is asthma?;asthma, a condition.\nWhat is gout?;gout, a condition.\n",
        b"question\tanswer\nWhat is asthma?\tasthma, a condition.\nWhat is gout?\tgout, a condition.",
        as_parquet(),
        zipped({"data/rows.jsonl": jsonl(), "__MACOSX/._rows.jsonl": b"x"}),
        zipped({"rows.parquet": as_parquet()}),
    ],
    ids=["jsonl", "bom", "csv", "semicolons", "tabs", "parquet", "zip", "parquet in a zip"],
)
def test_every_format_gives_the_same_rows(data: bytes) -> None:
    assert [row for _, row in read(data)] == ROWS


def test_a_csv_may_name_a_column_as_a_zip_begins() -> None:
    assert read(b"PKU,answer\nIs it rare?,Yes.\n") == [(2, {"PKU": "Is it rare?", "answer": "Yes."})]


def test_a_piece_of_a_zip_that_was_split_is_refused() -> None:
    assert refusal(b"PK\x07\x08" + zipped({"rows.jsonl": jsonl()})).reason == "compressed"


@pytest.mark.parametrize("blank", [b"\n", b"\r\n \t\r\n", b"\xef\xbb\xbf\n\n"])
def test_blank_lines_before_the_header_of_a_csv_are_passed_over_and_counted(blank: bytes) -> None:
    lines = blank.count(b"\n")
    rows = read(blank + b"question,answer\nWhat is gout?,A condition.\n")
    assert rows == [(lines + 2, {"question": "What is gout?", "answer": "A condition."})]
    assert f"Line {lines + 1} must name" in refusal(blank + b"answer,answer\na,b\n").detail
    assert f"Line {lines + 2} has 3 fields" in refusal(blank + b"question,answer\na,b,c\n").detail


def test_a_file_of_blank_lines_is_empty_whatever_is_blank_in_them() -> None:
    assert refusal(b"\n" * 5000).reason == "no-rows"
    assert refusal("\u00a0\n\u2003\n".encode()).reason == "no-rows"


def test_a_csv_record_has_the_number_of_the_line_it_starts_on() -> None:
    data = b'question,answer\n"one\nof two lines",a\nnext,b\n'
    assert [line for line, _ in read(data)] == [2, 4]


def test_empty_lines_of_jsonl_are_passed_over_and_counted() -> None:
    assert [line for line, _ in read(b'{"a": 1}\n\n{"a": 2}\n')] == [1, 3]


@pytest.mark.parametrize(
    ("data", "code", "says"),
    [
        (b"", "no-rows", "empty"),
        (b" \n\n", "no-rows", "empty"),
        (jsonl() + b'{"question": "\xff"}\n', "not-utf8", "Line 3"),
        ("question,answer\n".encode("utf-16"), "not-utf8", "UTF-16"),
        (jsonl() + b"{broken\n", "bad-json", "Line 3"),
        (jsonl() + b"[1]\n", "bad-json", "Line 3"),
        (jsonl() + b'{"answer": "a", "answer": "b"}\n', "bad-json", "Line 3 gives one name to two"),
        (jsonl() + b'{"messages": [{"role": "user", "role": "user"}]}\n', "bad-json", "Line 3"),
        (parquet_with_two_columns_of_one_name(), "bad-header", "each column once"),
        (b"{" + b'"a":{' * 100_000 + b"\n", "bad-json", "Line 1"),
        (b'[{"question": "q"}]', "json-array", "jq"),
        (b"question,answer\na,b\na,b,c\n", "ragged-csv", "Line 3 has 3 fields"),
        (b'question,answer\na,b\n"open,b\n', "bad-csv", "line 3"),
        (b"question,question\na,b\n", "bad-header", "Line 1"),
        (jsonl() + b'{"answer": "' + b"a" * 1_000_000 + b'"}\n', "line-too-long", "Line 3"),
        (b'question,answer\na,"' + b"line\n" * 250_000, "bad-csv", "line 2"),
        (b"question,answer\ra,b\r", "bad-csv", "line feed"),
        (b'{"question": "q", "\\ud800": "a"}\n', "bad-header", "Line 1"),
        (b"\x1f\x8b\x08\x00", "compressed", "Unpack"),
        (b"MZ\x90\x00\x03", "not-text", "none of"),
        (as_parquet()[:-100], "bad-parquet", "Write it again"),
        (as_parquet().replace(b"gout", b"gou\xff"), "bad-parquet", "row 2"),
        (zipped({"rows.jsonl": jsonl()})[:-30], "bad-zip", "damaged"),
        (zipped({"a.jsonl": jsonl(), "b.csv": b"a"}), "zip-rows", "2 files"),
        (zipped({"a.png": b""}), "zip-rows", "0 files"),
        (zipped({"rows.jsonl": jsonl()}, zipfile.ZIP_LZMA), "zip-method", "deflate"),
        (
            zipped({"rows.jsonl": jsonl(), "../../etc/x.png": b"x"}),
            "zip-path",
            "out of it: entry 2 of its list.",
        ),
        (zipped({"rows.jsonl": jsonl(), "/etc/x.png": b"x"}), "zip-path", "out of it: entry 2 of its list."),
        (zipped({"rows.jsonl": jsonl(), "c:\\x.png": b"x"}), "zip-path", "out of it: entry 2 of its list."),
        (
            zipped({"rows.jsonl": jsonl(), "inner.zip": b"x"}),
            "zip-nested",
            "another archive: entry 2 of its list.",
        ),
        (
            zipped({"rows.jsonl": jsonl(), "bomb.png": bytes(9_000_000)}),
            "bomb",
            "150 times its size: entry 2 of its list.",
        ),
        (
            zipped({"rows.jsonl": jsonl(), "a.png": bytes(11_000_000)}, zipfile.ZIP_STORED),
            "bomb",
            "10,000,000",
        ),
    ],
)
def test_a_broken_file_is_refused_with_the_place_and_what_to_do(data: bytes, code: str, says: str) -> None:
    error = refusal(data)
    assert error.reason == code
    assert says in error.detail


def test_a_refusal_says_nothing_of_the_rows() -> None:
    for data in (jsonl() + b"{secret\n", b"question,answer\nsecret,b,c\n", b'question,answer\na,"secret\n'):
        assert "secret" not in refusal(data).detail


def test_nor_of_the_names_of_files_which_may_be_patients() -> None:
    packed = {"rows.jsonl": jsonl(), "fine.png": b"x"}
    for name, data in (("../secret.png", b"x"), ("secret.zip", b"x"), ("secret.png", bytes(9_000_000))):
        detail = refusal(zipped({**packed, name: data})).detail
        assert "secret" not in detail
        assert "entry 3 of its list" in detail


def test_a_zip_with_too_many_files_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_MEMBERS", 3)
    data = zipped({"rows.jsonl": jsonl(), **{f"{n}.png": b"x" for n in range(3)}})
    assert "more than 3 files" in refusal(data).detail


def test_a_zip_whose_list_of_files_is_huge_is_refused_before_it_is_read() -> None:
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, 2**31, 0, 0)
    assert refusal(b"PK\x03\x04" + bytes(100) + end).reason == "bomb"


def test_a_zip64_record_is_refused_for_it_could_name_another_list() -> None:
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, 10, 0, 0)
    assert refusal(b"PK\x03\x04" + bytes(100) + b"PK\x06\x07" + bytes(16) + end).reason == "zip64"


def test_a_member_that_unpacks_to_more_than_it_declares_is_refused() -> None:
    data = bytearray(zipped({"rows.jsonl": jsonl(ROWS * 1000)}))
    size = len(jsonl(ROWS * 1000))
    declared = struct.pack("<L", size)
    assert data.count(declared) == 2
    assert refusal(bytes(data).replace(declared, struct.pack("<L", size - 1000))).reason == "bad-zip"


def test_a_zip_whose_second_list_of_names_is_no_utf_8_is_refused() -> None:
    data = bytearray(zipped({"rows.jsonl": jsonl()}))
    data[7] |= 0x08  # the flag, in what stands before the member
    data[30] = 0xFF
    assert refusal(bytes(data)).reason == "bad-zip"


def test_a_link_in_a_zip_is_refused() -> None:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as file:
        link = zipfile.ZipInfo("a.png")
        link.external_attr = 0o120777 << 16
        file.writestr(link, "/etc/passwd")
        file.writestr("rows.jsonl", jsonl())
    assert "link" in refusal(sink.getvalue()).detail


def test_what_a_reader_trips_over_is_a_broken_file_with_its_place() -> None:
    def rows() -> Iterator[tuple[int, dict[str, Any]]]:
        yield 7, ROWS[0]
        raise UnicodeDecodeError("utf-8", b"secret", 0, 1, "secret")

    with pytest.raises(reading.Broken, match="after line 7") as caught:
        list(reading.bounded(rows(), MAX_BYTES))
    assert caught.value.reason == "bad-file"
    assert "secret" not in caught.value.detail


class FailsLater(io.BytesIO):
    """A stored file that cannot be read any more after some reads."""

    def __init__(self, data: bytes, reads: int) -> None:
        super().__init__(data)
        self.left = reads

    def read(self, size: int | None = -1) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise StorageAway(errno.EIO, "the storage cannot be used")
        return super().read(size)


@pytest.mark.parametrize(
    "pack",
    [
        jsonl,
        as_parquet,
        lambda rows: zipped({"rows.jsonl": jsonl(rows), "a.png": b"x"}),
        lambda rows: zipped({"a.png": b"x", "rows.parquet": as_parquet(rows)}),
    ],
    ids=["jsonl", "parquet", "zip", "parquet in a zip"],
)
def test_a_storage_that_fails_is_no_broken_file(pack: Callable[[list[dict[str, Any]]], bytes]) -> None:
    """It would cost the upload."""
    key, sealed = Envelope.from_base64(new_master_key()).new_data_key(new_id())[0], io.BytesIO()
    with SealedWriter(sealed, key, place="here") as writer:
        writer.write(pack([{"question": secrets.token_hex(400_000), "answer": "a"} for _ in range(6)]))

    def read_all(source: FailsLater) -> None:
        stream = io.BufferedReader(Upload(source, key, place="here"))
        found = reading.open_source(cast(IO[bytes], stream), max_bytes=MAX_BYTES)
        assert len(list(found.rows)) == 6
        with contextlib.suppress(KeyError):
            assert found.picture("a.png") == b"x"

    whole = FailsLater(sealed.getvalue(), 1000)
    read_all(whole)
    opened = 2  # the mark at its start, and its last frame
    for reads in range(opened, 1000 - whole.left):
        with pytest.raises(reading.StorageFailed) as caught:
            read_all(FailsLater(sealed.getvalue(), reads))
        assert isinstance(caught.value.__cause__, StorageAway)


@pytest.mark.parametrize(
    "data", [jsonl(ROWS * 2), as_parquet(ROWS * 2), zipped({"a.jsonl": jsonl(ROWS * 2)})]
)
def test_a_file_has_a_limited_number_of_rows(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_ROWS", 4)
    assert len(read(data)) == 4
    monkeypatch.setattr(reading, "MAX_ROWS", 3)
    assert refusal(data).reason == "bomb"


def test_a_value_that_is_written_once_and_stands_in_many_rows_counts_in_each() -> None:
    data = as_parquet([{"question": "q", "answer": "a" * 900_000}] * 20)
    assert len(data) < 1_000_000
    assert refusal(data).reason == "bomb"


@pytest.mark.parametrize("answer", ["a" * 1_000_001, "a" * 32_000_000, [["a" * 1_000_001]]])
def test_a_value_of_a_parquet_file_has_a_limited_length(answer: object) -> None:
    error = refusal(as_parquet([{"question": "q", "answer": answer}]), max_bytes=10**9)
    assert error.reason == "line-too-long"


def test_a_parquet_file_that_unpacks_to_too_much_is_refused() -> None:
    data = as_parquet([{"question": "q" * 1000, "answer": "a"}] * 1000 + ROWS)
    assert refusal(data, max_bytes=1000).reason == "bomb"


def test_a_picture_is_found_beside_the_rows_or_from_the_top() -> None:
    data = zipped({"set/rows.jsonl": jsonl(), "set/images/a.png": b"1", "b.png": b"2"})
    source = reading.open_source(io.BytesIO(data), max_bytes=MAX_BYTES)
    found = [source.picture(name) for name in ("images/a.png", "./images/a.png", "set/images/a.png", "b.png")]
    assert found == [b"1", b"1", b"1", b"2"]
    with pytest.raises(KeyError):
        source.picture("c.png")


NFC, NFD = "images/L\u00e9sion.png", "images/Le\u0301sion.png"


def pictures_of(*names: str, flagged: bool = True) -> Callable[[str], bytes]:
    """What reads pictures of a zip; each holds its place in it. Flagged: it says that names are UTF-8."""
    stands_for = {
        name if flagged else letter * len(name.encode()): name
        for letter, name in zip("XY", names, strict=False)
    }
    members = {name: str(place).encode() for place, name in enumerate(stands_for)}
    data = zipped({"rows.jsonl": jsonl(), **members})
    for stand_in, name in stands_for.items():
        data = data.replace(stand_in.encode(), name.encode())
    return reading.open_source(io.BytesIO(data), max_bytes=MAX_BYTES).picture


@pytest.mark.parametrize("flagged", [True, False])
@pytest.mark.parametrize("packed", [NFC, NFD])
@pytest.mark.parametrize("named", [NFC, NFD, NFC.replace("/", "\\"), ".\\" + NFD.replace("/", "\\")])
def test_a_picture_may_be_named_as_windows_and_macos_write_names(
    packed: str, named: str, flagged: bool
) -> None:
    assert pictures_of(packed, flagged=flagged)(named) == b"0"


def test_a_picture_whose_name_is_in_an_old_code_page_is_found() -> None:
    data = zipped({"rows.jsonl": jsonl(), "L~sion.png": b"1"}).replace(b"L~sion", b"L\x82sion")
    assert reading.open_source(io.BytesIO(data), max_bytes=MAX_BYTES).picture("L\u00e9sion.png") == b"1"


@pytest.mark.parametrize("flagged", [True, False])
def test_pictures_whose_names_differ_only_in_how_they_are_written_are_named_exactly(flagged: bool) -> None:
    picture = pictures_of(NFC, NFD, flagged=flagged)
    assert [picture(NFC), picture(NFD)] == [b"0", b"1"]
    with pytest.raises(KeyError):
        picture(NFC.replace("/", "\\"))


@pytest.mark.parametrize(
    "name", ["..\\a.png", "set\\..\\a.png", "..\\..\\etc\\passwd", "\\a.png", "C:\\a.png"]
)
def test_no_way_of_writing_a_name_leads_out_of_the_folder(name: str) -> None:
    with pytest.raises(KeyError):
        pictures_of("a.png")(name)


def test_rows_are_read_as_they_are_asked_for() -> None:
    class Counting(io.BytesIO):
        taken = 0

        def readline(self, size: int | None = -1, /) -> bytes:
            Counting.taken += 1
            return super().readline(size if size is not None else -1)

    rows = reading.open_source(Counting(jsonl(ROWS * 1000)), max_bytes=MAX_BYTES).rows
    next(rows)
    assert Counting.taken == 1


def test_a_dataset_of_the_hub_is_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A local folder stands for the hub: `datasets` reads both the same way."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_bytes(jsonl())
    table = hub.find_table(str(tmp_path / "set"), None)
    source = hub.read_table(table, split="train", max_bytes=MAX_BYTES)
    assert [row for _, row in source.rows] == ROWS
    assert source.revision


def test_pictures_of_a_dataset_of_the_hub_stay_closed_in_lists_and_turns_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    picture = {"bytes": b"no picture that opens", "path": None}
    part = {"type": datasets.Value("string"), "image": datasets.Image()}
    features = datasets.Features(
        {"image": datasets.Image(), "images": datasets.List(datasets.Image()), "said": datasets.List(part)}
    )
    row = {"image": picture, "images": [picture], "said": [{"type": "image", "image": picture}]}
    (tmp_path / "set").mkdir()
    datasets.Dataset.from_list([row], features=features).to_parquet(tmp_path / "set" / "train.parquet")
    table = hub.find_table(str(tmp_path / "set"), None)
    assert list(hub.read_table(table, split="train", max_bytes=MAX_BYTES).rows) == [(1, row)]


def test_a_dataset_of_the_hub_has_a_limited_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "train.jsonl").write_bytes(jsonl())
    with pytest.raises(reading.Broken, match="more than is taken"):
        list(hub.read_table(hub.find_table(str(tmp_path), None), split="train", max_bytes=50).rows)


def test_a_dataset_that_the_hub_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="could not be read from the hub"):
        hub.read_hub(str(tmp_path / "nothing"), subset=None, split="train", max_bytes=MAX_BYTES)


def test_a_split_that_a_dataset_of_the_hub_lacks_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(jsonl())
    rows = hub.read_table(hub.find_table(str(tmp_path), None), split="other", max_bytes=MAX_BYTES).rows
    with pytest.raises(Refused, match="Check its id, subset and split"):
        next(rows)


def test_a_folder_of_this_machine_is_never_read_in_the_hubs_stead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "owner" / "name").mkdir(parents=True)
    (tmp_path / "owner" / "name" / "train.jsonl").write_bytes(jsonl())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refused) as caught:
        hub.read_hub("owner/name", subset=None, split="train", max_bytes=MAX_BYTES)
    assert caught.value.reason == "not-on-hub"
