"""A worker's entry, and what a container's health check reads from it."""

import socket
from datetime import timedelta

import pytest
from sqlalchemy import select, update

from shared.db.tables import workers
from shared.jobs.lifecycle import Kind
from shared.registration import AWAITED, REMEMBERED, Registration, is_alive, wanted_memory, worker_name
from tests.support import Api, wait_until


def entered(api: Api) -> Registration:
    registration = Registration(api.gateway.database, api.gateway.clock, worker_name(Kind.TRAIN))
    registration.enter(Kind.TRAIN, "demo", {})
    return registration


def test_a_worker_lives_from_its_entry_until_it_leaves(api: Api) -> None:
    assert not is_alive(api.settings, Kind.TRAIN)
    registration = entered(api)
    assert is_alive(api.settings, Kind.TRAIN)
    assert not is_alive(api.settings, Kind.INFER)
    assert len(api.audit("worker.started")) == 1
    registration.leave()
    assert not is_alive(api.settings, Kind.TRAIN)


def test_a_worker_enters_on_a_host_whose_name_is_as_long_as_names_get(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts = [f"{'worker-train-0123456789' * 2}-{end}".ljust(63, "x") for end in "ab"]
    monkeypatch.setattr(socket, "gethostname", lambda: hosts[0])
    entered(api)
    assert is_alive(api.settings, Kind.TRAIN)
    monkeypatch.setattr(socket, "gethostname", lambda: hosts[1])
    assert not is_alive(api.settings, Kind.TRAIN), "what tells them apart is not cut off"


def names(api: Api) -> set[str]:
    with api.gateway.database.read() as connection:
        return set(connection.execute(select(workers.c.id)).scalars())


def test_a_worker_that_was_killed_enters_again_as_another(api: Api) -> None:
    entered(api)
    (before,) = names(api)
    again = entered(api)  # the same kind on the same host with the same number, as in a container
    (after,) = names(api) - {before}
    assert before in names(api)
    again.leave()
    assert names(api) == {before}, f"{after} is another than {before}"


def test_who_enters_forgets_those_that_are_long_gone(api: Api) -> None:
    entered(api)
    (gone,) = names(api)
    with api.gateway.database.write() as connection:
        then = api.gateway.clock.now(connection) - REMEMBERED
        connection.execute(update(workers).values(last_seen_at=then))
    entered(api)
    (left,) = names(api)
    assert left != gone


def test_a_worker_that_was_silent_for_three_heartbeats_is_not_well(api: Api) -> None:
    registration = entered(api)
    ago = timedelta(seconds=3 * api.settings.heartbeat_s + 1)
    with api.gateway.database.write() as connection:
        then = api.gateway.clock.now(connection) - ago
        connection.execute(update(workers).values(last_seen_at=then))
    assert not is_alive(api.settings, Kind.TRAIN)
    registration.report({})
    assert is_alive(api.settings, Kind.TRAIN)


def test_what_workers_that_answer_will_still_take_is_summed_by_memory(api: Api) -> None:
    for number, (kind, memory) in enumerate(
        [(Kind.INFER, "gpu:a"), (Kind.INFER, "gpu:a"), (Kind.INFER, "gpu:b"), (Kind.TRAIN, "gpu:a")]
    ):
        registration = Registration(api.gateway.database, api.gateway.clock, f"{kind}@host:{number}")
        registration.enter(kind, "demo", {})
        registration.report({"memory": memory, "wanted_bytes": 10 + number})
    with api.gateway.database.read() as connection:
        now = api.gateway.clock.now(connection)
        assert wanted_memory(connection, now, api.settings.heartbeat_s) == {"gpu:a": 21, "gpu:b": 12}
        later = now + timedelta(seconds=3 * api.settings.heartbeat_s + 1)
        assert wanted_memory(connection, later, api.settings.heartbeat_s) == {}


GPU = "gpu:a"


def serving(api: Api, number: int, **figures: int) -> Registration:
    """A worker of one GPU that answers, and reported these figures."""
    registration = Registration(api.gateway.database, api.gateway.clock, f"infer@host:{number}")
    registration.enter(Kind.INFER, "demo", {}, {"memory": GPU, **figures})
    return registration


def loading(api: Api, *, wanted: int) -> Registration:
    """A worker of this host and the same GPU that loads."""
    registration = Registration(api.gateway.database, api.gateway.clock, worker_name(Kind.INFER))
    registration.prepare(Kind.INFER, "demo", memory=GPU, wanted_bytes=wanted)
    return registration


def kept(api: Api) -> int:
    """Bytes of the GPU that a training must leave."""
    with api.gateway.database.read() as connection:
        now = api.gateway.clock.now(connection)
        return wanted_memory(connection, now, api.settings.heartbeat_s).get(GPU, 0)


def pass_time(api: Api, time: timedelta) -> None:
    """Nobody reports for so long."""
    with api.gateway.database.write() as connection:
        for row in connection.execute(select(workers)).all():
            moments = {"started_at": row.started_at - time, "last_seen_at": row.last_seen_at - time}
            connection.execute(update(workers).where(workers.c.id == row.id).values(moments))


def test_what_a_silent_worker_had_is_kept_for_it_for_some_minutes(api: Api) -> None:
    serving(api, 1, wanted_bytes=3, footprint_bytes=20)
    assert kept(api) == 3
    pass_time(api, timedelta(seconds=2 * api.settings.heartbeat_s + 1))
    assert kept(api) == 20
    pass_time(api, AWAITED)
    assert kept(api) == 0


def test_nothing_is_kept_for_a_worker_that_left(api: Api) -> None:
    serving(api, 1, wanted_bytes=3, footprint_bytes=20).leave()
    pass_time(api, timedelta(minutes=1))
    assert kept(api) == 0


def test_a_worker_that_loads_is_left_room_and_is_not_well(api: Api) -> None:
    loads = loading(api, wanted=8)
    assert kept(api) == 8
    pass_time(api, timedelta(minutes=20))
    assert kept(api) == 0, "it says no more that it lives"
    loads.beat()
    assert kept(api) == 8, "to load takes long"
    assert api.client().get("/readyz").json()["workers"] == 0
    assert not is_alive(api.settings, Kind.INFER)
    loads.enter(Kind.INFER, "demo", {}, {"memory": GPU, "wanted_bytes": 2, "footprint_bytes": 10})
    assert kept(api) == 2
    assert api.client().get("/readyz").json()["workers"] == 1
    assert is_alive(api.settings, Kind.INFER)
    assert len(names(api)) == 1


def test_a_worker_that_loads_takes_the_place_and_the_room_of_one_that_fell_silent(api: Api) -> None:
    serving(api, 1, wanted_bytes=3, footprint_bytes=20)
    pass_time(api, timedelta(minutes=1))
    for _ in range(3):  # it fails, and is started again
        loading(api, wanted=8)
        assert kept(api) == 20
        pass_time(api, timedelta(minutes=1))
    assert kept(api) == 20
    serving(api, 2, wanted_bytes=3, footprint_bytes=20)
    assert kept(api) == 3, "what it had, it has again"


def test_workers_that_load_side_by_side_are_each_left_their_room(api: Api) -> None:
    first, second = loading(api, wanted=8), loading(api, wanted=8)
    pass_time(api, timedelta(minutes=1))
    first.beat()
    second.beat()
    assert kept(api) == 16
    serving(api, 3, wanted_bytes=3)
    assert kept(api) == 19


def test_a_worker_says_that_it_lives_while_it_loads(api: Api) -> None:
    loads = loading(api, wanted=8)
    pass_time(api, timedelta(minutes=1))
    with loads.beating(0.01):
        wait_until(lambda: kept(api) == 8, 10, "for a beat")
    pass_time(api, timedelta(minutes=1))
    assert kept(api) == 0


def test_each_worker_takes_the_place_of_one(api: Api) -> None:
    first = serving(api, 1)
    serving(api, 2, footprint_bytes=20)
    first.report({"memory": GPU, "footprint_bytes": 20})
    pass_time(api, timedelta(minutes=1))
    loading(api, wanted=8)
    assert kept(api) == 40


def test_those_that_failed_while_they_loaded_are_forgotten_when_the_next_one_loads(api: Api) -> None:
    loading(api, wanted=8)
    serving(api, 1, footprint_bytes=20)
    pass_time(api, AWAITED)
    loading(api, wanted=8)
    assert len(names(api)) == 2
