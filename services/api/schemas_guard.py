"""What requests and answers about the guard's policies look like. It does nothing."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from services.api.schemas import Body, ErrorView, PlainText
from shared.guard.policy import MOST_CHARS
from shared.guard.verdict import Audience, Side
from shared.policies.replays import MOST_ANSWERS

FileName = Literal[
    "doses.yaml",
    "facts.yaml",
    "interactions.yaml",
    "lexicon.yaml",
    "policy.yaml",
    "resources.yaml",
    "responses.yaml",
    "rules_answer.yaml",
    "rules_question.yaml",
]
FileText = Annotated[str, Field(max_length=MOST_CHARS)]


class SwitchView(BaseModel):
    """Whether answers are given."""

    stopped: bool
    reason: str | None = Field(description="Why they were stopped, in the admin's words.")
    by: str | None
    at: datetime | None = Field(description="When the switch was last turned; null: never.")


class ActivationView(BaseModel):
    """Which policies count since a moment."""

    version: str | None = Field(description="Null: whichever comes with the program.")
    shadow: str | None
    kind: str
    by: str
    at: datetime


class ProcessView(BaseModel):
    """What counts in one process; others follow within seconds."""

    name: str
    policy_version: str | None
    shadow_version: str | None
    refused: str | None = Field(description="A version that should count here and cannot be compiled.")
    shadow_refused: str | None = Field(
        description="A version that should judge in the shadow here and cannot be compiled."
    )
    shadow_left_out: int | None = Field(
        description="Sentences that the shadow did not judge since the process began, for it could not keep "
        "up or failed; null where none is judged."
    )


class GuardStateView(BaseModel):
    """What counts, and whether answers are given."""

    active: str
    packaged: str = Field(description="The version that comes with the program, and counts until another is.")
    shadow: str | None
    before: str | None = Field(description="The version that a roll-back leads to; null: there is none.")
    switch: SwitchView
    processes: list[ProcessView]
    history: list[ActivationView] = Field(description="The newest first.")


class PolicyItem(BaseModel):
    """A version in the list."""

    version: str
    note: str
    created_by: str | None = Field(description="Null for one that came with the program.")
    created_at: datetime | None
    active: bool
    shadow: bool
    packaged: bool


class PoliciesView(BaseModel):
    """Every version, newest first, the packaged one last."""

    items: list[PolicyItem]


class PolicyView(PolicyItem):
    """A version with its files."""

    texts: dict[str, str]


class PolicyBody(Body):
    """A new version: the files that differ from another."""

    base: str | None = Field(
        None, max_length=32, description="The version that the other files are taken from; the active one."
    )
    texts: dict[FileName, FileText] = Field(min_length=1, description="Whole files by name.")
    note: PlainText = Field(max_length=500, description="What is different, and why.")


class TryBody(Body):
    """A sentence to judge."""

    text: PlainText = Field(max_length=2000)
    context: str = Field("", max_length=2000, description="What stands before it in the same answer.")
    audience: Audience = Audience.PATIENT
    side: Side = Side.ANSWER


class VerdictView(BaseModel):
    """What a layer, or the whole guard, says."""

    action: str
    category: str | None
    severity: str
    layer: str
    source: str = Field(description="The rule or model that decided; empty when nothing was found.")
    score: float
    span: tuple[int, int] | None = Field(description="The characters of the text that decided.")


class TryView(BaseModel):
    """What each layer says about a sentence and what comes of it. Nothing of it is kept."""

    version: str
    layers: dict[str, VerdictView]
    verdict: VerdictView
    instead: str | None = Field(description="What would be said instead; null when the text is shown.")
    refers: bool = Field(description="Whether the text sends its reader to a clinician.")
    doubted: bool = Field(
        description="Whether a worker whose base model judges would ask it about the text; here none is."
    )
    ms: float = Field(description="How long the verdict took, in milliseconds.")


class ReasonBody(Body):
    """Why; kept for admins and auditors."""

    reason: PlainText = Field(max_length=500)


class StoppedView(SwitchView):
    """The switch as it was just turned."""

    failed: int = Field(description="Questions that waited and were told at once.")


class ReplayBody(Body):
    """How many of the newest answers to judge again."""

    answers: int = Field(200, ge=1, le=MOST_ANSWERS, strict=True)


class CountsView(BaseModel):
    """What a replay found; the three mappings count by category."""

    answers: int
    sentences: int
    questions: int
    erased: int = Field(description="Answers whose texts were erased, which are left out.")
    by_model: int = Field(
        0, description="Sentences on which a judge by the model decided then; it is not asked again."
    )
    changed: dict[str, int] = Field(description="Judged otherwise: the two below, and all others.")
    newly_stopped: dict[str, int] = Field(description="Shown or answered then, and not under this version.")
    newly_released: dict[str, int] = Field(description="Not shown or answered then, and under this version.")


class ReplayView(BaseModel):
    """A replay; its counts are null until it ended."""

    id: str
    job_id: str
    state: str
    version: str
    answers: int
    counts: CountsView | None
    progress: dict[str, Any] | None
    error: ErrorView | None
    created_by: str
    created_at: datetime
    finished_at: datetime | None


class ReplaysView(BaseModel):
    """The newest replays."""

    items: list[ReplayView]


class ChangeView(BaseModel):
    """A text that is judged otherwise."""

    job_id: str
    conversation_id: str | None = Field(
        description="The conversation that it stands in; null when it was erased."
    )
    side: str
    seq: int = Field(description="The sentence's number in its answer; 0 for the question.")
    before: list[str | None] = Field(description="Action and category of then.")
    after: list[str | None] = Field(description="Action and category under the version.")
    text: str | None = Field(description="With identifiers masked; null when it was erased.")


class ReplayTextsView(BaseModel):
    """What a replay judges otherwise, with identifiers masked; some of it when there is much."""

    items: list[ChangeView]
    total: int


class ShadowCountsView(BaseModel):
    """What the shadow version has said so far, against what counted; by category of its verdict."""

    version: str | None
    sentences: int
    newly_stopped: dict[str, int]
    newly_released: dict[str, int]
