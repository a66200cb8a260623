"""The check of a dataset, as a program: `python -m services.worker_train.validate --dataset ID --attempt A`.

    the upload ─ rows, one by one ─ judged ─> sealed spool ─ split, copies dropped ─> sealed parts, report

It reads the database and writes only to storage: what the database shall say goes to the supervisor as
events. Once the rows are judged the split needs no text, so memory grows by some 600 bytes a row.
A check that ends in anything but `done` leaves neither rows nor pictures in storage.
"""

import argparse
import hashlib
import io
import logging
import signal
import time
from collections import Counter
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import IO, Any, cast

from pydantic import ValidationError
from sqlalchemy import select

from services.worker_train import child, hub, reading, troubles
from services.worker_train.child import Away, Exit, Refused
from services.worker_train.duplicates import Neighbours
from services.worker_train.examine import Examined, Examiner
from services.worker_train.lengths import Lengths
from services.worker_train.parts import PartWriter, Pictures, Spool, place_of, store_sealed
from services.worker_train.shaped_rows import ShapedRows
from services.worker_train.splitting import Fate, choose_validation, drop_copies
from services.worker_train.summary import summarise
from shared.catalogue import find_model
from shared.db.engine import open_database
from shared.db.tables_training import datasets
from shared.guard import Guard
from shared.logs import where
from shared.policies.live import read_guard
from shared.privacy.envelope import CannotDecrypt, DataKey, Envelope
from shared.privacy.keys import load_data_keys
from shared.privacy.master_keys import open_envelope
from shared.privacy.sealed import SealedFile
from shared.settings import Settings, load_settings
from shared.storage import Storage
from shared.training.dataset_files import Manifest, report_path, version_folder
from shared.training.options import DatasetOptions, PhiPolicy
from shared.training.report import ADVICE, Reason

log = logging.getLogger(__name__)

_PROGRESS_S = 1.0
SPLITS = ("train", "validation", "quarantine")


@dataclass(frozen=True)
class Task:
    """What is to be checked, as the database says."""

    dataset_id: str
    source: str
    source_name: str
    options: DatasetOptions
    key: DataKey
    fingerprint: Envelope
    #: Judges the answers under the policy that counts when the check begins, to its end.
    guard: Guard
    #: SHA-256 of the upload; None when it is not known.
    sha256: str | None
    version: int
    #: Names this attempt; another writes elsewhere.
    attempt: str

    @property
    def folder(self) -> str:
        """Where everything of the dataset lies."""
        return f"datasets/{self.dataset_id}"

    @property
    def rows_folder(self) -> str:
        """Where this check writes."""
        return version_folder(self.dataset_id, self.version, self.attempt)


def main() -> None:
    """Check one dataset and tell the supervisor; the exit status is one of `child.Exit`."""
    parser = argparse.ArgumentParser(description="Check a dataset.")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--attempt", required=True, help="a name of its own; rows are written under it")
    options = parser.parse_args()
    child.follow_parent()
    signal.signal(signal.SIGTERM, _drain)
    settings = load_settings()
    try:
        task = load_task(settings, options.dataset, options.attempt)
        done = Check(task, Storage.from_settings(settings), settings).run()
    except Refused as refusal:
        child.stop(refusal.status, refusal.reason, refusal.detail)
    except (reading.StorageFailed, OSError) as error:
        trouble = troubles.of_files(error, again="check the data again")
        if trouble is None:
            raise
        log.warning("disk or storage failed in %s", where(error))
        child.stop(trouble.status, trouble.reason, trouble.detail)
    except CannotDecrypt:
        child.stop(
            Exit.REFUSED,
            "unreadable",
            "The upload cannot be decrypted. See that this worker has the keyring of the host that took it, "
            "and that MEDICHAT_STORAGE_URL holds the file as it was stored; then check it again. If neither "
            "helps, upload the file again.",
        )
    except _Drained:
        child.stop(Exit.DRAINED, "drained", "The check was told to stop; it starts again from the beginning.")
    child.emit("done", **done)


class _Drained(BaseException):
    """The program was told to stop."""


def _drain(_signal: int, _frame: object) -> None:
    raise _Drained


