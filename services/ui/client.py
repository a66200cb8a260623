"""Speaks HTTP to the gateway for one person. It knows no page, and keeps nothing between calls."""

import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, cast

import httpx

from shared.settings import get_settings

Json = dict[str, Any]
_ID = re.compile(r"[\w-]{1,64}", re.ASCII)
#: Seconds for an erasure of many conversations.
_ERASURE_S = 120


class GatewayError(Exception):
    """The gateway refused, or could not be reached; `detail` says what to do."""

    def __init__(
        self, code: str, detail: str, status: int = 0, places: tuple[str, ...] = (), help: str = ""
    ) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        #: The HTTP status; 0 when there was no answer.
        self.status = status
        #: What is wrong: names of fields, or `FILE:LINE` of a policy.
        self.places = places
        #: Where a person in need finds help, to be shown before all else; empty for anybody else.
        self.help = help


@lru_cache
def _connections() -> httpx.Client:
    """The pool of connections; it carries no person's token."""
    # a transport of its own, for else a proxy named in the environment would be told every question
    return httpx.Client(
        base_url=get_settings().api_url,
        timeout=httpx.Timeout(20, connect=3),
        transport=httpx.HTTPTransport(),
    )


class Gateway:
    """The gateway as one logged-in person sees it; every method raises GatewayError."""

    def __init__(self, token: str, *, watching: bool = False) -> None:
        self._headers = {"Authorization": f"Bearer {token}"}
        if watching:
            self._headers["X-MediChat-Poll"] = "1"
        self._token = token

    def watching(self) -> "Gateway":
        """The same, for looks that a page takes by itself: they do not count as use of the log-in."""
        return Gateway(self._token, watching=True)

    def me(self, *, within_s: float | None = None) -> Json:
        """Who is logged in; `within_s` is for a look that nobody waits for."""
        return self.call("GET", "/v1/me", **({} if within_s is None else {"timeout": within_s}))

    def consent(self, version: str) -> None:
        """Accept the text of this version."""
        self.call("POST", "/v1/me/consent", json={"version": version})

    def change_password(self, current: str, new: str) -> None:
        """Set a new password; other log-ins end."""
        self.call("POST", "/v1/me/password", json={"current": current, "new": new})

    def reauthenticate(self, password: str) -> None:
        """Type one's password again, for what asks for it."""
        self.call("POST", "/v1/me/reauthenticate", json={"password": password})

    # -- asking

    def ask(
        self, query: str, conversation_id: str | None, idempotency_key: str, images: Sequence[str] = ()
    ) -> Json:
        """Ask; returns the job at once, or the finished answer when no model was needed.

        `images` are files in base64.
        """
        path = "/predict" if conversation_id is None else f"{_conversation(conversation_id)}/messages"
        headers = {"Prefer": "respond-async", "Idempotency-Key": idempotency_key}
        body = {"query": query, **({"images": list(images)} if images else {})}
        return self.call("POST", path, json=body, headers=headers)

    def image(self, conversation_id: str, image_id: str) -> bytes:
        """A picture of one's conversation, as PNG."""
        return self.file(f"{_conversation(conversation_id)}/images/{image_id}")

    def regenerate(self, conversation_id: str) -> Json:
        """Answer the last question again."""
        return self.call("POST", f"{_conversation(conversation_id)}/regenerate")

    def rate(self, message_id: str, rating: str | None) -> None:
        """Say what one thinks of an answer; None takes it back."""
        path = f"/v1/messages/{message_id}/feedback"
        if rating is None:
            self.call("DELETE", path)
        else:
            self.call("PUT", path, json={"rating": rating})

    def conversations(self, search: str = "", cursor: str | None = None, limit: int = 30) -> Json:
        """A page of one's conversations, newest first."""
        return self.call("GET", "/v1/conversations", params=given(search=search, cursor=cursor, limit=limit))

    def conversation(self, conversation_id: str) -> Json:
        """A whole conversation, with what is released of a running answer."""
        return self.call("GET", _conversation(conversation_id))

    def rename(self, conversation_id: str, title: str) -> None:
        """Give a conversation another title."""
        self.call("PATCH", _conversation(conversation_id), json={"title": title})

    def hide(self, conversation_id: str) -> None:
        """Take a conversation out of one's history."""
        self.call("DELETE", _conversation(conversation_id))

    def jobs(self, state: str | None = None, cursor: str | None = None, limit: int = 20) -> Json:
        """A page of one's jobs, newest first."""
        return self.call("GET", "/v1/jobs", params=given(state=state, cursor=cursor, limit=limit))

    def cancel(self, job_id: str) -> None:
        """Stop a job."""
        self.call("POST", f"/v1/jobs/{job_id}/cancel")

    # -- administration

    def users(self) -> list[Json]:
        """Everybody."""
        return cast(list[Json], self.call("GET", "/v1/users")["items"])

    def create_user(self, name: str, role: str, audience: str) -> Json:
        """Make an account; the answer holds its password."""
        return self.call("POST", "/v1/users", json={"name": name, "role": role, "audience": audience})

    def change_user(self, user_id: str, **changes: str) -> Json:
        """Change role, audience or status."""
        return self.call("PATCH", f"/v1/users/{user_id}", json=changes)

    def reset_password(self, user_id: str) -> str:
        """Give a person a new random password."""
        return str(self.call("POST", f"/v1/users/{user_id}/password")["password"])

    def system(self) -> Json:
        """Queue, workers, latency."""
        return self.call("GET", "/v1/system")

    # -- the log

    def audit_events(self, **filters: str | int | None) -> Json:
        """A page of the log, newest first; reading it is itself an event."""
        return self.call("GET", "/v1/audit/events", params=given(**filters))

    def pending_auditors(self) -> list[Json]:
        """Auditors' accounts that wait for an auditor's yes."""
        return cast(list[Json], self.call("GET", "/v1/users/pending")["items"])

    def set_passwords(self) -> list[Json]:
        """Accounts that were logged in to with a password that another set; for auditors."""
        return cast(list[Json], self.call("GET", "/v1/users/set-passwords")["items"])

    def approve(self, user_id: str) -> str:
        """Say yes to a new auditor; returns the password to hand them."""
        return str(self.call("POST", f"/v1/users/{user_id}/approve")["password"])

    # -- API keys

    def api_keys(self) -> list[Json]:
        """One's API keys."""
        return cast(list[Json], self.call("GET", "/v1/api-keys")["items"])

    def create_api_key(self, name: str, scope: str, days: int) -> Json:
        """Make a key that ends after some days; the answer holds it, once."""
        expires_at = datetime.now(UTC) + timedelta(days=days)
        body = {"name": name, "scopes": [scope], "expires_at": expires_at.isoformat()}
        return self.call("POST", "/v1/api-keys", json=body)

    def revoke_api_key(self, key_id: str) -> None:
        """End a key."""
        self.call("DELETE", f"/v1/api-keys/{key_id}")

    # -- one's data, erasure, holds

    def own_data(self) -> bytes:
        """All that is kept about oneself, as a zip."""
        return self.file("/v1/me/export")

    def erase_oneself(self, name: str) -> Json:
        """Erase one's own account, by its name, and every conversation."""
        return self.call("POST", "/v1/me/erase", json={"name": name}, timeout=_ERASURE_S)

    def erase_person(self, user_id: str, name: str) -> Json:
        """Erase somebody's account, by its name, and every conversation."""
        return self.call("POST", f"/v1/users/{user_id}/erase", json={"name": name}, timeout=_ERASURE_S)

    def erase_conversation(self, conversation_id: str) -> Json:
        """Erase one of one's conversations."""
        return self.call("POST", f"{_conversation(conversation_id)}/erase")

    def holds(self, cursor: str | None = None) -> Json:
        """A page of the legal holds that count now; reading them is itself an event."""
        return self.call("GET", "/v1/holds", params=given(active="true", limit=100, cursor=cursor))

    def place_hold(self, subject: str, reference: str) -> Json:
        """Hold a `user:ID` or a `conversation:ID` for a case."""
        return self.call("POST", "/v1/holds", json={"subject": subject, "reference": reference})

    def lift_hold(self, hold_id: str) -> None:
        """End a hold."""
        self.call("POST", f"/v1/holds/{hold_id}/lift")

    def call(self, method: str, path: str, *, headers: dict[str, str] | None = None, **content: Any) -> Json:
        """One request; `content` is what httpx takes. Raises GatewayError."""
        response = self._send(method, path, headers=headers, **content)
        return response.json() if response.content else {}

    def file(self, path: str, method: str = "GET", **content: Any) -> bytes:
        """What comes of a request, as it is; by default what lies at this path. Raises GatewayError."""
        return self._send(method, path, **content).content

    def lines(self, method: str, path: str, *, silence_s: float) -> Iterator[str]:
        """The lines of an answer as they come; none may be silent for longer. Raises GatewayError."""
        timeout = httpx.Timeout(silence_s, connect=3)
        try:
            with _connections().stream(method, path, headers=self._headers, timeout=timeout) as response:
                if not response.is_success:
                    response.read()
                    raise _error(response)
                yield from response.iter_lines()
        except httpx.HTTPError as error:
            raise GatewayError("no-answer", "MediChat does not answer right now; try again.") from error

    def receive(self, path: str, body: Json) -> tuple[str, bytes]:
        """The file that comes of this request: its name, and what is in it. Raises GatewayError."""
        response = self._send("POST", path, json=body)
        name = response.headers.get("content-disposition", "").partition('filename="')[2].rstrip('"')
        return name or "export", response.content

    def _send(
        self, method: str, path: str, *, headers: dict[str, str] | None = None, **content: Any
    ) -> httpx.Response:
        sent = {**self._headers, **(headers or {})}
        try:
            response = _connections().request(method, path, headers=sent, **content)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise GatewayError("unreachable", "MediChat cannot be reached right now.") from error
        except httpx.HTTPError as error:
            detail = "MediChat does not answer right now; look whether it was done before you do it again."
            if method == "GET":
                detail = "MediChat does not answer right now."
            raise GatewayError("no-answer", detail) from error
        if not response.is_success:
            raise _error(response)
        return response


