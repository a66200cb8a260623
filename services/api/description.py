"""The application's OpenAPI description: what FastAPI finds in the routes, and what holds for all of them."""

from typing import Any

from fastapi import FastAPI

from services.api.errors import document
from services.api.examples import EXAMPLES
from services.api.openai_shape import speaks

_PROBLEM = "application/problem+json"
#: Answers without the database.
_NEVER_AWAY = {"/healthz"}


class Described(FastAPI):
    """An application that describes itself in full."""

    def openapi(self) -> dict[str, Any]:
        """The description, made once."""
        if self.openapi_schema is None:
            _complete(super().openapi())
        return super().openapi()


def _complete(description: dict[str, Any]) -> None:
    for path, operations in description["paths"].items():
        for operation in operations.values():
            _add_problems(operation, database=path not in _NEVER_AWAY)
            if speaks(path):
                _say_as_openai(operation["responses"])
    schemas = description["components"]["schemas"]
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    for name, example in EXAMPLES.items():
        schemas[name]["examples"] = [example]


def _add_problems(operation: dict[str, Any], *, database: bool) -> None:
    """Those that any operation of its kind may answer with; and each problem in the one form it comes in."""
    responses = operation["responses"]
    if database:
        responses.setdefault("503", _problem(503))
    if "application/json" in operation.get("requestBody", {}).get("content", {}):
        responses.setdefault("415", _problem(415))
    for status in [status for status in responses if int(status) >= 400]:
        headers = {name: value for name, value in responses[status].items() if name == "headers"}
        responses[status] = _problem(int(status)) | headers


def _say_as_openai(responses: dict[str, Any]) -> None:
    """Problems as `openai_shape` says them."""
    if "422" in responses:
        responses["400"] = responses.pop("422")
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/ChatError"}}}
    for status, told in responses.items():
        if int(status) >= 400:
            responses[status] = {**told, "content": content}


def _problem(status: int) -> dict[str, Any]:
    declared = document(status)[status]
    return {"description": declared["description"], "content": declared["content"]}
