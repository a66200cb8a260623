"""Carries out an evaluation of the database: gathers what is measured, opens base and adapter, and hands the
outcome on to the supervisor of a worker's program. What is measured is in the folder evaluation/; it knows no
command line.
"""

import io
import json
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from PIL import Image
from sqlalchemy import Connection, select
from sqlalchemy.exc import NoResultFound

from services.worker_train import child, troubles
from services.worker_train.canaries import make_canaries
from services.worker_train.child import Exit, Refused
from services.worker_train.copies import folder_for_copy
from services.worker_train.evaluation import rows as drawn
from services.worker_train.evaluation.choices import Choice, read_chosen, without_learnt
from services.worker_train.evaluation.loading import load_examinee
from services.worker_train.evaluation.measure import Material, Outcome, Plan, Tell, measure
from services.worker_train.memory import is_out_of_memory
from services.worker_train.room import MustWait
from shared.catalogue import find_model
from shared.db import open_database
from shared.db.tables_training import adapters, datasets, evaluations, training_runs
from shared.errors import DatasetDamaged, MediChatError
from shared.guard import Guard
from shared.policies.live import read_guard
from shared.privacy.envelope import CannotDecrypt, DataKey, Envelope
from shared.privacy.keys import load_data_keys
from shared.privacy.master_keys import open_envelope
from shared.privacy.sealed import SealedWriter
from shared.settings import Settings
from shared.storage import Storage
from shared.training.adapter_files import copy_adapter
from shared.training.adapters import files_hash
from shared.training.dataset_files import DatasetReader, Manifest, Split
from shared.training.states import GONE

SEED = 0
NO_MEMORY = "The model does not fit the device's memory beside what runs there."


@dataclass(frozen=True)
class Asked:
    """What the database says of an evaluation."""

    adapter: Any
    #: What the adapter's files beside its weights must hash to.
    files_sha256: str
    recipe: dict[str, Any]
    #: Whose held-out rows it uses.
    dataset: Any
    #: What the adapter was trained on; mostly the same.
    trained_on: Any
    #: By id, those of both datasets.
    keys: dict[str, DataKey]


