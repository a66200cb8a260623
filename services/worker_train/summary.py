"""Makes the report of a check from what was counted. It reads no row."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from services.worker_train.examine import Tally
from services.worker_train.shapes import Shape
from services.worker_train.splitting import Fate
from shared.training.gate import Limits
from shared.training.options import DatasetOptions
from shared.training.report import (
    ADVICE,
    MAX_LINES,
    Dangerous,
    Dropped,
    DroppedRow,
    Histogram,
    Phi,
    Reason,
    Report,
    write_lines,
)

_BINS = 40
#: Fewer rows than this teach a model to repeat them.
_FEW_ROWS = 50
#: From this share of the answers on they all seem to point at options.
_NEARLY_ALL = 0.9
_LEAST_HELD_OUT = Limits().least_rows


def summarise(
    shape: Shape,
    columns: list[str],
    kind: str,
    options: DatasetOptions,
    tally: Tally,
    fates: Sequence[Fate],
    *,
    grouped: set[bytes],
    images: int,
    pictures: tuple[int, int],
    seconds: float,
    refused: bool,
) -> Report:
    """The report on rows whose fates are decided.

    Args:
        shape: how the rows were read.
        columns: their columns' names.
        kind: of file, in words.
        options: what the admin chose.
        tally: what was counted on the way.
        fates: what becomes of each row.
        grouped: the units that are groups.
        images: how many pictures are kept.
        pictures: how many lie beside the rows, and how many of them rows name.
        seconds: what the check took.
        refused: of such a file no row is kept, whatever its own fate.
    """
    dropped = _dropped(fates)
    counts = {entry.reason: entry.count for entry in dropped}
    used = [] if refused else [fate for fate in fates if fate.reason is None]
    validation = sum(fate.validation for fate in used)
    groups = {fate.unit: fate.validation for fate in used if fate.unit in grouped}
    notes = [*_notes_on_reading(shape, columns, options, tally, pictures), *_notes(options, used, grouped)]
    quarantined = 0 if refused else sum(counts.get(reason, 0) for reason in Reason if reason.quarantines)
    return Report(
        format=kind,
        shape=shape.name,
        columns=columns,
        mapping=dict(shape.columns),
        rows_in=len(fates),
        rows_out={"train": len(used) - validation, "validation": validation, "quarantine": quarantined},
        dropped=dropped,
        tokens=_histogram(tally.tokens),
        longest_tokens=max(tally.tokens, default=0),
        max_tokens=options.max_tokens,
        truncated=counts.get(Reason.TOO_LONG, 0),
        exact_duplicates=counts.get(Reason.EXACT_DUPLICATE, 0),
        near_duplicates=counts.get(Reason.NEAR_DUPLICATE, 0),
        overlap=counts.get(Reason.OVERLAP, 0),
        phi=Phi(
            policy=options.phi,
            by_type=dict(sorted(tally.phi_types.items())),
            rows=tally.phi_rows,
            lines=tally.phi_lines,
        ),
        dangerous=[
            Dangerous(category=category, count=count, lines=tally.dangerous[category])
            for category, count in tally.dangerous_counts.most_common()
        ],
        languages=dict(tally.languages.most_common()),
        not_english_lines=tally.foreign_lines,
        groups=len(groups) if grouped else None,
        groups_validation=sum(groups.values()) if grouped else None,
        images=images,
        notes=[] if refused else notes,
        seconds=round(seconds, 3),
        rows_per_s=round(len(fates) / max(seconds, 1e-3), 1),
    )


def _dropped(fates: Sequence[Fate]) -> list[Dropped]:
    found: dict[Reason, list[Fate]] = defaultdict(list)
    for fate in fates:
        if fate.reason is not None:
            found[fate.reason].append(fate)
    return [
        Dropped(
            reason=reason,
            count=len(gone),
            rows=[
                DroppedRow(line=fate.line, advice=fate.advice or ADVICE[reason]) for fate in gone[:MAX_LINES]
            ],
            advice=ADVICE[reason],
            all_lines=write_lines(fate.line for fate in gone),
        )
        for reason, gone in sorted(found.items(), key=lambda each: -len(each[1]))
    ]


def _histogram(tokens: list[int]) -> Histogram:
    """Bins of equal width, a round number of tokens each."""
    longest = max(tokens, default=0)
    width = 8
    while width * _BINS <= longest:
        width *= 2
    edges = list(range(0, longest + width + 1, width))
    counts, _ = np.histogram(tokens, bins=edges)
    return Histogram(edges=edges, counts=counts.tolist())


def _notes_on_reading(
    shape: Shape, columns: list[str], options: DatasetOptions, tally: Tally, pictures: tuple[int, int]
) -> Iterable[str]:
    chosen = options.columns
    for part in shape.unread(columns) if not any(chosen.values()) else ():
        if part not in chosen:
            yield (
                f"A column is named like the {part} and is not read, for the rows are read as "
                f"{shape.name.replace('_', ' and ')}. If it belongs to what is asked, say which column is "
                "which, and check the file again."
            )
    rows = len(tally.tokens)
    if tally.bare_answers > _NEARLY_ALL * rows:
        yield (
            f"{tally.bare_answers} of {rows} answers are one letter or a number. If they point at options, "
            "write those into the question, and the right one into the answer: a model is shown no other "
            "column."
        )
    there, named = pictures
    if named < there:
        yield (
            f"The zip holds {there} pictures, and the rows that could be read name {named} of them. If "
            "others belong to rows, say which column is the image."
        )


def _notes(options: DatasetOptions, used: Sequence[Fate], grouped: set[bytes]) -> Iterable[str]:
    held_out = [fate for fate in used if fate.validation]
    validation, train = len(held_out), len(used) - len(held_out)
    if train < _FEW_ROWS:
        yield f"Only {train} rows are left to train on: a model will learn them by heart. Add more."
    if not validation and options.validation_fraction > 0:
        what = "group" if grouped else "question"
        yield f"No rows were kept back for validation, because all belong to one {what}."
    elif validation > 2 * options.validation_fraction * (train + validation) + 1:
        yield "More rows than asked for went to validation, because one group is that large."
    # as the evaluation counts them: a patient is one, and so is a row of nobody
    patients = {fate.unit for fate in held_out if fate.unit in grouped}
    units = len(patients) + sum(fate.unit not in grouped for fate in held_out)
    if units < _LEAST_HELD_OUT:
        what = f"rows of {units} patients" if patients else f"{units} rows"
        yield (
            f"Held out are {what}, and no adapter passes its gate on fewer than {_LEAST_HELD_OUT}. Check the "
            "file again with a larger share, or add rows, before you train on it: after that its rows stay "
            "as they are."
        )
