"""What requests and answers about adapters, deployments and comparisons look like. It does nothing."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from services.api.schemas import Body, ErrorView, PlainText
from services.api.schemas_evaluations import EvaluationView

Sha256 = Annotated[
    str, Field(pattern="^[0-9a-f]{64}$", description="An adapter's name: the SHA-256 of its weights.")
]
Reason = Annotated[PlainText, Field(max_length=1000)]
Answering = Annotated[
    Sha256 | None,
    Field(
        description="What answers as far as the caller knows, null for the base model alone: refused when "
        "another does by now. Not looked at when it is left out."
    ),
]


class FailureView(BaseModel):
    """A figure that failed its gate."""

    figure: str
    limit: float | None
    value: float | None


class GateView(BaseModel):
    """What the newest evaluation on the rows held out of the adapter's own dataset came to."""

    passed: bool
    failures: list[FailureView]


class AdapterView(BaseModel):
    """A trained adapter."""

    sha256: str
    name: str
    version: int
    run_id: str
    dataset_id: str
    dataset_gone: bool = Field(
        description="Whether what it was trained on was erased since. It has learnt it all the same: recall "
        "it, and train again, where the law asks for that."
    )
    base_model: str
    base_revision: str
    status: str
    bytes: int
    created_at: datetime
    status_at: datetime
    verification: dict[str, Any] | None = Field(
        description="What the serving engine found: `ok`, `reason`, differences in nats; null until then."
    )
    verify_job_id: str | None
    has_files_hash: bool = Field(
        description="Whether a hash of its configuration is kept. None is of one that an earlier release "
        "registered, whatever `verification` says: every answer with it fails until it is verified again."
    )
    base_served: bool | None = Field(
        description="Whether a worker that lives serves the weights that it was trained on; where none does, "
        "an answer with it fails. Null while no worker lives that could tell."
    )
    gate: GateView | None
    recalled_reason: str | None


class WholeAdapterView(AdapterView):
    """An adapter with its model card and its evaluations, newest first."""

    card: str
    verify_state: str | None = Field(description="State of the newest verification's job; null before any.")
    verify_error: ErrorView | None
    evaluations: list[EvaluationView]


class PromoteBody(Body):
    """How to promote."""

    override_reason: Reason | None = Field(
        None,
        description="Why an adapter may answer that its gate did not pass; kept for auditors, in the clear: "
        "name no patient.",
    )
    answering: Answering = None


class RollBackBody(Body):
    """What to roll back."""

    base_model: str = Field(max_length=255, examples=["demo"])
    answering: Answering = None


class RecallBody(Body):
    """Why the adapter must not answer again; kept with it, for auditors, in the clear: name no patient."""

    reason: Reason


class DeploymentView(BaseModel):
    """Since when which adapter answers; `adapter_sha256` is null for the base model alone."""

    seq: int
    base_model: str
    adapter_sha256: str | None
    kind: str
    override_reason: str | None
    by: str
    at: datetime


class AnswerItem(BaseModel):
    """An answer that an adapter gave, without its words."""

    job_id: str
    conversation_id: str | None
    created_at: datetime
    finished_at: datetime | None


class CompareBody(Body):
    """One question for two adapters; null is the base model alone."""

    question: PlainText = Field(min_length=1)
    left: Sha256 | None
    right: Sha256 | None
    blind: bool = Field(False, description="Shuffle the sides and say which is which only after the vote.")


class VoteBody(Body):
    """Which answer is better."""

    vote: Literal["left", "right", "tie"]


class SideView(BaseModel):
    """One of the two answers."""

    state: str
    answer: str | None = Field(description="Null also when it was erased.")
    by_guard: bool = Field(description="Whether the guard answered itself: then there is no vote on it.")
    error: ErrorView | None


class ComparisonView(BaseModel):
    """Two answers to one question."""

    id: str
    state: Literal["running", "done"]
    question: str | None = Field(description="Null when it was erased.")
    conversation_ids: list[str] = Field(description="What holds it and can be erased; at most one a side.")
    blind: bool
    told: bool = Field(
        description="Whether `adapter_left` and `adapter_right` are told: not in a blind one before its vote."
    )
    adapter_left: str | None
    adapter_right: str | None
    left: SideView
    right: SideView
    vote: str | None
    created_at: datetime
    voted_at: datetime | None


class ComparisonItem(BaseModel):
    """A comparison in a list."""

    id: str
    blind: bool
    told: bool
    adapter_left: str | None
    adapter_right: str | None
    vote: str | None
    created_at: datetime


class TotalView(BaseModel):
    """The votes between two adapters, whichever side they were on; null is the base model."""

    first: str | None
    second: str | None
    first_wins: int
    second_wins: int
    ties: int


class ComparisonsView(BaseModel):
    """The newest of one's comparisons, and everybody's votes by pair."""

    totals: list[TotalView]
    newest: list[ComparisonItem]
