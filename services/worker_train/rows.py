"""Reads the rows that a recipe names: a dataset of MediChat, a file, or a dataset of the hub. It knows no
token.

What comes out is the same for all of them: messages whose roles alternate, and at most one picture.
"""

import gzip
import hashlib
import io
import itertools
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from PIL import Image
from sqlalchemy import select

from services.worker_train.child import Refused
from services.worker_train.duplicates import digest
from services.worker_train.first_rows import held_in
from services.worker_train.hub import read_hub
from services.worker_train.reading import UNPACKED, NumberedRows, read_jsonl
from services.worker_train.row_parts import UNFETCHED_PICTURE, RowProblem
from services.worker_train.shapes import FIRST_ROWS, Conversation, recognise, refuse_unmet
from services.worker_train.splitting import choose_validation
from shared.db import open_database
from shared.db.tables_training import datasets
from shared.errors import DatasetDamaged
from shared.pictures import BrokenPicture, PictureBomb, check_picture, read_picture
from shared.privacy.envelope import CannotDecrypt
from shared.privacy.keys import load_data_keys
from shared.privacy.master_keys import open_envelope
from shared.settings import load_settings
from shared.storage import Storage
from shared.training.dataset_files import DatasetReader, Manifest, Split
from shared.training.options import Part
from shared.training.recipe import OWN, Data
from shared.training.report import ADVICE, Reason

#: How a file's name ends; that of a dataset of the hub may hold dots, too.
_FILES = (".jsonl", ".jsonl.gz")
_MAX_PIXELS = 40_000_000


@dataclass(frozen=True, kw_only=True)
class Row:
    """One conversation to learn; its last turn is the assistant's."""

    messages: list[dict[str, str]]
    #: Reads the picture of the row, RGB, and raises Refused where it cannot be used; None without one.
    picture: Callable[[], Image.Image] | None = None
    #: Rows of one unit (a patient, or a question) stay together; where a check has split them it is the
    #: patient, as the dataset names one, and empty without.
    unit: bytes = b""
    #: What is asked, with its picture; empty where a check has split them.
    question: bytes = b""


@dataclass(frozen=True)
class Origin:
    """What rows were read from, as a card may tell it: without a file's name, which may name a person."""

    digest: str
    #: What the digest is, in words.
    what: str


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What a recipe's data came to."""

    train: list[Row]
    validation: list[Row]
    origin: Origin
    #: Of the rows held out, where they are other data than those to learn.
    validation_origin: Origin | None = None


def read_rows(data: Data, *, seed: int) -> Rows:
    """The rows to learn and the rows held out. Raises Refused, saying what is wrong with the data.

    A dataset of MediChat was split when it was checked, with each patient's rows on one side; where that held
    none out, none is: cutting off single rows would put a patient on both sides.
    """
    if not data.train:
        raise Refused("no-data", "The recipe names no data: set data.train.")
    checked = data.train.startswith(OWN)
    found = _named(data.train, data.columns)
    train, validation, validation_origin = found.train, found.validation, None
    if data.validation:
        other = _named(data.validation, data.columns)
        validation = other.validation or other.train
        validation_origin = other.origin if validation else None
    if not validation and not checked and data.validation_fraction > 0:
        train, validation = _held_out(train, data.validation_fraction, seed)
    if not train:
        raise Refused("no-rows", "There are no rows to learn in the data.")
    return Rows(train=train, validation=validation, origin=found.origin, validation_origin=validation_origin)


def _named(name: str, columns: Mapping[Part, str]) -> Rows:
    return _dataset(name) if name.startswith(OWN) else _foreign(name, columns)


def _held_out(rows: list[Row], fraction: float, seed: int) -> tuple[list[Row], list[Row]]:
    """The rows to learn and those held out, as a check chooses them."""
    units = [row.unit for row in rows]
    if len(set(units)) < 2:  # what looks like a patient's name is the same in all rows, and names none
        units = [row.question for row in rows]
    chosen = choose_validation(Counter(units), fraction=fraction, seed=seed)
    sides: tuple[list[Row], list[Row]] = ([], [])
    for row, unit in zip(rows, units, strict=True):
        sides[unit in chosen].append(row)
    return sides


def _dataset(name: str) -> Rows:
    """The parts of a checked dataset, from storage."""
    dataset_id = name.removeprefix(OWN)
    settings = load_settings()
    envelope = open_envelope(settings)
    database = open_database(settings, pool_size=1)
    try:
        with database.read() as connection, _unaltered():
            row = connection.execute(select(datasets).where(datasets.c.id == dataset_id)).one_or_none()
            if row is None or row.manifest is None:
                raise Refused("no-data", "There is no checked dataset of this id; validate it first.")
            key = load_data_keys(connection, envelope, [row.key_id])[row.key_id]
    finally:
        database.close()
    with _unaltered():
        manifest = Manifest.stored(row.manifest, row.manifest_sha256)
        reader = DatasetReader(Storage.from_settings(settings), key, dataset_id, manifest)
        return Rows(
            train=[_row(reader, values) for values in reader.rows(Split.TRAIN)],
            validation=[_row(reader, values) for values in reader.rows(Split.VALIDATION)],
            origin=Origin(row.manifest_sha256, "SHA-256 of the dataset's manifest"),
        )


