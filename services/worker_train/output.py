"""Writes what a run leaves: the adapter, its configuration, its card and its probe. It knows no training
loop.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel  # type: ignore[import-untyped]

from services.worker_train.base import Source
from services.worker_train.card import write_card
from services.worker_train.checkpoints import written_aside
from services.worker_train.probe import take_probe
from services.worker_train.rows import Rows
from shared.training.recipe import Recipe

_WEIGHTS = "adapter_model.safetensors"


def write(
    model: Any,
    folder: Path,
    *,
    source: Source,
    base_revision: str,
    recipe: Recipe,
    passes: tuple[int, int],
    tokenizer: Any,
    rows: Rows,
    used: tuple[int, int],
    looked_at: int,
    left_out: tuple[int, int],
    system: str,
    metrics: Mapping[str, Any],
    dtype: torch.dtype,
) -> dict[str, Any]:
    """Write the files into `folder`, which appears when they are whole; returns the fields of the `done`
    event.

    Raises:
        DiskFull: there is no room for them.
    """
    # the trainer's autocast would compute in bfloat16 whatever the weights are
    model = extract_model_from_parallel(model, keep_fp32_wrapper=False)
    if model.device.type == "cpu" and recipe.quantisation == "none":
        model.float()  # as the CPU's engine serves it; nothing is trained with these weights any more
    probe = take_probe(model, tokenizer, base_revision=base_revision)
    metrics = {name: value for name, value in metrics.items() if math.isfinite(value)}
    with written_aside(folder.parent, folder.name, checkpoints=folder.parent / "checkpoints") as aside:
        for parameters in model.peft_config.values():
            parameters.base_model_name_or_path = source.entry.hub_id or source.entry.name
            parameters.revision = base_revision
        model.save_pretrained(aside, safe_serialization=True, save_embedding_layers=False)
        sha256 = hashlib.sha256((aside / _WEIGHTS).read_bytes()).hexdigest()
        (aside / "probe.json").write_text(json.dumps(probe), encoding="utf-8")
        (aside / "README.md").write_text(
            write_card(
                entry=source.entry,
                base_revision=base_revision,
                recipe=recipe,
                passes=passes,
                data=rows.origin,
                validation_data=rows.validation_origin,
                rows=used,
                looked_at=looked_at,
                left_out=left_out,
                system=system,
                metrics=metrics,
                adapter_sha256=sha256,
                dtype=str(dtype).removeprefix("torch."),
            ),
            encoding="utf-8",
        )
    return {
        "folder": str(folder),
        "sha256": sha256,
        "bytes": (folder / _WEIGHTS).stat().st_size,
        "metrics": metrics,
        "base_revision": base_revision,
    }
