"""Reads rows of a dataset of the Hugging Face hub, streamed. It does not know what a row means.

No code of the dataset is run.
"""

import os
from typing import Any

from services.worker_train.child import Away, Refused
from services.worker_train.fetching import may_pass
from services.worker_train.reading import NumberedRows, Source, bounded
from services.worker_train.row_parts import UNFETCHED_PICTURE, RowProblem
from shared.training.report import Reason


def read_hub(location: str, *, subset: str | None, split: str, max_bytes: int) -> Source:
    """The rows of a dataset, of at most `max_bytes`.

    Raises:
        Refused: now or while reading; it is not there, cannot be read without code of its own, or has files
            that do not lie on the hub. It is Away where the hub cannot be reached.
    """
    table = find_table(location, subset)
    _refuse_elsewhere(table)
    return read_table(table, split=split, max_bytes=max_bytes)


def find_table(location: str, subset: str | None) -> Any:
    """What `datasets` finds there, be it a folder of this machine; no row is read. Raises Refused."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import datasets  # type: ignore[import-untyped]

    try:
        return datasets.load_dataset_builder(location, subset)
    except Exception as error:  # whatever the library and the network raise
        raise _unreadable(error) from None


def read_table(table: Any, *, split: str, max_bytes: int) -> Source:
    """The rows of what `find_table` found. Raises Refused while reading."""

    def rows() -> NumberedRows:
        try:
            found = with_closed_pictures(table.as_streaming_dataset(split=split))
            for number, row in enumerate(found, start=1):
                yield number, dict(row)
        except Exception as error:
            raise _unreadable(error) from None

    return Source("hub", bounded(rows(), max_bytes), unfetched_picture, table.hash)


def unfetched_picture(_name: str) -> bytes:
    """For a picture that a row names and does not hold. Raises RowProblem."""
    raise RowProblem(Reason.BROKEN_IMAGE, UNFETCHED_PICTURE)


def with_closed_pictures(found: Any) -> Any:
    """The same dataset with pictures as bytes, in lists and turns too: nothing opens them but we."""
    return found.decode(enable=False) if found.features else found


def _refuse_elsewhere(table: Any) -> None:
    """Raise Refused for files of this machine or of another server.

    An id that is also a folder here is read from there, and a dataset's card may name any path or address.
    """
    files = [str(file) for part in (table.config.data_files or {}).values() for file in part]
    if not files or not all(file.rpartition("::")[2].startswith("hf://datasets/") for file in files):
        raise Refused(
            "not-on-hub",
            "The dataset has files that do not lie on the hub; only those are read. Download it and upload "
            "its file.",
        )


def _unreadable(error: Exception) -> Refused:
    if may_pass(error):
        return Away(
            "hub-away",
            f"The hub did not answer as it should, several times ({type(error).__name__}). Check the network "
            "and check the data again later, or download it and upload its file.",
        )
    return Refused(
        "hub-unreadable",
        f"The dataset could not be read from the hub ({type(error).__name__}). Check its id, subset and "
        "split and the network, set HF_TOKEN (containers: the secret medichat_hf_token) if it is gated, or "
        "download it and upload its file.",
    )
