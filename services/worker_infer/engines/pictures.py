"""Run requests with pictures, several at once, beside the paged engine that takes token ids only.

Knows which requests wait, run and are over; nothing of text or jobs, nor how a batch is computed. One thread
computes: it gives every batch a token in turn, so that a request need not wait for the end of those before
it.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedModel

from services.worker_infer.engines.base import (
    EngineHealth,
    EngineStats,
    FinishReason,
    GenerationRequest,
    TokenStream,
)
from services.worker_infer.engines.errors import (
    EngineCrashed,
    EngineError,
    EngineUnavailable,
    OutOfMemory,
    RequestTooLong,
    lacks_memory,
)
from services.worker_infer.engines.picture_batch import PictureBatch, padded_tokens

logger = logging.getLogger(__name__)

_NOT_STARTED = "not started"
_RUNNING = "running"
_DRAINING = "draining"
_CLOSED = "closed"


@dataclass(frozen=True, kw_only=True)
class PictureLimits:
    """How much the requests with pictures may hold, over the base model and all adapters."""

    #: Longest prompt plus answer, in tokens.
    context_tokens: int
    #: Tokens in the KV caches of all batches, padding included.
    cache_tokens: int
    #: Requests decoded at a time; more wait in the engine.
    max_running: int = 8
    #: Most prompt tokens, padding included, that one pass reads; a prompt that is longer is read alone.
    prompt_tokens: int = 8192


@dataclass(eq=False)
class _Held:
    """A request from `submit` until nothing computes it any more."""

    request: GenerationRequest
    model: PreTrainedModel
    stream: TokenStream
    #: Called once, when the model is needed no longer.
    on_end: Callable[[], None]
    given: int = 0
    #: Its stream has ended; if it runs, it leaves its batch before the next pass.
    ended: bool = False


@dataclass(eq=False)
class _Running:
    """A batch, and whose its rows are, in order."""

    rows: list[_Held]
    batch: PictureBatch


class PictureEngine:
    """Generates on any views of one model; see `Engine` for what each method promises.

    A pass that fails ends the requests of its own batch, and the others go on.
    """

    def __init__(
        self,
        *,
        stop_token_ids: Iterable[int],
        soft_token_id: int,
        tokens_per_picture: int,
        limits: PictureLimits,
        beside: Callable[[], int] = lambda: 0,
    ) -> None:
        """`soft_token_id` stands in a prompt for a part of a picture, `tokens_per_picture` times for each.

        `beside` gives how many requests run on the same device elsewhere; it must wait for no engine.
        """
        self._beside = beside
        self._stop_token_ids = frozenset(stop_token_ids)
        self._soft_token_id = soft_token_id
        self._tokens_per_picture = tokens_per_picture
        self._limits = limits
        self._changed = threading.Condition()
        self._waiting: list[_Held] = []
        self._batches: list[_Running] = []
        self._by_request_id: dict[str, _Held] = {}
        self._state = _NOT_STARTED
        self._thread = threading.Thread(target=self._run, name="picture-engine", daemon=True)
        self._generated_tokens = 0
        self._finished_requests = 0
        self._failed_passes = 0

    def start(self) -> None:
        """Take requests from now on."""
        self._state = _RUNNING
        self._thread.start()

    def submit(
        self, request: GenerationRequest, model: PreTrainedModel, on_end: Callable[[], None] = lambda: None
    ) -> TokenStream:
        """See `Engine.submit`; `model` answers.

        `on_end` is called once for each request that was taken, when no pass for it is under way any more; it
        must not call the engine.

        Raises:
            ValueError: also when the prompt does not hold the soft tokens of its pictures.
        """
        self._check(request)
        with self._changed:
            if self._state != _RUNNING:
                raise EngineUnavailable(f"The engine takes no requests: it is {self._state}.")
            if request.request_id in self._by_request_id:
                raise ValueError(f"request {request.request_id} is in the engine already")
            stream = TokenStream(request.deadline, lambda reason: self._end_held(held, reason))
            held = _Held(request, model, stream, on_end)
            self._by_request_id[request.request_id] = held
            self._waiting.append(held)
            self._changed.notify_all()
        return stream

    def cancel(self, request_id: str) -> None:
        """See `Engine.cancel`."""
        with self._changed:
            held = self._by_request_id.get(request_id)
            if held is not None:
                self._end(held, FinishReason.CANCELLED)

    @property
    def busy(self) -> int:
        """Requests that are computed, about: it takes no lock."""
        return sum(len(running.rows) for running in tuple(self._batches))

    def stats(self) -> EngineStats:
        """See `Engine.stats`; a failed pass counts as a restart."""
        with self._changed:
            used = self._used_tokens()
            return EngineStats(
                running=len(self._by_request_id) - len(self._waiting),
                waiting=len(self._waiting),
                max_running=self._limits.max_running,
                cache_tokens=self._limits.cache_tokens,
                cache_use=used / self._limits.cache_tokens if used else 0.0,
                generated_tokens=self._generated_tokens,
                finished_requests=self._finished_requests,
                restarts=self._failed_passes,
            )

    def health(self) -> EngineHealth:
        """See `Engine.health`."""
        with self._changed:
            return EngineHealth(ok=self._state == _RUNNING, detail=self._state)

    def drain(self) -> None:
        """See `Engine.drain`."""
        with self._changed:
            if self._state != _CLOSED:  # whoever closes it waits for its thread to see that
                self._state = _DRAINING
            for held in list(self._by_request_id.values()):
                self._end(held, FinishReason.DRAINED)

    def close(self) -> None:
        """See `Engine.close`."""
        self.drain()
        with self._changed:
            self._state = _CLOSED
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    def _check(self, request: GenerationRequest) -> None:
        prompt = request.prompt_token_ids
        assert request.pixel_values is not None, "requests without pictures go to the paged engine"
        if prompt.count(self._soft_token_id) != len(request.pixel_values) * self._tokens_per_picture:
            raise ValueError("the prompt does not hold the soft tokens of its pictures")
        limit, limited_by = min(
            (self._limits.context_tokens, "the model's context"),
            (self._limits.cache_tokens, "the KV cache for questions with pictures"),
        )
        if len(prompt) + request.max_new_tokens > limit:
            raise RequestTooLong(
                prompt_tokens=len(prompt),
                max_new_tokens=request.max_new_tokens,
                limit_tokens=limit,
                limited_by=limited_by,
            )

    # -- the bookkeeping; the lock is held

    def _end_held(self, held: _Held, reason: FinishReason) -> None:
        """What a stream calls to end its own request; takes the lock."""
        with self._changed:
            self._end(held, reason)

    def _end(self, held: _Held, end: FinishReason | EngineError) -> None:
        """Tell the request's stream, once. A waiting one is gone with that, a running one before a pass."""
        if held.ended:
            return
        held.ended = True
        del self._by_request_id[held.request.request_id]
        if held in self._waiting:
            self._waiting.remove(held)
            held.on_end()
        held.stream.finish(end)
        self._changed.notify_all()

    def _end_late(self) -> None:
        """End whatever is past its deadline, also where nobody reads the stream."""
        now = time.monotonic()
        for held in list(self._by_request_id.values()):
            if held.request.deadline is not None and now >= held.request.deadline:
                self._end(held, FinishReason.DEADLINE)

    def _used_tokens(self) -> int:
        return sum(running.batch.cache_tokens for running in self._batches)

    def _take(self) -> list[_Held]:
        """The requests for a new batch: the first that waits, and those of its model after it while they fit.

        Nobody while the first does not fit, whoever else would: so none waits for ever.
        """
        taken: list[_Held] = []
        for held in self._waiting:
            if taken and held.model is not taken[0].model and not held.request.alone:
                continue  # in a batch of its own, soon
            if not self._has_room([*taken, held]):
                break
            taken.append(held)
        for held in taken:
            self._waiting.remove(held)
        return taken

    def _has_room(self, together: Sequence[_Held]) -> bool:
        running = [held for each in self._batches for held in each.rows]
        if any(held.request.alone for held in (*running, *together)):
            return not running and len(together) == 1
        requests = [held.request for held in together]
        longest = max(len(request.prompt_token_ids) for request in requests)
        return (
            len(running) + len(together) <= self._limits.max_running
            and self._used_tokens() + padded_tokens(requests) <= self._limits.cache_tokens
            and (len(together) == 1 or longest * len(together) <= self._limits.prompt_tokens)
        )

    def _drop_ended(self, running: _Running) -> list[int] | None:
        """Let go of the rows that are over; the places of the others, or None where none is over."""
        places = [place for place, held in enumerate(running.rows) if not held.ended]
        if len(places) == len(running.rows):
            return None
        over = [held for held in running.rows if held.ended]
        running.rows = [running.rows[place] for place in places]
        if not places:
            self._batches.remove(running)
        for held in over:
            held.on_end()
        return places

    # -- the engine's own thread

    def _run(self) -> None:
        while self._round():
            pass

    def _round(self) -> bool:
        """One pass of each batch, a new one too if there is work for it; False: the engine is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._batches or self._state == _CLOSED)
            if self._state == _CLOSED:
                for running in list(self._batches):
                    self._drop_ended(running)
                return False
            self._end_late()
            taken = self._take()
            if taken:
                batch = PictureBatch(taken[0].model, [held.request for held in taken])
                self._batches.append(_Running(taken, batch))
            batches = list(self._batches)
        while batches:  # none is held longer than its pass: a batch that is over gives its cache back
            self._pass(batches.pop(0))
        return True

    def _pass(self, running: _Running) -> None:
        with self._changed:
            kept = self._drop_ended(running)
        if kept == []:
            return
        try:
            if kept is not None:
                running.batch.keep(kept)
            tokens = running.batch.advance()
        except (
            BaseException
        ) as error:  # whatever it is, nobody else would tell those who wait for the answers
            self._fail(running, error)
            return
        with self._changed:
            for held, token_id in zip(running.rows, tokens, strict=True):
                held.request = replace(held.request, pixel_values=None)  # they are seen, and large
                if not held.ended:
                    self._give(held, token_id)

    def _give(self, held: _Held, token_id: int) -> None:
        """Hand on a new token; the lock is held."""
        held.given += 1
        self._generated_tokens += 1
        stopped = token_id in self._stop_token_ids
        if not stopped:
            held.stream.push([token_id])
        if stopped or held.given == held.request.max_new_tokens:
            self._finished_requests += 1
            self._end(held, FinishReason.STOP if stopped else FinishReason.LENGTH)

    def _fail(self, running: _Running, error: BaseException) -> None:
        """End the requests of a batch whose pass failed; only one that ran alone needs too much memory."""
        logger.error("A pass with pictures failed: %s", type(error).__name__)
        with self._changed:
            alone = len(running.rows) == 1 and self._batches == [running] and self._beside() == 0
            self._failed_passes += 1
            self._batches.remove(running)
            for held in running.rows:
                self._end(
                    held,
                    OutOfMemory(OutOfMemory.__doc__)
                    if alone and lacks_memory(error)
                    else EngineCrashed("The engine failed while it held this request. Try it again."),
                )
                held.on_end()
