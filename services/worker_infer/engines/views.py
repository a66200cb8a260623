"""Serve several adapters at once on one base model: a view and a paged engine for each, over shared weights.

Requests with pictures run on the same views, in an engine of their own for all of them. Knows which adapters
are ready, who uses them and which must make room; nothing of jobs, nor where an adapter's files come from.
One view's failure is its own: the base model and other adapters answer on.
"""

import gc
import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel

from services.worker_infer.engines.base import (
    AdapterSource,
    EngineHealth,
    EngineStats,
    FinishReason,
    GenerationRequest,
    TokenStream,
)
from services.worker_infer.engines.errors import AdapterUnavailable, EngineUnavailable
from services.worker_infer.engines.manager import PagedLimits, cache_bytes_per_token
from services.worker_infer.engines.paged import PagedEngine
from services.worker_infer.engines.pictures import PictureEngine, PictureLimits
from services.worker_infer.engines.view import log_likelihoods, make_view, next_likelihoods, put_adapter
from shared.errors import AdapterRefused
from shared.training.adapter_files import AdapterFiles

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class _View:
    """An adapter that is ready."""

    engine: PagedEngine
    #: The same modules under an attention without a paged cache, for scores and pictures.
    scorer: PreTrainedModel
    #: Its matrices and its KV cache.
    bytes: int
    #: Requests and scores under way; it is closed only at none.
    users: int = 0
    idle_since: float = field(default_factory=time.monotonic)
    #: Takes no more users, so that it can make room for an adapter that waits.
    retiring: bool = False


@dataclass(eq=False)
class _Waiting:
    """Somebody who waits for an adapter to be ready."""

    adapter: str
    request_id: str | None = None
    deadline: float | None = None
    #: Why the wait is over before that.
    end: FinishReason | None = None


