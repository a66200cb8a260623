"""Asks one question through every process that answers, waiting and streaming, and checks its traces.

It prints one line of JSON and keeps nothing. It does not judge the answer's wording.
"""

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
from pydantic import ValidationError
from sqlalchemy import func, select

from services.local import Stack, StartFailed
from shared.db import open_database
from shared.db.tables import audit_events, jobs, messages, released_sentences
from shared.errors import MediChatError
from shared.settings import Settings, describe_wrong

QUESTION = "What are the symptoms of asthma?"


class CheckFailed(Exception):
    """Something that must hold after an answer does not."""


def smoke() -> int:
    """Run the check; returns 0 only if all of it held."""
    try:
        figures = _check()
    except Exception as error:
        print(f"medichat smoke: {_told(error)}", file=sys.stderr)
        print(json.dumps({"ok": False, "error": type(error).__name__}))
        return 1
    print(json.dumps({"ok": True, **figures}))
    return 0


def _check() -> dict[str, float]:
    """What was measured of two answers whose traces are all there. Raises CheckFailed when they are not."""
    with tempfile.TemporaryDirectory(prefix="medichat-smoke-") as folder:
        begun = time.monotonic()
        with Stack(Path(folder), without=["worker_train"]) as stack:
            figures = {"ready_s": round(time.monotonic() - begun, 2)}
            figures |= _ask_twice(stack)
            check_rows(stack.settings, answers=2)
    return figures


def _told(error: Exception) -> str:
    """What an error that was foreseen says; of any other its type only, since it may quote what it met."""
    if isinstance(error, ValidationError):
        return describe_wrong(error)
    foreseen = CheckFailed | StartFailed | MediChatError | httpx.HTTPError | OSError
    return str(error) if isinstance(error, foreseen) else type(error).__name__


def log_in(stack: Stack, role: str) -> httpx.Client:
    """A client of the gateway, logged in with the role's first log-in and consented."""
    name, password = stack.logins[role]
    client = httpx.Client(base_url=stack.api_url, timeout=120, transport=httpx.HTTPTransport())
    form = {"username": name, "password": password}
    token = _expect(client.post("/v1/auth/token", data=form), 200)["access_token"]
    client.headers["Authorization"] = f"Bearer {token}"
    me = _expect(client.get("/v1/me"), 200)
    if not me["consented"]:
        _expect(client.post("/v1/me/consent", json={"version": me["consent"]["version"]}), 200)
    return client


def follow(client: httpx.Client, job_id: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The job's server-sent events as (event, data), until the stream ends."""
    with client.stream("GET", f"/v1/jobs/{job_id}/events") as response:
        event = ""
        for line in response.iter_lines():
            if line.startswith("event:"):
                event = line[6:].strip()
            elif line.startswith("data:"):
                yield event, json.loads(line[5:])


def _ask_twice(stack: Stack) -> dict[str, float]:
    with closing(log_in(stack, "user")) as client:
        waited = _expect(client.post("/predict", json={"query": QUESTION}), 200)
        _require(bool(waited["answer"].strip()), "the waiting request got an empty answer")
        begun = time.monotonic()
        accepted = client.post("/predict", json={"query": QUESTION}, headers={"Prefer": "respond-async"})
        job_id = _expect(accepted, 202)["id"]
        first_at, streamed = None, ""
        for event, data in follow(client, job_id):
            if event == "sentence":
                first_at = first_at or time.monotonic()
                streamed += data["text"]
        ended = time.monotonic()
        _require(first_at is not None, "no sentence was streamed")
        job = _expect(client.get(f"/v1/jobs/{job_id}"), 200)
        _require(job["state"] == "succeeded", f"the streamed job ended as {job['state']}")
        _require(streamed.strip() == waited["answer"].strip(), "streaming and waiting gave different answers")
        return {
            "first_sentence_ms": round(((first_at or ended) - begun) * 1000, 1),
            "answer_ms": round((ended - begun) * 1000, 1),
            "tokens_per_s": round(job["completion_tokens"] / (ended - begun), 1),
        }


def check_rows(settings: Settings, *, answers: int) -> None:
    """Raises CheckFailed unless the database holds all that so many answers, and no more, leave behind."""
    database = open_database(settings)
    try:
        with database.read() as connection:
            done = connection.execute(
                select(func.count()).select_from(jobs).where(jobs.c.state == "succeeded")
            ).scalar_one()
            said = connection.execute(select(func.count()).select_from(messages)).scalar_one()
            released = connection.execute(select(func.count()).select_from(released_sentences)).scalar_one()
            logged = set(connection.execute(select(audit_events.c.action)).scalars())
    finally:
        database.close()
    _require(done == answers, f"{done} jobs succeeded, not {answers}")
    _require(said == 2 * answers, f"{said} messages are stored, not {2 * answers}")
    _require(released >= answers, "no released sentences are stored")
    missing = {"session.started", "question.asked", "answer.given"} - logged
    _require(not missing, f"the audit log lacks {sorted(missing)}")


def _expect(response: httpx.Response, status: int) -> dict[str, Any]:
    if response.status_code != status:
        raise CheckFailed(
            f"{response.request.url.path} answered {response.status_code}: {response.text[:300]}"
        )
    body: dict[str, Any] = response.json()
    return body


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise CheckFailed(otherwise)
