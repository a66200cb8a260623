"""What every engine promises: token ids and pixels in, a stream of new token ids out.

Knows nothing of text, chat templates, jobs or the guard, and nothing of how an engine computes.
"""

import queue
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from services.worker_infer.engines.errors import EngineError
from shared.training.adapter_files import AdapterFiles

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class FinishReason(StrEnum):
    """Why a stream ended without an error."""

    #: The model closed its turn.
    STOP = "stop"
    #: `max_new_tokens` were generated.
    LENGTH = "length"
    #: `Engine.cancel` was called, or the stream was closed before its end.
    CANCELLED = "cancelled"
    #: The request's deadline passed.
    DEADLINE = "deadline"
    #: The engine was drained; another worker may take the job.
    DRAINED = "drained"


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen.

    The same seed, prompt and weights give the same tokens, whatever else is in the batch.
    """

    #: 0 takes the likeliest token; above 0, logits are divided by it.
    temperature: float = 0.0
    #: Sample among the likeliest tokens that together have this probability, in (0, 1].
    top_p: float = 1.0
    #: Any integer; only read when `temperature` is above 0.
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature <= 10.0:
            raise ValueError("temperature must lie in [0, 10]")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError("top_p must lie in (0, 1]")


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """One prompt to go on from."""

    #: Unique among the requests that the engine holds at a time.
    request_id: str
    #: The whole prompt, chat template and released prefix included.
    prompt_token_ids: list[int]
    #: At most this many tokens are generated.
    max_new_tokens: int
    #: [pictures, 3, height, width], float32 as the vision tower reads them; None without pictures. The prompt
    #: holds their soft tokens, those of each picture between its own marks, in the same order.
    pixel_values: "NDArray[np.float32] | None" = field(default=None, compare=False, repr=False)
    sampling: Sampling = field(default_factory=Sampling)
    #: `time.monotonic()` seconds at which the request is given up, waiting or running.
    deadline: float | None = None
    #: SHA-256 of the adapter that shall answer; None for the base model alone.
    adapter: str | None = None
    #: Whether nothing else shall run beside it, so that no other request can end it.
    alone: bool = False

    def __post_init__(self) -> None:
        if not self.prompt_token_ids:
            raise ValueError("a prompt needs at least one token")
        if self.max_new_tokens < 1:
            raise ValueError("max_new_tokens must be at least 1")
        if self.pixel_values is not None and (self.pixel_values.ndim != 4 or not len(self.pixel_values)):
            raise ValueError("pixels are [pictures, 3, height, width], of one picture at least")


@dataclass(frozen=True, kw_only=True)
class EngineStats:
    """A look at the engine at one moment."""

    running: int
    waiting: int
    max_running: int
    #: Tokens that the KV cache holds, for all layers, over all requests.
    cache_tokens: int
    #: Share of the KV cache in use, 0 to 1.
    cache_use: float
    generated_tokens: int
    finished_requests: int
    #: How often the engine crashed and started again.
    restarts: int
    #: SHA-256 of the adapters that are ready, and the bytes that they take beside the base's weights.
    adapters: list[str] = field(default_factory=list)
    adapter_bytes: int = 0
    #: Bytes that it may still take: the caches of adapters that are not ready yet, and of pictures.
    wanted_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class EngineHealth:
    """Whether the engine takes requests, and if not, why."""

    ok: bool
    detail: str


class TokenStream:
    """The new token ids of one request, as lists, in order; made by an engine, drained by one thread.

    Iterating blocks until tokens are there, gives all that are ready at once and never an empty list.
    It ends with `finish_reason` set, or raises an `EngineError`. Leaving a `with` block early cancels.
    """

    def __init__(self, deadline: float | None, cancel: Callable[[FinishReason], None]) -> None:
        """`cancel` ends the request in the engine, which then calls `finish`."""
        self.finish_reason: FinishReason | None = None
        self._deadline = deadline
        self._cancel = cancel
        self._items: queue.SimpleQueue[list[int] | FinishReason | EngineError] = queue.SimpleQueue()
        self._end: FinishReason | EngineError | None = None

    def push(self, token_ids: list[int]) -> None:
        """Called by the engine: new tokens. Never blocks."""
        self._items.put(token_ids)

    def finish(self, end: FinishReason | EngineError) -> None:
        """Called by the engine, once: nothing follows."""
        self._items.put(end)

    def close(self) -> None:
        """Cancel the request unless the stream has ended."""
        if self._end is None:
            self._cancel(FinishReason.CANCELLED)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[list[int]]:
        return self

    def __next__(self) -> list[int]:
        """Raises EngineCrashed when the engine failed under the request."""
        token_ids: list[int] = []
        while self._end is None:
            item = self._next_item(wait=not token_ids)
            if item is None:
                break
            if isinstance(item, list):
                token_ids += item
            else:
                self._end = item
        if token_ids:
            return token_ids
        if isinstance(self._end, EngineError):
            raise self._end
        self.finish_reason = self._end
        raise StopIteration

    def _next_item(self, *, wait: bool) -> list[int] | FinishReason | EngineError | None:
        """The next thing the engine said; None when nothing is there and `wait` is False."""
        if self._deadline is not None and time.monotonic() >= self._deadline:
            self._give_up()
        try:
            if not wait:
                return self._items.get_nowait()
            timeout = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
            return self._items.get(timeout=timeout)
        except queue.Empty:
            if not wait:
                return None
            self._give_up()
            return self._items.get()

    def _give_up(self) -> None:
        self._deadline = None
        self._cancel(FinishReason.DEADLINE)


class Engine(Protocol):
    """Owns a device; any number of threads may call it."""

    def start(self) -> None:
        """Make ready to take requests."""
        ...

    def submit(self, request: GenerationRequest) -> TokenStream:
        """Queue a request and return at once; it runs when a slot is free, first come first served;
        one that shall run alone when all before it have ended.

        Only an adapter that is not loaded makes the caller wait, until it is, or the request has ended.

        Raises:
            RequestTooLong: it could never fit.
            AdapterUnavailable: the adapter cannot be loaded.
            EngineUnavailable: the engine is draining, closed or not started.
            ValueError: a request with this id is in the engine already.
        """
        ...

    def score(self, token_ids: list[int], adapter: str | None = None) -> list[float]:
        """log p(token j+1 | tokens up to j) for each j but the last, in nats; the caller's thread computes.

        Raises:
            AdapterUnavailable: the adapter cannot be loaded.
            EngineUnavailable: the engine is draining, closed or not started.
        """
        ...

    def compare(
        self, token_ids: list[int], choices: Sequence[int], timeout_s: float | None = None
    ) -> list[float]:
        """log p(choice | token_ids) in nats for each token of `choices`, under the base model alone.

        The caller's thread computes, in an engine that drains too, after those who asked before it. Raises
        TimeoutError when its turn does not come within `timeout_s` seconds.
        """
        ...

    def forget(self, adapter: str) -> None:
        """Once nobody uses the adapter, give back what it takes; its files are fetched anew for the next.

        Nothing happens when it is not loaded.
        """
        ...

    def cancel(self, request_id: str) -> None:
        """End a request with `cancelled` and free its slot; nothing happens for an unknown id."""
        ...

    def stats(self) -> EngineStats:
        """Counters and sizes at this moment."""
        ...

    def health(self) -> EngineHealth:
        """Whether requests are taken."""
        ...

    def drain(self) -> None:
        """Take no more requests and end all that are held with `drained`."""
        ...

    def close(self) -> None:
        """Drain, then give the device back. The engine cannot be started again."""
        ...


class AdapterSource(Protocol):
    """Where adapters come from."""

    def fetch(self, sha256: str) -> AdapterFiles:
        """The adapter's files on this machine, checked.

        Raises:
            AdapterRefused: they are not what they should be.
            OSError: they are not there, or cannot be read now.
        """
        ...

    def on_trial(self, sha256: str) -> AbstractContextManager[str]:
        """While this lasts, `fetch` takes what is stored now of an adapter that was registered without a hash
        of its files; gives that hash. Raises as `fetch`.
        """
        ...
