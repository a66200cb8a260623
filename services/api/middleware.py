"""What happens around every request: a body limit, safe headers, metrics. It knows no route."""

import re
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
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


class BodyTooLarge(Exception):
    """The body is larger than allowed; the rest of it was not read."""


class Larger(NamedTuple):
    """What may have a larger body than others."""

    method: str
    #: A pattern of the whole path.
    path: str
    most: int
    #: Says why whoever asks may send no body of that size, before any of it is read; None: they may.
    refuse: Callable[[Scope], Awaitable[ProblemResponse | None]] | None = None


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
        most = self._max_body_bytes if larger is None else larger.most
        begun, status, read, too_large = time.perf_counter(), 500, 0, False
        refusing = started = False

        async def limited() -> Message:
            nonlocal read, too_large
            message = await receive()
            read += len(message.get("body", b""))
            if read > most:
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
            too_large = _announces_more(scope, most)
            if larger and larger.refuse and not _announces_less(scope, self._max_body_bytes):
                refused = await larger.refuse(scope)
                if refused is not None:
                    await self._shape(scope["path"], refused)(scope, receive, decorated)
                    return
            if not too_large:
                with suppress(BodyTooLarge):
                    await self._app(scope, limited, decorated)
            if too_large:
                refusing = True
                await self._shape(scope["path"], _refusal(most))(scope, receive, decorated)
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


def _announces_more(scope: Scope, most: int) -> bool:
    announced = _announced(scope)
    return announced is not None and announced > most


def _announces_less(scope: Scope, than: int) -> bool:
    announced = _announced(scope)
    return announced is not None and announced <= than


def _announced(scope: Scope) -> int | None:
    """Bytes of the body, as its head says; None where it does not."""
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value) if value.isdigit() else None
    return None


def _refusal(most: int) -> ProblemResponse:
    detail = f"The body may have at most {most} bytes; send less."
    return problem(413, "body-too-large", detail, headers={"Connection": "close"})
