"""Says errors as OpenAI's API does, where its clients ask. It decides nothing: the words are a problem's.

<https://platform.openai.com/docs/guides/error-codes>. What its clients do about a status is kept in mind:
they ask again after 409, 429 and 5xx unless the answer says that it is of no use.
"""

import re

from fastapi import Response
from fastapi.responses import JSONResponse

from services.api.errors import Problem, ProblemResponse
from services.api.schemas_chat import ChatError, ChatProblem

#: Where OpenAI's clients ask.
_PATHS = re.compile(r"/v1/chat/completions|/v1/models(/.*)?")
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
#: Its names for some of our codes, which its clients act upon.
_CODES = {
    "not-authenticated": "invalid_api_key",
    "prompt-too-long": "context_length_exceeded",
    "limit-reached": "rate_limit_exceeded",
    "not-found": "model_not_found",  # nothing else can be missing there
}
#: Asking again would end the same, or make it worse.
_USELESS_AGAIN = (409, 504)


def speaks(path: str) -> bool:
    """Whether this is a path of OpenAI's API."""
    return _PATHS.fullmatch(path) is not None


def in_shape_of(path: str, response: ProblemResponse) -> Response:
    """The problem as the clients of this path expect it."""
    if not speaks(path):
        return response
    problem = response.problem
    status = 400 if problem.status == 422 else problem.status
    headers = {
        name: value
        for name, value in response.headers.items()
        if not name.startswith(("content-", "location"))
    }
    if status in _USELESS_AGAIN:
        headers["x-should-retry"] = "false"
    return JSONResponse(chat_error(problem).model_dump(), status_code=status, headers=headers)


def chat_error(problem: Problem) -> ChatError:
    """What the problem says; of several fields the first is named, and all are told of."""
    fields = problem.errors or []
    told = [f"{_param(each.field)}: {each.message}" for each in fields]
    code = problem.type.rpartition(":")[2]
    return ChatError(
        error=ChatProblem(
            message="; ".join(told) if told and not problem.help else " ".join([problem.detail, *told]),
            type=_TYPES.get(
                problem.status, "server_error" if problem.status >= 500 else "invalid_request_error"
            ),
            param=_param(fields[0].field) if fields else None,
            code=_CODES.get(code, code.replace("-", "_")),
            help=problem.help,
        )
    )


def _param(field: str) -> str:
    return field.removeprefix("body.")