def supervised(settings: Settings, evaluation_id: str) -> None:
    """Tell the supervisor how it goes, and end as the protocol wants it."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        outcome, path = evaluate(settings, evaluation_id)
    except KeyboardInterrupt:
        child.stop(
            Exit.DRAINED, "drained", "The worker is shutting down; the evaluation starts again elsewhere."
        )
    except MustWait as error:
        child.stop(Exit.WAIT, "waiting-for-memory", error.detail)
    except Refused as error:
        child.stop(error.status, error.reason, error.detail)
    except DatasetDamaged as error:
        child.stop(Exit.REFUSED, "data-altered", error.detail)  # as a training calls it
    except MediChatError as error:
        child.stop(Exit.REFUSED, error.code, error.detail)
    except (CannotDecrypt, FileNotFoundError):
        child.stop(
            Exit.REFUSED, "unreadable", "Rows or adapter are missing, damaged or erased; check the storage."
        )
    except OSError as error:
        trouble = troubles.of_files(error, again="evaluate again")
        if trouble is None:
            raise
        child.stop(trouble.status, trouble.reason, trouble.detail)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        child.stop(Exit.OUT_OF_MEMORY, "out-of-memory", NO_MEMORY)
    child.emit("done", figures=outcome.figures, samples_path=path)


def evaluate(settings: Settings, evaluation_id: str) -> tuple[Outcome, str]:
    """Carry out an evaluation of the database; its samples are left, sealed, at the path given back.

    Raises:
        Refused: it cannot be measured as it is.
        MustWait: there is no room for it now.
        CannotDecrypt: rows are damaged or erased.
    """
    database = open_database(settings)
    try:
        with database.read() as connection:
            asked = _look_up(connection, open_envelope(settings), evaluation_id)
            guard = read_guard(connection)
    finally:
        database.close()
    storage = Storage.from_settings(settings)
    with_images = find_model(asked.adapter.base_model).reads_images
    material = _sealed_material(settings, storage, asked, with_images=with_images)
    with folder_for_copy(settings.state_dir) as folder:
        copy_adapter(storage, asked.adapter.sha256, folder)
        examinee = load_examinee(
            settings,
            base_model=asked.adapter.base_model,
            adapter=folder,
            rows=material.rows,
            sha256=asked.adapter.sha256,
            files_sha256=asked.files_sha256,
            revision=asked.adapter.base_revision,
        )
    outcome = measure_all(settings, examinee, material, _tell_supervisor, guard)
    path = f"evaluations/{evaluation_id}/samples.json"
    with storage.create(path) as file:
        key = asked.keys[asked.dataset.key_id]
        sealed = SealedWriter(file, key, place=f"evaluation:{evaluation_id}")
        sealed.write(json.dumps(outcome.samples).encode())
        sealed.close()
    return outcome, path


def _look_up(connection: Connection, envelope: Envelope, evaluation_id: str) -> Asked:
    try:
        evaluation = connection.execute(select(evaluations).where(evaluations.c.id == evaluation_id)).one()
    except NoResultFound:
        raise Refused("not-found", "There is no evaluation of this id.") from None
    adapter = connection.execute(select(adapters).where(adapters.c.sha256 == evaluation.adapter_sha256)).one()
    run = connection.execute(
        select(training_runs.c.recipe, training_runs.c.manifest_sha256).where(
            training_runs.c.id == adapter.run_id
        )
    ).one()
    dataset, trained_on = (
        connection.execute(select(datasets).where(datasets.c.id == dataset_id)).one()
        for dataset_id in (evaluation.dataset_id, adapter.dataset_id)
    )
    if trained_on.error in GONE:  # since the evaluation was asked for
        raise Refused(
            "no-rows",
            "What the adapter was trained on was erased, so it cannot be measured any more: train another.",
        )
    if not dataset.manifest or not trained_on.manifest:
        raise Refused("no-rows", "The dataset was not validated; validate it first.")
    if run.manifest_sha256 is None or run.manifest_sha256 != trained_on.manifest_sha256:
        raise Refused(
            "other-rows",
            "Nobody can tell any more which rows the adapter was trained on: its dataset was checked again "
            "since. Train a new adapter, and evaluate that one.",
        )
    keys = load_data_keys(connection, envelope, {dataset.key_id, trained_on.key_id})
    return Asked(
        adapter=adapter,
        files_sha256=files_hash(connection, adapter.sha256),
        recipe=cast(dict[str, Any], run.recipe),
        dataset=dataset,
        trained_on=trained_on,
        keys=keys,
    )


def _sealed_material(settings: Settings, storage: Storage, asked: Asked, *, with_images: bool) -> Material:
    def open_dataset(dataset: Any) -> DatasetReader:
        key = asked.keys[dataset.key_id]
        manifest = Manifest.stored(dataset.manifest, dataset.manifest_sha256)
        return DatasetReader(storage, key, dataset.id, manifest)

    def some(reader: DatasetReader, rows: Iterable[drawn.Record], count: int) -> list[Any]:
        records = drawn.draw(rows, count, SEED)
        return drawn.to_rows(records, partial(_picture, reader) if with_images else None)

    measured_on, trained_on = open_dataset(asked.dataset), open_dataset(asked.trained_on)
    # of the adapter's own dataset the check has seen to it that no held-out row was learnt
    learnt: Iterable[drawn.Record] = (
        trained_on.rows(Split.TRAIN) if asked.dataset.id != asked.trained_on.id else ()
    )
    unseen = drawn.Unseen(learnt)
    held_out = some(measured_on, unseen.among(measured_on.rows(Split.VALIDATION)), settings.evaluation_rows)
    if not held_out and unseen.left_out:
        raise Refused(
            "no-rows",
            f"No held-out row of this dataset is left: {unseen.left_out:,} ask what the adapter was trained "
            "on. Evaluate it on another dataset, or on its own.",
        )
    choices, choices_learnt = choose_choices(settings, trained_on.rows(Split.TRAIN))
    return Material(
        held_out=held_out,
        learnt_before=unseen.left_out,
        trained=some(trained_on, trained_on.rows(Split.TRAIN), settings.evaluation_answers),
        choices=choices,
        choices_learnt_before=choices_learnt,
        canaries=make_canaries(int(asked.recipe.get("canaries") or 0), int(asked.recipe.get("seed") or 0)),
    )


def _picture(reader: DatasetReader, sha256: str) -> Image.Image:
    return Image.open(io.BytesIO(reader.read_image(sha256))).convert("RGB")


def _tell_supervisor(done: int, total: int, what: str) -> None:
    child.emit("progress", done=done, total=total, what=what)


def choose_choices(settings: Settings, learnt: Iterable[drawn.Record]) -> tuple[list[Choice], int]:
    """Multiple-choice questions, and how many were left out, since the adapter was trained on them."""
    found = read_chosen(settings.evaluation_choices)
    unseen = without_learnt(found, learnt)
    return drawn.draw(unseen, settings.evaluation_rows, SEED), len(found) - len(unseen)


def measure_all(settings: Settings, examinee: Any, material: Material, tell: Tell, guard: Guard) -> Outcome:
    """Put all measures to the examinee, for as long as the settings say. Raises Refused, as `measure`."""
    plan = Plan(
        answers=settings.evaluation_answers,
        answer_tokens=settings.evaluation_answer_tokens,
        seconds=settings.evaluation_seconds,
        seed=SEED,
    )
    return measure(examinee, material, plan, guard=guard, tell=tell)
