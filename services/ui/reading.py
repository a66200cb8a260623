"""The gateway's side of reading logged conversations: masked, revealed, in an emergency. It knows no page."""

from services.ui.client import Gateway, Json, given, in_path


class Reading:
    """What an auditor reads, and an admin in an emergency; every method raises GatewayError."""

    def __init__(self, gateway: Gateway) -> None:
        self._call = gateway.call
        self._file = gateway.file

    def conversation(self, conversation_id: str, *, revealed: bool = False) -> Json:
        """A conversation as an auditor reads it; unmasked only while a reveal lasts."""
        query = {"revealed": "true"} if revealed else {}
        return self._call("GET", _logged(conversation_id), params=query)

    def image(self, conversation_id: str, image_id: str) -> bytes:
        """A picture of it, as PNG, while a reveal lasts; each look is an event of the log."""
        return self._file(f"{_logged(conversation_id)}/images/{in_path(image_id)}")

    def reveal(self, conversation_id: str, reason: str) -> Json:
        """See whom a conversation is about, for a while."""
        return self._call("POST", f"{_logged(conversation_id)}/reveal", json={"reason": reason})

    # -- in an emergency

    def break_glass(self, conversation_id: str, reason: str, minutes: int) -> Json:
        """Be let into a conversation as an admin."""
        body = {"conversation_id": conversation_id, "reason": reason, "minutes": minutes}
        return self._call("POST", "/v1/break-glass", json=body)

    def accesses(self, cursor: str | None = None) -> Json:
        """A page of emergency accesses, newest first: one's own, or for an auditor all."""
        return self._call("GET", "/v1/break-glass", params=given(cursor=cursor))

    def emergency_conversation(self, grant_id: str) -> Json:
        """The conversation of an open emergency access of one's own."""
        return self._call("GET", f"/v1/break-glass/{in_path(grant_id)}/conversation")

    def emergency_image(self, grant_id: str, image_id: str) -> bytes:
        """A picture of it, as PNG; each look is an event of the log."""
        return self._file(f"/v1/break-glass/{in_path(grant_id)}/images/{in_path(image_id)}")

    def end(self, grant_id: str) -> None:
        """End an emergency access."""
        self._call("POST", f"/v1/break-glass/{grant_id}/end")

    def acknowledge(self, grant_id: str) -> None:
        """Say that an auditor has seen it."""
        self._call("POST", f"/v1/break-glass/{grant_id}/acknowledge")


def _logged(conversation_id: str) -> str:
    return f"/v1/audit/conversations/{in_path(conversation_id)}"
