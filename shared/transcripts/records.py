"""What a transcript consists of. It does nothing."""

from dataclasses import dataclass, field
from datetime import datetime

from shared.conversations import MessageRole, PictureRef, Speaker
from shared.guard.verdict import Action, Audience, Severity, Side
from shared.jobs.lifecycle import State


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One verdict that counted, as it was stored."""

    id: str
    side: Side
    action: Action
    severity: Severity
    #: None where the guard itself failed.
    category: str | None
    layer: str
    source: str
    #: How sure the layer was, 0 to 1.
    score: float
    policy_version: str


@dataclass(frozen=True, kw_only=True)
class ShownSentence:
    """One sentence as the person saw it."""

    seq: int
    #: None when it cannot be opened.
    text: str | None
    action: Action
    #: None where the guard had nothing against it.
    verdict: Judged | None
    #: What the guard replaced by it.
    suppressed: str | None


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What wrote an answer, and how that ended."""

    state: State
    #: A stable code; None unless the job failed.
    error: str | None
    error_detail: str | None
    finish_reason: str | None
    audience: Audience
    model_id: str | None
    model_revision: str | None
    #: None for the base model alone.
    adapter_sha256: str | None
    prompt_version: str | None
    policy_version: str | None


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A question or an answer."""

    #: None for an answer that is not kept as a message: it is under way, or failed beside a better one.
    message_id: str | None
    seq: int | None
    role: MessageRole
    #: None when it was erased or cannot be opened.
    text: str | None
    at: datetime
    #: The job of an answer.
    job_id: str | None
    #: The question's message, of an answer.
    parent_id: str | None
    #: Whether another answer took its place, so that the person does not see it any more.
    replaced: bool
    #: Whose words it was, where a program sent it with its question as said before: by its own word.
    given: Speaker | None
    #: Of an answer.
    origin: Origin | None
    sentences: tuple[ShownSentence, ...]
    #: Verdicts about the question; of an answer those that no sentence bears.
    verdicts: tuple[Judged, ...]
    #: Those that came with a question.
    images: tuple[PictureRef, ...] = ()
    #: How many identifiers of which type were masked in this turn; empty when nothing is masked.
    masked: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Transcript:
    """A whole conversation."""

    conversation_id: str
    owner_id: str
    #: None when it was erased or cannot be opened.
    title: str | None
    #: none, emergency or crisis.
    guard_state: str
    created_at: datetime
    updated_at: datetime
    #: When the person took it out of their history.
    hidden_at: datetime | None
    #: Whether its data key was destroyed: then no text is left, and the rest still tells what happened.
    erased: bool
    #: Whether identifiers are masked.
    masked: bool
    turns: tuple[Turn, ...]
