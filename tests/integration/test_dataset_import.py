"""Datasets that the server itself fetches: a file below one folder, or the hub."""

import os
from pathlib import Path

import httpx
import pytest

from shared.auth.roles import Role
from shared.db.tables import data_keys
from shared.db.tables_training import datasets
from tests.support import Api
from tests.uploads import ROWS, check


@pytest.fixture
def dialect() -> str:
    """What is stored is the same as for an upload; one database is enough."""
    return "sqlite"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder that the operator opened, with a secret beside it."""
    made = tmp_path / "import"
    (made / "below").mkdir(parents=True)
    (made / "below" / "set.jsonl").write_bytes(ROWS)
    (tmp_path / "import-secret.jsonl").write_bytes(ROWS)
    return made


@pytest.fixture
def api(make_api, folder: Path) -> Api:  # type: ignore[no-untyped-def]
    made: Api = make_api(dataset_import_dir=folder, max_dataset_bytes=10_000)
    return made


def bring(client: httpx.Client, location: str, source: str = "path") -> httpx.Response:
    return client.post("/v1/datasets/import", json={"source": source, "location": location})


def test_a_file_below_the_folder_is_copied_and_checked(api: Api, folder: Path) -> None:
    for location in ("below/set.jsonl", str(folder / "below" / "set.jsonl")):
        answer = bring(api.log_in(Role.ADMIN), location)
        assert answer.status_code == 202, answer.text
        view = answer.json()
        assert (view["state"], view["source"], view["bytes"]) == ("validating", "path", len(ROWS))
        assert view["name"].startswith("Data of ")
        assert (Path(api.settings.storage_url) / "datasets" / view["id"] / "raw").exists()


def test_nothing_outside_the_folder_is_read(api: Api, folder: Path) -> None:
    secret = folder.parent / "import-secret.jsonl"
    (folder / "link.jsonl").symlink_to(secret)
    (folder / "out").symlink_to(folder.parent)
    (folder / "loop").symlink_to(folder / "loop")
    os.mkfifo(folder / "pipe")
    attempts = (
        "../import-secret.jsonl",
        "below/../../import-secret.jsonl",
        str(secret),
        "link.jsonl",
        "out/import-secret.jsonl",
        "loop",
        "pipe",
        "below",
        "missing.jsonl",
        "/dev/zero",
        "/etc/passwd",
        "below/set.jsonl/x",
        "x" * 255,
    )
    admin = api.log_in(Role.ADMIN)
    answers = {location: bring(admin, location) for location in attempts}
    assert {location: answer.status_code for location, answer in answers.items()} == dict.fromkeys(
        attempts, 422
    )
    assert len({answer.json()["detail"] for answer in answers.values()}) == 1  # nor what is there
    assert api.count(datasets) == api.count(data_keys) == 0


def test_a_file_that_is_too_large_is_refused(api: Api, folder: Path) -> None:
    (folder / "large.jsonl").write_bytes(ROWS * 100)
    assert bring(api.log_in(Role.ADMIN), "large.jsonl").status_code == 413
    assert api.count(datasets) == 0


def test_without_a_folder_the_refusal_says_what_to_set(make_api, folder: Path) -> None:  # type: ignore[no-untyped-def]
    answer = bring(make_api().log_in(Role.ADMIN), str(folder / "below" / "set.jsonl"))
    assert answer.status_code == 422
    assert "MEDICHAT_DATASET_IMPORT_DIR" in answer.json()["detail"]


def test_a_dataset_of_the_hub_is_only_noted(api: Api) -> None:
    view = bring(api.log_in(Role.ADMIN), "lavita/ChatDoctor-HealthCareMagic-100k", "hub").json()
    assert (view["state"], view["source"], view["bytes"], view["sha256"]) == ("validating", "hub", None, None)
    assert view["source_name"] == view["name"] == "lavita/ChatDoctor-HealthCareMagic-100k"
    assert view["job_id"]


def test_a_checked_dataset_of_the_hub_has_a_commit_and_no_hash_of_a_file(api: Api) -> None:
    admin = api.log_in(Role.ADMIN)
    made = bring(admin, "owner/name", "hub").json()
    api.set(datasets, datasets.c.id == made["id"], sha256="0" * 64)  # as an earlier release left it
    check(api, revision="c0ffee")
    view = admin.get(f"/v1/datasets/{made['id']}").json()
    assert (view["state"], view["sha256"], view["revision"]) == ("ready", None, "c0ffee")


@pytest.mark.parametrize("location", ["lavita", "../x", "a/b/c", "https://x.example/a", "a /b", "a/../b"])
def test_what_is_no_hub_id_is_refused(api: Api, location: str) -> None:
    assert bring(api.log_in(Role.ADMIN), location, "hub").status_code == 422
    assert api.count(datasets) == 0