class AdapterEngine:
    """An `Engine` whose requests may each name an adapter; see `Engine` for what each method promises.

    One lock guards the bookkeeping, and no engine is called under it: an engine reports the end of a request
    while it holds its own lock.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        stop_token_ids: Iterable[int],
        limits: PagedLimits,
        view_limits: PagedLimits,
        max_views: int,
        source: AdapterSource,
        free_bytes: Callable[[], int],
        picture_limits: PictureLimits | None = None,
    ) -> None:
        """`view_limits` hold for each adapter; `max_views` are kept ready; `free_bytes`: memory left.

        Without `picture_limits`, which only a model that reads pictures can have, none are taken.
        """
        # copied before a manager was made for the model: nothing of one comes along
        self._template = make_view(model)
        self._scorer = self._template
        # the first pass rewrites 4-bit weights for a CPU; two threads at it at once would spoil them
        log_likelihoods(self._scorer, [0, 0])
        self._base = PagedEngine(
            model,
            stop_token_ids=stop_token_ids,
            limits=limits,
            beside=lambda: self._busy() - self._base.busy,
        )
        self._pictures: PictureEngine | None = None
        if picture_limits is not None:
            self._pictures = PictureEngine(
                stop_token_ids=stop_token_ids,
                soft_token_id=model.config.image_token_id,
                tokens_per_picture=model.config.mm_tokens_per_image,
                limits=picture_limits,
                beside=lambda: self._busy() - (0 if self._pictures is None else self._pictures.busy),
            )
        self._stop_token_ids = frozenset(stop_token_ids)
        self._view_limits = view_limits
        self._token_bytes = cache_bytes_per_token(model)
        self._cache_bytes = view_limits.cache_tokens * self._token_bytes
        self._max_views = max_views
        self._source = source
        self._free_bytes = free_bytes
        self._changed = threading.Condition()
        self._views: dict[str, _View] = {}
        #: Those who wait, first come first served; the first one makes its adapter ready.
        self._line: list[_Waiting] = []
        self._making = False
        self._open = False
        self._one_score = threading.Lock()
        #: Counters of views that were closed.
        self._past = (0, 0, 0)

    def start(self) -> None:
        """See `PagedEngine.start`."""
        self._base.start()
        if self._pictures is not None:
            self._pictures.start()
        self._open = True

    def submit(self, request: GenerationRequest) -> TokenStream:
        """See `Engine.submit`."""
        pictures = None if request.pixel_values is None else self._pictures
        if pictures is None and request.pixel_values is not None:
            raise ValueError("this model reads no pictures")
        if request.adapter is None:
            return pictures.submit(request, self._scorer) if pictures else self._base.submit(request)
        waiting = _Waiting(request.adapter, request.request_id, request.deadline)
        view = self._use(waiting)
        if view is None:
            return _ended(waiting.end or FinishReason.CANCELLED)
        try:
            if pictures is not None:
                return pictures.submit(request, view.scorer, on_end=lambda: self._leave(view))
            return view.engine.submit(request)
        except BaseException:
            self._leave(view)
            raise

    def score(self, token_ids: list[int], adapter: str | None = None) -> list[float]:
        """See `Engine.score`."""
        if adapter is None:
            with self._one_score:
                return log_likelihoods(self._scorer, token_ids)
        view = self._use(_Waiting(adapter))
        assert view is not None, "nobody can cancel a score"
        try:
            with self._one_score:
                return log_likelihoods(view.scorer, token_ids)
        finally:
            self._leave(view)

    def compare(
        self, token_ids: list[int], choices: Sequence[int], timeout_s: float | None = None
    ) -> list[float]:
        """See `Engine.compare`."""
        if not self._one_score.acquire(timeout=-1 if timeout_s is None else timeout_s):
            raise TimeoutError(f"others were scored for {timeout_s:.3f} s")
        try:
            return next_likelihoods(self._scorer, token_ids, choices)
        finally:
            self._one_score.release()

    def forget(self, adapter: str) -> None:
        """See `Engine.forget`."""

        def is_idle() -> bool:
            view = self._views.get(adapter)
            return not self._making and (view is None or view.users == 0)

        with self._changed:
            self._changed.wait_for(is_idle)
            view = self._views.pop(adapter, None)
            if view is None:
                return
            self._making = True  # nobody counts on memory that is still held
        try:
            self._close_view(view)
            del view
            _give_memory_back()
        finally:
            with self._changed:
                self._making = False
                self._changed.notify_all()

    def cancel(self, request_id: str) -> None:
        """See `Engine.cancel`."""
        with self._changed:
            for waiting in self._line:
                if waiting.request_id == request_id:
                    waiting.end = FinishReason.CANCELLED
            self._changed.notify_all()
        for engine in self._engines():
            engine.cancel(request_id)

    def stats(self) -> EngineStats:
        """See `Engine.stats`; the sums over the base model and the adapters that are ready."""
        with self._changed:
            views, waiting, past = dict(self._views), len(self._line), self._past
        each = [engine.stats() for engine in (self._base, *(view.engine for view in views.values()))]
        wanted = max(0, self._max_views - len(views)) * self._cache_bytes + self._untaken_bytes()
        if self._pictures is not None:
            each.append(self._pictures.stats())
        tokens = sum(one.cache_tokens for one in each)
        return EngineStats(
            running=sum(one.running for one in each),
            waiting=sum(one.waiting for one in each) + waiting,
            max_running=each[0].max_running,
            cache_tokens=tokens,
            cache_use=sum(one.cache_use * one.cache_tokens for one in each) / tokens,
            generated_tokens=sum(one.generated_tokens for one in each) + past[0],
            finished_requests=sum(one.finished_requests for one in each) + past[1],
            restarts=sum(one.restarts for one in each) + past[2],
            adapters=sorted(views),
            adapter_bytes=sum(view.bytes for view in views.values()),
            wanted_bytes=wanted,
        )

    def _busy(self) -> int:
        """Requests that are computed, about, in all engines: one whose memory ran out may not be to blame."""
        return sum(engine.busy for engine in self._engines())

    def _untaken_bytes(self) -> int:
        """What pictures may still take: a batch takes its cache as it grows."""
        if self._pictures is None:
            return 0
        seen = self._pictures.stats()
        return int(seen.cache_tokens * (1.0 - seen.cache_use)) * self._token_bytes

    def health(self) -> EngineHealth:
        """See `Engine.health`; an adapter that fails is no failure of the engine."""
        base = self._base.health()
        return base if self._pictures is None or not base.ok else self._pictures.health()

    def drain(self) -> None:
        """See `Engine.drain`."""
        with self._changed:
            self._open = False
            self._changed.notify_all()
        for engine in self._engines():
            engine.drain()

    def close(self) -> None:
        """See `Engine.close`."""
        self.drain()
        with self._changed:
            self._changed.wait_for(lambda: not self._making)
        for engine in self._engines():
            engine.close()

    def _engines(self) -> list[PagedEngine | PictureEngine]:
        pictures = [] if self._pictures is None else [self._pictures]
        with self._changed:
            return [self._base, *pictures, *(view.engine for view in self._views.values())]

    # -- who uses which view

    def _use(self, waiting: _Waiting) -> _View | None:
        """The adapter's view, which stays until `_leave`; made ready if it must be.

        None when the wait was cancelled or its deadline passed.
        """
        with self._changed:
            self._line.append(waiting)
        try:
            with self._changed:
                while (view := self._join(waiting.adapter)) is None:
                    self._check_open()
                    if self._line[0] is waiting and not self._making:
                        self._making = True
                        break
                    if not self._wait(waiting):
                        return None
            return view or self._make_ready(waiting)
        finally:
            with self._changed:
                self._step_out(waiting)

    def _join(self, adapter: str) -> _View | None:
        """One more user of a view that takes any; the lock is held."""
        view = self._views.get(adapter)
        if view is None or view.retiring:
            return None
        view.users += 1
        return view

    def _leave(self, view: _View) -> None:
        """One user less; called by a view's engine for each request that ends."""
        with self._changed:
            view.users -= 1
            view.idle_since = time.monotonic()
            self._changed.notify_all()

    def _step_out(self, waiting: _Waiting) -> None:
        """Leave the line; when nobody waits, every view takes users again. The lock is held."""
        self._line.remove(waiting)
        if not self._line:
            for view in self._views.values():
                view.retiring = False
        self._changed.notify_all()

    def _wait(self, waiting: _Waiting) -> bool:
        """Wait for a change, the lock held; False when there is nothing to wait for any more."""
        if waiting.deadline is not None and time.monotonic() >= waiting.deadline:
            waiting.end = FinishReason.DEADLINE
        if waiting.end is not None:
            return False
        self._changed.wait(None if waiting.deadline is None else waiting.deadline - time.monotonic())
        return True

    def _check_open(self) -> None:
        if not self._open:
            raise EngineUnavailable("The engine takes no requests: it is draining, closed or not started.")

    # -- making room and views

    def _make_ready(self, waiting: _Waiting) -> _View | None:
        """Load the adapter and use it; nobody else loads meanwhile.

        The files are checked before another adapter must go.
        """
        adapter = waiting.adapter
        try:
            files = self._source.fetch(adapter)
            if not self._make_room(waiting):
                return None
            view = self._load(files)
            with self._changed:
                self._views[adapter] = view
                view.users += 1
            if not self._open:
                view.engine.drain()  # the engine was, before it knew of this view
            return view
        except AdapterRefused as error:
            raise AdapterUnavailable(error.detail, may_pass=False) from error
        except (OSError, MemoryError, RuntimeError, ValueError) as error:
            logger.error("adapter %s could not be loaded: %s", adapter, type(error).__name__)
            raise AdapterUnavailable(
                "The adapter could not be loaded; see the worker's log, and that the storage can be reached.",
                may_pass=True,
            ) from error
        finally:
            with self._changed:
                self._making = False
                self._changed.notify_all()

    def _make_room(self, waiting: _Waiting) -> bool:
        """Close the view that is idle for longest, if there are as many as may be; False: stop waiting."""
        with self._changed:
            while True:
                self._check_open()
                if len(self._views) < self._max_views:
                    return True
                idle = [name for name, view in self._views.items() if view.users == 0]
                if idle:
                    victim = min(idle, key=lambda name: self._views[name].idle_since)
                    view = self._views.pop(victim)
                    break
                if not any(view.retiring for view in self._views.values()):
                    min(self._views.values(), key=lambda view: view.users).retiring = True
                if not self._wait(waiting):
                    return False
        self._close_view(view)
        del view
        _give_memory_back()
        return True

    def _close_view(self, view: _View) -> None:
        """Close a view that was taken out, and keep its counters."""
        stats = view.engine.stats()
        counted = (stats.generated_tokens, stats.finished_requests, stats.restarts)
        view.engine.close()
        with self._changed:
            self._past = (
                self._past[0] + counted[0],
                self._past[1] + counted[1],
                self._past[2] + counted[2],
            )

    def _load(self, files: AdapterFiles) -> _View:
        """A view with the adapter's matrices and an engine that runs. Raises AdapterUnavailable."""
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # what batches of pictures left is free
        needed = files.bytes + self._cache_bytes
        free = max(0, self._free_bytes() - self._untaken_bytes())
        if needed > free:
            raise AdapterUnavailable(
                f"The adapter needs {needed >> 20} MiB, and {free >> 20} MiB are free: lower "
                "MEDICHAT_MAX_ADAPTERS_LOADED or choose a smaller MEDICHAT_MODEL.",
                may_pass=True,
            )
        model = make_view(self._template)
        size = put_adapter(model, files)
        scorer = make_view(model)
        view: _View
        engine = PagedEngine(
            model,
            stop_token_ids=self._stop_token_ids,
            limits=self._view_limits,
            on_end=lambda: self._leave(view),
            beside=lambda: self._busy() - view.engine.busy,
        )
        view = _View(engine=engine, scorer=scorer, bytes=size + self._cache_bytes)
        engine.start()
        return view


def _give_memory_back() -> None:
    """To the device, after the last name of a closed view is gone."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _ended(reason: FinishReason) -> TokenStream:
    """The stream of a request that ended before an engine had it."""
    stream = TokenStream(None, lambda _: None)
    stream.finish(reason)
    return stream
