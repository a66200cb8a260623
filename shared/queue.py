"""The bell: tells processes that there is something to read in the database. It carries ids, never words.

Losing, repeating or forging a ring is harmless. Ringing never blocks the caller and never fails:
it is done by one thread, which gives up quickly and rests while Redis is away.
"""

import base64
import json
import logging
import queue
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import quote

import redis
from celery import Celery

from shared.ids import new_id
from shared.jobs.lifecycle import Kind
from shared.logs import where
from shared.settings import Settings

log = logging.getLogger(__name__)

#: Pub/sub channels. A message is a JSON object with `job` and, for news, `seq` (see `Ring`).
NEWS_CHANNEL = "medichat:news"
CANCEL_CHANNEL = "medichat:cancel"

#: With this many unread messages nobody is idle: whoever reads one works until no job is left, so that
#: more of them would only fill Redis and cost the gateway time.
ENOUGH_UNREAD = 256

_REST_S = 2.0
_WAY_S = 0.005


def task_name(kind: Kind) -> str:
    """The Celery task that works on jobs of this kind."""
    return f"medichat.{kind.value}"


def task_message(kind: Kind, job_id: str) -> str:
    """What Celery's `send_task` puts into the list of this kind: its message protocol 2, as kombu wraps it.

    Written here, since Celery needs milliseconds for it on a processor that did nothing before, and everybody
    who asks waits for them.
    """
    task_id = new_id()
    body = json.dumps([[], {"job_id": job_id}, {}])
    message = {
        "body": base64.b64encode(body.encode()).decode(),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {
            "lang": "py",
            "task": task_name(kind),
            "id": task_id,
            "root_id": task_id,
            "parent_id": None,
            "group": None,
            "kwargsrepr": f"{{'job_id': '{job_id}'}}",
        },
        "properties": {
            "correlation_id": task_id,
            "delivery_mode": 2,
            "delivery_tag": task_id,
            "delivery_info": {"exchange": "", "routing_key": kind.value},
            "priority": 0,
            "body_encoding": "base64",
        },
    }
    return json.dumps(message)


def make_celery(settings: Settings) -> Celery:
    """A Celery application whose messages are hints; see the measured reasons for each option.

    Prefetch is off because a killed worker strands what it prefetched; acknowledgement is early
    and there is no result backend because the database, not the queue, says what became of a job.
    Publishing to a dead Redis fails in 0.1 s, to a frozen one in `socket_timeout`.
    """
    app = Celery("medichat", broker=redis_url(settings), set_as_current=False)
    app.conf.update(
        accept_content=["json"],
        task_serializer="json",
        task_ignore_result=True,
        task_acks_late=False,
        worker_disable_prefetch=True,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_hijack_root_logger=False,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        broker_connection_max_retries=None,
        broker_connection_retry_on_startup=True,
        broker_transport_options={
            "max_retries": 1,
            "interval_start": 0,
            "interval_step": 0,
            "interval_max": 0,
            "socket_timeout": 2,
            "socket_connect_timeout": 1,
            "health_check_interval": 10,
        },
        task_routes={task_name(kind): {"queue": kind.value} for kind in Kind},
        task_default_queue=Kind.INFER.value,
        task_create_missing_queues=True,
    )
    if settings.redis_url.startswith("rediss:"):
        app.conf.broker_use_ssl = {"ssl_cert_reqs": ssl.CERT_REQUIRED}  # Celery's own choice is to ask nobody
    return app


def redis_url(settings: Settings) -> str:
    """The Redis URL with the password from its secret, if there is one."""
    password = settings.redis_password
    if password is None or not password.get_secret_value():
        return settings.redis_url
    scheme, rest = settings.redis_url.split("://", 1)
    who, _, where = rest.rpartition("@")
    name = who.partition(":")[0]
    return f"{scheme}://{name}:{quote(password.get_secret_value(), safe='')}@{where}"


def open_redis(settings: Settings) -> "redis.Redis":
    """A client that gives up quickly."""
    return redis.Redis.from_url(
        redis_url(settings), socket_timeout=2, socket_connect_timeout=1, health_check_interval=10
    )


