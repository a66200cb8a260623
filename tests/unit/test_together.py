"""Callers that come at the same moment are worked on as a group, and one never harms another."""

import asyncio
import threading
from collections.abc import Callable

import pytest

from services.api.together import Together


class Worker:
    """Doubles numbers; keeps the groups that it was given; its first group waits until `go` is set."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.begun, self.go = threading.Event(), threading.Event()

    def __call__(self, numbers: list[int]) -> list[int | Exception]:
        self.groups.append(numbers)
        self.begun.set()
        assert self.go.wait(20)
        if 13 in numbers:
            raise ArithmeticError
        if 99 in numbers:
            raise ConnectionError
        return [ValueError(n) if n < 0 else 2 * n for n in numbers]


async def behind_the_first(
    together: Together[int, int], worker: Worker, numbers: list[int]
) -> list[int | BaseException]:
    """Send 0, and the numbers while it is under way; returns what became of the numbers."""
    first = asyncio.create_task(together(0))
    await asyncio.to_thread(worker.begun.wait, 20)
    others = [asyncio.create_task(together(number)) for number in numbers]
    await asyncio.sleep(0)  # lets each of them queue up
    worker.go.set()
    await first
    return await asyncio.gather(*others, return_exceptions=True)


@pytest.fixture
def worker() -> Worker:
    return Worker()


def run(worker: Worker, numbers: list[int], **options: object) -> list[int | BaseException]:
    async def main() -> list[int | BaseException]:
        return await behind_the_first(Together(worker, **options), worker, numbers)  # type: ignore[arg-type]

    return asyncio.run(main())


def test_who_comes_while_a_group_is_under_way_is_in_the_next(worker: Worker) -> None:
    assert run(worker, [1, 2, 3]) == [2, 4, 6]
    assert worker.groups == [[0], [1, 2, 3]]


def test_a_group_has_a_limit(worker: Worker) -> None:
    assert run(worker, [1, 2, 3], most=2) == [2, 4, 6]
    assert worker.groups == [[0], [1, 2], [3]]


def test_an_item_that_is_refused_leaves_the_others_theirs(worker: Worker) -> None:
    one, refused, three = run(worker, [1, -2, 3])
    assert (one, three) == (2, 6)
    assert isinstance(refused, ValueError)


def test_an_item_that_breaks_its_group_harms_only_itself(worker: Worker) -> None:
    one, broken, three = run(worker, [1, 13, 3])
    assert (one, three) == (2, 6)
    assert isinstance(broken, ArithmeticError)


def test_a_fate_that_all_share_is_not_tried_for_each(worker: Worker) -> None:
    outcomes = run(worker, [1, 99, 3], shared_fate=(ConnectionError,))
    assert [type(outcome) for outcome in outcomes] == [ConnectionError] * 3
    assert len(worker.groups) == 2


def test_a_caller_who_has_gone_does_not_hold_up_the_others(worker: Worker) -> None:
    async def main() -> int:
        together = Together(worker)
        gone = asyncio.create_task(together(0))
        await asyncio.to_thread(worker.begun.wait, 20)
        stays = asyncio.create_task(together(5))
        await asyncio.sleep(0)
        gone.cancel()
        worker.go.set()
        return await stays

    assert asyncio.run(main()) == 10


def test_it_works_again_after_a_pause(worker: Worker) -> None:
    async def main(together: Callable[[int], object]) -> list[object]:
        return [await together(1), await together(2)]  # type: ignore[misc]

    worker.go.set()
    assert asyncio.run(main(Together(worker))) == [2, 4]