def load_task(settings: Settings, dataset_id: str, attempt: str) -> Task:
    """Read what the program needs from the database. Raises Refused, and CannotDecrypt."""
    envelope = open_envelope(settings)
    database = open_database(settings, pool_size=1)
    with closing(database), database.read() as connection:
        row = connection.execute(select(datasets).where(datasets.c.id == dataset_id)).one_or_none()
        if row is None:
            raise Refused("no-dataset", "There is no dataset of this id.")
        key = load_data_keys(connection, envelope, [row.key_id])[row.key_id]
        guard = read_guard(connection)
    try:
        options = DatasetOptions.model_validate(row.options)
    except ValidationError:
        raise Refused(
            "bad-options", "The options of the dataset cannot be used. Check it with others."
        ) from None
    return Task(
        dataset_id,
        row.source,
        row.source_name,
        options,
        key,
        envelope,
        guard,
        row.sha256,
        next_version(row.manifest),
        attempt,
    )


class Upload(SealedFile):
    """The upload, from any place in it. Reading raises StorageFailed, and CannotDecrypt."""

    def readinto(self, buffer: memoryview | bytearray) -> int:  # type: ignore[override]
        try:
            return super().readinto(buffer)
        except OSError as error:
            raise reading.StorageFailed from error


def next_version(manifest: dict[str, Any] | None) -> int:
    """The number of the check: one more than that of the rows that the manifest names."""
    return 1 if manifest is None else Manifest.model_validate(manifest).version + 1


