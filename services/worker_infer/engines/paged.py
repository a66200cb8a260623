"""Run many requests at once on one model, by transformers' continuous batching over a paged KV cache.

Knows nothing of text or jobs; it keeps the library's manager fed, alive and within its memory.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel
from transformers.generation.continuous_batching import ContinuousBatchingManager
from transformers.generation.continuous_batching.continuous_api import BackgroundThreadStatus
from transformers.generation.continuous_batching.requests import GenerationOutput

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
from services.worker_infer.engines.linear import use_few_rows_linear
from services.worker_infer.engines.manager import PagedLimits, make_manager

logger = logging.getLogger(__name__)

_NOT_STARTED = "not started"
_RUNNING = "running"
_RESTARTING = "restarting after a crash"
_DRAINING = "draining"
_CLOSED = "closed"

_MAX_RESTART_DELAY_S = 30.0
_CRASHED = "The engine failed while it held this request. Try it again."


@dataclass(eq=False)
class _Held:
    """A request from `submit` to its end."""

    request: GenerationRequest
    #: Never reused, so that nothing meant for an earlier request of the same id can reach this one.
    key: str
    stream: TokenStream
    sent: int = 0


def _crash() -> EngineError:
    return EngineCrashed(_CRASHED)


def _failure(error: str, *, running: int) -> Callable[[], EngineError]:
    """What a dead loop means for what it ran: only a request that ran alone surely needs too much memory."""
    if running == 1 and lacks_memory(error):
        return lambda: OutOfMemory(OutOfMemory.__doc__)
    return _crash


class PagedEngine:
    """Generates on one transformers model; see `Engine` for what each method promises.

    A supervisor thread owns the library's manager: when the manager's loop dies, the requests it ran fail
    with EngineCrashed, the waiting ones stay, and a new manager is made.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        stop_token_ids: Iterable[int],
        limits: PagedLimits,
        on_end: Callable[[], None] = lambda: None,
        beside: Callable[[], int] = lambda: 0,
    ) -> None:
        """`stop_token_ids` end an answer and are not part of it.

        `on_end` is called once for each request that was taken, when it ends; it must not call the engine.
        `beside` gives how many requests run on the same device elsewhere; it must wait for no engine.
        """
        self._beside = beside
        self._on_end = on_end
        self._model = model
        if model.device.type == "cpu":
            use_few_rows_linear(model)
        self._stop_token_ids = frozenset(stop_token_ids)
        self._limits = limits
        self._lock = threading.Lock()
        self._waiting: deque[_Held] = deque()
        self._running: dict[str, _Held] = {}
        self._by_request_id: dict[str, _Held] = {}
        self._manager: ContinuousBatchingManager | None = None
        self._supervisor: threading.Thread | None = None
        self._closing = threading.Event()
        self._state = _NOT_STARTED
        self._largest_request = 0
        self._submitted = 0
        self._generated_tokens = 0
        self._finished_requests = 0
        self._restarts = 0
        #: Makes what requests of the failing loop are told.
        self._failure: Callable[[], EngineError] = _crash

    def start(self) -> None:
        """Make the cache and start the loop.

        Raises:
            MemoryError: the cache does not fit the memory.
        """
        manager = self._start_manager()
        self._supervisor = threading.Thread(
            target=self._supervise, args=(manager,), name="engine-supervisor", daemon=True
        )
        self._supervisor.start()

    def submit(self, request: GenerationRequest) -> TokenStream:
        """See `Engine.submit`."""
        self._check_length(request)
        with self._lock:
            if self._state not in (_RUNNING, _RESTARTING):
                raise EngineUnavailable(f"The engine takes no requests: it is {self._state}.")
            if request.request_id in self._by_request_id:
                raise ValueError(f"request {request.request_id} is in the engine already")
            self._submitted += 1
            key = f"{request.request_id}#{self._submitted}"
            stream = TokenStream(request.deadline, lambda reason: self._end_key(key, reason))
            held = _Held(request, key, stream)
            self._by_request_id[request.request_id] = held
            self._waiting.append(held)
            self._fill_slots()
        return stream

    def cancel(self, request_id: str) -> None:
        """See `Engine.cancel`."""
        with self._lock:
            held = self._by_request_id.get(request_id)
            if held is not None:
                self._end(held, FinishReason.CANCELLED)

    @property
    def busy(self) -> int:
        """Requests that are computed, about: it takes no lock."""
        return len(self._running)

    def stats(self) -> EngineStats:
        """See `Engine.stats`."""
        with self._lock:
            processor = self._manager.batch_processor if self._manager is not None else None
            return EngineStats(
                running=len(self._running),
                waiting=len(self._waiting),
                max_running=self._limits.max_running,
                cache_tokens=self._limits.cache_tokens,
                cache_use=1.0 - processor.cache.compute_free_capacity() if processor is not None else 0.0,
                generated_tokens=self._generated_tokens,
                finished_requests=self._finished_requests,
                restarts=self._restarts,
            )

    def health(self) -> EngineHealth:
        """See `Engine.health`."""
        with self._lock:
            return EngineHealth(ok=self._state == _RUNNING, detail=self._state)

    def drain(self) -> None:
        """See `Engine.drain`."""
        with self._lock:
            self._state = _DRAINING
            for held in [*self._waiting, *self._running.values()]:
                self._end(held, FinishReason.DRAINED)

    def close(self) -> None:
        """See `Engine.close`."""
        self.drain()
        self._closing.set()
        with self._lock:
            self._state = _CLOSED
            self._abandon_manager()
        if self._supervisor is not None:
            self._supervisor.join()

    def _check_length(self, request: GenerationRequest) -> None:
        wanted = len(request.prompt_token_ids) + request.max_new_tokens
        if wanted > self._limits.context_tokens:
            limit, limited_by = self._limits.context_tokens, "the model's context"
        # A request larger than the whole cache would stop the library's loop.
        elif self._largest_request and wanted > self._largest_request:
            limit, limited_by = self._largest_request, "the whole KV cache"
        else:
            return
        raise RequestTooLong(
            prompt_tokens=len(request.prompt_token_ids),
            max_new_tokens=request.max_new_tokens,
            limit_tokens=limit,
            limited_by=limited_by,
        )

    def _fill_slots(self) -> None:
        """Hand waiting requests to the manager while slots are free; the lock is held."""
        while self._waiting and self._has_room(self._waiting[0]) and self._manager is not None:
            held = self._waiting.popleft()
            self._running[held.key] = held
            wanted = held.request.sampling
            sampling: dict[str, Any] = (
                {"temperature": wanted.temperature, "top_p": wanted.top_p, "seed": wanted.seed}
                if wanted.temperature
                else {}
            )
            self._manager.add_request(
                held.request.prompt_token_ids,
                request_id=held.key,
                max_new_tokens=held.request.max_new_tokens,
                streaming=True,
                **sampling,
            )

    def _has_room(self, held: _Held) -> bool:
        """Whether the request can run beside those that run."""
        if held.request.alone or any(other.request.alone for other in self._running.values()):
            return not self._running
        return len(self._running) < self._limits.max_running

    def _receive(self, output: GenerationOutput) -> None:
        """New tokens of one request, on the manager's thread: pass them on and return."""
        with self._lock:
            held = self._running.get(output.request_id)
            if held is None:
                return
            if output.error is not None:
                if self._manager is not None:
                    self._failure = _failure(output.error, running=len(self._running) + self._beside())
                self._abandon_manager()
                self._end(held, self._failure())
                return
            token_ids = output.generated_tokens[held.sent :]
            held.sent += len(token_ids)
            self._generated_tokens += len(token_ids)
            stopped = bool(token_ids) and token_ids[-1] in self._stop_token_ids
            if stopped:
                token_ids.pop()
            if token_ids:
                held.stream.push(token_ids)
            if output.is_finished():
                self._finished_requests += 1
                self._end(held, FinishReason.STOP if stopped else FinishReason.LENGTH)

    def _end_key(self, key: str, reason: FinishReason) -> None:
        """What a stream calls to end its own request."""
        with self._lock:
            for held in self._by_request_id.values():
                if held.key == key:
                    self._end(held, reason)
                    return

    def _end(self, held: _Held, end: FinishReason | EngineError) -> None:
        """Take a request out, tell its stream and give its slot to the next; the lock is held."""
        del self._by_request_id[held.request.request_id]
        if self._running.pop(held.key, None) is None:
            self._waiting.remove(held)
        elif end not in (FinishReason.STOP, FinishReason.LENGTH) and self._manager is not None:
            self._manager.cancel_request(held.key)
        held.stream.finish(end)
        self._on_end()
        self._fill_slots()

    def _abandon_manager(self) -> None:
        """Give the manager no more requests and let its loop end; the lock is held."""
        if self._manager is not None:
            self._manager.background_thread_status.request_stop(
                BackgroundThreadStatus.HARD_STOP, global_rank=0
            )
            self._manager = None

    def _start_manager(self) -> ContinuousBatchingManager:
        """A running manager with its cache made, known to the other threads."""
        manager, largest = make_manager(self._model, self._stop_token_ids, self._limits, self._receive)
        manager.start()
        with self._lock:
            self._manager = manager
            self._largest_request = largest
            if self._closing.is_set():
                self._abandon_manager()
            elif self._state in (_NOT_STARTED, _RESTARTING):
                self._state = _RUNNING
            self._fill_slots()
        return manager

    def _supervise(self, manager: ContinuousBatchingManager | None) -> None:
        """Wait for the loop to end; unless the engine is closing, start it again."""
        fruitless = 0
        tokens_before = 0
        while manager is not None:
            manager.join(time.perf_counter())
            self._bury(manager)
            manager = None
            while manager is None:
                # A crash under load is worth a start at once; one before any token will come again.
                fruitless = 0 if self._generated_tokens > tokens_before else fruitless + 1
                tokens_before = self._generated_tokens
                delay = min(2.0**fruitless - 1.0, _MAX_RESTART_DELAY_S)
                if self._closing.wait(delay):
                    return
                try:
                    manager = self._start_manager()
                except Exception as error:  # whatever it is, nobody else would start the engine again
                    logger.error("The engine could not start: %s", type(error).__name__)

    def _bury(self, manager: ContinuousBatchingManager) -> None:
        """Fail what a dead loop was running and free its cache."""
        with self._lock:
            self._manager = None
            if not self._closing.is_set():
                self._restarts += 1
                self._state = _RESTARTING if self._state == _RUNNING else self._state
                logger.error("The engine's loop died and is started again")
            for held in list(self._running.values()):
                self._end(held, _crash())
        manager.batch_processor = None
