"""Counts requests in Redis and says how long to wait. What is counted is not its matter.

Moving windows of the `limits` library. While Redis is away `require` fails closed and `allow` fails
open; after each failure in a row Redis is left alone for longer, so that a frozen one hardly slows requests.
"""

import time
from collections.abc import Callable
from typing import TypeVar

import redis
from limits import RateLimitItemPerMinute
from limits.storage import RedisStorage
from limits.strategies import SlidingWindowCounterRateLimiter
from redis.backoff import NoBackoff
from redis.retry import Retry

from shared.auth.guesses import lock_s
from shared.errors import Unavailable
from shared.queue import redis_url
from shared.settings import Settings

#: Every request waits this long for a frozen Redis, unless it is left alone.
_TIMEOUT_S = 0.2
_REST_S, _MAX_REST_S = 1.0, 10.0
_REFUSED = "The rate limiter is not reachable, so this is refused; try again in a moment."
#: Guesses at a name that nobody has are forgotten after this time without one.
_STRANGER_LIFE_S = 30 * 86_400
#: One step, so that guesses at the same moment count one after another: a lock, or one more guess.
_GUESS = """
local lock = redis.call('PTTL', KEYS[2])
if lock > 0 then return {0, lock} end
local guesses = redis.call('INCR', KEYS[1])
redis.call('EXPIRE', KEYS[1], ARGV[1])
local seconds = ARGV[math.min(guesses, #ARGV - 1) + 1]
if tonumber(seconds) > 0 then redis.call('SET', KEYS[2], '1', 'EX', seconds) end
return {guesses, 0}
"""


#: Seconds that a name is locked after the 1st, 2nd … guess, and after all later ones.
_LOCKS = [int(lock_s(guesses)) for guesses in range(1, 16)]
T = TypeVar("T")


class Limiter:
    """Limits per minute; safe to share between threads."""

    def __init__(self, settings: Settings) -> None:
        self._storage = RedisStorage(
            redis_url(settings),
            socket_timeout=_TIMEOUT_S,
            socket_connect_timeout=_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),  # type: ignore[arg-type]
        )
        self._window = SlidingWindowCounterRateLimiter(self._storage)
        self._redis = self._storage.storage
        self._guess = self._redis.register_script(_GUESS)
        self._rest_s = _REST_S
        self._resting_until = 0.0

    def require(self, key: str, per_minute: int) -> float | None:
        """Count one use; seconds to wait when there were too many. Raises Unavailable without Redis."""
        item = RateLimitItemPerMinute(per_minute)

        def use() -> float | None:
            if self._window.hit(item, key):
                return None
            return max(1.0, self._window.get_window_stats(item, key).reset_time - time.time())

        return self._ask(use)

    def allow_each(self, key: str, per_minute: int, uses: int) -> list[float | None]:
        """`allow` for several uses at the same moment: one question to Redis unless some are too many."""
        item = RateLimitItemPerMinute(per_minute)
        try:
            if uses > 1 and self._ask(lambda: self._window.hit(item, key, cost=uses)):
                return [None] * uses
        except Unavailable:
            return [None] * uses
        return [self.allow(key, per_minute) for _ in range(uses)]

    def strangers(self, hashed: Callable[[str], str]) -> "Strangers":
        """Counts guesses at names that nobody has, under their keyed hashes."""
        return Strangers(self, hashed)

    def guess(self, hashed_name: str) -> float:
        """Count a guess at a name that nobody has; seconds for which it is locked. Raises Unavailable."""
        keys = [f"stranger:{hashed_name}", f"stranger:{hashed_name}:lock"]
        _guesses, locked_ms = self._ask(lambda: self._guess(keys, [_STRANGER_LIFE_S, *_LOCKS]))
        return float(locked_ms) / 1000

    def _ask(self, use: Callable[[], T]) -> T:
        if time.monotonic() < self._resting_until:
            raise Unavailable(_REFUSED)
        try:
            answer = use()
        except redis.RedisError as error:
            self._resting_until = time.monotonic() + self._rest_s
            self._rest_s = min(2 * self._rest_s, _MAX_REST_S)
            raise Unavailable(_REFUSED) from error
        self._rest_s = _REST_S
        return answer

    def allow(self, key: str, per_minute: int) -> float | None:
        """Like `require`, but without Redis everybody may pass: quotas in the database still hold."""
        try:
            return self.require(key, per_minute)
        except Unavailable:
            return None

    def close(self) -> None:
        """Give the connections back."""
        self._storage.storage.close()


class Strangers:
    """See `shared.auth.guesses.Strangers`."""

    def __init__(self, limiter: Limiter, hashed: Callable[[str], str]) -> None:
        self._limiter = limiter
        self._hashed = hashed

    def guess(self, name: str) -> float:
        """Count a guess. Raises Unavailable without Redis."""
        return self._limiter.guess(self._hashed(f"stranger:{name}"))
