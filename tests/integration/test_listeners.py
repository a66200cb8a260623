"""Who listens to the bell goes on listening, whatever comes over it and whatever goes wrong in a round."""

import asyncio
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from threading import Event

import pytest
import redis

from services.api.streaming import News
from shared.db.tables import jobs
from shared.jobs.leases import LeaseKeeper
from shared.jobs.lifecycle import EventKind
from shared.queue import CANCEL_CHANNEL, NEWS_CHANNEL, Ring, open_redis
from shared.settings import Settings
from tests.conftest import MakeApi, MakeSettings
from tests.integration.test_bell import BEYOND_MEASURE
from tests.support import Api, RedisServer, ask_async, wait_until


@pytest.fixture
def dialect() -> str:
    """What is heard does not depend on the database."""
    return "sqlite"


@contextmanager
def keeping(
    api: Api,
    *,
    listener: "redis.Redis | None" = None,
    heartbeat_s: float = 600,
    on_beat: Callable[[], None] = lambda: None,
) -> Iterator[LeaseKeeper]:
    """A keeper that learns of cancellations by the bell alone, unless its heart beats often."""
    keeper = LeaseKeeper(
        api.gateway.database,
        api.gateway.jobs,
        listener or open_redis(api.settings),
        heartbeat_s=heartbeat_s,
        on_beat=on_beat,
    )
    keeper.start()
    with closing(keeper):
        yield keeper


def publish(settings: Settings, channel: str, message: str) -> None:
    """Send it once somebody listens."""
    with closing(open_redis(settings)) as client:
        wait_until(lambda: client.publish(channel, message), what="for a listener")


@pytest.mark.parametrize("message", BEYOND_MEASURE)
def test_a_cancellation_is_heard_after_what_is_no_ring(api: Api, message: str) -> None:
    client, stopped = api.log_in(), Event()
    ask_async(client)
    job = api.claim()
    with keeping(api) as keeper, keeper.holding(job.claim, stopped.set):
        publish(api.settings, CANCEL_CHANNEL, message)
        client.post(f"/v1/jobs/{job.id}/cancel")
        assert stopped.wait(60)


def test_a_job_that_cannot_be_stopped_keeps_no_other_from_being_stopped(api: Api) -> None:
    client, stopped = api.log_in(), Event()
    for _ in range(2):
        ask_async(client)
    bad, good = api.claim(), api.claim()
    tried = Event()

    def fail() -> None:
        tried.set()
        raise ValueError

    with keeping(api) as keeper, ExitStack() as held:
        held.enter_context(keeper.holding(bad.claim, fail))
        held.enter_context(keeper.holding(good.claim, stopped.set))
        publish(api.settings, CANCEL_CHANNEL, Ring("nobody's").to_json())
        for job, heard in ((bad, tried), (good, stopped)):
            client.post(f"/v1/jobs/{job.id}/cancel")
            assert heard.wait(60)


def test_the_heart_beats_on_after_a_bug_in_a_beat(api: Api) -> None:
    beats: list[Event] = [Event(), Event()]

    def beat() -> None:
        if not beats[0].is_set():
            beats[0].set()
            raise ValueError
        beats[1].set()

    with keeping(api, heartbeat_s=0.05, on_beat=beat):
        assert beats[1].wait(60)


class StumblingRedis(redis.Redis):
    """Its first listener meets a bug."""

    stumbled = False

    def pubsub(self, **named: object) -> "redis.client.PubSub":
        if not self.stumbled:
            self.stumbled = True
            raise ValueError
        return super().pubsub(**named)


def test_cancellations_are_heard_after_a_bug_in_listening(api: Api) -> None:
    client, stopped = api.log_in(), Event()
    ask_async(client)
    job = api.claim()
    listener = StumblingRedis.from_url(api.settings.redis_url)
    with keeping(api, listener=listener, heartbeat_s=1) as keeper, keeper.holding(job.claim, stopped.set):
        publish(api.settings, CANCEL_CHANNEL, Ring(job.id).to_json())
        client.post(f"/v1/jobs/{job.id}/cancel")
        assert stopped.wait(60)


