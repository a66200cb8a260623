"""Maintenance: one gateway's at a time, and no job stands in the way of another."""

import errno
import threading
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select

from services.api import maintenance
from services.api.leftovers import Leftovers
from services.api.maintenance import Maintenance
from shared.auth.roles import Role
from shared.db.engine import Database
from shared.db.leases import hold_lease
from shared.db.tables import data_keys, jobs, leases, released_sentences
from shared.db.tables_training import datasets
from shared.jobs.lifecycle import State
from shared.jobs.records import Job
from shared.storage import Storage, StorageAway
from shared.training.dataset_files import Split
from shared.training.states import DatasetState
from tests.conftest import MakeApi
from tests.support import Api, ask_async
from tests.uploads import claim_check, row, uploaded, write_part

PAST = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def resting(make_api: MakeApi) -> Api:
    """A gateway whose own maintenance did its first round and rests; its lease has run out."""
    api = make_api(reconcile_s=600, max_attempts=1)
    api.wait_for_maintenance()
    api.set(leases, leases.c.holder != "", expires_at=PAST)
    return api


def lost_job(api: Api) -> Job:
    """A job with one sentence whose worker was silent for too long."""
    ask_async(api.log_in())
    job = api.claim()
    api.release(job, "A sentence.")
    api.set(jobs, jobs.c.id == job.id, lease_expires_at=PAST)
    return job


def state(api: Api, job: Job) -> State:
    with api.gateway.database.read() as connection:
        return api.gateway.jobs.get(connection, job.id).state


@pytest.mark.parametrize("harm", ["key destroyed", "text broken"])
def test_a_job_whose_text_cannot_be_opened_ends_and_holds_nobody_up(resting: Api, harm: str) -> None:
    job, other = lost_job(resting), lost_job(resting)
    if harm == "key destroyed":
        owned = data_keys.c.owner_id == job.conversation_id
        resting.set(data_keys, owned, wrapped_key=None, destroyed_at=PAST)
    else:
        resting.set(released_sentences, released_sentences.c.job_id == job.id, ciphertext=b"broken")
    Maintenance(resting.gateway).round()
    assert state(resting, job) is state(resting, other) is State.FAILED
    ends = {event.object: event for event in resting.audit("answer.failed")}
    assert b"unreadable" in ends[f"job:{job.id}"].canonical_bytes
    assert b"unreadable" not in ends[f"job:{other.id}"].canonical_bytes


def test_a_job_whose_text_was_erased_can_be_cancelled(api: Api) -> None:
    client = api.log_in()
    job = ask_async(client)
    api.set(data_keys, data_keys.c.owner_id == job["conversation_id"], wrapped_key=None, destroyed_at=PAST)
    assert client.post(f"/v1/jobs/{job['id']}/cancel").json()["state"] == "cancelled"


def test_of_two_maintenances_one_works_until_its_lease_has_run_out(resting: Api) -> None:
    first, second = Maintenance(resting.gateway), Maintenance(resting.gateway)
    first.round()
    job = lost_job(resting)
    second.round()
    assert state(resting, job) is State.RUNNING
    soon = datetime.now(UTC) - timedelta(seconds=1)
    resting.set(leases, leases.c.holder != "", expires_at=soon)
    second.round()
    assert state(resting, job) is State.FAILED


def test_a_lease_of_before_the_clock_was_set_back_keeps_nobody_out(database: Database) -> None:
    life, now = timedelta(seconds=5), PAST

    def taken(holder: str, moment: datetime) -> bool:
        with database.write() as connection:
            return hold_lease(connection, "any", holder, life=life, now=moment)

    assert taken("killed", now)
    assert not taken("next", now - timedelta(seconds=1)), "a little is no jump"
    assert not taken("next", now)
    assert taken("next", now - timedelta(hours=1))
    assert not taken("third", now - timedelta(hours=1))


def test_the_names_of_files_that_an_earlier_release_stored_in_the_clear_are_sealed(resting: Api) -> None:
    admin = resting.log_in(Role.ADMIN)
    old, erased, broken, hub = (uploaded(admin) for _ in range(4))
    resting.set(datasets, datasets.c.id != hub, source_name="Maria_Huber.jsonl", source_name_ciphertext=None)
    resting.set(
        datasets, datasets.c.id == hub, source="hub", source_name="owner/name", source_name_ciphertext=None
    )
    resting.set(data_keys, data_keys.c.owner_id == erased, wrapped_key=None, destroyed_at=PAST)
    resting.set(data_keys, data_keys.c.owner_id == broken, wrapped_key=b"broken")

    def stored() -> dict[str, str]:
        with resting.gateway.database.read() as connection:
            found = connection.execute(select(datasets.c.id, datasets.c.source_name))
            return {row.id: row.source_name for row in found}

    def told() -> dict[str, str]:
        items = admin.get("/v1/datasets").json()["items"]
        return {each["id"]: each["source_name"] for each in items}

    assert (told()[old], told()[hub]) == ("Maria_Huber.jsonl", "owner/name")
    Maintenance(resting.gateway).round()
    clear = {broken: "Maria_Huber.jsonl", hub: "owner/name"}
    assert stored() == {**clear, old: "", erased: ""}
    assert told() == {**clear, old: "Maria_Huber.jsonl", erased: ""}


