"""`POST /v1/chat/completions`: a guarded answer for clients of OpenAI's API.

Whoever asks here reads the answer on this connection or not at all: when it closes, the answer is cancelled.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from sqlalchemy import Connection
from starlette.concurrency import run_in_threadpool

from services.api.ask import Asked, cancel
from services.api.chat import Chunks, as_json, asked_in, completion, pictures_in, question_of
from services.api.deps import Asker, GatewayDep
from services.api.errors import DATABASE_AWAY, ProblemResponse, document, problem
from services.api.openai_shape import chat_error, in_shape_of
from services.api.patience import forget, in_time
from services.api.pictures import check_text, take_unless_in_need
from services.api.routers.models import adapter_named
from services.api.routers.predict import (
    ASKS,
    DeskDep,
    IdempotencyKey,
    NewsDep,
    answer_of,
    not_answered,
)
from services.api.schemas import AnswerView
from services.api.schemas_chat import ChatBody, ChatChunk, ChatCompletion, ChatError
from services.api.state import Gateway
from services.api.streaming import Look, News, follow, wait_for_end
from shared.audit import record
from shared.auth.sessions import Principal
from shared.errors import NotAuthenticated
from shared.jobs.records import Job
from shared.privacy.envelope import CannotDecrypt

log = logging.getLogger(__name__)
router = APIRouter(prefix="/v1/chat", tags=["ask"])

#: After so many seconds without a sentence a stream says that it lives, so that no proxy ends it.
_PING_S = 15.0
#: A job ends by its deadline; what it takes to tell so comes on top.
_AFTER_DEADLINE_S = 30.0
_DONE = format_sse_event(data_str="[DONE]")
#: A proxy before the gateway shall not gather sentences.
_UNBUFFERED = {"X-Accel-Buffering": "no"}
#: Why an answer was cancelled.
_ALONE = "nobody waits for it any more"
#: Seconds to wait between tries to cancel while the database is away.
_TRY_AGAIN_S = (1, 5, 25)
_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answer, or with `stream` its sentences as server-sent events, then `[DONE]`",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    },
    400: {"description": "The request cannot be used", "model": ChatError},
    **document(401, 403, 404, 409, 410, 413, 422, 429, 500, 503, 504),
}


@router.post("/completions", response_model=ChatCompletion, responses=_ANSWERS, dependencies=ASKS)
async def complete(
    body: ChatBody,
    request: Request,
    caller: Asker,
    gateway: GatewayDep,
    desk: DeskDep,
    news: NewsDep,
    idempotency_key: IdempotencyKey = None,
) -> Response | ChatCompletion:
    """Answer the last message. The guard checks each sentence before it is sent; `medichat` says what it did.

    The conversation is kept as any other. With an Idempotency-Key the answer goes on when the connection
    closes, and the same request gets it.
    """
    check_text("".join(message.text for message in body.messages), gateway.settings)
    adapter = adapter_named(gateway.settings.model, body.model)
    pictures = await take_unless_in_need(gateway, caller, asked_in(body), pictures_in(body))
    question = question_of(body, adapter, pictures)
    job = await in_time(desk(Asked(caller=caller, question=question, idempotency_key=idempotency_key)))
    answering = _Answering(gateway, news, caller, job, cancels=idempotency_key is None)
    if body.stream:
        with_usage = body.stream_options is not None and body.stream_options.include_usage
        events = answering.events(Chunks(job, body.model), with_usage=with_usage)
        return StreamingResponse(events, media_type="text/event-stream", headers=_UNBUFFERED)
    ended = await answering.wait(request)
    if ended is None:
        late = "The answer was not ready in time; ask again when the system is less busy."
        return in_shape_of(request.url.path, problem(504, "deadline", late))
    job, answer = ended
    if answer is None:
        return in_shape_of(request.url.path, not_answered(gateway, job))
    return completion(job, answer, body.model)


class _Answering:
    """One answer and the connection on which it is waited for."""

    def __init__(self, gateway: Gateway, news: News, caller: Principal, job: Job, *, cancels: bool) -> None:
        """`cancels`: whether the answer ends when nobody waits for it any more."""
        self._gateway, self._news, self._caller, self._job = gateway, news, caller, job
        self._cancels = cancels
        #: Whether the job's end was seen.
        self._over = False

    async def wait(self, request: Request) -> tuple[Job, AnswerView | None] | None:
        """The job once it has ended, with its answer; None when it has not, or nobody waits any more."""
        if self._job.finished_at is not None:
            return await self._gateway.threads.in_time(self._read)
        seconds = self._gateway.settings.job_deadline_s + _AFTER_DEADLINE_S
        tell = partial(answer_of, self._gateway)
        ended = asyncio.ensure_future(
            wait_for_end(
                self._gateway, self._news, self._job.id, seconds, tell, reader=self._caller.session_id
            )
        )
        left = asyncio.ensure_future(_until_left(request))
        ended.add_done_callback(forget)
        left.add_done_callback(forget)
        try:
            await asyncio.wait({ended, left}, return_when=asyncio.FIRST_COMPLETED)
            found = ended.result() if ended.done() else None
            self._over = found is not None
            return found
        finally:
            ended.cancel()
            left.cancel()
            self._leave()

    def _read(self) -> tuple[Job, AnswerView | None]:
        with self._gateway.database.read() as connection:
            return self._job, answer_of(self._gateway, connection, self._job)

    async def events(self, chunks: Chunks, *, with_usage: bool) -> AsyncIterator[bytes]:
        """All of the answer as server-sent events in OpenAI's form."""
        try:
            async for event in _with_pings(self._told(chunks, with_usage=with_usage)):
                yield event
        finally:
            self._leave()

    async def _told(self, chunks: Chunks, *, with_usage: bool) -> AsyncIterator[bytes]:
        yield _event(chunks.begin())
        try:
            async for event in self._followed(chunks, with_usage=with_usage):
                yield event
        except CannotDecrypt:  # erased meanwhile
            detail = "This can no longer be read: its texts were erased, or cannot be opened with their key."
            yield _error(problem(410, "no-longer-readable", detail))
        except DATABASE_AWAY:
            detail = "The database is not reachable; ask again in a moment."
            yield _error(problem(503, "unavailable", detail))

    async def _followed(self, chunks: Chunks, *, with_usage: bool) -> AsyncIterator[bytes]:
        looks = follow(self._gateway, self._news, self._job.id, self._tell, reader=self._caller.session_id)
        async for seen, answer in looks:
            for sentence in seen.sentences:
                yield _event(chunks.sentence(sentence))
            if not seen.ended:
                continue
            self._over = True
            if answer is None:
                yield _error(not_answered(self._gateway, seen.job))
                return
            yield _event(chunks.end(seen.job, answer))
            if with_usage:
                yield _event(chunks.usage(answer))
            yield _DONE
            return
        detail = "The log-in or key ended while the answer was written; log in again."
        yield _error(problem(401, NotAuthenticated.code, detail))

    def _tell(self, connection: Connection, seen: Look) -> AnswerView | None:
        return answer_of(self._gateway, connection, seen.job)

    def _leave(self) -> None:
        """Nobody waits any more: end what was not over. This task may be ending, so another does it."""
        if self._over or not self._cancels:
            return
        task = asyncio.ensure_future(_cancel(self._gateway, self._job.id))
        _UNDER_WAY.add(task)
        task.add_done_callback(_UNDER_WAY.discard)
        task.add_done_callback(forget)


