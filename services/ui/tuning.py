"""The gateway's side of fine-tuning: data, runs, adapters, comparisons. It knows no page."""

from typing import Any, BinaryIO, cast

from services.ui import curve
from services.ui.client import Gateway, Json, given, in_path

#: Seconds for a file to pass on to the gateway.
_UPLOAD_S = 600
#: Items of a list that the gateway is asked for at once.
PAGE = 100


class Tuning:
    """What an admin does with data and adapters; every method raises GatewayError."""

    def __init__(self, gateway: Gateway) -> None:
        self._call = gateway.call
        self._file = gateway.file

    # -- data

    def upload(self, file: BinaryIO, *, filename: str, name: str, **options: Any) -> Json:
        """Send a file as a new dataset, with a name or an empty one; it is then checked by a worker."""
        query = given(name=name, filename=filename, **options)
        headers = {"Content-Type": "application/octet-stream"}
        return self._call(
            "POST", "/v1/datasets", params=query, content=file, headers=headers, timeout=_UPLOAD_S
        )

    def fetch(self, *, name: str, source: str, location: str, options: Json) -> Json:
        """Take a dataset from the server's import folder (`path`) or the hub (`hub`); `name` may be empty."""
        body = {**given(name=name), "source": source, "location": location, "options": options}
        return self._call("POST", "/v1/datasets/import", json=body)

    def of_reviews(self, name: str) -> Json:
        """Make a dataset of the answers that reviewers corrected."""
        return self._call("POST", "/v1/datasets/from-reviews", json={"name": name}, timeout=_UPLOAD_S)

    def datasets(self, cursor: str | None = None, limit: int = 50) -> Json:
        """A page of datasets, newest first."""
        return self._call("GET", "/v1/datasets", params=given(cursor=cursor, limit=limit))

    def every_dataset(self) -> list[Json]:
        """All datasets, newest first."""
        return self._every("/v1/datasets")

    def dataset(self, dataset_id: str) -> Json:
        """One dataset with its report."""
        return self._call("GET", f"/v1/datasets/{dataset_id}")

    def rows(self, dataset_id: str, split: str, offset: int, limit: int) -> Json:
        """Some rows of a split; reading them is an event of the log."""
        query = given(split=split, offset=offset, limit=limit)
        return self._call("GET", f"/v1/datasets/{dataset_id}/rows", params=query)

    def image(self, dataset_id: str, sha256: str) -> bytes:
        """The picture of a row, as PNG; looking at it is an event of the log."""
        return self._file(f"/v1/datasets/{dataset_id}/images/{sha256}")

    def erase_dataset(self, dataset_id: str) -> Json:
        """Destroy a dataset's key and files; the answer lists the adapters that were trained on it."""
        return self._call("POST", f"/v1/datasets/{dataset_id}/erase")

    def check_again(self, dataset_id: str, options: Json) -> Json:
        """Check a dataset again with other options."""
        return self._call("POST", f"/v1/datasets/{dataset_id}/validate", json={"options": options})

    def hide_dataset(self, dataset_id: str) -> None:
        """Take a dataset out of the list."""
        self._call("DELETE", f"/v1/datasets/{dataset_id}")

    # -- training

    def recipes(self) -> Json:
        """The presets, and every knob with its trade-off."""
        return self._call("GET", "/v1/recipes")

    def train(self, *, name: str, dataset_id: str, preset: str, changes: Json, key: str) -> Json:
        """Queue a run; the same key is the same run."""
        body = {"name": name, "dataset_id": dataset_id, "preset": preset, "changes": changes}
        return self._call("POST", "/v1/training-runs", json=body, headers={"Idempotency-Key": key})

    def runs(self, cursor: str | None = None, limit: int = 50) -> Json:
        """A page of runs, newest first."""
        return self._call("GET", "/v1/training-runs", params=given(cursor=cursor, limit=limit))

    def run(self, run_id: str) -> Json:
        """One run as it is now."""
        return self._call("GET", f"/v1/training-runs/{run_id}")

    def steps(self, run_id: str, known: list[Json] | None = None) -> list[Json]:
        """The curve of a run from its first step to its last, a long one thinned (see `curve.thin`).

        `known` is what this returned before: only what is new of the curve is asked for, and when nothing
        is, the same list is returned.
        """
        items = [] if known is None else known
        if items:
            # its last step again: a look at the held-out rows may have been added to it
            page = self._steps_after(run_id, items[-1]["step"] - 1)
            if not curve.goes_on(items, page):
                items = []  # trained again from a checkpoint before
            elif page == items[-1:]:
                return items
            else:
                items = curve.thin([*items[:-1], *page])
        while page := self._steps_after(run_id, items[-1]["step"] if items else 0):
            items = curve.thin([*items, *page])
        return items

    def cancel_run(self, run_id: str) -> None:
        """Stop a run; it makes no adapter."""
        self._call("POST", f"/v1/training-runs/{run_id}/cancel")

    def resume_run(self, run_id: str) -> Json:
        """Start a failed run again, from its last checkpoint."""
        return self._call("POST", f"/v1/training-runs/{run_id}/resume")

    # -- adapters

    def adapters(self) -> list[Json]:
        """Every adapter, newest first."""
        return self._every("/v1/adapters")

    def adapter(self, sha256: str) -> Json:
        """One adapter with its card, what was verified, and its evaluations."""
        return self._call("GET", f"/v1/adapters/{sha256}")

    def verify(self, sha256: str) -> None:
        """Load the adapter in the serving engine and compare what it computes."""
        self._call("POST", f"/v1/adapters/{sha256}/verify")

    def evaluate(self, sha256: str) -> None:
        """Measure the adapter against its base on the held-out rows."""
        self._call("POST", f"/v1/adapters/{sha256}/evaluate", json={})

    def cancel_evaluation(self, evaluation_id: str) -> None:
        """Stop measuring; what was measured before stays."""
        self._call("POST", f"/v1/evaluations/{evaluation_id}/cancel")

    def approve(self, sha256: str) -> None:
        """Let questions name the adapter; what answers the others stays."""
        self._call("POST", f"/v1/adapters/{sha256}/approve")

    def promote(self, sha256: str, answering: str | None, override_reason: str | None = None) -> None:
        """Let the adapter answer, if `answering` (None: the base model alone) still does; past a failed gate
        only with a reason, which auditors read.
        """
        body = {"answering": answering, **given(override_reason=override_reason)}
        self._call("POST", f"/v1/adapters/{sha256}/promote", json=body)

    def roll_back(self, base_model: str, answering: str) -> None:
        """Let the adapter before this one answer, if this one still does."""
        body = {"base_model": base_model, "answering": answering}
        self._call("POST", "/v1/adapters/roll-back", json=body)

    def recall(self, sha256: str, reason: str) -> None:
        """Never let the adapter answer again, nor end what it began."""
        self._call("POST", f"/v1/adapters/{sha256}/recall", json={"reason": reason})

    def answers_of(self, sha256: str, cursor: str | None = None) -> Json:
        """The answers that an adapter gave: ids and times, no text."""
        return self._call("GET", f"/v1/adapters/{sha256}/answers", params=given(cursor=cursor, limit=PAGE))

    def deployments(self, base_model: str) -> list[Json]:
        """Which adapter answered since when, newest first."""
        query = given(base_model=base_model, limit=50)
        return cast(list[Json], self._call("GET", "/v1/deployments", params=query)["items"])

    def evaluation(self, evaluation_id: str) -> Json:
        """Figures, gate and samples; reading them is an event of the log."""
        return self._call("GET", f"/v1/evaluations/{evaluation_id}")

    # -- comparing

    def compare(self, *, question: str, left: str | None, right: str | None, blind: bool) -> Json:
        """Ask one question of two adapters; None is the base model."""
        body = {"question": question, "left": left, "right": right, "blind": blind}
        return self._call("POST", "/v1/comparisons", json=body)

    def comparison(self, comparison_id: str) -> Json:
        """Both answers as far as they are."""
        return self._call("GET", f"/v1/comparisons/{in_path(comparison_id)}")

    def vote(self, comparison_id: str, vote: str) -> Json:
        """Say which answer is better: left, right or tie."""
        return self._call("POST", f"/v1/comparisons/{comparison_id}/vote", json={"vote": vote})

    def comparisons(self) -> Json:
        """The votes per pair, and the newest comparisons."""
        return self._call("GET", "/v1/comparisons")

    # -- inside

    def _steps_after(self, run_id: str, step: int) -> list[Json]:
        page = self._call("GET", f"/v1/training-runs/{run_id}/steps", params={"after": step})
        return cast(list[Json], page["items"])

    def _every(self, path: str) -> list[Json]:
        items: list[Json] = []
        cursor = None
        while True:
            page = self._call("GET", path, params=given(limit=PAGE, cursor=cursor))
            items += page["items"]
            cursor = page["next_cursor"]
            if cursor is None:
                return items
