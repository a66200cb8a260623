"""The gateway's side of the guard's policies: versions, what counts, the stop, replays. It knows no page."""

from typing import Any, cast

from services.ui.client import Gateway, Json


class Guarding:
    """What an admin does with policies, and an auditor reads of them; every method raises GatewayError."""

    def __init__(self, gateway: Gateway) -> None:
        self._call = gateway.call

    def state(self) -> Json:
        """What counts, in each process, and whether answers are given."""
        return self._call("GET", "/v1/guard")

    def stop(self, reason: str) -> Json:
        """Stop all answers."""
        return self._call("POST", "/v1/guard/stop", json={"reason": reason})

    def start(self) -> None:
        """Give answers again."""
        self._call("POST", "/v1/guard/start")

    # -- versions

    def versions(self) -> list[Json]:
        """Every version, newest first, the packaged one last."""
        return cast(list[Json], self._call("GET", "/v1/guard/policies")["items"])

    def texts(self, version: str) -> dict[str, str]:
        """A version's files."""
        return cast(dict[str, str], self._call("GET", f"/v1/guard/policies/{version}")["texts"])

    def add(self, base: str, texts: dict[str, str], note: str) -> str:
        """Store a copy of a version with these files changed; returns its name."""
        body = {"base": base, "texts": texts, "note": note}
        return str(self._call("POST", "/v1/guard/policies", json=body)["version"])

    def try_out(self, version: str, **what: str) -> Json:
        """What each layer says about a text."""
        return self._call("POST", f"/v1/guard/policies/{version}/try", json=what)

    def activate(self, version: str) -> None:
        """Let a version judge from now on."""
        self._call("POST", f"/v1/guard/policies/{version}/activate")

    def roll_back(self) -> None:
        """Let the version before judge again."""
        self._call("POST", "/v1/guard/roll-back")

    def shadow(self, version: str) -> None:
        """Let a version judge beside the active one, without effect."""
        self._call("POST", f"/v1/guard/policies/{version}/shadow")

    def end_shadow(self) -> None:
        """Let none do so any more."""
        self._call("DELETE", "/v1/guard/shadow")

    def shadow_counts(self) -> Json:
        """What the shadow would have done otherwise."""
        return self._call("GET", "/v1/guard/shadow")

    # -- replays

    def submit_replay(self, version: str, answers: int) -> Json:
        """Have the newest answers judged again under a version."""
        return self._call("POST", f"/v1/guard/policies/{version}/replays", json={"answers": answers})

    def replays(self) -> list[Json]:
        """The newest replays."""
        return cast(list[Json], self._call("GET", "/v1/guard/replays")["items"])

    def replay(self, replay_id: str) -> Json:
        """One replay."""
        return self._call("GET", f"/v1/guard/replays/{replay_id}")

    def replay_texts(self, replay_id: str, offset: int, limit: int) -> Json:
        """What it judges otherwise, in the clear; reading it is an event of the log."""
        query: dict[str, Any] = {"offset": offset, "limit": limit}
        return self._call("GET", f"/v1/guard/replays/{replay_id}/texts", params=query)
