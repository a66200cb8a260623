"""How a command speaks to the gateway: log in, read answers, show progress. It knows no command."""

import getpass
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from shared.settings import Settings

Json = dict[str, Any]
#: Exit status: it was done; or it was asked for, and did not succeed.
DONE, FAILED = 0, 3
#: A moving line is drawn this often; a log gets a line this often.
_DRAW_S, _LOG_S = 0.2, 10.0


class CommandRefused(Exception):
    """The command cannot be done; the message says what to change."""


@contextmanager
def log_in(settings: Settings) -> Iterator[httpx.Client]:
    """A client of the gateway with somebody's rights."""
    with httpx.Client(base_url=settings.api_url, timeout=httpx.Timeout(60, connect=10)) as client:
        token = os.environ.get("MEDICHAT_API_KEY", "")
        if not token:
            if not sys.stdin.isatty():
                raise CommandRefused("set MEDICHAT_API_KEY to an admin's API key, or run this at a terminal")
            form = {"username": input("Name: "), "password": getpass.getpass()}
            token = expect(client.post("/v1/auth/token", data=form))["access_token"]
        client.headers["Authorization"] = f"Bearer {token}"
        yield client


def expect(response: httpx.Response) -> Json:
    """The body of an answer. Raises CommandRefused with the gateway's own words."""
    if response.is_success:
        body: Json = response.json()
        return body
    try:
        problem = response.json()
        fields = [
            f"{each['field'].rsplit('.', 1)[-1]}: {each['message']}" for each in problem.get("errors", [])
        ]
        detail = "; ".join(fields) or str(problem["detail"])
    except (ValueError, KeyError, AttributeError):
        detail = f"the gateway answered {response.status_code}"
    raise CommandRefused(detail)


class ProgressLine:
    """A line on standard error: redrawn at a terminal, now and then a new one in a log."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._moves = sys.stderr.isatty()
        self._due = 0.0
        self._drawn = False

    def show(self, text: str, *, last: bool = False) -> None:
        """Say it, unless something was said a moment ago."""
        now = self._clock()
        if now < self._due and not last:
            return
        self._due = now + (_DRAW_S if self._moves else _LOG_S)
        self._drawn = True
        print(f"\r\x1b[K{text}" if self._moves else text, end="" if self._moves else "\n", file=sys.stderr)
        sys.stderr.flush()

    def end(self) -> None:
        """Leave the line."""
        if self._moves and self._drawn:
            print(file=sys.stderr)
