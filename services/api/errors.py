"""Turns every error into a problem of RFC 9457. It is the one place that maps errors to HTTP.

A problem never repeats what was sent: a validation error names the field and the rule only.
"""

import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from sqlalchemy.exc import DataError, InterfaceError, OperationalError, TimeoutError
from starlette.exceptions import HTTPException

from shared import errors
from shared.logs import where
from shared.privacy.envelope import CannotDecrypt
from shared.storage import StorageAway

log = logging.getLogger(__name__)

#: What is raised while the database cannot be reached.
DATABASE_AWAY = (OperationalError, InterfaceError, TimeoutError)

#: The first class in an error's ancestry that stands here gives the status.
STATUS: dict[type[errors.MediChatError], int] = {
    errors.InvalidInput: 422,
    errors.TooLarge: 413,
    errors.AccountLocked: 429,
    errors.NotAuthenticated: 401,
    errors.NotAllowed: 403,
    errors.NotFound: 404,
    errors.Conflict: 409,
    errors.LimitReached: 429,
    errors.Unavailable: 503,
    errors.StorageFull: 507,
    errors.MediChatError: 500,
}
TITLES = {
    400: "The request cannot be read",
    401: "Not logged in",
    403: "Not allowed",
    404: "Not found",
    405: "This method is not offered here",
    409: "Not possible at this moment",
    410: "No longer there to read",
    413: "The request is too large",
    415: "The content type is not understood",
    422: "The request cannot be used",
    429: "Too much at once",
    500: "Something went wrong inside MediChat",
    503: "A part of MediChat is not reachable",
    504: "No answer in time",
    507: "No room left",
}
#: What a field of these patterns may hold, in words.
_PATTERNS = {
    r"^[\w.@+-]+$": "may hold letters, digits and . @ + - _ only, and no blanks",
    r"^[A-Za-z0-9][A-Za-z0-9./_:-]*$": "may hold letters from A to Z, digits and . / _ : - only, "
    "no blanks, and begins with a letter or a digit",
}


class FieldProblem(BaseModel):
    """One field that cannot be used."""

    field: str
    message: str


class Problem(BaseModel):
    """An error, as `application/problem+json` (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    help: str | None = Field(
        None,
        description="Where help is found, for a person in need whose question was not taken. `detail` "
        "begins with it; show it first, whatever else you show.",
    )
    errors: list[FieldProblem] | None = None
    job_id: str | None = Field(None, description="Of an answer that failed or was cancelled.")
    conversation_id: str | None = Field(None, description="Where its question is, and what was released.")


class ProblemResponse(JSONResponse):
    """A problem on the wire."""

    media_type = "application/problem+json"

    def __init__(self, problem: Problem, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(problem.model_dump(exclude_none=True), status_code=problem.status, headers=headers)
        self.problem = problem


def problem(
    status: int,
    code: str,
    detail: str,
    *,
    help: str | None = None,
    fields: list[FieldProblem] | None = None,
    headers: dict[str, str] | None = None,
    job_id: str | None = None,
    conversation_id: str | None = None,
) -> ProblemResponse:
    """Build the response for one problem; `help` is what a person in need reads before its detail."""
    body = Problem(
        type=f"urn:medichat:problem:{code}",
        title=TITLES.get(status, "Error"),
        status=status,
        detail=f"{help}\n\n{detail}" if help else detail,
        help=help,
        errors=fields,
        job_id=job_id,
        conversation_id=conversation_id,
    )
    return ProblemResponse(body, headers)


def status_of(error: errors.MediChatError) -> int:
    """The HTTP status of one of our errors."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def document(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses=` of a route that may answer with these problems."""
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {
        status: {"description": TITLES[status], "model": Problem, "content": content} for status in statuses
    }


def put_first(request: Request, help: str) -> None:
    """Let the problem that this request ends in, if it ends in one, begin with this help, if it is any."""
    request.state.help = help


def _help(request: Request) -> str | None:
    return getattr(request.state, "help", "") or None


#: Says a problem as the clients of its path expect.
Shape = Callable[[str, ProblemResponse], Response]


def install(app: FastAPI, shape: Shape) -> None:
    """Let the application answer with problems, each in its `shape`."""
    handlers: dict[type[Exception], _Handler] = {
        errors.MediChatError: _ours,
        RequestValidationError: _invalid,
        HTTPException: _http,
        DataError: _not_storable,
        StorageAway: _storage_away,
        CannotDecrypt: _cannot_open,
        **dict.fromkeys(DATABASE_AWAY, _database_away),
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, _shaped(handler, shape))


_Handler = Callable[[Request, Exception], Awaitable[ProblemResponse]]


def _shaped(handler: _Handler, shape: Shape) -> Callable[[Request, Exception], Awaitable[Response]]:
    async def handle(request: Request, error: Exception) -> Response:
        return shape(request.url.path, await handler(request, error))

    return handle


