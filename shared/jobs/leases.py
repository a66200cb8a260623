"""Keeps the leases of the jobs that this process works on, and learns who wants them stopped.

It does not know what the work is. Cancelling is told at once by the bell; should that be lost, the
next heartbeat learns of it from the database, and without a bell a look every few seconds.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import redis
from sqlalchemy.exc import SQLAlchemyError

from shared.db import Database
from shared.jobs.records import Claim
from shared.jobs.store import JobStore, Renewal
from shared.logs import where
from shared.queue import CANCEL_CHANNEL, Ring

log = logging.getLogger(__name__)

#: While the bell cannot be heard, cancellations are looked for this often, in seconds.
UNHEARD_S = 3.0
#: How often the bell is asked whether it is still there, in seconds.
_PING_S = 1.0


@dataclass
class Hold:
    """One job in this process's hands."""

    claim: Claim
    #: Called once, from another thread, when the work should stop.
    on_stop: Callable[[], None]
    #: CANCEL or LOST once the work should stop.
    stop: Renewal | None = None
    _told: threading.Lock = field(default_factory=threading.Lock)

    def tell(self, why: Renewal) -> None:
        """Stop the work; the first reason counts, except that a lost job is lost."""
        with self._told:
            first = self.stop is None
            if first or why is Renewal.LOST:
                self.stop = why
        if first:
            self.on_stop()


class LeaseKeeper:
    """Renews every held job's lease each heartbeat, in a thread of its own."""

    def __init__(
        self,
        database: Database,
        jobs: JobStore,
        listener: "redis.Redis",
        *,
        heartbeat_s: float,
        on_beat: Callable[[], None],
    ) -> None:
        """`on_beat` is called after every round, to say that the worker lives."""
        self._database = database
        self._jobs = jobs
        self._redis = listener
        self._heartbeat_s = heartbeat_s
        self._on_beat = on_beat
        self._holds: dict[tuple[str, int], Hold] = {}
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._threads = [
            threading.Thread(target=self._beat, name="heartbeat", daemon=True),
            threading.Thread(target=self._listen, name="cancel-listener", daemon=True),
        ]

    def start(self) -> None:
        """Begin to beat and to listen."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop beating; held leases run out by themselves."""
        self._closing.set()
        for thread in self._threads:
            thread.join(timeout=3)
        self._redis.close()

    @contextmanager
    def holding(self, claim: Claim, on_stop: Callable[[], None]) -> Iterator[Hold]:
        """Keep the claim's lease alive within the block."""
        hold = Hold(claim, on_stop)
        key = (claim.job_id, claim.epoch)
        with self._lock:
            self._holds[key] = hold
        try:
            yield hold
        finally:
            with self._lock:
                del self._holds[key]

    def _held(self, job_id: str | None = None) -> list[Hold]:
        with self._lock:
            return [hold for hold in self._holds.values() if job_id in (None, hold.claim.job_id)]

    def _renew(self, hold: Hold) -> None:
        try:
            with self._database.write() as connection:
                renewal = self._jobs.renew(connection, hold.claim)
            if renewal is not Renewal.KEPT:
                hold.tell(renewal)
        except SQLAlchemyError as error:
            log.warning("cannot renew the lease of job %s: %s", hold.claim.job_id, type(error).__name__)
        except Exception as error:  # a bug with one job must not cost the others their leases
            log.error("renewing the lease of job %s failed: %s", hold.claim.job_id, where(error))

    def _beat(self) -> None:
        while not self._closing.wait(self._heartbeat_s):
            for hold in self._held():
                self._renew(hold)
            try:
                self._on_beat()
            except SQLAlchemyError as error:
                log.warning("cannot report to the database: %s", type(error).__name__)
            except Exception as error:  # the heart must outlive a bug in one round
                log.error("reporting failed: %s", where(error))

    def _listen(self) -> None:
        while not self._closing.is_set():
            begun = time.monotonic()
            try:
                self._listen_until_lost()
            except redis.RedisError as error:
                log.warning("cannot hear cancellations (%s): looking for them", type(error).__name__)
            except Exception as error:  # the listener must outlive a bug in one round
                log.error("hearing cancellations failed, so they are looked for: %s", where(error))
            pause = min(UNHEARD_S, self._heartbeat_s) - (time.monotonic() - begun)
            if self._closing.wait(max(0.0, pause)):
                return
            for hold in self._held():
                self._renew(hold)

    def _listen_until_lost(self) -> None:
        with self._redis.pubsub(  # type: ignore[no-untyped-call]
            ignore_subscribe_messages=True
        ) as pubsub:
            pubsub.subscribe(CANCEL_CHANNEL)
            asked_at = None  # since when a ping is unanswered
            while not self._closing.is_set():
                message = pubsub.get_message(timeout=_PING_S)
                now = time.monotonic()
                if message is not None:
                    asked_at = None
                elif asked_at is None:
                    pubsub.ping()
                    asked_at = now
                elif now - asked_at >= UNHEARD_S:  # it is frozen, or the network swallows what is sent
                    raise redis.TimeoutError
                ring = Ring.from_json(message["data"]) if message and message["type"] == "message" else None
                for hold in self._held(ring.job_id) if ring else []:
                    self._renew(hold)
