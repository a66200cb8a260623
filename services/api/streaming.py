"""Follows a job's rows as they appear. It writes nothing and knows no HTTP.

The rows are true; a ring on Redis only says when to look. With Redis silent they are looked for
four times a second.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar

import redis.asyncio
from redis.exceptions import RedisError
from sqlalchemy import Connection
from starlette.concurrency import run_in_threadpool

from services.api.state import Gateway
from shared.auth.sessions import is_open
from shared.conversations import Sentence
from shared.errors import NotAuthenticated
from shared.jobs.lifecycle import TERMINAL, State
from shared.jobs.records import Job
from shared.logs import where
from shared.queue import NEWS_CHANNEL, Ring, redis_url
from shared.settings import Settings

log = logging.getLogger(__name__)
T = TypeVar("T")

_LOOK_S = 2.0  # how long to trust a healthy bell
_LOOK_WITHOUT_BELL_S = 0.25
_PING_S = 1.0
_CHECK_READER_S = 1.0
_SILENT_S = 3.0
#: Rings; between a job's row and who listens for it there is a moment, and this is seconds of a full load.
_REMEMBERED = 1000


class News:
    """Wakes those who wait for a job when the bell rings for it; one listener per process."""

    def __init__(self, settings: Settings) -> None:
        self._redis = redis.asyncio.Redis.from_url(
            redis_url(settings), socket_connect_timeout=1, socket_timeout=2
        )
        #: By job, who waits for it, and whether they wait for each sentence.
        self._waiters: dict[str, dict[asyncio.Event, bool]] = {}
        #: The jobs whose state changed last, for those who begin to listen a moment too late.
        self._changed: deque[str] = deque(maxlen=_REMEMBERED)
        self._heard_at = float("-inf")
        self._task: asyncio.Task[None] | None = None

    @property
    def healthy(self) -> bool:
        """Whether Redis answered within the last seconds."""
        return time.monotonic() - self._heard_at < _SILENT_S

    def start(self) -> None:
        """Begin to listen; from within the event loop."""
        self._task = asyncio.create_task(self._run(), name="news")

    async def close(self) -> None:
        """Stop listening and wake everybody."""
        if self._task is not None:
            self._task.cancel()
        for events in self._waiters.values():
            for event in events:
                event.set()
        await self._redis.aclose()

    @contextmanager
    def listening(self, job_id: str, *, sentences: bool = True) -> Iterator[asyncio.Event]:
        """An event that is set whenever the bell rings for this job; or only when its state changed.

        The latter is set already when that was a moment ago: who waits for sentences looks first.
        """
        event = asyncio.Event()
        if not sentences and job_id in self._changed:
            event.set()
        self._waiters.setdefault(job_id, {})[event] = sentences
        try:
            yield event
        finally:
            waiting = self._waiters[job_id]
            del waiting[event]
            if not waiting:
                del self._waiters[job_id]

    async def wait(self, event: asyncio.Event) -> None:
        """Until the bell rings, or until it is time to look anyway."""
        with suppress(TimeoutError):
            await asyncio.wait_for(event.wait(), _LOOK_S if self.healthy else _LOOK_WITHOUT_BELL_S)
        event.clear()

    async def _run(self) -> None:
        while True:
            try:
                await self._listen()
            except (RedisError, OSError) as error:
                log.warning("cannot hear the bell (%s): looking for rows instead", type(error).__name__)
            except Exception as error:  # the listener must outlive a bug in one round
                log.error("hearing the bell failed, so rows are looked for: %s", where(error))
            await asyncio.sleep(1)

    async def _listen(self) -> None:
        async with self._redis.pubsub() as pubsub:
            await pubsub.subscribe(NEWS_CHANNEL)
            pinged_at = 0.0
            while True:
                message = await pubsub.get_message(timeout=_PING_S)
                now = time.monotonic()
                if message is not None:
                    self._heard_at = now
                if now - pinged_at >= _PING_S:
                    await pubsub.ping()
                    pinged_at = now
                if message is not None and message["type"] == "message":
                    ring = Ring.from_json(message["data"])
                    if ring is not None:
                        self._tell(ring)

    def _tell(self, ring: Ring) -> None:
        if ring.seq == 0:
            self._changed.append(ring.job_id)
        for event, sentences in self._waiters.get(ring.job_id, {}).items():
            if sentences or ring.seq == 0:
                event.set()


@dataclass(frozen=True)
class Look:
    """A job and its new sentences, read in one snapshot."""

    job: Job
    sentences: list[Sentence]

    @property
    def ended(self) -> bool:
        """Whether nothing will follow."""
        return self.job.state in TERMINAL


def look(connection: Connection, gateway: Gateway, job_id: str, after: int) -> Look:
    """The job, and its sentences after number `after`."""
    # the job is read first: sentences that come later are at most too many for that state, never too few
    job = gateway.jobs.get(connection, job_id)
    if job.conversation_id is None or job.first_sentence_at is None:
        return Look(job, [])
    sentences = gateway.conversations.read_sentences(connection, job.conversation_id, job_id, after=after)
    return Look(job, sentences)


def _may_read(gateway: Gateway, session_id: str) -> bool:
    with gateway.database.read() as connection:
        return is_open(connection, session_id, gateway.clock.now(connection))


async def follow(
    gateway: Gateway,
    news: News,
    job_id: str,
    tell: Callable[[Connection, Look], T],
    *,
    after: int = 0,
    reader: str | None = None,
) -> AsyncIterator[tuple[Look, T]]:
    """The job's state and sentences as they change, until it has ended; the first look comes at once.

    Each look comes with what `tell` reads about it, in the same transaction and thread. With the session of
    a `reader`, nothing more is told soon after that ended.
    """
    state: State | None = None

    def read() -> tuple[Look, T] | None:
        with gateway.database.read() as connection:
            seen = look(connection, gateway, job_id, after)
            if not seen.sentences and seen.job.state is state:
                return None
            return seen, tell(connection, seen)

    with news.listening(job_id) as event:
        checked_at = time.monotonic()
        while True:
            if reader is not None and time.monotonic() - checked_at >= _CHECK_READER_S:
                if not await run_in_threadpool(_may_read, gateway, reader):
                    return
                checked_at = time.monotonic()
            found = await run_in_threadpool(read)
            if found is not None:
                yield found
                seen = found[0]
                if seen.ended:
                    return
                state = seen.job.state
                after = seen.sentences[-1].seq if seen.sentences else after
            await news.wait(event)


async def wait_for_end(
    gateway: Gateway,
    news: News,
    job_id: str,
    seconds: float,
    tell: Callable[[Connection, Job], T],
    *,
    reader: str,
) -> tuple[Job, T] | None:
    """The job once it has ended; None when it has not within `seconds`. A moment ago it had not.

    It comes with what `tell` reads about it, in the same transaction and thread. Raises NotAuthenticated
    instead when the session of the `reader` has ended.
    """

    def read() -> tuple[Job, T] | None:
        with gateway.database.read() as connection:
            if not is_open(connection, reader, gateway.clock.now(connection)):
                raise NotAuthenticated("The log-in or key ended during the wait; log in again.")
            job = gateway.jobs.get(connection, job_id)
            return (job, tell(connection, job)) if job.state in TERMINAL else None

    try:
        async with asyncio.timeout(seconds):
            # no look before its time: it would take processors from those who work on the answer
            with news.listening(job_id, sentences=False) as event:
                while True:
                    await news.wait(event)
                    if (ended := await run_in_threadpool(read)) is not None:
                        return ended
    except TimeoutError:  # a ring may have been lost, or the last look have been on its way
        return await run_in_threadpool(read)
