"""A gateway, somebody who asks, and a worker whose model says what it was told to say."""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager

import httpx

from models.demo.shape import IMAGE_TOKENS, model_config
from services.worker_infer.adapters import ActiveAdapter
from services.worker_infer.answerer import Answerer
from services.worker_infer.engines.base import (
    EngineHealth,
    EngineStats,
    FinishReason,
    GenerationRequest,
    TokenStream,
)
from services.worker_infer.engines.errors import EngineError, EngineUnavailable
from services.worker_infer.model import Model
from services.worker_infer.pixels import PictureReader
from services.worker_infer.shadow import ShadowJudge
from services.worker_infer.text import ChatText
from shared.jobs.leases import LeaseKeeper
from shared.jobs.lifecycle import EventKind
from shared.jobs.records import Job
from shared.queue import open_redis
from shared.training.adapter_files import AdapterFiles
from tests.conftest import MakeApi
from tests.support import Api, ask_async
from tests.tiny_model import tiny_tokenizer

#: The scripted answer that never comes.
SILENCE = None


class Begun(str):
    """A scripted answer that begins so and never goes on."""


class ScriptedEngine:
    """An `Engine` that gives the answers it was told to give, one per request, in order."""

    def __init__(self, *script: str | EngineError | None) -> None:
        self.script = deque(script)
        self.requests: list[GenerationRequest] = []
        self.cancelled: list[str] = []
        #: How the streams ended that somebody left before their end.
        self.streams_ended: list[FinishReason] = []
        self._streams: dict[str, TokenStream] = {}
        self.well = True
        #: Called by `submit` before the engine knows the request.
        self.on_submit: Callable[[], object] = lambda: None

    def start(self) -> None:
        """Nothing to make ready."""

    def submit(self, request: GenerationRequest) -> TokenStream:
        self.on_submit()
        self.requests.append(request)
        answer = self.script.popleft()
        if isinstance(answer, EngineUnavailable):
            raise answer

        def cancel(reason: FinishReason) -> None:
            self.streams_ended.append(reason)
            stream.finish(reason)

        stream = self._streams[request.request_id] = TokenStream(request.deadline, cancel)
        if isinstance(answer, EngineError):
            stream.finish(answer)
        elif answer is not SILENCE:
            stream.push(tiny_tokenizer().backend_tokenizer.encode(answer, add_special_tokens=False).ids)
            if not isinstance(answer, Begun):
                stream.finish(FinishReason.STOP)
        return stream

    def say(self, text: str) -> None:
        """Go on with the last answer, to its end."""
        stream = self._streams[self.requests[-1].request_id]
        stream.push(tiny_tokenizer().backend_tokenizer.encode(text, add_special_tokens=False).ids)
        stream.finish(FinishReason.STOP)

    def cancel(self, request_id: str) -> None:
        self.cancelled.append(request_id)
        if request_id in self._streams:
            self._streams[request_id].finish(FinishReason.CANCELLED)

    def stats(self) -> EngineStats:
        raise NotImplementedError

    def health(self) -> EngineHealth:
        return EngineHealth(ok=self.well, detail="as told")

    def drain(self) -> None:
        """Nothing is held."""

    def close(self) -> None:
        """Nothing to give back."""


class NoAdapters:
    """A storage without an adapter."""

    def fetch(self, sha256: str) -> AdapterFiles:
        raise FileNotFoundError(sha256)

    def on_trial(self, sha256: str) -> AbstractContextManager[str]:
        raise FileNotFoundError(sha256)


class Clinic:
    """A gateway, somebody who asks, and a worker with a scripted engine."""

    def __init__(self, api: Api, keeper: LeaseKeeper, engine: ScriptedEngine) -> None:
        self.api = api
        self.engine = engine
        self.client: httpx.Client = api.log_in()
        self.shadow = ShadowJudge(api.gateway.database, api.gateway.conversations, api.gateway.clock)
        self.worker = Answerer(
            settings=api.settings,
            worker_id="scripted",
            model=Model(
                name="demo",
                model_id="scripted",
                revision="r1",
                dtype="float32",
                engine=engine,
                source=NoAdapters(),
                text=ChatText(tiny_tokenizer(), picture_tokens=IMAGE_TOKENS),
                context_tokens=4096,
                pictures=PictureReader(model_config(len(tiny_tokenizer()))),
            ),
            database=api.gateway.database,
            jobs=api.gateway.jobs,
            conversations=api.gateway.conversations,
            guards=api.gateway.guards,
            shadow=self.shadow,
            bell=api.gateway.bell,
            keeper=keeper,
            active=ActiveAdapter("demo"),
        )

    def ask(self, query: str = "What is asthma?", **body: object) -> str:
        return str(ask_async(self.client, query, **body)["id"])

    def job(self, job_id: str) -> Job:
        with self.api.gateway.database.read() as connection:
            return self.api.gateway.jobs.get(connection, job_id)

    def events(self, job_id: str) -> list[EventKind]:
        with self.api.gateway.database.read() as connection:
            return [event.kind for event in self.api.gateway.jobs.events(connection, job_id)]

    def answered(self, job_id: str) -> Job:
        """The job after the worker worked once."""
        self.worker.answer_next()
        return self.job(job_id)

    def prompt(self, number: int) -> str:
        """What the model was given to read."""
        ids = self.engine.requests[number].prompt_token_ids
        text: str = tiny_tokenizer().backend_tokenizer.decode(ids)
        return text


@contextmanager
def open_clinic(make_api: MakeApi) -> Iterator[Clinic]:
    """A clinic whose worker tries again at once."""
    api = make_api(retry_base_s=0, reconcile_s=600)
    keeper = LeaseKeeper(
        api.gateway.database,
        api.gateway.jobs,
        open_redis(api.settings),
        heartbeat_s=0.5,
        on_beat=lambda: None,
    )
    keeper.start()
    with closing(keeper):
        yield Clinic(api, keeper, ScriptedEngine())
