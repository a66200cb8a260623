"""Reads a zip of pictures and one file of rows. It does not know what rows and pictures mean.

A zip is looked through before anything is unpacked, and nothing of it is ever written under its own names.
"""

import io
import stat
import unicodedata
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import IO

from services.worker_train.reading import MAX_PICTURE_BYTES, Broken, NumberedRows, Source, open_rows

MAX_MEMBERS = 50_000
#: A member may unpack to this many times its size, or to `_SMALL_BYTES`; real text stays below 40.
MAX_RATIO = 150
_SMALL_BYTES = 1_000_000
MAX_PARQUET_BYTES = 100_000_000
_MAX_DIRECTORY_BYTES = 16_000_000
_END_BYTES = 22
_MAX_COMMENT_BYTES = 65_535
#: The flag of a member whose name is said to be UTF-8.
_UTF8_NAME = 0x800
_ROW_FILES = (".jsonl", ".csv", ".tsv", ".parquet", ".json")
_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".dcm")
#: What a zip that is not whole raises while it is unpacked.
_DAMAGED = (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError)
_NESTED = (".zip", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar", ".tar", ".jar")


def open_archive(stream: IO[bytes], *, max_bytes: int) -> Source:
    """Look the zip through and read rows from its one file of rows. Raises Broken."""
    _check_directory(stream)
    try:
        archive = zipfile.ZipFile(stream)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        raise _damaged() from None
    for info in archive.infolist():
        info.filename = _name(info)
    members = [info for info in archive.infolist() if not info.is_dir() and not _is_litter(info.filename)]
    _check_members(archive, members, max_bytes)
    row_files = [info for info in members if info.filename.lower().endswith(_ROW_FILES)]
    if len(row_files) != 1:
        raise Broken(
            "zip-rows",
            f"The zip has {len(row_files)} files of rows. It needs exactly one .jsonl, .csv or "
            ".parquet, and the pictures.",
        )
    kind, rows = _open_row_file(archive, row_files[0], max_bytes)
    pictures = _Pictures(archive, members, PurePosixPath(row_files[0].filename).parent)
    return Source(f"zip of {kind}", _watched(rows), pictures.read, count_pictures=pictures.count)


class _Pictures:
    """What lies beside the rows in the zip."""

    def __init__(
        self, archive: zipfile.ZipFile, members: list[zipfile.ZipInfo], folder: PurePosixPath
    ) -> None:
        """`folder`: where the rows lie, from where they may name pictures."""
        self._archive, self._folder = archive, folder
        self._by_name = {info.filename: info for info in members}
        alike = Counter(map(_plain, self._by_name))
        self._by_plain = {
            plain: info for name, info in self._by_name.items() if alike[plain := _plain(name)] == 1
        }
        self._named: set[str] = set()

    def read(self, name: str) -> bytes:
        """The bytes of one; a name that no other is like may be written as on Windows or macOS. Raises
        KeyError, and Broken.
        """
        info = self._find(name.strip())
        self._named.add(info.filename)
        if info.file_size > MAX_PICTURE_BYTES:
            raise Broken(
                "bomb",
                f"A picture in the zip is larger than {MAX_PICTURE_BYTES // 10**6} MB: "
                f"{_entry(self._archive, info)}. Shrink it.",
            )
        return _unpack(self._archive, info)

    def _find(self, name: str) -> zipfile.ZipInfo:
        for known, written in ((self._by_name, str), (self._by_plain, _plain)):
            path = PurePosixPath(written(name))
            for candidate in (self._folder / path, path):
                if info := known.get(written(str(candidate))):
                    return info
        raise KeyError

    def count(self) -> tuple[int, int]:
        """How many there are, by how their names end, and how many of them were read."""
        pictures = {name for name in self._by_name if name.lower().endswith(_PICTURES)}
        return len(pictures), len(pictures & self._named)


def _open_row_file(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, max_bytes: int
) -> tuple[str, NumberedRows]:
    try:
        with archive.open(info) as start:
            is_parquet = start.read(4) == b"PAR1"
        member: IO[bytes]
        if is_parquet:  # it is read from its end, which a compressed member cannot be
            if info.file_size > MAX_PARQUET_BYTES:
                raise Broken(
                    "zip-parquet",
                    f"The Parquet file in the zip is larger than {MAX_PARQUET_BYTES // 10**6} MB. Write the "
                    "rows as JSONL, or put the pictures into the Parquet file and upload that alone.",
                )
            member = io.BytesIO(archive.read(info))
        else:
            member = archive.open(info)
        return open_rows(member, max_bytes=max_bytes)
    except (*_DAMAGED, RuntimeError, UnicodeDecodeError):
        raise _damaged() from None


def _watched(rows: NumberedRows) -> Iterator[tuple[int, dict[str, object]]]:
    """The rows; what the zip raises while it unpacks is said in our words."""
    try:
        yield from rows
    except _DAMAGED:
        raise _damaged() from None


def _unpack(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    try:
        return archive.read(info)
    except (*_DAMAGED, UnicodeDecodeError):  # names are listed twice
        raise _damaged() from None


def _check_directory(stream: IO[bytes]) -> None:
    """Refuse a list of members that would not fit the memory, before it is read.

    A zip64 record could name another list than the one looked at here; below 1 GB none is needed.
    """
    size = stream.seek(0, io.SEEK_END)
    start = max(0, size - _MAX_COMMENT_BYTES - _END_BYTES)
    stream.seek(start)
    tail = stream.read()
    stream.seek(0)
    if b"PK\x06\x06" in tail or b"PK\x06\x07" in tail:
        raise Broken(
            "zip64", "The zip is in the zip64 format. Write it again without, in fewer or smaller files."
        )
    end = tail.rfind(b"PK\x05\x06")
    if end < 0 or len(tail) - end < _END_BYTES:
        raise _damaged()
    if int.from_bytes(tail[end + 12 : end + 16], "little") > _MAX_DIRECTORY_BYTES:
        raise _too_many()


def _check_members(archive: zipfile.ZipFile, members: list[zipfile.ZipInfo], max_bytes: int) -> None:
    if len(members) > MAX_MEMBERS:
        raise _too_many()
    if len({info.filename for info in members}) != len(members):
        raise Broken("zip-names", "Two files in the zip have the same name. Write it again, and upload that.")
    for info in members:
        _check_member(archive, info)
    if sum(info.file_size for info in members) > max_bytes:
        raise Broken(
            "bomb", f"The zip unpacks to more than {max_bytes:,} bytes. Split it into several datasets."
        )


def _check_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
    path = PurePosixPath(info.filename)
    if (
        path.is_absolute()
        or ".." in path.parts
        or "\\" in info.filename
        or ":" in info.filename.partition("/")[0]
    ):
        raise Broken(
            "zip-path",
            f"A name in the zip leads out of it: {_entry(archive, info)}. Pack the folder itself, with plain "
            "names.",
        )
    if stat.S_ISLNK(info.external_attr >> 16):
        raise Broken("zip-path", f"The zip holds a link: {_entry(archive, info)}. Pack the files themselves.")
    if info.flag_bits & 0x1:
        raise Broken(
            "zip-encrypted", "The zip has a password. Pack it without one; MediChat encrypts what it keeps."
        )
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise Broken(
            "zip-method", "The zip is compressed in another way than deflate. Pack it again with deflate."
        )
    if info.filename.lower().endswith(_NESTED):
        raise Broken(
            "zip-nested",
            f"The zip holds another archive: {_entry(archive, info)}. Unpack that, and pack its files "
            "directly.",
        )
    if info.file_size > max(_SMALL_BYTES, MAX_RATIO * info.compress_size):
        raise Broken(
            "bomb",
            f"A file in the zip unpacks to more than {MAX_RATIO} times its size: {_entry(archive, info)}. "
            "Upload it unpacked.",
        )


def _name(info: zipfile.ZipInfo) -> str:
    """How a member is called: macOS writes UTF-8 without saying so, and then it was read as code page 437."""
    if info.flag_bits & _UTF8_NAME:
        return info.filename
    try:
        return info.filename.encode("cp437").decode()
    except UnicodeError:
        return info.filename


def _plain(name: str) -> str:
    """The name in one way of writing it: Windows parts folders by a backslash, macOS splits off accents."""
    return unicodedata.normalize("NFC", name.replace("\\", "/"))


def _entry(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> str:
    """Which member it is, by its place among all that the zip lists; its name may be a patient's."""
    return f"entry {archive.infolist().index(info) + 1} of its list"


def _is_litter(name: str) -> bool:
    """What macOS and Windows leave in folders."""
    path = PurePosixPath(name)
    return path.parts[:1] == ("__MACOSX",) or path.name in (".DS_Store", "Thumbs.db", "desktop.ini")


def _damaged() -> Broken:
    return Broken("bad-zip", "The zip is damaged or cut short. Pack it again, and upload that.")


def _too_many() -> Broken:
    return Broken("bomb", f"The zip holds more than {MAX_MEMBERS:,} files. Split it into several datasets.")
