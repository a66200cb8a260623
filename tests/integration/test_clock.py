"""The time of the database, as every process reckons it."""

from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest
from sqlalchemy import text

from shared.clock import DatabaseClock
from shared.db.engine import Database


@pytest.fixture
def dialect() -> str:
    """PostgreSQL only: on SQLite the time is the host's."""
    return "postgresql"


def reading(*times: float) -> Callable[[], float]:
    """A steady clock that reads these times, and then the last for good."""
    left: Iterator[float] = iter(times)
    last = [0.0]

    def read() -> float:
        last[0] = next(left, last[0])
        return last[0]

    return read


def test_a_slow_answer_of_the_database_does_not_set_the_clock_back(database: Database) -> None:
    clock = DatabaseClock(steady=reading(*[0.0] * 9, 31.0), compare_every_s=-1.0)
    with database.write() as connection:
        first = clock.now(connection)
        second = clock.now(connection)
    assert second - first == timedelta(seconds=31)


def test_a_clock_that_was_compared_slowly_is_set_right_by_a_quick_answer(database: Database) -> None:
    clock = DatabaseClock(steady=reading(0.0, 30.0, 30.0, 30.0, 30.0, 30.0, 30.0))
    with database.write() as connection:
        real = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
        assert abs(clock.now(connection) - real) < timedelta(seconds=20)


def test_a_clock_that_is_ahead_of_the_database_is_set_back(database: Database) -> None:
    # an hour passes for the steady clock, and almost nothing for the database
    clock = DatabaseClock(steady=reading(*[0.0] * 7, 3600.0))
    with database.write() as connection:
        clock.now(connection)
        real = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
        assert abs(clock.now(connection) - real) < timedelta(minutes=1)
