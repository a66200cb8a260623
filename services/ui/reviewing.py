"""The gateway's side of the review: the queue, drafts, the report, the export. It knows no page."""

from services.ui.client import Gateway, Json, in_path

#: Seconds for the gateway to mask and send all corrected answers.
EXPORT_S = 600


class Reviewing:
    """What an auditor does with answers; every method raises GatewayError."""

    def __init__(self, gateway: Gateway) -> None:
        self._call = gateway.call
        self._file = gateway.file

    def queue(self) -> Json:
        """What waits by reason, and one's own newest reviews."""
        return self._call("GET", "/v1/reviews")

    def ask_for(self, job_id: str) -> Json:
        """Put an answer into the queue by hand."""
        return self._call("POST", "/v1/reviews", json={"job_id": job_id})

    def next(self) -> Json:
        """Take the best `item` that waits, or the one that one is at; null when there is none."""
        return self._call("POST", "/v1/reviews/next")

    def item(self, item_id: str) -> Json:
        """One answer of the queue; reading it is an event of the log."""
        return self._call("GET", f"/v1/reviews/{in_path(item_id)}")

    def save(self, item_id: str, changes: Json) -> Json:
        """Change fields of the draft, and hold the answer; without changes only that. Returns the review."""
        return self._call("PUT", f"/v1/reviews/{item_id}", json=changes)

    def give(self, item_id: str) -> Json:
        """Give the draft; returns the review."""
        return self._call("POST", f"/v1/reviews/{item_id}/give")

    def take_back(self, item_id: str) -> Json:
        """Make a given review a draft again; returns it."""
        return self._call("POST", f"/v1/reviews/{item_id}/take-back")

    def release(self, item_id: str) -> None:
        """Give an answer back unreviewed."""
        self._call("POST", f"/v1/reviews/{item_id}/release")

    def report(self, weeks: int) -> Json:
        """What reviewers found in the last weeks; reading it is an event of the log."""
        return self._call("GET", "/v1/reviews/report", params={"weeks": weeks})

    def export(self) -> bytes:
        """The corrected answers as JSONL; it asks for the password."""
        return self._file("/v1/reviews/export", method="POST", timeout=EXPORT_S)