async def _ours(request: Request, error: Exception) -> ProblemResponse:
    assert isinstance(error, errors.MediChatError)
    return refusal_of(error, help=_help(request))


def refusal_of(error: errors.MediChatError, *, help: str | None = None) -> ProblemResponse:
    """The problem that one of our errors is."""
    status, headers = status_of(error), {}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    fields = None
    if isinstance(error, errors.PolicyRefused):
        fields = [FieldProblem(field=f"{error.file}:{error.line}", message=error.reason)]
    if isinstance(error, errors.PictureRefused):
        fields = [FieldProblem(field=f"body.{error.field}", message=error.reason)]
    return problem(status, error.code, error.detail, help=help, headers=headers, fields=fields)


async def _invalid(request: Request, error: Exception) -> ProblemResponse:
    assert isinstance(error, RequestValidationError)
    whole = next((item for item in error.errors() if tuple(item["loc"]) == ("body",)), None)
    if whole is not None:
        return _unusable_body(request, empty=whole["type"] == "missing")
    fields = [
        FieldProblem(field=".".join(str(part) for part in item["loc"]), message=_rule(item))
        for item in error.errors()
    ]
    detail = "Some fields cannot be used; see `errors`."
    return problem(422, "invalid-input", detail, help=_help(request), fields=fields)


def _says_json(request: Request) -> bool:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return kind == "application/json" or kind.endswith("+json")


def _unusable_body(request: Request, *, empty: bool) -> ProblemResponse:
    """The answer to a body that is no JSON object, whatever its fields are."""
    status, code, why = 422, "invalid-input", "this body is another JSON value"
    if empty:
        why = "the body is empty"
    elif not _says_json(request):
        status, code, why = 415, "unsupported-media-type", "this body says that it is something else"
    what = "Send a JSON object with Content-Type: application/json"
    return problem(status, code, f"{what}; {why}.", help=_help(request))


def _rule(item: dict[str, Any]) -> str:
    """What the field must be. Pydantic's own words for JSON errors quote the input, so they are left out."""
    if item["type"] == "json_invalid":
        return "is not valid JSON"
    if item["type"] == "string_pattern_mismatch" and item["ctx"]["pattern"] in _PATTERNS:
        return _PATTERNS[item["ctx"]["pattern"]]
    return str(item["msg"]).removeprefix("Value error, ")


async def _http(_request: Request, error: Exception) -> ProblemResponse:
    assert isinstance(error, HTTPException)
    code = {404: "not-found", 405: "method-not-allowed", 400: "unreadable"}.get(error.status_code, "http")
    detail = {
        400: "The request cannot be read: send a JSON object in UTF-8 that is not nested a thousand deep.",
        404: "There is nothing at this address.",
        405: "This method is not offered at this address.",
    }
    return problem(
        error.status_code,
        code,
        detail.get(error.status_code, "The request cannot be read."),
        headers=dict(error.headers or {}),
    )


async def _not_storable(request: Request, error: Exception) -> ProblemResponse:
    log.warning("the database cannot hold or compare a value: %s", where(error))
    detail = "A text or number that was sent cannot be used, for example because it holds a NUL; change it."
    return problem(422, "invalid-input", detail, help=_help(request))


async def _database_away(request: Request, error: Exception) -> ProblemResponse:
    log.error("the database is not reachable: %s", type(error).__name__)
    detail = "The database is not reachable; try again in a moment."
    if "idempotency-key" in request.headers:
        detail += " Send it again with the same Idempotency-Key: it is never done twice."
    elif request.method not in ("GET", "HEAD"):  # it may have been stored just before
        detail += " Whether this was stored is not known: look before you send it again."
    return problem(503, "unavailable", detail, help=_help(request), headers={"Retry-After": "5"})


async def _storage_away(request: Request, error: Exception) -> ProblemResponse:
    log.error("the storage is not reachable: %s", where(error))
    detail = "The storage is not reachable; try again in a moment."
    return problem(503, "unavailable", detail, help=_help(request), headers={"Retry-After": "5"})


async def _cannot_open(request: Request, error: Exception) -> ProblemResponse:
    log.error("a text cannot be opened: %s", where(error))
    detail = "This can no longer be read: its texts were erased, or cannot be opened with their key."
    detail += " Ask your admin if you did not expect that."
    return problem(410, "no-longer-readable", detail, help=_help(request))


def unexpected(request: Request, error: Exception) -> ProblemResponse:
    """The answer to a bug. Its place is logged; its message is not, for it may quote a person."""
    log.error("unexpected %s", where(error))
    detail = "Something went wrong inside MediChat; tell your admin the time."
    return problem(500, "internal", detail, help=_help(request))