#: Cancellations that are being written; the event loop itself keeps no task alive.
_UNDER_WAY: set[asyncio.Task[None]] = set()


async def _cancel(gateway: Gateway, job_id: str) -> None:
    for pause_s in (*_TRY_AGAIN_S, None):
        try:
            await run_in_threadpool(cancel, gateway, record.SYSTEM_ACTOR, job_id, reason=_ALONE)
            return
        except DATABASE_AWAY as error:
            if pause_s is None:
                log.warning("job %s goes on though nobody waits for it: %s", job_id, type(error).__name__)
            else:
                await asyncio.sleep(pause_s)


async def _until_left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _event(chunk: ChatChunk) -> bytes:
    return format_sse_event(data_str=as_json(chunk))


def _error(response: ProblemResponse) -> bytes:
    return format_sse_event(data_str=chat_error(response.problem).model_dump_json())


async def _with_pings(events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The events, and something that clients skip whenever there is none for a while."""
    waiting = _next(events)
    try:
        while True:
            done, _ = await asyncio.wait({waiting}, timeout=_PING_S)
            if not done:
                yield KEEPALIVE_COMMENT
                continue
            event = waiting.result()
            if event is None:
                return
            waiting = _next(events)
            yield event
    finally:
        waiting.cancel()


def _next(events: AsyncIterator[bytes]) -> asyncio.Task[bytes | None]:
    """The next event, or None, in a task of its own."""

    async def step() -> bytes | None:
        return await anext(events, None)

    task = asyncio.create_task(step())
    task.add_done_callback(forget)
    return task
