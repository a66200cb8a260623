"""The bell: rings reach who listens, and never hold up or fail who rings."""

import base64
import json
import signal
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from queue import SimpleQueue

import pytest
from celery.contrib.testing.worker import start_worker

from shared.jobs.lifecycle import Kind
from shared.queue import (
    CANCEL_CHANNEL,
    ENOUGH_UNREAD,
    NEWS_CHANNEL,
    Bell,
    Ring,
    make_celery,
    open_redis,
    task_message,
    task_name,
)
from shared.settings import Settings
from tests.support import RedisServer, wait_until

#: JSON that Python reads and cannot hold: a number without end, a list in a list in a list.
BEYOND_MEASURE = ['{"job": "x", "seq": Infinity}', "[" * 100_000]


@pytest.fixture
def redis(tmp_path: Path):  # type: ignore[no-untyped-def]
    server = RedisServer(tmp_path).start()
    yield server
    server.kill()


@contextmanager
def unheard(redis: RedisServer, state: str) -> Iterator[Bell]:
    """A bell whose Redis is away meanwhile."""
    assert redis.process is not None
    bell = Bell(Settings(redis_url=redis.url))
    if state == "dead":
        redis.kill()
    else:
        redis.process.send_signal(signal.SIGSTOP)
    yield bell
    if redis.process is not None:
        redis.process.send_signal(signal.SIGCONT)
    bell.close()


def test_news_and_cancellations_reach_who_listens(redis: RedisServer) -> None:
    settings = Settings(redis_url=redis.url)
    with closing(open_redis(settings)) as client, client.pubsub(ignore_subscribe_messages=True) as listener:
        listener.subscribe(NEWS_CHANNEL, CANCEL_CHANNEL)
        listener.get_message(timeout=1)
        bell = Bell(settings)
        bell.news("j", 3)
        bell.cancel("j")
        heard = [wait_until(lambda: listener.get_message(timeout=1), 5) for _ in range(2)]
        bell.close()
    assert [Ring.from_json(message["data"]) for message in heard] == [Ring("j", 3), Ring("j", 0)]


def test_work_is_a_message_with_an_id_and_nothing_else(redis: RedisServer) -> None:
    settings = Settings(redis_url=redis.url)
    bell = Bell(settings)
    bell.work(Kind.INFER, "the-id")
    bell.close()
    with closing(open_redis(settings)) as client:
        (message,) = client.lrange("infer", 0, -1)
    assert b"medichat.infer" in message


def test_a_worker_of_celery_takes_the_message(redis: RedisServer) -> None:
    settings = Settings(redis_url=redis.url)
    app, taken = make_celery(settings), SimpleQueue[str]()

    @app.task(name=task_name(Kind.INFER))  # type: ignore[untyped-decorator]
    def infer(job_id: str) -> None:
        taken.put(job_id)

    bell = Bell(settings)
    for job_id in ("the-id", "the-next"):
        bell.work(Kind.INFER, job_id)
    # the level is that of this whole process, and stays
    with start_worker(app, pool="threads", perform_ping_check=False, loglevel="WARNING"):
        assert [taken.get(timeout=30) for _ in range(2)] == ["the-id", "the-next"]
    bell.close()


def test_the_message_is_what_celery_sends_less_what_may_be_left_out(redis: RedisServer) -> None:
    settings = Settings(redis_url=redis.url)
    with closing(make_celery(settings)) as celery, closing(open_redis(settings)) as client:
        celery.send_task(task_name(Kind.TRAIN), kwargs={"job_id": "the-id"}, queue=Kind.TRAIN.value)
        sent = json.loads(client.lindex(Kind.TRAIN.value, 0))
    ours = json.loads(task_message(Kind.TRAIN, "the-id"))
    assert ours.keys() == sent.keys()
    assert ours["headers"].keys() <= sent["headers"].keys()
    for part in (ours, sent):
        own = part["headers"].pop("id")
        assert own == part["headers"].pop("root_id") == part["properties"].pop("correlation_id")
        del part["properties"]["delivery_tag"]
        args, kwargs, _ = json.loads(base64.b64decode(part.pop("body")))
        assert (args, kwargs) == ([], {"job_id": "the-id"})
    assert ours["headers"].items() <= sent["headers"].items()
    del sent["properties"]["reply_to"]
    assert ours["properties"] == sent["properties"]


