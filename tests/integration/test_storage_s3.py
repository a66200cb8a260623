"""The storage in a bucket, on a server that speaks S3."""

import json
import os
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem

from services.api.retention import Retention
from services.worker_train.child import Exit
from services.worker_train.worker import PROGRAMS
from shared.auth.roles import Role
from shared.jobs.lifecycle import Kind
from shared.privacy.erased import read_erased
from shared.settings import Settings
from shared.storage import Storage, StorageAway
from shared.training.dataset_files import Split
from tests.conftest import MakeApi
from tests.practice_worker import PROGRAMS as PRACTICE
from tests.support import Person, wait_until
from tests.training import School, environment_of, worker_thread
from tests.uploads import upload, uploaded

#: More than S3's least part of 5 MiB, so that a file goes up in several.
BIG = b"Mrs Example takes ten milligrams.\n" * 400_000


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadedMotoServer]:
    """A server to which the environment leads."""
    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "clinic",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_MAX_ATTEMPTS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    S3FileSystem.clear_instance_cache()  # it would go on with the server of the test before
    yield running
    running.stop()


@pytest.fixture
def url(server: ThreadedMotoServer, request: pytest.FixtureRequest) -> str:
    """A place in an empty bucket."""
    bucket = request.node.name.replace("_", "-")[:60].rstrip("-")
    boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"]).create_bucket(Bucket=bucket)
    return f"s3://{bucket}/medichat"


@pytest.fixture
def storage(url: str) -> Storage:
    return Storage(url)


@pytest.fixture
def dialect() -> str:
    """The storage knows no database."""
    return "sqlite"


def test_what_is_written_is_read_back(storage: Storage) -> None:
    for path, data in {"datasets/a/raw": BIG, "datasets/a/report.json": b"{}"}.items():
        with storage.create(path) as file:
            file.write(data)
        assert storage.size(path) == len(data)
        with storage.open(path) as file:
            assert file.read() == data
    assert storage.list("datasets") == ["datasets/a/raw", "datasets/a/report.json"]


def test_half_a_file_is_no_file(storage: Storage) -> None:
    def break_off() -> None:
        with storage.create("datasets/a/half") as file:
            file.write(BIG)
            raise EOFError

    with pytest.raises(EOFError):
        break_off()
    assert not storage.exists("datasets/a/half")
    assert storage.list("datasets") == []


def test_a_folder_is_deleted_with_all_in_it_and_again(storage: Storage) -> None:
    with storage.create("datasets/a/raw") as file:
        file.write(b"x")
    storage.delete("datasets/a")
    storage.delete("datasets/a")
    assert storage.list("datasets") == []
    with pytest.raises(FileNotFoundError):
        storage.open("datasets/a/raw")


def test_an_outage_is_an_error_of_the_system(server: ThreadedMotoServer, storage: Storage) -> None:
    with storage.create("datasets/a/raw") as file:
        file.write(BIG)
    begun = storage.open("datasets/a/raw")
    server.stop()
    with pytest.raises(StorageAway):
        begun.read()
    for look in (storage.open, storage.exists, storage.size, storage.list, storage.delete):
        with pytest.raises(StorageAway):
            look("datasets/b")
    with pytest.raises(StorageAway), storage.create("datasets/b") as file:
        file.write(b"x")


def test_an_upload_to_a_storage_that_is_away_is_unavailable_and_leaves_no_dataset(
    server: ThreadedMotoServer, url: str, make_api: MakeApi
) -> None:
    client = make_api(storage_url=url).log_in(Role.ADMIN)
    server.stop()
    answer = upload(client)
    assert answer.status_code == 503
    assert "MEDICHAT_STORAGE_URL" in answer.json()["detail"]
    assert client.get("/v1/datasets").json()["items"] == []


def test_names_are_of_what_lies_directly_in_a_folder(storage: Storage) -> None:
    for path in ("signed/1/a", "signed/2/b", "signed/c"):
        with storage.create(path):
            pass
    assert sorted(storage.names("signed")) == ["1", "2", "c"]
    assert storage.names("signed/1") == ["a"]
    assert storage.names("nothing") == []


