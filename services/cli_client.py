"""How a command speaks to the gateway: log in, read answers, show progress. It knows no command."""

import getpass
import os
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from shared.settings import Settings

Json = dict[str, Any]
#: Exit status: it was done; or it was asked for, and did not succeed.
DONE, FAILED = 0, 3
#: Between two looks at what is waited for.
_POLL_S = 1.0
#: A moving line is drawn this often; a log gets a line this often.
_DRAW_S, _LOG_S = 0.2, 10.0


class CommandRefused(Exception):
    """The command cannot be done; the message says what to change."""


@contextmanager
def log_in(settings: Settings) -> Iterator[httpx.Client]:
    """A client of the gateway with somebody's rights, for as long as the command takes."""
    timeout = httpx.Timeout(60, connect=10)
    # a transport of its own, for else a proxy named in the environment would see what is sent
    transport = httpx.HTTPTransport()
    with httpx.Client(base_url=settings.api_url, timeout=timeout, transport=transport) as client:
        if key := os.environ.get("MEDICHAT_API_KEY", "").strip():
            client.headers["Authorization"] = f"Bearer {key}"
        elif sys.stdin.isatty():
            try:
                form = {"username": input("Name: "), "password": getpass.getpass()}
            except EOFError as error:
                raise CommandRefused("no name and password were given") from error
            client.auth = _Tokens(client, expect(client.post("/v1/auth/token", data=form)))
        else:
            raise CommandRefused("set MEDICHAT_API_KEY to an admin's API key, or run this at a terminal")
        yield client


class _Tokens(httpx.Auth):
    """A log-in's tokens. The access token lives for minutes and a wait lasts for hours, so it is renewed.

    A refresh token is good for one use, and each use gives the next one.
    """

    requires_response_body = True

    def __init__(self, client: httpx.Client, tokens: Json) -> None:
        self._client, self._tokens = client, tokens

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Send the request; once more with a new token where the old one had expired."""
        again = isinstance(request.stream, httpx.ByteStream)
        if not again:  # an upload is read from its file once, so its token must be good from the start
            yield from self._renew()
        response = yield self._signed(request)
        if again and response.status_code == httpx.codes.UNAUTHORIZED:
            yield from self._renew()
            yield self._signed(request)

    def _signed(self, request: httpx.Request) -> httpx.Request:
        request.headers["Authorization"] = f"Bearer {self._tokens['access_token']}"
        return request

    def _renew(self) -> Generator[httpx.Request, httpx.Response, None]:
        body = {"refresh_token": self._tokens["refresh_token"]}
        self._tokens = expect((yield self._client.build_request("POST", "/v1/auth/refresh", json=body)))


def expect(response: httpx.Response) -> Json:
    """The body of an answer. Raises CommandRefused with the gateway's own words."""
    if response.is_success:
        try:
            body: Json = response.json()
        except ValueError as error:
            raise CommandRefused("what answers is not the gateway; see MEDICHAT_API_URL") from error
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


def follow(
    client: httpx.Client,
    path: str,
    *,
    ended: Callable[[Json], bool],
    told: Callable[[Json], str],
    again: str,
) -> Json:
    """Show how something fares until it has ended, and return it as it is then.

    What breaks the wait off leaves what was waited for alone, so the error says so, with the command that
    looks `again`.
    """
    line = ProgressLine()
    seen = expect(client.get(path))
    try:
        while not ended(seen):
            line.show(told(seen))
            time.sleep(_POLL_S)
            seen = expect(client.get(path))
    except (KeyboardInterrupt, CommandRefused, httpx.TransportError) as error:
        error.add_note(f"The job goes on without this command; look again with `{again}`.")
        raise
    finally:
        line.end()
    return seen
