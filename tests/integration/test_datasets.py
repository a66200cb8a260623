"""Datasets on their way in: received, sealed, checked, looked into, hidden."""

import hashlib
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any

import httpx
import pytest
from sqlalchemy import select
from sqlalchemy.engine import make_url

from services.api.receiving import Reception
from shared.audit import record
from shared.auth.roles import Role
from shared.db.tables import data_keys, jobs
from shared.db.tables_training import datasets, training_runs
from shared.errors import Conflict, LeaseLost
from shared.guard.verdict import Audience
from shared.ids import new_id
from shared.jobs.lifecycle import EventKind, Kind
from shared.jobs.records import Job, NewJob
from shared.privacy.sealed import SealedWriter
from shared.storage import Storage
from shared.training.dataset_files import Split, image_path, open_sealed, place_of, raw_path
from shared.training.dataset_records import Dataset
from shared.training.datasets import SILENT_FOR, By
from shared.training.options import DatasetOptions
from shared.training.states import DatasetState
from tests.conftest import MakeApi
from tests.support import Api, wait_until
from tests.uploads import ROWS, WORD, check, claim_check, row, upload, uploaded, write_part, write_picture

PNG = b"the bytes of a picture"


@pytest.fixture
def admin(api: Api) -> httpx.Client:
    return api.log_in(Role.ADMIN)


def files(api: Api) -> list[Path]:
    """Everything in storage, the unfinished too."""
    return [path for path in Path(api.settings.storage_url).rglob("*") if path.is_file()]


def nothing_is_left(api: Api) -> bool:
    return not files(api) and api.count(datasets) == api.count(data_keys) == api.count(jobs) == 0


def read_raw(api: Api, dataset_id: str) -> bytes:
    store = api.gateway.datasets
    with api.gateway.database.read() as connection:
        key = store.key(connection, store.get(connection, dataset_id))
    with open_sealed(store.storage, key, raw_path(dataset_id)) as file:
        return file.read()


# -- receiving


def test_an_upload_is_kept_as_it_came_and_its_check_is_queued(api: Api, admin: httpx.Client) -> None:
    view = upload(admin, phi="quarantine", validation_fraction=0.2, seed=7, max_tokens=64).json()
    assert (view["state"], view["bytes"], view["source_name"]) == ("validating", len(ROWS), "set.jsonl")
    assert view["sha256"] == hashlib.sha256(ROWS).hexdigest()
    assert {name: view["options"][name] for name in ("phi", "validation_fraction", "seed", "max_tokens")} == {
        "phi": "quarantine",
        "validation_fraction": 0.2,
        "seed": 7,
        "max_tokens": 64,
    }
    assert read_raw(api, view["id"]) == ROWS
    job = claim_check(api)
    assert (job.id, job.lane, job.max_attempts, job.deadline_at) == (view["job_id"], "batch", 3, None)
    (event,) = api.audit("dataset.received")
    assert (event.object, event.outcome) == (f"dataset:{view['id']}", "done")


def test_no_word_of_it_is_on_disk_in_the_clear(api: Api, admin: httpx.Client) -> None:
    uploaded(admin)
    check(api, report={"worst": WORD})
    assert len(files(api)) == 4
    database = make_url(api.settings.database_url).database or ""
    for path in [*api.settings.state_dir.rglob("*"), *Path(database).parent.glob(f"{Path(database).name}*")]:
        assert not path.is_file() or WORD.encode() not in path.read_bytes(), path


def peak_bytes() -> int:
    """The most memory that this process has held since `forget_peak`."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) * 1024


def forget_peak() -> int:
    """Begin to watch memory; returns what is held now."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_bytes()


def test_memory_does_not_grow_with_the_file(admin: httpx.Client) -> None:
    block = b"x" * 100_000
    before = forget_peak()
    uploaded(admin, (block for _ in range(1000)))
    assert peak_bytes() - before < 40_000_000


def test_an_upload_of_many_frames_comes_back_whole(api: Api, admin: httpx.Client) -> None:
    content = ROWS * 12_000
    assert read_raw(api, uploaded(admin, (ROWS for _ in range(12_000)))) == content


def test_columns_can_be_named(admin: httpx.Client) -> None:
    view = upload(admin, column=["question:Frage", "answer:Antwort", "group:"]).json()
    assert view["options"]["columns"] == {"question": "Frage", "answer": "Antwort", "group": ""}


