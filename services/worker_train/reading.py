"""Reads rows one by one from a file of questions and answers. It does not know what a row means.

The format is told by the bytes, not by the name. Every way in which a file can be broken ends in `Broken`,
which says where and what to do; a hostile file costs no more memory than a good one.
"""

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import IO, Any

from services.worker_train.child import Refused

#: Longest line of text, and longest field, in bytes.
MAX_LINE_BYTES = 1_000_000
MAX_PICTURE_BYTES = 30_000_000
#: Most rows of one dataset.
MAX_ROWS = 5_000_000
#: A file may unpack to this many times the largest upload, and the rows of the hub come to it.
UNPACKED = 4
_MAX_COLUMNS = 200
_BOM = b"\xef\xbb\xbf"
#: How a zip begins: with a member, empty, or as a piece of one that was split.
_ZIP, _EMPTY_ZIP, _SPLIT_ZIP = b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08"

Row = dict[str, Any]
#: The line (in a Parquet file or a dataset of the hub: the row) a row starts at, from 1, and the row.
NumberedRows = Iterator[tuple[int, Row]]


class Broken(Refused):
    """The file itself is no good, whatever is chosen for it; the message says what to repair."""


class StorageFailed(Exception):
    """The file cannot be read now, which says nothing of what is in it; the cause says why.

    It is no OSError, for those are what libraries raise for a file that is damaged.
    """


@dataclass(frozen=True)
class Source:
    """Rows to read once, and the pictures that they name."""

    kind: str
    rows: NumberedRows
    #: The bytes of a picture that a row names; raises KeyError when there is none.
    picture: Callable[[str], bytes]
    #: Names what a dataset of the hub was when it was read: the commit.
    revision: str | None = None
    #: How many pictures lie beside the rows, and how many of them were read.
    count_pictures: Callable[[], tuple[int, int]] = lambda: (0, 0)

    @property
    def has_pictures(self) -> bool:
        """Whether pictures can lie beside the rows; those of the hub are not fetched."""
        return self.kind != "hub" and self.picture is not no_pictures


def no_pictures(_name: str) -> bytes:
    """For files that can hold no pictures beside the rows."""
    raise KeyError


def open_source(stream: IO[bytes], *, max_bytes: int) -> Source:
    """Tell what the bytes are, and read rows from them.

    Args:
        stream: seekable, at its start; that its storage fails it says with StorageFailed.
        max_bytes: what a file may unpack to, and what its rows may come to.

    Raises:
        Broken: now or while reading.
    """
    head = stream.read(64)
    stream.seek(0)
    if head.startswith((_ZIP, _EMPTY_ZIP)):
        from services.worker_train.archive import open_archive

        source = open_archive(stream, max_bytes=max_bytes)
    else:
        source = Source(*open_rows(stream, max_bytes=max_bytes), no_pictures)
    return replace(source, rows=bounded(source.rows, max_bytes))


def bounded(rows: NumberedRows, max_bytes: int) -> NumberedRows:
    """The rows, as long as there are not too many; what a reader trips over is said in our words."""
    line = count = size = 0
    try:
        for line, row in rows:
            count, size = count + 1, size + _size(line, row)
            if count > MAX_ROWS or size > max_bytes:
                raise Broken(
                    "bomb",
                    f"The rows up to line {line} are more than is taken: {MAX_ROWS:,} rows or {max_bytes:,} "
                    "bytes. Split them into several datasets.",
                )
            yield line, row
    except (ValueError, TypeError, LookupError, ArithmeticError, RecursionError) as error:
        raise Broken(
            "bad-file",
            f"The file cannot be read after line {line} ({type(error).__name__}). Write it again, and upload "
            "that.",
        ) from None


def _size(line: int, row: Row) -> int:
    """Bytes of what a row holds, about. Raises Broken for a name or a value that no row may have."""
    try:
        size = sum(len(name.encode()) for name in row)
    except UnicodeEncodeError:
        raise Broken(
            "bad-header", f"Line {line} names a column with half of a surrogate pair. Write it as UTF-8."
        ) from None
    waiting: list[Any] = list(row.values())
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += [*value, *value.values()]
        elif isinstance(value, list | tuple):
            waiting += value
        elif isinstance(value, str | bytes):
            size += len(value)
            if len(value) > (MAX_LINE_BYTES if isinstance(value, str) else MAX_PICTURE_BYTES):
                raise Broken(
                    "line-too-long",
                    f"Line {line} holds a text of more than {MAX_LINE_BYTES:,} characters, or a picture of "
                    f"more than {MAX_PICTURE_BYTES // 10**6} MB. Shorten it.",
                )
        else:
            size += 8
    return size


def open_rows(stream: IO[bytes], *, max_bytes: int) -> tuple[str, NumberedRows]:
    """The format of a file without pictures beside it, and its rows. Raises Broken."""
    head = stream.read(4096)
    stream.seek(0)
    if head.startswith(b"PAR1"):
        return "parquet", read_parquet(stream, max_bytes=max_bytes)
    _refuse_known_binaries(head)
    start = head.removeprefix(_BOM).lstrip()
    if not start:
        raise _empty()
    if start.startswith(b"["):
        raise Broken(
            "json-array",
            "The file is one JSON array. Write one object a line instead: jq -c '.[]' in.json > out.jsonl",
        )
    if start.startswith(b"{"):
        return "jsonl", read_jsonl(stream)
    return "csv", read_csv(stream)