class Check:
    """One check of one dataset."""

    def __init__(self, task: Task, storage: Storage, settings: Settings) -> None:
        self._task, self._storage, self._settings = task, storage, settings
        self._pictures = Pictures(storage, task.key, f"{task.rows_folder}/images")
        self._fates: list[Fate] = []
        self._grouped: set[bytes] = set()
        self._neighbours = Neighbours()
        self._places: list[int] = []  # of the rows among `_neighbours`
        self._started = self._told = time.monotonic()

    def run(self) -> dict[str, Any]:
        """Check it; returns the fields of the event `done`. Raises Refused, leaving at most a report, with
        which the supervisor says what was wrong with each row.
        """
        try:
            return self._run()
        except Refused:  # before any row was written
            self._storage.delete(f"{self._task.rows_folder}/images")
            raise
        except BaseException:
            self._storage.delete(self._task.rows_folder)
            raise

    def _run(self) -> dict[str, Any]:
        task = self._task
        with closing(Spool(self._settings.state_dir, task.key)) as spool, ExitStack() as opened:
            source, raw_sha256 = self._open(opened)
            rows = ShapedRows(source, task.options.columns)
            examiner = self._examiner(rows, source)
            for line, row in rows:
                self._remember(examiner.examine(line, row), spool)
                self._tell(examiner.tally.rows, None, "rows read")
            self._decide()
            refusal = self._refusal(examiner)
            parts, used = self._write(spool) if refusal is None else ([], set())
        report = summarise(
            rows.shape,
            list(rows.columns),
            source.kind,
            task.options,
            examiner.tally,
            self._fates,
            grouped=self._grouped,
            images=len(used),
            pictures=source.count_pictures(),
            seconds=time.monotonic() - self._started,
            refused=refusal is not None,
        )
        path = report_path(task.dataset_id, task.version, task.attempt)
        store_sealed(self._storage, task.key, path, [report.model_dump_json().encode()])
        if refusal is not None:
            raise refusal
        manifest = {
            "parts": parts,
            "images": self._pictures.manifest(used),
            "raw_sha256": raw_sha256,
            "revision": source.revision,
            "shape": rows.shape.name,
            "options": task.options.model_dump(mode="json"),
        }
        return {
            "shape": rows.shape.name,
            "rows_train": report.rows_out["train"],
            "rows_validation": report.rows_out["validation"],
            "manifest": manifest,
            "report_path": path,
        }

    def _examiner(self, rows: ShapedRows, source: reading.Source) -> Examiner:
        task = self._task
        own = task.options.model == self._settings.model
        folder = self._settings.model_path if own else None
        return Examiner(
            rows.read,
            task.options,
            Lengths(find_model(task.options.model), folder),
            task.guard,
            picture=source.picture,
            keep=self._pictures.keep,
        )

    def _open(self, opened: ExitStack) -> tuple[reading.Source, str | None]:
        """The rows, and the SHA-256 of the file; a dataset of the hub is no file, and has a commit."""
        task = self._task
        max_bytes = reading.UNPACKED * self._settings.max_dataset_bytes
        if task.source == "hub":
            options = task.options
            source = hub.read_hub(
                task.source_name, subset=options.subset, split=options.split, max_bytes=max_bytes
            )
            return source, None
        try:
            raw = Upload(
                self._storage.open(f"{task.folder}/raw"), task.key, place=place_of(f"{task.folder}/raw")
            )
        except FileNotFoundError:
            raise Away(
                "no-upload",
                "The uploaded file is not in the storage. See that MEDICHAT_STORAGE_URL names the place that "
                "it was stored in, and that this worker has it mounted; then check it again. If the file is "
                "gone for good, upload it again.",
            ) from None
        stream = cast(IO[bytes], opened.enter_context(io.BufferedReader(raw, buffer_size=1 << 16)))
        sha256 = task.sha256 or hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]
        stream.seek(0)
        return reading.open_source(stream, max_bytes=max_bytes), sha256

    def _remember(self, row: Examined, spool: Spool) -> None:
        """Keep the text in the spool, and what the decision needs here."""
        self._fates.append(Fate(row.line, row.unit, row.digest, row.reason, row.advice))
        if row.hashes is not None:
            self._places.append(len(self._fates) - 1)
            self._neighbours.add(row.hashes, row.image)
        if row.group is not None:
            self._grouped.add(row.unit)
        if row.reason is None or row.reason.quarantines:
            # of the unit, not of what is written: the split takes `P-7` and `p-7` for one patient
            named = self._task.fingerprint.fingerprint(f"group:{self._task.dataset_id}:{row.unit.hex()}")[:16]
            spool.add(
                {
                    "place": len(self._fates) - 1,
                    "messages": row.messages,
                    "image": row.image,
                    "group": None if row.group is None else named,
                }
            )

    def _refusal(self, examiner: Examiner) -> Refused | None:
        """Why the file is refused now that every row was judged; None when it is not."""
        tally = examiner.tally
        if self._task.options.phi is PhiPolicy.REJECT and tally.phi_rows:
            kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(tally.phi_types.items()))
            lines = ", ".join(map(str, tally.phi_lines[:20]))
            return Refused(
                "phi-found",
                f"{tally.phi_rows} rows hold what identifies a person ({kinds}), first on lines {lines}. "
                "Remove it, or choose to mask or quarantine such rows.",
            )
        if any(fate.reason is None and not fate.validation for fate in self._fates):
            return None
        reasons = Counter(fate.reason for fate in self._fates if fate.reason)
        listed = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
        example = next(fate for fate in self._fates if fate.reason)
        return Refused(
            "no-usable-rows",
            f"None of the {len(self._fates)} rows can be trained on: {listed}; the first on line "
            f"{example.line}. {example.advice or ADVICE[example.reason or Reason.NOT_TEXT]}",
        )

    def _decide(self) -> None:
        """Split the rows that can be used, and drop copies."""
        usable = [fate for fate in self._fates if fate.reason is None]
        if not self._fates:
            raise reading.Broken("no-rows", "The file holds no rows. Upload one with at least one.")
        options = self._task.options
        units = Counter(fate.unit for fate in usable)
        held_out = choose_validation(units, fraction=options.validation_fraction, seed=options.seed)
        for fate in usable:
            fate.validation = fate.unit in held_out
        self._tell(len(self._fates), len(self._fates), "looking for copies", now=True)
        near = {
            self._places[row]: [self._places[earlier] for earlier in found]
            for row, found in self._neighbours.pairs().items()
        }
        drop_copies(self._fates, near)

    def _write(self, spool: Spool) -> tuple[list[dict[str, Any]], set[str]]:
        """Write the parts; what the manifest says of them, and the pictures that they name."""
        task = self._task
        writers = {split: PartWriter(self._storage, task.key, task.rows_folder, split) for split in SPLITS}
        used = set()
        for row in spool.rows():
            fate = self._fates[row.pop("place")]
            numbered = {"id": fate.line, **row}
            if fate.reason is None:
                writers["validation" if fate.validation else "train"].add(numbered)
            elif fate.reason.quarantines:
                writers["quarantine"].add({**numbered, "line": fate.line, "reason": fate.reason})
            else:
                continue
            if row["image"]:
                used.add(row["image"])
            self._tell(fate.line, None, "rows written")
        for writer in writers.values():
            writer.flush()
        return [part for writer in writers.values() for part in writer.parts], used

    def _tell(self, done: int, total: int | None, what: str, *, now: bool = False) -> None:
        if now or time.monotonic() - self._told >= _PROGRESS_S:
            self._told = time.monotonic()
            child.emit("progress", done=done, total=total, what=what)


if __name__ == "__main__":
    main()