@dataclass(frozen=True)
class Ring:
    """News of a job: its newest sentence has number `seq` (0: its state changed)."""

    job_id: str
    seq: int = 0

    def to_json(self) -> str:
        """The message on the channel."""
        return json.dumps({"job": self.job_id, "seq": self.seq})

    @classmethod
    def from_json(cls, message: str | bytes) -> "Ring | None":
        """Parse a message; None when it is not one of ours."""
        try:
            data = json.loads(message)
            return cls(str(data["job"]), int(data.get("seq", 0)))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            return None


@dataclass(frozen=True)
class _Work:
    """A ring for the workers of one kind; the id is a hint."""

    kind: Kind
    job_id: str


class Bell:
    """Rings without making the caller wait; `close()` rings what is pending and stops."""

    def __init__(self, settings: Settings) -> None:
        self._redis = open_redis(settings)
        self._pending: queue.SimpleQueue[_Work | Callable[[], object] | None] = queue.SimpleQueue()
        self._resting_until = 0.0
        #: How many messages may be sent before asking again how many lie unread; the thread's own.
        self._room: dict[Kind, int] = {}
        self._thread = threading.Thread(target=self._run, name="bell", daemon=True)
        self._thread.start()

    def work(self, kind: Kind, job_id: str) -> None:
        """There is work of this kind. Not sent while `ENOUGH_UNREAD` messages say so already."""
        self._pending.put(_Work(kind, job_id))

    def news(self, job_id: str, seq: int = 0) -> None:
        """A job has a new sentence or another state."""
        self._pending.put(lambda: self._redis.publish(NEWS_CHANNEL, Ring(job_id, seq).to_json()))

    def cancel(self, job_id: str) -> None:
        """A job's worker should stop now."""
        self._pending.put(lambda: self._redis.publish(CANCEL_CHANNEL, Ring(job_id).to_json()))

    def give_way(self) -> None:
        """Let what is pending ring first, for `_WAY_S` at most: who goes on computing holds Python's lock,
        which the thread that rings needs, and somebody waits for the ring.
        """
        rung = threading.Event()
        self._pending.put(rung.set)
        rung.wait(_WAY_S)

    def close(self) -> None:
        """Ring what is pending, then stop; waits a few seconds at most."""
        self._pending.put(None)
        self._thread.join(timeout=5)
        self._redis.close()

    def _run(self) -> None:
        while True:
            rings, closing = self._take()
            if rings and time.monotonic() >= self._resting_until:
                try:
                    self._ring(rings)
                except (redis.RedisError, OSError) as error:
                    # Redis is away: the reconciler and polling readers will find the rows
                    log.warning(
                        "Redis is not reachable (%s); resting for %.0f s", type(error).__name__, _REST_S
                    )
                    self._resting_until = time.monotonic() + _REST_S
                except Exception as error:  # must outlive a bug: nobody else rings
                    log.error("unexpected while ringing: %s", where(error))
            if closing:
                return

    def _take(self) -> "tuple[list[_Work | Callable[[], object]], bool]":
        """Wait for a ring and take all that are pending, and whether to stop after them."""
        rings = []
        ring = self._pending.get()
        while ring is not None:
            rings.append(ring)
            try:
                ring = self._pending.get_nowait()
            except queue.Empty:
                return rings, False
        return rings, True

    def _ring(self, rings: "list[_Work | Callable[[], object]]") -> None:
        asked: set[Kind] = set()
        for ring in rings:
            if not isinstance(ring, _Work):
                ring()
                continue
            if self._room.get(ring.kind, 0) <= 0 and ring.kind not in asked:
                asked.add(ring.kind)  # once for all that wait: under load they come in hundreds
                self._room[ring.kind] = ENOUGH_UNREAD - self._redis.llen(ring.kind.value)
            if self._room[ring.kind] > 0:
                self._room[ring.kind] -= 1
                self._redis.lpush(ring.kind.value, task_message(ring.kind, ring.job_id))