@contextmanager
def half_an_upload(api: Api, admin: httpx.Client) -> Iterator[None]:
    """A connection that has sent the first third of what it announced."""
    head = (
        "POST /v1/datasets?name=a&filename=a.jsonl HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n"
        f"Authorization: {admin.headers['Authorization']}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", api.settings.api_port)) as connection:
        connection.sendall(head.encode() + b"x" * 3_000_000)
        wait_until(lambda: files(api), what="for the first bytes in storage")
        yield


def test_an_upload_under_way_is_in_the_list(api: Api, admin: httpx.Client) -> None:
    with half_an_upload(api, admin):
        (item,) = admin.get("/v1/datasets").json()["items"]
        assert item["state"] == "receiving"
        assert admin.delete(f"/v1/datasets/{item['id']}").status_code == 409


def test_a_client_that_goes_away_leaves_nothing(api: Api, admin: httpx.Client) -> None:
    with half_an_upload(api, admin):
        pass
    wait_until(lambda: nothing_is_left(api), what="for the upload to be forgotten")
    (event,) = api.audit("dataset.received")
    assert event.outcome == "failed"


def test_a_client_that_falls_silent_leaves_nothing(
    api: Api, admin: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.api.routers.datasets._SILENCE_S", 0.3)
    with half_an_upload(api, admin):
        wait_until(lambda: nothing_is_left(api), what="for the upload to be given up")


SECRET = "Maria_Huber_letters.jsonl"


def name_told(admin: httpx.Client, dataset_id: str) -> str:
    """The name that an admin is shown, the same in the list."""
    told = admin.get(f"/v1/datasets/{dataset_id}").json()["source_name"]
    listed = {each["id"]: each["source_name"] for each in admin.get("/v1/datasets").json()["items"]}
    assert listed[dataset_id] == told
    return str(told)


def test_the_name_of_a_file_is_sealed_like_its_rows_and_is_nowhere_else(
    api: Api, admin: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    dataset_id = upload(admin, name=None, filename=SECRET).json()["id"]
    assert upload(admin, b"", filename=SECRET).status_code == 422
    assert upload(admin, b"x", filename=SECRET * 20).status_code == 422
    assert name_told(admin, dataset_id) == SECRET
    with api.gateway.database.read() as connection:
        row = connection.execute(select(datasets).where(datasets.c.id == dataset_id)).one()
    assert row.source_name == ""
    assert row.source_name_ciphertext is not None
    assert row.name == f"Data of {row.created_at:%d %b %Y, %H:%M}"
    assert not [column for column, value in row._mapping.items() if "Huber" in str(value)]
    told = [row.canonical_bytes for row in api.audit()]
    assert told
    assert not [each for each in told if b"Huber" in each]
    assert "Huber" not in caplog.text


def test_the_name_of_a_file_goes_with_its_key(api: Api, admin: httpx.Client) -> None:
    dataset_id = upload(admin, filename=SECRET).json()["id"]
    api.set(data_keys, data_keys.c.key_id.is_not(None), wrapped_key=None)
    assert name_told(admin, dataset_id) == ""


@pytest.mark.parametrize(
    ("table", "damage"),
    [(datasets, {"source_name_ciphertext": b"tampered"}), (data_keys, {"master_key_version": 9})],
)
def test_the_name_of_a_file_that_cannot_be_read_is_told_from_one_that_was_erased(
    api: Api, admin: httpx.Client, table: Any, damage: dict[str, Any]
) -> None:
    dataset_id = upload(admin, filename=SECRET).json()["id"]
    api.set(table, table.c.key_id.is_not(None), **damage)
    assert name_told(admin, dataset_id) == "(cannot be read)"


class Died(BaseException):
    """The gateway was killed."""


class Undeletable(Storage):
    """Nothing in it can be removed, for a reason."""

    def __init__(self, url: str, reason: BaseException) -> None:
        super().__init__(url)
        self._reason = reason

    def delete(self, path: str) -> None:
        raise self._reason


@pytest.mark.parametrize("reason", [Died(), PermissionError("no")], ids=["killed", "refused"])
def test_a_file_that_an_upload_leaves_which_broke_off_at_its_very_end_goes_with_it_later(
    api: Api, reason: BaseException
) -> None:
    api.gateway.datasets.storage = Undeletable(str(api.settings.storage_url), reason)
    whom = {"name": "a", "source": "upload", "source_name": "a", "options": DatasetOptions(), "total": None}
    reception = Reception(api.gateway, api.principal(api.person(Role.ADMIN)), **whom)
    reception.write(ROWS)
    api.set(datasets, datasets.c.id == reception.dataset_id, state=DatasetState.READY)
    with pytest.raises(Conflict):
        reception.finish()
    api.set(datasets, datasets.c.id == reception.dataset_id, state=DatasetState.RECEIVING)
    with suppress(Died):
        reception.abandon("broke-off")
    assert files(api)
    assert api.count(datasets, datasets.c.hidden_at.is_(None)) == isinstance(reason, Died)
    long_ago = datetime.now(UTC) - 2 * SILENT_FOR
    api.set(datasets, datasets.c.id == reception.dataset_id, progress_at=long_ago)
    wait_until(lambda: nothing_is_left(api), what="for maintenance")
    assert len(api.audit("dataset.received")) == isinstance(reason, OSError)


def test_an_upload_whose_gateway_died_is_forgotten(api: Api, admin: httpx.Client) -> None:
    kept, person = uploaded(admin), api.person(Role.ADMIN)
    store, by = api.gateway.datasets, By(person.id, Audience.PATIENT, record.Actor(person.id))
    with api.gateway.database.write() as connection:
        now = api.gateway.clock.now(connection)
        dead, _ = store.create(
            connection, name="x", source="upload", source_name="x", options=DatasetOptions(), by=by, now=now
        )
        assert store.silent(connection, now) == []
        assert store.silent(connection, now + SILENT_FOR + timedelta(seconds=1)) == [dead]
        assert store.abandon(connection, dead)
        assert not store.abandon(connection, kept)
        assert store.get(connection, kept).id == kept
    assert api.count(data_keys) == 1


@pytest.mark.parametrize("chunked", [False, True])
def test_more_than_the_limit_is_refused_and_leaves_nothing(make_api, chunked: bool) -> None:  # type: ignore[no-untyped-def]
    api = make_api(max_dataset_bytes=2_000_000)
    content = (b"x" * 1000 for _ in range(3000)) if chunked else b"x" * 3_000_000
    answer = upload(api.log_in(Role.ADMIN), content)
    assert (answer.status_code, answer.json()["type"]) == (413, "urn:medichat:problem:body-too-large")
    wait_until(lambda: nothing_is_left(api))


def test_only_uploads_may_be_large(admin: httpx.Client) -> None:
    body = {"name": "a", "source": "hub", "location": "a" * 300_000}
    assert admin.post("/v1/datasets/import", json=body).status_code == 413


def test_an_empty_file_is_refused_and_leaves_nothing(api: Api, admin: httpx.Client) -> None:
    assert upload(admin, b"").status_code == 422
    assert nothing_is_left(api)


class FullDisk(Storage):
    """Every file is on a device without room."""

    @contextmanager
    def create(self, path: str) -> Iterator[IO[bytes]]:
        with open("/dev/full", "wb", buffering=0) as file:
            yield file


def test_a_full_disk_is_named_and_leaves_nothing(api: Api, admin: httpx.Client, tmp_path: Path) -> None:
    api.gateway.datasets.storage = FullDisk(str(tmp_path / "full"))
    answer = upload(admin)
    assert (answer.status_code, answer.json()["type"]) == (507, "urn:medichat:problem:storage-full")
    assert nothing_is_left(api)


def test_a_wrong_option_is_refused_before_anything_is_kept(api: Api, admin: httpx.Client) -> None:
    wrong: list[dict[str, Any]] = [
        {"phi": "ignore"},
        {"validation_fraction": "nan"},
        {"validation_fraction": 0.6},
        {"max_tokens": 8},
        {"model": "gpt"},
        {"column": "question"},
        {"column": "question:Frage"},
        {"colour": "red"},
        {"name": " "},
        {"filename": "a\x00b"},
    ]
    assert [upload(admin, **query).status_code for query in wrong] == [422] * len(wrong)
    assert nothing_is_left(api)


# -- who may


def test_all_admins_share_datasets_and_nobody_else_sees_them(api: Api, admin: httpx.Client) -> None:
    dataset_id = uploaded(admin)
    assert api.log_in(Role.ADMIN).get(f"/v1/datasets/{dataset_id}").status_code == 200
    for role in (Role.USER, Role.AUDITOR):
        client = api.log_in(role)
        assert client.get(f"/v1/datasets/{dataset_id}").status_code == 403
        assert upload(client).status_code == 403
    assert upload(api.client()).status_code == 401
    assert len(files(api)) == 1


# -- looking


def test_the_list_is_newest_first_and_comes_in_pages(admin: httpx.Client) -> None:
    made = [uploaded(admin, name=f"Set {number}") for number in range(3)]
    first = admin.get("/v1/datasets", params={"limit": 2}).json()
    second = admin.get("/v1/datasets", params={"limit": 2, "cursor": first["next_cursor"]}).json()
    assert [item["id"] for item in first["items"] + second["items"]] == made[::-1]
    assert second["next_cursor"] is None


def test_the_report_is_shown_with_the_dataset_and_the_look_is_logged(api: Api, admin: httpx.Client) -> None:
    dataset_id = uploaded(admin)
    assert admin.get(f"/v1/datasets/{dataset_id}").json()["report"] is None
    assert api.audit("dataset.report_read") == []
    check(api, report={"rows_in": 5, "note": WORD})
    view = admin.get(f"/v1/datasets/{dataset_id}").json()
    assert (view["state"], view["rows_train"], view["shape"]) == ("ready", 3, "question_answer")
    assert view["report"] == {"rows_in": 5, "note": WORD}
    assert len(api.audit("dataset.report_read")) == 1


def test_rows_come_in_pages_across_parts(api: Api, admin: httpx.Client) -> None:
    dataset_id = uploaded(admin)
    check(api, parts=3, rows_a_part=3)
    seen, offset = [], 0
    while offset is not None:
        page = admin.get(f"/v1/datasets/{dataset_id}/rows", params={"offset": offset, "limit": 4}).json()
        assert page["total"] == 9
        seen += [row["id"] for row in page["items"]]
        offset = page["next_offset"]
    assert seen == list(range(9))


def test_rows_set_aside_say_why(api: Api, admin: httpx.Client) -> None:
    dataset_id = uploaded(admin)
    check(api)
    page = admin.get(f"/v1/datasets/{dataset_id}/rows", params={"split": "quarantine"}).json()
    assert [(row["line"], row["reason"]) for row in page["items"]] == [(5, "dangerous")]


def test_looking_at_rows_is_logged_without_their_text(api: Api, admin: httpx.Client) -> None:
    dataset_id = uploaded(admin)
    check(api)
    assert WORD in admin.get(f"/v1/datasets/{dataset_id}/rows").text
    (event,) = api.audit("dataset.rows_read")
    assert event.object == f"dataset:{dataset_id}"
    assert all(WORD.encode() not in each.canonical_bytes for each in api.audit())


def test_a_rows_picture_is_given_to_admins_and_the_look_is_logged(api: Api, admin: httpx.Client) -> None:
    dataset_id = uploaded(admin)
    check(api, picture=PNG)
    (row, *_) = admin.get(f"/v1/datasets/{dataset_id}/rows").json()["items"]
    answer = admin.get(f"/v1/datasets/{dataset_id}/images/{row['image']}")
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "image/png")
    assert answer.content == PNG
    (event,) = api.audit("dataset.image_read")
    assert (event.object, row["image"] in event.canonical_bytes.decode()) == (f"dataset:{dataset_id}", True)


def test_a_picture_that_no_row_names_is_not_found(api: Api, admin: httpx.Client) -> None:
    dataset_id = uploaded(admin)
    dataset, _ = check(api)
    stray = write_picture(api, dataset, PNG)["sha256"]
    assert admin.get(f"/v1/datasets/{dataset_id}/images/{stray}").status_code == 404


def test_words_in_place_of_a_pictures_name_reach_no_event(api: Api, admin: httpx.Client) -> None:
    dataset_id = uploaded(admin)
    check(api, picture=PNG)
    assert admin.get(f"/v1/datasets/{dataset_id}/images/{WORD}").status_code == 422
    assert api.audit("dataset.image_read") == []


def test_a_picture_that_was_changed_is_not_shown(api: Api, admin: httpx.Client) -> None:
    dataset_id = uploaded(admin)
    dataset, manifest = check(api, picture=PNG)
    sha256, store = manifest["images"][0]["sha256"], api.gateway.datasets
    with api.gateway.database.read() as connection:
        key = store.key(connection, dataset)
    path = image_path(dataset_id, sha256)
    with store.storage.create(path) as file, SealedWriter(file, key, place=place_of(path)) as sealed:
        sealed.write(b"another picture")  # under the right key and place
    answer = admin.get(f"/v1/datasets/{dataset_id}/images/{sha256}")
    assert (answer.status_code, answer.json()["type"]) == (409, "urn:medichat:problem:dataset-damaged")


def test_before_the_check_has_ended_there_are_no_rows(admin: httpx.Client) -> None:
    assert admin.get(f"/v1/datasets/{uploaded(admin)}/rows").status_code == 409


def test_a_part_that_was_changed_or_lost_is_not_read(api: Api, admin: httpx.Client) -> None:
    dataset_id = uploaded(admin)
    dataset, manifest = check(api)
    path, store = manifest["parts"][0]["path"], api.gateway.datasets
    with api.gateway.database.read() as connection:
        key = store.key(connection, dataset)
    with store.storage.create(path) as file, SealedWriter(file, key, place=place_of(path)) as sealed:
        sealed.write(b"{}")  # under the right key and place, but not what was checked
    answer = admin.get(f"/v1/datasets/{dataset_id}/rows")
    assert (answer.status_code, answer.json()["type"]) == (409, "urn:medichat:problem:dataset-damaged")
    store.storage.delete(path)
    assert admin.get(f"/v1/datasets/{dataset_id}/rows").status_code == 409


def test_an_altered_manifest_opens_no_row_and_costs_no_file_until_a_check_makes_another(
    api: Api, admin: httpx.Client
) -> None:
    dataset_id = uploaded(admin)
    _, manifest = check(api)
    parts = [{**part, "split": "train"} for part in manifest["parts"][1:]]
    api.set(datasets, datasets.c.id == dataset_id, manifest={**manifest, "parts": parts})
    answer = admin.get(f"/v1/datasets/{dataset_id}/rows")
    assert (answer.status_code, answer.json()["type"]) == (409, "urn:medichat:problem:dataset-damaged")
    before = files(api)
    with api.gateway.database.read() as connection:
        api.gateway.datasets.tidy(connection, dataset_id)
    assert files(api) == before
    assert admin.post(f"/v1/datasets/{dataset_id}/validate", json={}).status_code == 202
    check(api, rows_a_part=2)
    assert admin.get(f"/v1/datasets/{dataset_id}/rows").json()["total"] == 2


# -- checking


def test_progress_of_a_check_is_shown(api: Api, admin: httpx.Client) -> None:
    dataset_id = uploaded(admin)
    job = claim_check(api)
    with api.gateway.database.write() as connection:
        api.gateway.datasets.note_progress(connection, job.claim, done=2, total=5, what="rows")
    progress = admin.get(f"/v1/datasets/{dataset_id}").json()["progress"]
    assert progress == {"done": 2, "total": 5, "what": "rows"}


def test_a_check_that_lost_its_job_writes_nothing(api: Api, admin: httpx.Client) -> None:
    dataset_id = uploaded(admin)
    old = claim_check(api)
    with api.gateway.database.write() as connection:
        api.gateway.jobs.drain(connection, old.claim)
    new = claim_check(api)
    with pytest.raises(LeaseLost), api.gateway.database.write() as connection:
        api.gateway.datasets.reject(connection, old.claim, code="x", detail="x")
    assert admin.get(f"/v1/datasets/{dataset_id}").json()["state"] == "validating"
    assert new.epoch > old.epoch


def reject(api: Api, *, keep_upload: bool, job: Job | None = None) -> None:
    job = job or claim_check(api)
    with api.gateway.database.write() as connection:
        store = api.gateway.datasets
        done = store.reject(connection, job.claim, code="bad", detail="Mend it.", keep_upload=keep_upload)
        api.gateway.jobs.finish(connection, job.claim, EventKind.FAILED, error="bad", error_detail="Mend it.")
    with api.gateway.database.read() as connection:
        store.tidy(connection, done.id)


def test_a_broken_file_is_thrown_away_and_says_what_to_do(api: Api, admin: httpx.Client) -> None:
    dataset_id = uploaded(admin)
    reject(api, keep_upload=False)
    view = admin.get(f"/v1/datasets/{dataset_id}").json()
    assert (view["state"], view["error"]) == ("rejected", {"code": "bad", "detail": "Mend it."})
    assert files(api) == []
    assert admin.post(f"/v1/datasets/{dataset_id}/validate", json={}).status_code == 409


def test_what_other_options_may_cure_can_be_checked_again(api: Api, admin: httpx.Client) -> None:
    dataset_id = uploaded(admin)
    job = claim_check(api)
    with api.gateway.database.read() as connection:
        dataset = api.gateway.datasets.get(connection, dataset_id)
    write_part(api, dataset, Split.TRAIN, [row(1)])
    write_picture(api, dataset, PNG)
    reject(api, keep_upload=True, job=job)
    assert [path.name for path in files(api)] == ["raw"]
    again = admin.post(
        f"/v1/datasets/{dataset_id}/validate",
        json={"options": {"columns": {"question": "Frage", "answer": "Antwort"}}},
    )
    assert (again.status_code, again.json()["state"], again.json()["error"]) == (202, "validating", None)
    check(api)
    assert admin.get(f"/v1/datasets/{dataset_id}").json()["state"] == "ready"


def test_a_check_that_died_leaves_a_dataset_that_can_be_checked_again(api: Api, admin: httpx.Client) -> None:
    dataset_id = uploaded(admin)
    job = claim_check(api)
    with api.gateway.database.write() as connection:
        api.gateway.jobs.finish(
            connection, job.claim, EventKind.FAILED, error="worker-lost", error_detail="Tell your admin."
        )
    view = admin.get(f"/v1/datasets/{dataset_id}").json()
    assert (view["state"], view["error"]["code"]) == ("rejected", "worker-lost")
    assert admin.post(f"/v1/datasets/{dataset_id}/validate", json={}).status_code == 202


@pytest.mark.parametrize("died", [True, False])
def test_the_report_of_a_former_check_is_not_told_beside_a_later_rejection(
    api: Api, admin: httpx.Client, died: bool
) -> None:
    dataset_id = uploaded(admin)
    check(api)
    assert admin.get(f"/v1/datasets/{dataset_id}").json()["report"] is not None
    assert admin.post(f"/v1/datasets/{dataset_id}/validate", json={}).status_code == 202
    if died:
        job = claim_check(api)
        with api.gateway.database.write() as connection:
            api.gateway.jobs.finish(connection, job.claim, EventKind.FAILED, error="worker-lost")
    else:
        reject(api, keep_upload=True)
    view = admin.get(f"/v1/datasets/{dataset_id}").json()
    assert (view["state"], view["report"]) == ("rejected", None)
    assert admin.get(f"/v1/datasets/{dataset_id}/rows").json()["total"] == 3, "its rows stay readable"


def test_checking_again_makes_a_new_version_and_removes_the_old(api: Api, admin: httpx.Client) -> None:
    dataset_id = uploaded(admin)
    first, old = check(api)
    assert admin.post(f"/v1/datasets/{dataset_id}/validate", json={}).status_code == 202
    assert admin.post(f"/v1/datasets/{dataset_id}/validate", json={}).status_code == 409
    assert admin.get(f"/v1/datasets/{dataset_id}/rows").json()["total"] == 3  # the former, until then
    assert admin.get(f"/v1/datasets/{dataset_id}").json()["report"] is None
    second, new = check(api, rows_a_part=2)
    assert {part["path"].split("/")[2].partition("-")[0] for part in new["parts"]} == {"v2"}
    stored = {str(path.relative_to(api.settings.storage_url)) for path in files(api)}
    assert stored == {raw_path(dataset_id), *(part["path"] for part in new["parts"])}
    assert first.manifest_sha256 != second.manifest_sha256
    assert admin.get(f"/v1/datasets/{dataset_id}/rows").json()["total"] == 2
    assert old["parts"][0]["path"] not in stored


def test_the_rows_of_an_attempt_that_lost_its_job_are_not_taken(api: Api, admin: httpx.Client) -> None:
    dataset_id = uploaded(admin)
    old = claim_check(api)
    with api.gateway.database.read() as connection:
        dataset = api.gateway.datasets.get(connection, dataset_id)
    part = write_part(api, dataset, Split.TRAIN, [row(1)])
    with api.gateway.database.write() as connection:
        api.gateway.jobs.drain(connection, old.claim)
    new = claim_check(api)
    manifest = {"parts": [part], "raw_sha256": "0" * 64, "shape": "messages", "options": {}}
    with pytest.raises(ValueError, match="must name parts in"), api.gateway.database.write() as connection:
        api.gateway.datasets.mark_ready(
            connection, new.claim, rows_train=1, rows_validation=0, manifest=manifest, report={}
        )


def test_a_manifest_of_another_version_is_refused(api: Api, admin: httpx.Client) -> None:
    uploaded(admin)
    _, manifest = check(api)
    uploaded(admin)
    job = claim_check(api)
    with pytest.raises(ValueError, match="must name parts in"), api.gateway.database.write() as connection:
        api.gateway.datasets.mark_ready(
            connection, job.claim, rows_train=3, rows_validation=1, manifest=manifest, report={}
        )


# -- hiding


def test_a_hidden_dataset_is_seen_no_more_but_not_erased(api: Api, admin: httpx.Client) -> None:
    dataset_id = uploaded(admin)
    check(api)
    assert admin.delete(f"/v1/datasets/{dataset_id}").status_code == 204
    assert admin.get("/v1/datasets").json()["items"] == []
    for path in ("", "/rows"):
        assert admin.get(f"/v1/datasets/{dataset_id}{path}").status_code == 404
    assert admin.delete(f"/v1/datasets/{dataset_id}").status_code == 404
    assert len(files(api)) == 4
    assert len(api.audit("dataset.hidden")) == 1


def test_hiding_stops_a_check(api: Api, admin: httpx.Client) -> None:
    dataset_id = uploaded(admin)
    assert admin.delete(f"/v1/datasets/{dataset_id}").status_code == 204
    assert api.count(jobs, jobs.c.state == "cancelled") == 1


@pytest.mark.parametrize("dialect", ["postgresql"])  # writers of SQLite take turns
def test_hiding_ends_no_check_that_another_is_just_ending(make_api: MakeApi, dialect: str) -> None:
    api = make_api(reconcile_s=600)
    admin, gateway = api.log_in(Role.ADMIN), api.gateway
    dataset_id = uploaded(admin)
    with ThreadPoolExecutor(1) as pool:
        with gateway.database.write() as connection:
            job_id = gateway.datasets.get(connection, dataset_id).job_id
            assert job_id is not None
            assert gateway.jobs.cancel(connection, job_id) is not None
            other = pool.submit(admin.delete, f"/v1/datasets/{dataset_id}")
            wait_until(api.waits_for_lock)
        assert other.result().status_code == 204
    assert not api.audit("validate.cancelled")


def begin_run(api: Api, dataset: Dataset) -> None:
    """A run on the dataset that waits for a worker."""
    job = NewJob(id=new_id(), kind=Kind.TRAIN, user_id=dataset.created_by, audience=Audience.PATIENT)
    with api.gateway.database.write() as connection:
        now = api.gateway.clock.now(connection)
        api.gateway.jobs.submit(connection, job, now)
        run = {"id": new_id(), "name": "a run", "job_id": job.id, "dataset_id": dataset.id, "recipe": {}}
        made = {"base_model": "demo", "created_by": dataset.created_by, "created_at": now}
        connection.execute(training_runs.insert().values(**run, **made))


def test_a_dataset_that_a_run_uses_stays_as_it_is(api: Api, admin: httpx.Client) -> None:
    dataset_id = uploaded(admin)
    done, _ = check(api)
    begin_run(api, done)
    assert admin.delete(f"/v1/datasets/{dataset_id}").status_code == 409
    assert admin.post(f"/v1/datasets/{dataset_id}/validate", json={}).status_code == 409


def test_what_was_trained_on_is_never_checked_again(api: Api, admin: httpx.Client) -> None:
    dataset_id = uploaded(admin)
    done, _ = check(api)
    begin_run(api, done)
    api.set(jobs, jobs.c.kind == Kind.TRAIN, state="succeeded")
    answer = admin.post(f"/v1/datasets/{dataset_id}/validate", json={})
    assert answer.status_code == 409
    assert "upload it again as a new dataset" in answer.json()["detail"]
    assert admin.get(f"/v1/datasets/{dataset_id}").json()["state"] == "ready"


def test_a_run_names_the_manifest_of_the_rows_that_it_trains_on(api: Api, admin: httpx.Client) -> None:
    dataset_id = uploaded(admin)
    done, _ = check(api)
    run = admin.post("/v1/training-runs", json={"name": "a run", "dataset_id": dataset_id}).json()
    assert done.manifest_sha256 is not None
    assert run["manifest_sha256"] == done.manifest_sha256
