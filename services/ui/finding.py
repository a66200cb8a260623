"""The gateway's side of finding conversations: searches, kept ones, exports. It knows no page."""

from typing import Any, cast

from services.ui.client import Gateway, Json


class Finding:
    """What an auditor looks for; every method raises GatewayError."""

    def __init__(self, gateway: Gateway) -> None:
        self._call, self._receive = gateway.call, gateway.receive

    def search(self, filters: Json, *, cursor: str | None, limit: int) -> Json:
        """A page of conversations, newest first; it is an event of the log."""
        body = {**filters, "limit": limit, **({"cursor": cursor} if cursor else {})}
        return self._call("POST", "/v1/audit/conversations/search", json=body)

    def views(self) -> list[Json]:
        """One's own views, by name."""
        return cast(list[Json], self._call("GET", "/v1/audit/views")["items"])

    def save_view(self, name: str, filters: Json) -> Json:
        """Keep a search."""
        return self._call("POST", "/v1/audit/views", json={"name": name, "filters": filters})

    def delete_view(self, view_id: str) -> Json:
        """Delete a view."""
        return self._call("DELETE", f"/v1/audit/views/{view_id}")

    def export(self, what: str, kind: str, filters: dict[str, Any]) -> tuple[str, bytes]:
        """A file's name, and what is in it; the gateway may ask for the password first."""
        return self._receive("/v1/audit/export", {"what": what, "format": kind, what: filters})
