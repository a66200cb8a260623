"""Writes what a run leaves: the adapter, its configuration, its card and its probe. It knows no training loop."""

import hashlib
from pathlib import Path
from typing import Any

from services.worker_train.checkpoints import written_aside
from services.worker_train.trainer import AdapterTrainer


def write(trainer: AdapterTrainer, material: Any, folder: Path, *, revision: str) -> dict[str, Any]:
    """Write the files into `folder`, which appears when they are whole; returns the fields of the `done` event."""
    metrics = {"steps": trainer.state.global_step, "eval_loss": trainer.best_loss}
    with written_aside(folder.parent, folder.name) as aside:
        trainer.accelerator.unwrap_model(trainer.model).save_pretrained(aside, safe_serialization=True)
    weights = folder / "adapter_model.safetensors"
    return {
        "folder": str(folder),
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "bytes": weights.stat().st_size,
        "metrics": metrics,
        "base_revision": revision,
    }