def _empty() -> Broken:
    return Broken("no-rows", "The file is empty. Upload one with at least one row.")


def _refuse_known_binaries(head: bytes) -> None:
    zips = (_ZIP, _EMPTY_ZIP, _SPLIT_ZIP)
    if head.startswith(
        (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf", b"Rar!", *zips)
    ):
        raise Broken(
            "compressed", "The file is compressed in a way that is not read. Unpack it, and upload that."
        )
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise Broken("not-utf8", "The file is UTF-16. Save it as UTF-8.")
    if b"\0" in head:
        raise Broken(
            "not-text", "The file is none of JSONL, CSV, Parquet and zip. Convert it to one of them."
        )


def lines_of(stream: IO[bytes]) -> Iterator[tuple[int, str]]:
    """The lines of a text with their numbers from 1, their ends included. Raises Broken."""
    number = 0
    while line := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES:
            raise Broken(
                "line-too-long",
                f"Line {number} is longer than {MAX_LINE_BYTES:,} bytes. Shorten it; pictures belong "
                "beside the rows in a zip.",
            )
        try:
            text = (line.removeprefix(_BOM) if number == 1 else line).decode()
        except UnicodeDecodeError as error:
            raise Broken(
                "not-utf8",
                f"Line {number} is not UTF-8 (its byte {error.start + 1}). Save the file as UTF-8.",
            ) from None
        if "\0" in text:
            raise Broken("not-text", f"Line {number} holds a NUL character. Remove it, and upload again.")
        yield number, text


def read_jsonl(stream: IO[bytes]) -> NumberedRows:
    """The objects of a JSON-lines file; empty lines are passed over. Raises Broken."""
    for number, line in lines_of(stream):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_named_once)
        except _NamedTwice:
            raise Broken("bad-json", f"Line {number} gives one name to two fields. Name each once.") from None
        except (ValueError, RecursionError):
            raise Broken(
                "bad-json", f"Line {number} is not JSON. Each line must be one JSON object."
            ) from None
        if not isinstance(row, dict):
            raise Broken(
                "bad-json", f"Line {number} is not a JSON object. Write {{…}} with a name for each field."
            )
        yield number, row


class _NamedTwice(ValueError):
    """A JSON object has two fields of one name."""


def _named_once(fields: list[tuple[str, Any]]) -> Row:
    row = dict(fields)
    if len(row) != len(fields):
        raise _NamedTwice
    return row


def read_csv(stream: IO[bytes]) -> NumberedRows:
    """The records below the header of a CSV, separated by comma, semicolon or tab; blank lines before the
    header are passed over. Raises Broken.
    """
    reached = 0

    def read_lines() -> Iterator[str]:
        nonlocal reached
        for number, line in lines_of(stream):
            reached = number
            yield line

    lines = read_lines()
    first = next((line for line in lines if line.strip()), "")
    if not first:
        raise _empty()
    delimiter = max(",;\t", key=first.count)
    csv.field_size_limit(MAX_LINE_BYTES)
    started = reached
    try:
        header = _header(next(csv.reader([first], delimiter=delimiter)), line=started)
        started = reached + 1
        for record in csv.reader(lines, delimiter=delimiter, strict=True):
            if record:
                if len(record) != len(header):
                    raise Broken(
                        "ragged-csv",
                        f"Line {started} has {len(record)} fields, and the header has {len(header)}. Put "
                        "quotes around fields that hold a separator.",
                    )
                yield started, dict(zip(header, record, strict=True))
            started = reached + 1
    except csv.Error:
        raise Broken(
            "bad-csv",
            f'The record that starts on line {started} is not CSV: look for a stray ", and double it as "". '
            "Lines must end with a line feed.",
        ) from None


def _header(names: list[str], *, line: int) -> list[str]:
    header = [name.strip() or f"column {place}" for place, name in enumerate(names, start=1)]
    if len(set(header)) != len(header) or len(header) > _MAX_COLUMNS:
        raise Broken(
            "bad-header", f"Line {line} must name each column once, and at most {_MAX_COLUMNS} of them."
        )
    return header


def read_parquet(stream: IO[bytes], *, max_bytes: int) -> NumberedRows:
    """The rows of a Parquet file. Raises Broken."""
    import pyarrow  # type: ignore[import-untyped]
    from pyarrow import parquet

    number = 0
    try:
        file = parquet.ParquetFile(stream)
        if len(set(file.schema_arrow.names)) != len(file.schema_arrow.names):
            raise Broken("bad-header", "The Parquet file must name each column once.")
        groups = [file.metadata.row_group(group) for group in range(file.metadata.num_row_groups)]
        if sum(group.total_byte_size for group in groups) > max_bytes or file.metadata.num_rows > MAX_ROWS:
            raise Broken(
                "bomb", "The Parquet file unpacks to more than is taken. Split it into several datasets."
            )
        # one at a time, for a value that is written once may stand in every row
        batches = file.iter_batches(batch_size=1, use_threads=False)
        for number, batch in enumerate(batches, start=1):
            if batch.nbytes > MAX_PICTURE_BYTES + MAX_LINE_BYTES:
                raise Broken("line-too-long", f"Row {number} is too long. Shorten it, or shrink its picture.")
            for row in batch.to_pylist():
                yield number, row
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError):
        raise Broken(
            "bad-parquet",
            f"The Parquet file cannot be read around row {number}. Write it again, and upload that.",
        ) from None
