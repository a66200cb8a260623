"""What requests and answers about reading logged conversations look like. It does nothing."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from services.api.schemas import Body, ImageView, PlainText
from shared.jobs.lifecycle import State
from shared.privacy.access_kinds import AccessKind

SHORTEST_REASON = 10


class _FromRecord(BaseModel):
    """Built from a record of shared/transcripts of the same fields."""

    model_config = ConfigDict(from_attributes=True)


class JudgedView(_FromRecord):
    """One verdict of the guard that counted; `category` is null where the guard itself failed."""

    id: str
    side: str
    action: str
    severity: str
    category: str | None
    layer: str
    source: str
    score: float
    policy_version: str


class ShownSentenceView(_FromRecord):
    """A sentence as the person saw it, and what the guard replaced by it."""

    seq: int
    text: str | None
    action: str
    verdict: JudgedView | None
    suppressed: str | None


class OriginView(_FromRecord):
    """What wrote an answer, and how that ended."""

    state: State
    error: str | None
    error_detail: str | None
    finish_reason: str | None
    audience: str
    model_id: str | None = Field(
        description="Null when no model wrote it: of an answer that succeeded, the guard did."
    )
    model_revision: str | None
    adapter_sha256: str | None = Field(description="Null for the base model alone.")
    prompt_version: str | None
    policy_version: str | None


class TurnView(_FromRecord):
    """A question or an answer; `text` is null when it was erased or cannot be opened."""

    message_id: str | None = Field(description="Null for an answer that is not kept as a message.")
    seq: int | None
    role: str
    text: str | None
    at: datetime
    job_id: str | None
    parent_id: str | None
    replaced: bool = Field(description="Whether another answer took its place.")
    given: Literal["system", "user", "assistant"] | None = Field(
        description="Whose words it was, where a program sent it with its question as said before: by the "
        "program's word, for MediChat may never have written or read it."
    )
    images: list[ImageView] = Field(
        description="Pictures that came with a question. No picture can be masked, so each is shown by a "
        "route of its own to who may read the conversation unmasked."
    )
    origin: OriginView | None
    sentences: list[ShownSentenceView]
    verdicts: list[JudgedView] = Field(description="Those that no sentence bears.")
    masked: dict[str, int] = Field(description="How many identifiers of which type were masked.")


class TranscriptView(_FromRecord):
    """A logged conversation; without texts once it was erased."""

    conversation_id: str
    owner_id: str
    title: str | None
    guard_state: str
    created_at: datetime
    updated_at: datetime
    hidden_at: datetime | None
    erased: bool
    masked: bool
    turns: list[TurnView]


class AccessView(BaseModel):
    """Who could read a conversation unmasked, from when to when, and why."""

    id: str
    kind: AccessKind
    user_id: str
    user_name: str
    conversation_id: str
    granted_at: datetime
    expires_at: datetime
    ended_at: datetime | None
    open: bool
    acknowledged_at: datetime | None
    acknowledged_by: str | None
    reason: str | None = Field(description="For auditors; null when it was erased with the conversation.")


class AuditedConversationView(TranscriptView):
    """A logged conversation for an auditor, with everyone who could read it unmasked."""

    accesses: list[AccessView]
    revealed_until: datetime | None = Field(
        description="Until when the caller may read it unmasked: GET it with `revealed=true`."
    )


class RevealBody(Body):
    """Why identifiers are to be seen; sealed with the conversation, and kept for auditors."""

    reason: PlainText = Field(max_length=500)


def _long_enough(reason: str) -> str:
    if len(reason) < SHORTEST_REASON:
        raise ValueError(f"has fewer than {SHORTEST_REASON} characters; say what happened")
    return reason


class BreakGlassBody(Body):
    """A conversation that an admin must read in an emergency, why, and for how long."""

    conversation_id: str = Field(max_length=36)
    reason: Annotated[PlainText, AfterValidator(_long_enough)] = Field(max_length=500)
    minutes: int = Field(ge=5, le=240, strict=True)