def test_rings_that_nobody_answers_do_not_fill_redis(redis: RedisServer) -> None:
    settings = Settings(redis_url=redis.url)
    bell = Bell(settings)
    for number in range(ENOUGH_UNREAD + 50):
        bell.work(Kind.INFER, str(number))
    bell.close()
    with closing(open_redis(settings)) as client:
        assert client.llen("infer") == ENOUGH_UNREAD


def test_who_reads_is_rung_for_again(redis: RedisServer) -> None:
    settings = Settings(redis_url=redis.url)
    with closing(open_redis(settings)) as client:
        client.rpush("infer", *range(ENOUGH_UNREAD))
        client.lpop("infer")
        bell = Bell(settings)
        bell.work(Kind.INFER, "the-next")
        bell.close()
        assert b"the-next" in client.lindex("infer", 0)


@pytest.mark.parametrize("state", ["dead", "frozen"])
def test_ringing_does_not_wait_for_a_redis_that_is(state: str, redis: RedisServer) -> None:
    with unheard(redis, state) as bell:
        begun = time.monotonic()
        for number in range(1000):
            bell.work(Kind.INFER, str(number))
            bell.news(str(number))
        took = time.monotonic() - begun
    assert took < 1, "a caller was held up"


def test_who_gives_way_goes_on_once_its_ring_was_heard(redis: RedisServer) -> None:
    settings = Settings(redis_url=redis.url)
    with closing(open_redis(settings)) as client, closing(Bell(settings)) as bell:
        bell.work(Kind.INFER, "first")  # connects
        wait_until(lambda: client.llen("infer") == 1, 5)
        found = []
        for number in range(2, 12):
            bell.work(Kind.INFER, str(number))
            bell.give_way()
            found.append(client.llen("infer") == number)
    assert sum(found) > len(found) / 2  # it waits for a moment only, which a busy machine may exceed


@pytest.mark.parametrize("state", ["dead", "frozen"])
def test_nobody_gives_way_for_long_to_a_redis_that_is(state: str, redis: RedisServer) -> None:
    with unheard(redis, state) as bell:
        begun = time.monotonic()
        for number in range(20):
            bell.work(Kind.INFER, str(number))
            bell.give_way()
        took = time.monotonic() - begun
    assert took < 1, "a caller was held up"


def test_ringing_works_again_once_redis_is_back(redis: RedisServer) -> None:
    settings = Settings(redis_url=redis.url)
    bell = Bell(settings)
    redis.kill()
    bell.work(Kind.INFER, "lost")
    redis.start()
    with closing(open_redis(settings)) as client:

        def heard() -> int:
            bell.work(Kind.INFER, "heard")
            return int(client.llen("infer"))

        wait_until(heard, 20, "for a ring to arrive")
    bell.close()


def test_ringing_goes_on_after_a_ring_that_nobody_foresaw(redis: RedisServer) -> None:
    settings = Settings(redis_url=redis.url)
    with closing(Bell(settings)) as bell, closing(open_redis(settings)) as client:
        bell.news(object())  # type: ignore[arg-type]  # JSON cannot say that
        wait_until(bell._pending.empty)
        bell.work(Kind.INFER, "heard")
        wait_until(lambda: client.llen("infer"), 5, "for a ring to arrive")


@pytest.mark.parametrize(
    "message", ["", "x", "[]", "{}", '{"job": 1, "seq": "x"}', "null", b"\xff", *BEYOND_MEASURE]
)
def test_what_is_not_a_ring_is_ignored(message: str | bytes) -> None:
    ring = Ring.from_json(message)
    assert ring is None or isinstance(ring.seq, int)
