"""Measures an adapter on files, for the person who named them on the command line. It asks no database."""

import argparse
import json
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from services.worker_train import base
from services.worker_train.canaries import make_canaries
from services.worker_train.child import Refused
from services.worker_train.evaluation import rows as drawn
from services.worker_train.evaluation.carry_out import NO_MEMORY, SEED, choose_choices, measure_all
from services.worker_train.evaluation.loading import load_examinee
from services.worker_train.evaluation.measure import Material, Outcome
from services.worker_train.memory import is_out_of_memory
from shared.errors import MediChatError, WrongBase
from shared.guard import load_guard
from shared.settings import Settings
from shared.training.adapter_files import check_adapter, sha256_of
from shared.training.gate import Gate, judge


def by_hand(settings: Settings, arguments: argparse.Namespace) -> None:
    """Measure the files that the arguments name; exits with what to do when that cannot be done."""
    try:
        _require_place(arguments.out)
        outcome = _measure_files(settings, arguments)
        gate = _judge_files(outcome.figures, arguments)
        written = {"figures": outcome.figures, "gate": gate.to_json(), "samples": outcome.samples}
        arguments.out.write_text(json.dumps(written, indent=2, ensure_ascii=False), "utf-8")
    except MediChatError as error:
        sys.exit(error.detail)
    except OSError as error:
        sys.exit(f"A file cannot be read or written: {error}. Mend that, and evaluate again.")
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        sys.exit(NO_MEMORY)
    for check in gate.checks:
        passed = "passed" if check.value is not None else "none  "
        sys.stderr.write(f"{passed if check.passed else 'FAILED'}  {check.message}\n")
    if not gate.passed:
        sys.exit(1)


def _judge_files(figures: dict[str, Any], arguments: argparse.Namespace) -> Gate:
    """The gate, which says how there comes to be what only what was learnt can tell."""
    gate, advice = judge(figures), dict[str, str]()
    if not arguments.train:
        advice["verbatim"] = "give the rows it was trained on with --train"
    if not arguments.canaries:
        advice["canary_exposure"] = (
            "where the adapter's card says that canaries were planted, give how many, and the seed, with "
            "--canaries N --canary-seed S"
        )
    checks = [
        replace(check, message=f"{check.figure}: this figure was not measured; {advice[check.figure]}.")
        if check.figure in advice
        else check
        for check in gate.checks
    ]
    return replace(gate, checks=checks)


def _require_place(out: Path) -> None:
    """Raise Refused where no file can be written there: all that is measured would be lost in the end."""
    there = out if out.exists() else out.parent
    if out.is_dir() or not (out.parent.is_dir() and os.access(there, os.W_OK)):
        raise Refused("no-place", f"{out} cannot be written: name a file in a folder that you may write to.")


def _measure_files(settings: Settings, arguments: argparse.Namespace) -> Outcome:
    """Measure what the arguments name. Raises MediChatError and OSError."""
    material = gather(settings, arguments)
    folder = arguments.adapter
    model = arguments.model or base.catalogue_name(check_adapter(folder, sha256=sha256_of(folder)).config)
    try:
        examinee = load_examinee(settings, base_model=model, adapter=folder, rows=material.rows)
    except WrongBase as error:
        if not arguments.model:
            raise
        raise Refused(
            "wrong-base",
            f"The adapter was trained on another model than {model}, which --model names, or on another "
            "revision of it: leave --model out, or name the one that it was trained on.",
        ) from error
    return measure_all(settings, examinee, material, _tell_person, load_guard())


def gather(settings: Settings, arguments: argparse.Namespace) -> Material:
    """What the files hold to measure on; rows that ask what was learnt are not held out. Raises Refused, also
    when none is left, and OSError.
    """

    def learnt() -> Iterable[drawn.Record]:
        return drawn.read_file(arguments.train) if arguments.train else ()

    unseen = drawn.Unseen(learnt())
    held_out = _some(unseen.among(drawn.read_file(arguments.rows)), settings.evaluation_rows, arguments.rows)
    if not held_out:
        raise Refused(
            "no-rows",
            f"No row of {arguments.rows} is left to measure on: {unseen.left_out:,} ask what the adapter was "
            "trained on. Give rows of text that it was not trained on.",
        )
    choices, choices_learnt = choose_choices(settings, learnt())
    return Material(
        held_out=held_out,
        learnt_before=unseen.left_out,
        trained=_some(learnt(), settings.evaluation_answers, arguments.train),
        choices=choices,
        choices_learnt_before=choices_learnt,
        canaries=make_canaries(arguments.canaries, arguments.canary_seed),
    )


def _some(records: Iterable[drawn.Record], count: int, file: Path | None) -> list[Any]:
    """Rows of a file by chance. A picture that a row names is not looked at, so such rows are left out; it is
    said how many.
    """
    pictures = 0

    def texts() -> Iterator[drawn.Record]:
        nonlocal pictures
        for record in records:
            if record.get("image") is None:
                yield record
            else:
                pictures += 1

    rows = drawn.to_rows(drawn.draw(texts(), count, SEED))
    if pictures:
        sys.stderr.write(
            f"{file}: {pictures:,} rows with a picture are left out; measure those as a dataset.\n"
        )
    return rows


def _tell_person(done: int, total: int, what: str) -> None:
    sys.stderr.write(f"{what}: {done} of {total}\n")
