"""The storage in a bucket, on a server that speaks S3."""

from collections.abc import Iterator

import boto3
import pytest
from moto.server import ThreadedMotoServer

from shared.storage import Storage

#: More than S3's least part of 5 MiB, so that a file goes up in several.
BIG = b"Mrs Example takes ten milligrams.\n" * 400_000


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture
def storage(server: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Storage:
    for name, value in {
        "AWS_ACCESS_KEY_ID": "clinic",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": server,
    }.items():
        monkeypatch.setenv(name, value)
    bucket = request.node.name.replace("_", "-")[:60].rstrip("-")
    boto3.client("s3", endpoint_url=server).create_bucket(Bucket=bucket)
    return Storage(f"s3://{bucket}/medichat")


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
