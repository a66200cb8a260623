"""A worker's entry, and what a container's health check reads from it."""

import socket
from datetime import timedelta

import pytest
from sqlalchemy import select, update

from shared.db.tables import workers
from shared.jobs.lifecycle import Kind
from shared.registration import REMEMBERED, Registration, is_alive, wanted_memory, worker_name
from tests.support import Api


def entered(api: Api) -> Registration:
    registration = Registration(api.gateway.database, api.gateway.clock, worker_name(Kind.TRAIN))
    registration.enter(Kind.TRAIN, "demo", {})
    return registration


def test_a_worker_lives_from_its_entry_until_it_leaves(api: Api) -> None:
    assert not is_alive(api.settings, Kind.TRAIN)
    registration = entered(api)
    assert is_alive(api.settings, Kind.TRAIN)
    assert not is_alive(api.settings, Kind.INFER)
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
