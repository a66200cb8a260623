"""Keeps with a run's checkpoints what it was begun with. Whoever went on from them with another recipe, or on
other rows, would train something else than the adapter's card says. It trains nothing.
"""

import json
from pathlib import Path
from typing import Any

from services.worker_train.rows import Rows
from shared.prompts import prompt_version
from shared.training.recipe import Recipe

_FILE = "begun.json"
#: A run that was out of memory goes on with the first three changed, which makes the same training, and a
#: title changes nothing; of the data counts what is in it.
_LEFT_OUT = {"batch_size", "accumulation", "gradient_checkpointing", "title", "data"}


def begun_with(recipe: Recipe, rows: Rows, system: str) -> dict[str, Any]:
    """What must stay as it is until the run has ended, by name.

    Args:
        system: the system text of rows that have none of their own; empty for none.
    """
    validation = rows.validation_origin
    return {
        **recipe.model_dump(mode="json", exclude=_LEFT_OUT),
        "batch_size × accumulation": recipe.batch_size * recipe.accumulation,
        "data.train": rows.origin.digest,
        "data.validation": validation.digest if validation else None,
        "data.validation_fraction": recipe.data.validation_fraction,
        "data.columns": recipe.data.columns,
        "MEDICHAT_SYSTEM_PROMPT": prompt_version(system) if system and _puts_it(recipe, rows) else None,
    }


def _puts_it(recipe: Recipe, rows: Rows) -> bool:
    """Whether any row is without a system text of its own; a planted one always is."""
    learnt = (*rows.train, *rows.validation)
    return recipe.canaries > 0 or any(row.messages[0]["role"] != "system" for row in learnt)


def write(checkpoint: Path, begun: dict[str, Any]) -> None:
    """Keep it in the checkpoint's folder. Raises OSError."""
    (checkpoint / _FILE).write_text(json.dumps(begun), encoding="utf-8")


def changed_since(checkpoint: Path, begun: dict[str, Any]) -> list[str]:
    """The names of what is other than the run of this checkpoint was begun with; nothing when an earlier
    release made it. A knob that is new since then had its default.
    """
    try:
        before = dict(json.loads((checkpoint / _FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # who goes on from it says what is wrong with it
        return []
    before = {**Recipe().model_dump(mode="json"), **before}
    return [name for name, value in begun.items() if before.get(name, value) != value]