class Stubborn(Storage):
    """One folder of it cannot be removed."""

    def __init__(self, url: str, folder: str) -> None:
        super().__init__(url)
        self._folder = folder

    def delete(self, path: str) -> None:
        if path == self._folder:
            raise PermissionError(errno.EACCES, "Permission denied")
        super().delete(path)


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_uploads_that_were_given_up_are_forgotten_once_their_files_are_gone(resting: Api) -> None:
    client = resting.log_in(Role.ADMIN)
    first, _ = (uploaded(client) for _ in range(2))
    resting.set(datasets, datasets.c.id.is_not(None), state=DatasetState.RECEIVING, progress_at=PAST)
    store, now = resting.gateway.datasets, datetime.now(UTC)

    def known() -> list[str]:
        with resting.gateway.database.read() as connection:
            return store.silent(connection, now)

    url = str(resting.settings.storage_url)
    Leftovers(resting.gateway, Stubborn(url, f"datasets/{first}")).round(now)
    assert known() == [first]
    assert store.storage.list("datasets") == [f"datasets/{first}/raw"]
    Leftovers(resting.gateway).round(now)
    assert known() == store.storage.list("datasets") == []


class Away(Storage):
    """It cannot be reached while something is to be removed."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.asked = 0

    def delete(self, path: str) -> None:
        self.asked += 1
        raise StorageAway("away")


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_a_storage_that_is_away_is_asked_once_a_round_and_is_told_of_once(
    resting: Api, caplog: pytest.LogCaptureFixture
) -> None:
    client = resting.log_in(Role.ADMIN)
    for _ in range(3):
        uploaded(client)
    resting.set(datasets, datasets.c.id.is_not(None), state=DatasetState.RECEIVING, progress_at=PAST)
    storage, now = Away(str(resting.settings.storage_url)), datetime.now(UTC)
    leftovers = Leftovers(resting.gateway, storage)
    leftovers.round(now)
    leftovers.round(now)
    assert storage.asked == 2
    said = [each.message for each in caplog.records if each.name == "services.api.leftovers"]
    assert len(said) == 1
    assert "MEDICHAT_STORAGE_URL" in said[0]
    with resting.gateway.database.read() as connection:
        assert len(resting.gateway.datasets.silent(connection, now)) == 3


class Waking(Storage):
    """While the files of one upload are removed, the other uploads come after all."""

    def __init__(self, url: str, api: Api) -> None:
        super().__init__(url)
        self._api, self.deleted = api, []

    def delete(self, path: str) -> None:
        self.deleted.append(path)
        self._api.set(datasets, datasets.c.id.is_not(None), progress_at=datetime.now(UTC))
        super().delete(path)


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_an_upload_that_comes_while_others_are_forgotten_is_kept(resting: Api) -> None:
    client = resting.log_in(Role.ADMIN)
    for _ in range(2):
        uploaded(client)
    resting.set(datasets, datasets.c.id.is_not(None), state=DatasetState.RECEIVING, progress_at=PAST)
    storage = Waking(str(resting.settings.storage_url), resting)
    Leftovers(resting.gateway, storage).round(datetime.now(UTC))
    assert len(storage.deleted) == 1
    assert len(resting.gateway.datasets.storage.list("datasets")) == 1


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_what_a_check_wrote_whose_worker_died_is_removed_and_its_upload_stays(resting: Api) -> None:
    dataset_id, store = uploaded(resting.log_in(Role.ADMIN)), resting.gateway.datasets
    job = claim_check(resting)
    with resting.gateway.database.read() as connection:
        dataset = store.get(connection, dataset_id)
    part = write_part(resting, dataset, Split.TRAIN, [row(1)])["path"]
    maintenance = Maintenance(resting.gateway)
    maintenance.round()
    assert part in store.storage.list("datasets"), "the check is under way"
    resting.set(jobs, jobs.c.id == job.id, lease_expires_at=PAST, attempt=job.max_attempts)
    maintenance.round()
    assert state(resting, job) is State.FAILED
    assert store.storage.list("datasets") == [f"datasets/{dataset_id}/raw"]


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_what_a_worker_that_was_cut_off_wrote_after_its_check_had_ended_is_removed_later(
    resting: Api,
) -> None:
    dataset_id, store = uploaded(resting.log_in(Role.ADMIN)), resting.gateway.datasets
    job, leftovers, now = claim_check(resting), Leftovers(resting.gateway), datetime.now(UTC)
    with resting.gateway.database.read() as connection:
        dataset = store.get(connection, dataset_id)
    part = write_part(resting, dataset, Split.TRAIN, [row(1)])["path"]
    resting.set(jobs, jobs.c.id == job.id, lease_expires_at=PAST, attempt=job.max_attempts)
    Maintenance(resting.gateway).round()
    leftovers.round(now)
    with store.storage.create(part) as late:
        late.write(b"sealed rows")
    leftovers.round(now + timedelta(seconds=3 * resting.settings.lease_s))
    assert store.storage.list("datasets") == [f"datasets/{dataset_id}/raw"]


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_who_waits_for_the_maintenance_waits_for_the_end_of_its_round(
    make_api: MakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Event()

    def works_for_long(*_: object) -> None:
        threading.Event().wait(0.3)
        ended.set()

    monkeypatch.setattr(maintenance, "index_waiting", works_for_long)
    make_api(reconcile_s=600).wait_for_maintenance()
    assert ended.is_set()
