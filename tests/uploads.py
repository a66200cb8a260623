"""Datasets for tests: uploads, and what a worker's check would make of them."""

import hashlib
import json
from typing import Any

import httpx

from shared.jobs.lifecycle import EventKind, Kind
from shared.jobs.records import Job
from shared.privacy.sealed import SealedWriter
from shared.training.dataset_files import Split, image_path, place_of, version_folder
from shared.training.dataset_records import Dataset
from shared.training.report import ADVICE, Reason
from tests.support import Api

WORD = "zebrafish"
ROWS = "".join(
    json.dumps({"question": f"Question {number}?", "answer": f"A {WORD}."}) + "\n" for number in range(5)
).encode()
#: What the check of a small dataset may have found, one thing of each kind.
REPORT = {
    "format": "jsonl",
    "shape": "question_answer",
    "columns": ["Frage", "answer"],
    "mapping": {"question": "Frage", "answer": "answer"},
    "rows_in": 7,
    "rows_out": {"train": 3, "validation": 1, "quarantine": 1},
    "dropped": [
        {
            "reason": Reason.EMPTY_ANSWER,
            "count": 2,
            "rows": [{"line": n, "advice": ADVICE[Reason.EMPTY_ANSWER]} for n in (4, 6)],
        }
    ],
    "tokens": {"edges": [0, 8, 16], "counts": [3, 4]},
    "longest_tokens": 15,
    "max_tokens": 2048,
    "truncated": 0,
    "exact_duplicates": 0,
    "near_duplicates": 0,
    "overlap": 0,
    "phi": {"policy": "mask", "by_type": {"US_SSN": 2}, "rows": 1, "lines": [2]},
    "dangerous": [{"category": "dosing", "count": 1, "lines": [5]}],
    "languages": {"en": 6, "de": 1},
    "not_english_lines": [7],
    "groups": None,
    "groups_validation": None,
    "images": 0,
    "notes": ["Only 3 rows are left to train on."],
    "seconds": 0.1,
    "rows_per_s": 70.0,
}


def upload(
    client: httpx.Client, content: Any = ROWS, *, name: str | None = "A set", **query: Any
) -> httpx.Response:
    """Send a file."""
    named = {} if name is None else {"name": name}
    return client.post("/v1/datasets", params={**named, "filename": "set.jsonl", **query}, content=content)


def uploaded(client: httpx.Client, content: Any = ROWS, **query: Any) -> str:
    """The id of a dataset that was just sent."""
    response = upload(client, content, **query)
    assert response.status_code == 202, response.text
    return str(response.json()["id"])


def claim_check(api: Api) -> Job:
    """Begin the best queued check."""
    return api.claim(kind=Kind.VALIDATE)


def row(number: int, **more: Any) -> dict[str, Any]:
    """A normalised row."""
    said = [{"role": "user", "content": f"Q{number}"}, {"role": "assistant", "content": f"{WORD} {number}"}]
    return {"id": number, "messages": said, "image": None, "group": None, **more}


def write_part(
    api: Api, dataset: Dataset, split: Split, rows: list[dict[str, Any]], part: int = 0
) -> dict[str, Any]:
    """Seal rows into the version that is being checked; returns the part as the manifest names it."""
    store = api.gateway.datasets
    with api.gateway.database.read() as connection:
        version = store.next_version(connection, dataset.id)
        attempt = api.gateway.jobs.get(connection, str(dataset.job_id)).claim.name
        key = store.key(connection, dataset)
    path = f"{version_folder(dataset.id, version, attempt)}/{split}-{part:05}.jsonl"
    text = "".join(json.dumps(each) + "\n" for each in rows).encode()
    with store.storage.create(path) as file, SealedWriter(file, key, place=place_of(path)) as sealed:
        sealed.write(text)
    with store.storage.open(path) as file:
        digest = hashlib.sha256(file.read()).hexdigest()
    return {"path": path, "split": split.value, "sha256": digest, "rows": len(rows), "bytes": len(text)}


def write_picture(api: Api, dataset: Dataset, png: bytes) -> dict[str, Any]:
    """Seal a picture; returns it as the manifest names it."""
    store, sha256 = api.gateway.datasets, hashlib.sha256(png).hexdigest()
    with api.gateway.database.read() as connection:
        key = store.key(connection, dataset)
    path = image_path(dataset.id, sha256)
    with store.storage.create(path) as file, SealedWriter(file, key, place=place_of(path)) as sealed:
        sealed.write(png)
    return {"sha256": sha256, "bytes": len(png)}


def check(
    api: Api,
    *,
    parts: int = 1,
    rows_a_part: int = 3,
    report: dict[str, Any] | None = None,
    picture: bytes | None = None,
    revision: str | None = None,
) -> tuple[Dataset, dict[str, Any]]:
    """Play the worker: check the next dataset and make it ready; returns it and its manifest.

    With a picture, it is every row's.
    """
    gateway, job = api.gateway, claim_check(api)
    with gateway.database.read() as connection:
        dataset = gateway.datasets.by_job(connection, job.id)
    images = [] if picture is None else [write_picture(api, dataset, picture)]
    image = images[0]["sha256"] if images else None
    made = [
        write_part(
            api,
            dataset,
            Split.TRAIN,
            [row(number, image=image) for number in range(part * rows_a_part, (part + 1) * rows_a_part)],
            part,
        )
        for part in range(parts)
    ]
    made.append(write_part(api, dataset, Split.VALIDATION, [row(900)]))
    aside = row(901, line=5, reason="dangerous")
    made.append(write_part(api, dataset, Split.QUARANTINE, [aside]))
    manifest = {
        "parts": made,
        "images": images,
        "raw_sha256": None if dataset.source == "hub" else dataset.sha256,
        "revision": revision,
        "shape": "question_answer",
        "options": dataset.options,
    }
    with gateway.database.write() as connection:
        done = gateway.datasets.mark_ready(
            connection,
            job.claim,
            rows_train=parts * rows_a_part,
            rows_validation=1,
            manifest=manifest,
            report=report or {"rows_in": 5, "dropped": {"duplicate": 1}},
        )
        gateway.jobs.finish(connection, job.claim, EventKind.SUCCEEDED)
    with gateway.database.read() as connection:
        gateway.datasets.tidy(connection, done.id)
    return done, manifest