@pytest.mark.timeout(25)  # a patient one waits for minutes
def test_checkpoints_are_soon_away_where_the_server_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
            monkeypatch.setenv(name, "clinic")
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        S3FileSystem.clear_instance_cache()
        place = Storage.of_checkpoints(Settings(checkpoint_url="s3://clinic/checkpoints"))
        with pytest.raises(OSError, match="imeout"):
            place.names("signed")
    S3FileSystem.clear_instance_cache()


def test_what_another_process_wrote_is_there_and_can_be_deleted(storage: Storage, url: str) -> None:
    with storage.create("datasets/a/raw"):
        pass
    assert storage.list("datasets") == ["datasets/a/raw"]
    bucket, _, root = url.removeprefix("s3://").partition("/")
    other = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
    for name in ("a/rows", "b/raw"):
        other.put_object(Bucket=bucket, Key=f"{root}/datasets/{name}", Body=b"x")
    assert storage.exists("datasets/a/rows")
    storage.delete("datasets/b")
    assert storage.list() == ["datasets/a/raw", "datasets/a/rows"]


def test_what_was_erased_is_listed_in_a_bucket_at_once_or_when_it_is_back(
    url: str, make_api: MakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = make_api(checkpoint_url=url, reconcile_s=600)
    api.wait_for_maintenance()
    admin, first, second = api.log_in(Role.ADMIN), api.person(), api.person()
    place = Storage.of_checkpoints(api.settings)

    def erase(person: Person) -> None:
        erased = admin.post(f"/v1/users/{person.id}/erase", json={"name": person.name})
        assert erased.status_code == 200, erased.text

    erase(first)
    assert read_erased(place) == {first.id}
    S3FileSystem.clear_instance_cache()
    with monkeypatch.context() as away:
        away.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
        erase(second)
    S3FileSystem.clear_instance_cache()
    Retention(api.gateway).round(datetime.now(UTC))
    assert read_erased(Storage.of_checkpoints(api.settings)) == {first.id, second.id}


def test_a_dataset_is_sealed_in_a_bucket_and_a_run_goes_on_from_what_was_mirrored_there(
    url: str, make_api: MakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    school = School(make_api(storage_url=url, lease_s=20, heartbeat_s=1, retry_base_s=0.1))
    for name, value in environment_of(school.api.settings).items():
        monkeypatch.setenv(name, value)  # for the check, which is no practice
    school.wish(steps=30, exit_at={"25": Exit.REFUSED})
    store, words = school.api.gateway.datasets, [f"quillwort {number}" for number in range(40)]
    rows = [{"question": f"What is {word}?", "answer": f"It is plant {word} of many."} for word in words]
    programs = {Kind.VALIDATE: PROGRAMS[Kind.VALIDATE], Kind.TRAIN: PRACTICE[Kind.TRAIN]}
    with worker_thread(school.api.settings, programs):
        sent = uploaded(school.client, "".join(json.dumps(row) + "\n" for row in rows).encode())
        seen = f"/v1/datasets/{sent}"
        wait_until(lambda: school.client.get(seen).json()["state"] != "validating", 60, "for the check")
        with school.api.gateway.database.read() as connection:
            reader = store.reader(connection, sent)
        report = f"{Path(reader.manifest.parts[0].path).parent}/report.json"
        wait_until(lambda: not store.storage.exists(report), 20, "for the files to be tidied")
        files = objects(url)
        assert {part.path for part in reader.manifest.parts} < files.keys()
        assert not [path for path, data in files.items() if b"quillwort" in data]
        assert {"quillwort" in str(row) for row in reader.rows(Split.TRAIN)} == {True}
        school.dataset_id = sent
        run_id = school.submit()["id"]
        assert school.wait_for_end(run_id)["state"] == "failed"
        (school.folder(run_id) / "checkpoints").rename(school.state_dir / "of-another-host")
        school.resume(run_id)
        assert school.wait_for_end(run_id)["state"] == "succeeded"
    assert "Goes on from the checkpoint of step 20" in school.notes(run_id)


def objects(url: str) -> dict[str, bytes]:
    """What lies in the bucket, by its path in the storage."""
    bucket, _, root = url.removeprefix("s3://").partition("/")
    other = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
    keys = [each["Key"] for each in other.list_objects_v2(Bucket=bucket)["Contents"]]
    return {
        key.removeprefix(f"{root}/"): other.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys
    }
