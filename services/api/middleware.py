"""What happens around every request: a body limit, safe headers, metrics. It knows no route."""

import re
import string
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from typing import NamedTuple

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


#: What base64 is written in within JSON, where "/" may be written "\\/" and a line may end.
_BASE64 = string.ascii_letters.encode() + string.digits.encode() + b"+/=\\"


class BodyTooLarge(Exception):
    """The body is larger than allowed; the rest of it was not read."""


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
        begun, status, read, plain, too_large = time.perf_counter(), 500, 0, 0, False
        refusing = started = False

        async def limited() -> Message:
            nonlocal read, plain, too_large
            message = await receive()
            read += len(message.get("body", b""))
            if admitted:
                plain += len(message.get("body", b"").translate(None, _BASE64))
            if read > most or plain > self._max_body_bytes:
                too_large = True
                raise BodyTooLarge
            return message

        async def decorated(message: Message) -> None:
            nonlocal status, started
            if too_large and not refusing:
                return  # the application's own words for a body that it could not read to its end
            if message["type"] == "http.response.start":
                status, started = message["status"], True
                present = {name.lower() for name, _ in message["headers"]}
                message["headers"] += [pair for pair in _HEADERS if pair[0] not in present]
            await send(message)

        try:
            too_large = size > most
            if not too_large:
                async with _admission(larger if admitted else None, scope, size) as refused:
                    if refused is not None:
                        await self._shape(scope["path"], refused)(scope, receive, decorated)
                        return
                    with suppress(BodyTooLarge):
                        await self._app(scope, limited, decorated)
            if too_large:
                refusing = True
                told = _refusal(most, plain > self._max_body_bytes, larger.advice(scope) if larger else "")
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


def _refusal(most: int, is_plain: bool, advice: str) -> ProblemResponse:
    """`is_plain`: that it is not so much of base64."""
    detail = f"The body may have at most {most} bytes; send less."
    if is_plain:
        detail = "The body has too much besides pictures; send less."
    detail = f"{detail} {advice}".rstrip()
    return problem(413, "body-too-large", detail, headers={"Connection": "close"})
