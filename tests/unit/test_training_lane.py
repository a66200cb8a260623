"""Jobs of one place: one at a time, nobody waits, and none is forgotten."""

import threading
from collections import deque

from services.worker_train.lane import Lane


class Jobs:
    """Jobs that are done the moment they are taken, unless they are to take a while."""

    def __init__(self) -> None:
        self.waiting: deque[str] = deque()
        self.done: list[str] = []
        self.lane = Lane(self.take_next)
        #: Jobs are at work from `begun` until `may_end`.
        self.begun, self.may_end = threading.Event(), threading.Event()
        self.late: list[str] = []

    def take_next(self) -> bool:
        if not self.waiting:
            self.come_late()
            return False
        job = self.waiting.popleft()
        if job == "long":
            self.begun.set()
            assert self.may_end.wait(30)
        self.done.append(job)
        return True

    def come_late(self) -> None:
        """A job comes after the last look, while the lane is still taken."""
        if self.late:
            self.waiting.append(self.late.pop())
            in_time = threading.Thread(target=self.lane.work_off)
            in_time.start()
            in_time.join()
            assert self.waiting, "the lane was not taken"


def test_who_finds_the_lane_taken_goes_on_and_its_job_is_done() -> None:
    jobs = Jobs()
    jobs.waiting.append("long")
    worker = threading.Thread(target=jobs.lane.work_off)
    worker.start()
    assert jobs.begun.wait(30)
    jobs.waiting.append("short")
    jobs.lane.work_off()
    assert jobs.done == []
    jobs.may_end.set()
    worker.join()
    assert jobs.done == ["long", "short"]


def test_a_job_that_comes_while_the_lane_is_left_is_not_forgotten() -> None:
    jobs = Jobs()
    jobs.late.append("late")
    jobs.lane.work_off()
    assert jobs.done == ["late"]


def test_a_job_that_fails_leaves_the_lane_free() -> None:
    fails = iter((True, False))

    def take_next() -> bool:
        if next(fails):
            raise RuntimeError
        done.append("next")
        return False

    done: list[str] = []
    lane = Lane(take_next)
    for _ in range(2):
        try:
            lane.work_off()
        except RuntimeError:
            done.append("failed")
    assert done == ["failed", "next"]
