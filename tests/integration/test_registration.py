"""A worker's entry, and what a container's health check reads from it."""

from datetime import timedelta

from sqlalchemy import update

from shared.db.tables import workers
from shared.jobs.lifecycle import Kind
from shared.registration import Registration, is_alive, wanted_memory, worker_name
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
