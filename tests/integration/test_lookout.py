"""Looking for jobs that nobody rings for: on a real database, with work that the test does."""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing

import pytest
from sqlalchemy import Connection

from shared.clock import DatabaseClock
from shared.db.engine import Database
from shared.jobs.lifecycle import EventKind, Kind
from shared.jobs.lookout import Lookout
from shared.jobs.store import JobRules, JobStore
from tests.conftest import MakeApi
from tests.support import Api, ask_async, wait_until

PLACES = 2


class Hands:
    """Who works: claims what there is, and keeps hold of it until told to let go."""

    def __init__(self, database: Database, jobs: JobStore) -> None:
        self._database, self._jobs = database, jobs
        self.held: list[str] = []
        self.let_go = threading.Event()

    def work_off(self) -> None:
        while (job := self._claim()) is not None:
            self.held.append(job.id)
            self.let_go.wait(30)
            with self._database.write() as connection:
                self._jobs.finish(connection, job.claim, EventKind.SUCCEEDED)

    def _claim(self):  # type: ignore[no-untyped-def]
        with self._database.write() as connection:
            return self._jobs.claim(connection, Kind.INFER, "hands")


@pytest.fixture
def api(make_api: MakeApi) -> Api:
    return make_api(reconcile_s=600)


@pytest.fixture
def hands(api: Api) -> Iterator[Hands]:
    made = Hands(api.gateway.database, JobStore(DatabaseClock(), JobRules(redispatch_s=0.05)))
    yield made
    made.let_go.set()


def lookout(hands: Hands, work_off: Callable[[], None] | None = None) -> Lookout:
    work = work_off or hands.work_off
    return Lookout(hands._database, hands._jobs, [Kind.INFER], work, places=PLACES)


def ask(api: Api, count: int) -> set[str]:
    """Questions of as many people."""
    return {ask_async(api.log_in())["id"] for _ in range(count)}


def test_what_nobody_rings_for_is_done(api: Api, hands: Hands) -> None:
    hands.let_go.set()
    with closing(lookout(hands)) as looking:
        looking.start()
        asked = ask(api, 5)
        wait_until(lambda: set(hands.held) == asked, 20, "for all to be taken up")


def test_no_more_is_begun_than_there_are_places(api: Api, hands: Hands) -> None:
    ask(api, 4)
    with closing(lookout(hands)) as looking:
        with looking.places:  # somebody works whom a ring woke
            looking.start()
            wait_until(lambda: len(hands.held) == 1, 20, "for the other place to be taken")
            looking.look()
            assert len(hands.held) == 1
        wait_until(lambda: len(hands.held) == PLACES, 20, "for the place that is free now")
        hands.let_go.set()
        wait_until(lambda: len(hands.held) == 4, 20, "for the rest")


def test_closing_waits_for_the_work_under_way(api: Api, hands: Hands) -> None:
    (job_id,) = ask(api, 1)
    looking = lookout(hands)
    looking.start()
    wait_until(lambda: hands.held, 20, "for the job to be taken up")
    closer = threading.Thread(target=looking.close)
    closer.start()
    assert closer.is_alive()
    hands.let_go.set()
    closer.join(20)
    with api.gateway.database.read() as connection:
        assert api.gateway.jobs.get(connection, job_id).state == "succeeded"


def test_work_that_fails_gives_its_place_back(api: Api, hands: Hands) -> None:
    hands.let_go.set()
    failures = iter([KeyError] * 3 * PLACES)

    def stumble() -> None:
        for error in failures:
            raise error
        hands.work_off()

    asked = ask(api, 1)
    with closing(lookout(hands, stumble)) as looking:
        looking.start()
        wait_until(lambda: set(hands.held) == asked, 20, "for the work that goes well")


def test_looking_goes_on_after_a_look_that_failed(api: Api, hands: Hands) -> None:
    class FailsOnce(JobStore):
        failed = False

        def count_overlooked(self, connection: Connection, kinds: Iterable[Kind], most: int) -> int:
            if not self.failed:
                self.failed = True
                raise ArithmeticError
            return super().count_overlooked(connection, kinds, most)

    hands._jobs = FailsOnce(DatabaseClock(), JobRules(redispatch_s=0.05))
    asked, out = ask(api, 1), lookout(hands)
    out.start()
    wait_until(lambda: set(hands.held) == asked)
    hands.let_go.set()
    out.close()
