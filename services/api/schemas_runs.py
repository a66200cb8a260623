"""What requests and answers about training look like. It does nothing."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from pydantic import BaseModel, Field, FiniteFloat

from services.api.schemas import Body, ErrorView, PlainText
from shared.training.states import RunState


class NewRunBody(Body):
    """A training run to start."""

    name: PlainText = Field(
        max_length=100, description="Its adapter is called so; versions of one name are counted."
    )
    dataset_id: str = Field(max_length=36, pattern=r"^[\w-]+$")
    preset: str | None = Field(
        None,
        max_length=32,
        description="See GET /v1/recipes; left out, the `default` there, which suits the served model.",
    )
    changes: dict[str, bool | int | FiniteFloat | str | None] = Field(
        default_factory=dict, max_length=64, description="Knobs that shall differ from the preset."
    )


class KnobView(BaseModel):
    """One thing that can be turned in a recipe."""

    name: str
    type: str
    default: Any
    doc: str = Field(description="What it does and what it costs.")
    minimum: float | None
    maximum: float | None
    choices: Sequence[str] | None
    optional: bool


class PresetView(BaseModel):
    """A recipe to start from."""

    name: str
    title: str
    recipe: dict[str, Any]


class RecipesView(BaseModel):
    """Every preset, and what can be changed in one."""

    default: str = Field(description="Name of the preset that a run without one starts from.")
    presets: list[PresetView]
    knobs: list[KnobView]


class NoteView(BaseModel):
    """Something that a person should know of a run."""

    at: datetime
    text: str


class RunView(BaseModel):
    """A training run and how it fares."""

    id: str
    name: str
    state: RunState
    dataset_id: str
    dataset_name: str
    manifest_sha256: str | None = Field(description="Of the dataset: names exactly the rows it trains on.")
    recipe: dict[str, Any]
    base_model: str
    base_revision: str | None
    estimate: dict[str, Any] | None
    waiting_reason: str | None
    total_steps: int | None
    step: int
    percent: float
    eta_s: float | None
    notes: list[NoteView]
    metrics: dict[str, Any] | None
    adapter_sha256: str | None
    error: ErrorView | None
    created_by: str
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    attempt: int


class StepView(BaseModel):
    """Figures of one step; null where they were not measured."""

    step: int
    at: datetime
    loss: float | None
    eval_loss: float | None
    learning_rate: float | None
    grad_norm: float | None
    tokens_per_s: float | None = Field(description="Tokens that were learnt, per second.")
    memory_mb: float | None


class StepsView(BaseModel):
    """The curve of a run, or what is new of it."""

    items: list[StepView]
