"""What tests of evaluations need: an adapter made by peft, and a dataset with sealed rows, in a database."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from sqlalchemy import Connection, select
from transformers import Gemma3ForConditionalGeneration, PreTrainedModel

from models.demo.evaluate import WEIGHTS
from shared.db.engine import Database
from shared.db.tables import users
from shared.db.tables_training import adapters, datasets, training_runs
from shared.guard.verdict import Audience
from shared.ids import new_id
from shared.jobs.lifecycle import Kind
from shared.jobs.records import NewJob
from shared.jobs.store import JobStore
from shared.privacy.envelope import DataKey, Envelope
from shared.privacy.keys import create_data_key
from shared.privacy.sealed import SealedWriter
from shared.storage import Storage
from shared.training.adapter_files import hash_files
from shared.training.dataset_files import hash_manifest, place_of
from shared.weights import hash_weights

TARGETS = r"(?!.*vision).*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def demo_weights() -> PreTrainedModel:
    """The demo model in float32."""
    return Gemma3ForConditionalGeneration.from_pretrained(WEIGHTS, dtype=torch.float32)


def with_lora(model: PreTrainedModel, *, r: int = 4, seed: int = 0) -> PeftModel:
    """A fresh LoRA on the language model: it changes nothing yet."""
    torch.manual_seed(seed)
    config = LoraConfig(
        r=r, lora_alpha=2 * r, target_modules=TARGETS, task_type="CAUSAL_LM", revision=hash_weights(WEIGHTS)
    )
    return get_peft_model(model, config)


def nudge(model: PeftModel, size: float = 0.01) -> None:
    """Change the adapter a little, in directions of chance."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, size)


def message_row(number: int, question: str, answer: str, group: str | None = None) -> dict[str, Any]:
    """A dataset's row."""
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"id": number, "messages": messages, "image": None, "group": group}


@dataclass(frozen=True)
class Registered:
    """What is in the database and the storage."""

    user_id: str
    dataset_id: str
    sha256: str
    key: DataKey


def register(
    database: Database,
    storage: Storage,
    jobs: JobStore,
    envelope: Envelope,
    *,
    folder: Path,
    rows: dict[str, Sequence[dict[str, Any]]],
    user_id: str | None = None,
    recipe: dict[str, Any] | None = None,
) -> Registered:
    """Store a dataset of these rows by split, sealed, and the adapter of a folder as trained on it."""
    weights = folder / "adapter_model.safetensors"
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    run_id = new_id()
    with database.write() as connection:
        if user_id is None:
            user_id = _user(connection)
        dataset_id, key = add_dataset(connection, storage, envelope, rows=rows, user_id=user_id)
        job = NewJob(id=new_id(), kind=Kind.TRAIN, user_id=user_id, audience=Audience.CLINICIAN)
        jobs.submit_settled(connection, job, NOW)
        connection.execute(
            training_runs.insert().values(
                id=run_id,
                name="run",
                job_id=job.id,
                dataset_id=dataset_id,
                manifest_sha256=select(datasets.c.manifest_sha256)
                .where(datasets.c.id == dataset_id)
                .scalar_subquery(),
                recipe=recipe or {},
                base_model="demo",
                created_by=user_id,
                created_at=NOW,
            )
        )
        connection.execute(
            adapters.insert().values(
                sha256=sha256,
                files_sha256=hash_files(folder),
                name="run",
                version=1,
                run_id=run_id,
                dataset_id=dataset_id,
                base_model="demo",
                base_revision=hash_weights(WEIGHTS),
                status="candidate",
                bytes=weights.stat().st_size,
                card="",
                created_at=NOW,
                status_at=NOW,
            )
        )
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        with storage.create(f"adapters/{sha256}/{name}") as file:
            file.write((folder / name).read_bytes())
    return Registered(user_id, dataset_id, sha256, key)


def add_dataset(
    connection: Connection,
    storage: Storage,
    envelope: Envelope,
    *,
    rows: dict[str, Sequence[dict[str, Any]]],
    user_id: str,
) -> tuple[str, DataKey]:
    """Store a dataset of these rows by split, sealed; returns its id and key."""
    dataset_id = new_id()
    key = create_data_key(connection, envelope, scope="dataset", owner_id=dataset_id, now=NOW)
    parts = [_seal(storage, key, dataset_id, split, lines) for split, lines in rows.items()]
    manifest = {"parts": parts, "raw_sha256": "0" * 64, "shape": "messages", "options": {}}
    connection.execute(
        datasets.insert().values(
            id=dataset_id,
            name="rows",
            state="ready",
            source="upload",
            source_name="rows.jsonl",
            options={},
            key_id=key.key_id,
            rows_train=len(rows["train"]),
            rows_validation=len(rows["validation"]),
            manifest=manifest,
            manifest_sha256=hash_manifest(manifest),
            created_by=user_id,
            created_at=NOW,
        )
    )
    return dataset_id, key


def _user(connection: Any) -> str:
    user_id = new_id()
    row = {
        "id": user_id,
        "name": user_id,
        "role": "admin",
        "audience": "clinician",
        "status": "active",
        "password_hash": "-",
        "created_at": NOW,
    }
    connection.execute(users.insert().values(**row))
    return user_id


def _seal(
    storage: Storage, key: DataKey, dataset_id: str, split: str, rows: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    below = f"v1/{split}-00000.jsonl"
    path = f"datasets/{dataset_id}/{below}"
    with storage.create(path) as file:
        sealed = SealedWriter(file, key, place=place_of(path))
        sealed.write("".join(json.dumps(row) + "\n" for row in rows).encode())
        sealed.close()
    with storage.open(path) as file:
        data = file.read()
    digest = hashlib.sha256(data).hexdigest()
    return {"path": path, "split": split, "rows": len(rows), "bytes": len(data), "sha256": digest}
