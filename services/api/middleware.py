"""What happens around every request: a body limit, safe headers, metrics. It knows no route."""

import asyncio
import re
import string
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from typing import Literal, NamedTuple

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.api.errors import ProblemResponse, Shape, problem, unexpected
from services.api.metrics import REQUESTS, SECONDS

_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
]


#: How long a large body may take: so many seconds, and one more for so many bytes. Its room is others' too.
_SLOWEST_S, _SLOWEST_BYTES = 30, 50_000
#: What base64 is written in within JSON, where "/" may be written "\\/" and a line may end.
_BASE64 = string.ascii_letters.encode() + string.digits.encode() + b"+/=\\"


class BodyRefused(Exception):
    """The body is larger than allowed, or comes too slowly; the rest of it was not read."""


class Larger(NamedTuple):
    """What may have a larger body than others."""

    method: str
    #: A pattern of the whole path.
    path: str
    most: int
    #: Gives why whoever asks may not send so many bytes, before any is read; None: they may, while it lasts.
    #: The head of the request must tell the size then, and more than others may send is base64 only: what
    #: else there is takes many times its size to read.
    admit: Callable[[Scope, int], AbstractAsyncContextManager[ProblemResponse | None]] | None = None
    #: What is added to a refusal.
    advice: Callable[[Scope], str] = lambda _: ""


class Around:
    """ASGI middleware: refuses large bodies before they are read, adds headers, measures."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        max_body_bytes: int,
        shape: Shape,
        larger: Sequence[Larger] = (),
    ) -> None:
        self._app = app
        self._shape = shape
        self._max_body_bytes = max_body_bytes
        self._larger = [(each, re.compile(each.path)) for each in larger]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        larger = self._find_larger(scope)
        most, size = self._max_body_bytes if larger is None else larger.most, _announced(scope)
        admitted = larger is not None and larger.admit is not None and size > self._max_body_bytes
        if larger is not None and larger.admit is not None and not admitted:
            most = self._max_body_bytes
        body = _Body(receive, most, size, self._max_body_bytes if admitted else None)
        begun, status = time.perf_counter(), 500
        refusing = started = False

        async def decorated(message: Message) -> None:
            nonlocal status, started
            if body.refused and not refusing:
                return  # the application's own words for a body that it could not read to its end
            if message["type"] == "http.response.start":
                status, started = message["status"], True
                present = {name.lower() for name, _ in message["headers"]}
                message["headers"] += [pair for pair in _HEADERS if pair[0] not in present]
            await send(message)

        try:
            if not body.refused:
                async with _admission(larger if admitted else None, scope, size) as refused:
                    if refused is not None:
                        await self._shape(scope["path"], refused)(scope, receive, decorated)
                        return
                    with suppress(BodyRefused):
                        await self._app(scope, body.receive, decorated)
            if body.refused:
                refusing = True
                told = body.refusal(larger.advice(scope) if larger else "")
                await self._shape(scope["path"], told)(scope, receive, decorated)
        except Exception as error:
            # caught here, since the server would log the message of whatever gets past
            answer = self._shape(scope["path"], unexpected(Request(scope), error))
            if not started:
                await answer(scope, receive, decorated)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            REQUESTS.labels(scope["method"], route, status).inc()
            SECONDS.labels(route).observe(time.perf_counter() - begun)

    def _find_larger(self, scope: Scope) -> Larger | None:
        for each, path in self._larger:
            if scope["method"] == each.method and path.fullmatch(scope["path"]):
                return each
        return None


class _Body:
    """Reads a request's body as long as it is within its limits."""

    def __init__(self, receive: Receive, most: int, size: int, most_plain: int | None) -> None:
        """It is announced to have `size` bytes. `most_plain`: of those that are not base64, and all have to
        come in time then.
        """
        self._receive, self._most, self._most_plain = receive, most, most_plain
        self._until = time.perf_counter() + _SLOWEST_S + size / _SLOWEST_BYTES
        self._read = self._plain = 0
        self._whole = False
        #: Why no more is read; empty while it is.
        self.refused: Literal["", "large", "plain", "slow"] = "large" if size > most else ""

    async def receive(self) -> Message:
        """The next part. Raises BodyRefused."""
        waits = self._most_plain is not None and not self._whole
        try:
            async with asyncio.timeout(self._until - time.perf_counter() if waits else None):
                message = await self._receive()
        except TimeoutError:
            self.refused = "slow"
            raise BodyRefused from None
        part = message.get("body", b"")
        self._whole = not message.get("more_body", False)
        self._read += len(part)
        if self._most_plain is not None:
            self._plain += len(part.translate(None, _BASE64))
        if self._read > self._most:
            self.refused = "large"
        elif self._most_plain is not None and self._plain > self._most_plain:
            self.refused = "plain"
        if self.refused:
            raise BodyRefused
        return message

    def refusal(self, advice: str) -> ProblemResponse:
        """What to say of it, with what is added to that."""
        status, code = 413, "body-too-large"
        detail = f"The body may have at most {self._most} bytes; send less."
        if self.refused == "plain":
            detail = "The body has too much besides pictures; send less."
        elif self.refused == "slow":
            status, code = 408, "body-too-slow"
            detail = "The body did not come in time; send it again, or send less."
        return problem(status, code, f"{detail} {advice}".rstrip(), headers={"Connection": "close"})


def _admission(
    larger: Larger | None, scope: Scope, size: int
) -> AbstractAsyncContextManager[ProblemResponse | None]:
    return nullcontext() if larger is None or larger.admit is None else larger.admit(scope, size)


def _announced(scope: Scope) -> int:
    """The body's size by the request's head; 0 where it tells none."""
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value)
    return 0
