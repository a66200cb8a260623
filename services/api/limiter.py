"""Counts requests in Redis and says how long to wait. What is counted is not its matter.

Moving windows of the `limits` library. While Redis is away `require` fails closed and `allow` fails
open; after a failure Redis is left alone for a moment, so that a frozen one does not slow every request.
"""

import time

import redis
from limits import RateLimitItemPerMinute
from limits.storage import RedisStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from shared.errors import Unavailable
from shared.queue import redis_url
from shared.settings import Settings

_REST_S = 2.0


class Limiter:
    """Limits per minute; safe to share between threads."""

    def __init__(self, settings: Settings) -> None:
        self._storage = RedisStorage(redis_url(settings), socket_timeout=1, socket_connect_timeout=1)
        self._window = SlidingWindowCounterRateLimiter(self._storage)
        self._resting_until = 0.0

    def require(self, key: str, per_minute: int) -> float | None:
        """Count one use; seconds to wait when there were too many. Raises Unavailable without Redis."""
        if time.monotonic() < self._resting_until:
            raise Unavailable("The rate limiter is not reachable, so this is refused; try again in a moment.")
        item = RateLimitItemPerMinute(per_minute)
        try:
            if self._window.hit(item, key):
                return None
            return max(1.0, self._window.get_window_stats(item, key).reset_time - time.time())
        except redis.RedisError as error:
            self._resting_until = time.monotonic() + _REST_S
            raise Unavailable(
                "The rate limiter is not reachable, so this is refused; try again in a moment."
            ) from error

    def allow(self, key: str, per_minute: int) -> float | None:
        """Like `require`, but without Redis everybody may pass: quotas in the database still hold."""
        try:
            return self.require(key, per_minute)
        except Unavailable:
            return None

    def close(self) -> None:
        """Give the connections back."""
        self._storage.storage.close()
