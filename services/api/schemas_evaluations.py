"""What requests and answers about evaluations look like. It does nothing."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel, Field

from services.api.schemas import Body, ErrorView


class EvaluateBody(Body):
    """What to evaluate an adapter on."""

    dataset_id: str | None = Field(
        None,
        max_length=36,
        description="Whose held-out rows are used; the adapter's own when left out. On others than its own "
        "an evaluation does not count for its promotion.",
    )


class ProgressView(BaseModel):
    """How far an evaluation is; `total` is null while nobody knows it."""

    done: int
    total: int | None
    what: str


class CheckView(BaseModel):
    """One figure held against its limit."""

    figure: str
    limit: float | None
    value: float | None
    passed: bool
    excess: float | None
    message: str


class EvaluationGateView(BaseModel):
    """Whether the adapter may be promoted, and which figures say so."""

    passed: bool
    checks: list[CheckView]


class EvaluationView(BaseModel):
    """An evaluation; figures and gate are null until it ended."""

    id: str
    job_id: str
    state: str = Field(description="Its job's state; `cancelling` while a running one is being stopped.")
    adapter_sha256: str
    dataset_id: str
    counts: bool = Field(
        description="Whether it counts for the adapter's promotion: only rows held out of the adapter's own "
        "dataset do."
    )
    figures: dict[str, Any] | None
    gate: EvaluationGateView | None
    progress: ProgressView | None
    waiting_reason: str | None = Field(description="Why a queued evaluation finds no room to start.")
    error: ErrorView | None
    created_by: str
    created_at: datetime
    finished_at: datetime | None


class EvaluationDetail(EvaluationView):
    """An evaluation with the texts behind its figures."""

    samples: dict[str, list[dict[str, Any]]] = Field(
        description="`best` and `worst` held-out answers side by side, `stopped` by the guard, `declined`."
    )
    samples_erased: bool = Field(description="Whether the dataset's texts, and these with them, were erased.")
    samples_withheld: bool = Field(
        description="Whether they are of people's conversations, which admins do not read."
    )