def given(**values: str | int | float | None) -> dict[str, str | int | float]:
    """What has a value, as a query."""
    return {name: value for name, value in values.items() if value not in (None, "")}


def in_path(id: str) -> str:
    """This id, as part of a path: it may come from the address of a page, which anybody can write.

    Raises:
        GatewayError: it is the id of nothing.
    """
    if not _ID.fullmatch(id):
        raise GatewayError("not-found", "There is nothing at this address.", 404)
    return id


def _conversation(id: str) -> str:
    return f"/v1/conversations/{in_path(id)}"


def _error(response: httpx.Response) -> GatewayError:
    help = ""
    try:
        problem = response.json()
        help = problem.get("help", "")
        code, detail = problem["type"].rsplit(":", 1)[-1], problem["detail"].removeprefix(f"{help}\n\n")
        fields = [
            f"{field['field'].rsplit('.', 1)[-1]}: {field['message']}" for field in problem.get("errors", [])
        ]
        places = tuple(field["field"] for field in problem.get("errors", []))
        if code == "policy-refused":  # its detail names the place
            fields = []
        detail = "; ".join(fields) or detail
    except (ValueError, KeyError, AttributeError):
        code, detail = (
            "internal",
            "MediChat could not do that; try again, and tell your admin if it stays so.",
        )
        places = ()
    return GatewayError(code, detail, response.status_code, places, help)