@contextmanager
def _unaltered() -> Iterator[None]:
    """What is read in it is what was checked. Raises Refused."""
    try:
        yield
    except DatasetDamaged as error:
        raise Refused("data-altered", error.detail) from error
    except CannotDecrypt as error:
        raise Refused("data-erased", "The rows cannot be decrypted any more: train on other data.") from error


def _row(reader: DatasetReader, values: dict[str, Any]) -> Row:
    image = values.get("image")
    picture = partial(_stored_picture, reader, str(image)) if image else None
    return Row(messages=values["messages"], picture=picture, unit=str(values.get("group") or "").encode())


def _stored_picture(reader: DatasetReader, sha256: str) -> Image.Image:
    with _unaltered():
        data = reader.read_image(sha256)
    with _usable("A row of the dataset"):
        return read_picture(io.BytesIO(data), max_pixels=_MAX_PIXELS)


def _foreign(name: str, columns: Mapping[Part, str]) -> Rows:
    path = Path(name)
    if path.is_file():
        return _file(path, columns)
    if name.endswith(_FILES) or name.count("/") != 1:
        raise Refused(
            "no-data", "There is no such file; give an existing path, or a dataset's id on the hub."
        )
    return _hub(name, columns)


def _file(path: Path, columns: Mapping[Part, str]) -> Rows:
    raw = path.read_bytes()
    try:
        text = gzip.decompress(raw) if path.suffix == ".gz" else raw
    except (OSError, EOFError, zlib.error):
        raise Refused("bad-data", "The file is no whole gzip file; compress it again.") from None
    rows = list(_converted(read_jsonl(io.BytesIO(text)), path.parent, columns))
    origin = Origin(hashlib.sha256(raw).hexdigest(), "SHA-256 of the file")
    return Rows(train=rows, validation=[], origin=origin)


def _hub(name: str, columns: Mapping[Part, str]) -> Rows:
    max_bytes = UNPACKED * load_settings().max_dataset_bytes
    source = read_hub(name, subset=None, split="train", max_bytes=max_bytes)
    origin = Origin(str(source.revision), f"commit of `{name}` on the Hugging Face hub")
    return Rows(train=list(_converted(source.rows, None, columns)), validation=[], origin=origin)


def _converted(values: NumberedRows, folder: Path | None, columns: Mapping[Part, str]) -> Iterator[Row]:
    """The rows, each in whatever shape it is written, unless `columns` says it of all; pictures are named
    from `folder`, and cannot be named where there is none. Raises Refused.
    """
    pictures, named = folder is not None, [column for column in columns.values() if column]
    first = list(itertools.islice(values, FIRST_ROWS))
    seen = dict.fromkeys(name for _, row in first for name in row)
    held = held_in(row for _, row in first)
    known = partial(recognise, chosen=columns, pictures=pictures)
    if named:
        known(seen, held=held)
    for line, value in itertools.chain(first, values):
        if late := [name for name in value if name not in seen]:
            seen |= dict.fromkeys(late)
            held = held.with_late(late, value)
        which = f"The row on line {line}"
        # a single row may lack what is named
        shape = known(dict.fromkeys((*value, *named)), held=held)
        shape.refuse_other_names(line, value, columns)
        try:
            found = shape.read(value)
        except RowProblem as problem:
            advice = problem.advice or ADVICE[problem.reason]
            raise Refused("bad-data", f"{which} cannot be learnt. {advice}") from None
        picture = _picture(found.image, folder, which)
        question = _question(found)
        unit = b"group:" + digest(found.group) if found.group else question
        yield Row(messages=found.messages, picture=picture, unit=unit, question=question)
    refuse_unmet(columns, seen)


def _question(found: Conversation) -> bytes:
    image = hashlib.sha256(found.image).hexdigest() if isinstance(found.image, bytes) else found.image
    asked = next(turn["content"] for turn in found.messages if turn["role"] == "user")
    return digest(image or "", asked)


def _picture(image: str | bytes | None, folder: Path | None, which: str) -> Callable[[], Image.Image] | None:
    """What reads the picture of a row, whose head was looked at. Raises Refused."""
    if image is None:
        return None
    opens = partial(_open, image, folder)
    with _usable(which), opens() as file:
        check_picture(file, max_pixels=_MAX_PIXELS)
    return partial(_read, opens, which)


def _open(image: str | bytes, folder: Path | None) -> IO[bytes]:
    if isinstance(image, bytes):
        return io.BytesIO(image)
    if folder is None:
        raise BrokenPicture(UNFETCHED_PICTURE)
    return (folder / image).open("rb")


def _read(opens: Callable[[], IO[bytes]], which: str) -> Image.Image:
    with _usable(which), opens() as file:
        return read_picture(file, max_pixels=_MAX_PIXELS)


@contextmanager
def _usable(which: str) -> Iterator[None]:
    """The picture opened in it can be used. Raises Refused, naming the row."""
    try:
        yield
    except BrokenPicture as problem:
        advice = problem.advice or ADVICE[Reason.BROKEN_IMAGE]
    except PictureBomb:
        advice = f"Keep pictures under {_MAX_PIXELS // 10**6} million pixels."
    except (OSError, ValueError):  # the latter: a name that no file can have
        advice = (
            "The picture that it names cannot be opened; name one as it lies beside the file, or say in the "
            "options that no column is the image."
        )
    else:
        return
    raise Refused("bad-data", f"{which} cannot be learnt. {advice}")
