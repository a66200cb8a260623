"""A worker's entry, and what a container's health check reads from it."""

from datetime import timedelta

from sqlalchemy import update

from shared.db.tables import workers
from shared.jobs.lifecycle import Kind
from shared.registration import Registration, is_alive, worker_name
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