def test_a_wait_that_is_over_looks_once_more_for_an_answer_whose_ring_was_lost(api: Api) -> None:
    client = api.log_in()
    with ThreadPoolExecutor(1) as pool:
        asked = {"json": {"query": "What is asthma?"}, "headers": {"Prefer": "wait=1"}}
        pending = pool.submit(client.post, "/predict", **asked)
        wait_until(lambda: api.count(jobs))
        job = api.claim()
        with api.gateway.database.write() as connection:
            api.gateway.jobs.finish(connection, job.claim, EventKind.CANCELLED)
        assert pending.result(timeout=20).status_code != 202
    api.gateway.bell.news(job.id)


def test_a_cancellation_is_found_by_looking_while_the_bell_is_frozen(
    make_api: MakeApi, tmp_path: Path
) -> None:
    server = RedisServer(tmp_path).start()
    api = make_api(redis_url=server.url)
    client, stopped = api.log_in(), Event()
    ask_async(client)
    job = api.claim()
    with keeping(api) as keeper, keeper.holding(job.claim, stopped.set):
        publish(api.settings, CANCEL_CHANNEL, Ring("nobody's").to_json())
        server.process.send_signal(signal.SIGSTOP)
        client.post(f"/v1/jobs/{job.id}/cancel")
        assert stopped.wait(60)
    server.process.send_signal(signal.SIGCONT)
    server.kill()


class StumblingNews(News):
    """Its first round meets a bug."""

    stumbled = False

    async def _listen(self) -> None:
        if not self.stumbled:
            self.stumbled = True
            raise ValueError
        await super()._listen()


async def hears(settings: Settings, news: News, *messages: str) -> bool:
    """Whether the news of a job are heard after these messages."""
    news.start()
    with news.listening("job") as event:
        for message in (*messages, Ring("job").to_json()):
            await asyncio.to_thread(publish, settings, NEWS_CHANNEL, message)
        heard = await asyncio.wait_for(event.wait(), 60)
    await news.close()
    return heard


async def told_late(settings: Settings, seq: int) -> bool:
    """Whether who begins to listen after a ring, and then hears no other, is told of it."""
    news = News(settings)
    news.start()
    with news.listening("another") as another:
        for ring in (Ring("job", seq), Ring("another")):
            await asyncio.to_thread(publish, settings, NEWS_CHANNEL, ring.to_json())
        await asyncio.wait_for(another.wait(), 60)
    with news.listening("job", sentences=False) as event:
        told = event.is_set()
    await news.close()
    return told


async def wakes_who_waits_for_the_end(settings: Settings, seq: int) -> bool:
    """Whether a ring wakes who does not wait for sentences."""
    news = News(settings)
    news.start()
    with news.listening("job", sentences=False) as event, news.listening("job") as every:
        await asyncio.to_thread(publish, settings, NEWS_CHANNEL, Ring("job", seq).to_json())
        await asyncio.wait_for(every.wait(), 60)
        woken = event.is_set()
    await news.close()
    return woken


@pytest.mark.parametrize(("seq", "told"), [(0, True), (1, False)])
def test_who_listens_a_moment_too_late_is_told_that_the_job_changed(
    make_settings: MakeSettings, seq: int, told: bool
) -> None:
    assert asyncio.run(told_late(make_settings(), seq)) is told


@pytest.mark.parametrize(("seq", "wakes"), [(0, True), (1, False)])
def test_who_waits_for_the_end_is_not_woken_by_a_sentence(
    make_settings: MakeSettings, seq: int, wakes: bool
) -> None:
    assert asyncio.run(wakes_who_waits_for_the_end(make_settings(), seq)) is wakes


@pytest.mark.parametrize("message", BEYOND_MEASURE)
def test_news_are_heard_after_what_is_no_ring(make_settings: MakeSettings, message: str) -> None:
    settings = make_settings()
    assert asyncio.run(hears(settings, News(settings), message))


def test_news_are_heard_after_a_bug_in_listening(make_settings: MakeSettings) -> None:
    settings = make_settings()
    assert asyncio.run(hears(settings, StumblingNews(settings)))
