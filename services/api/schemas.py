"""What requests and answers of the gateway look like. It does nothing."""

import re
import unicodedata
from datetime import datetime
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field

#: Control characters, line separators aside; lone surrogates never get past the JSON parser's UTF-8.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x80-\x9f\ud800-\udfff]")
#: These show text in another order than it is read in. The mere marks of Arabic and Hebrew (LRM, RLM) do not.
_REORDERING = re.compile(r"[\u202a-\u202e\u2066-\u2069]")
#: Fillers, which are letters and symbols to Unicode, and show nothing.
_BLANK = frozenset("\u115f\u1160\u2800\u3164\uffa0")


def _plain_text(text: str) -> str:
    if _CONTROL.search(text):
        raise ValueError("holds control characters; send plain text")
    if _REORDERING.search(text):
        raise ValueError("holds characters that change the order of the text (such as U+202E); take them out")
    if not any(_is_visible(character) for character in text):
        raise ValueError("is empty; write something")
    return text.strip()


def _is_visible(character: str) -> bool:
    """Whether it is a letter, number, punctuation mark or symbol that shows."""
    return unicodedata.category(character)[0] in "LNPS" and character not in _BLANK


def in_our_time(moment: datetime) -> datetime:
    """The moment. Raises ValueError for one that another time zone could push off the calendar."""
    if not 1970 <= moment.year <= 9000:
        raise ValueError("lies outside the years 1970 to 9000")
    return moment


T = TypeVar("T")
PlainText = Annotated[str, AfterValidator(_plain_text)]
Moment = Annotated[AwareDatetime, AfterValidator(in_our_time)]


class Body(BaseModel):
    """A request body: unknown fields are refused."""

    model_config = ConfigDict(extra="forbid")


class AskBody(Body):
    """A question within a conversation."""

    query: PlainText = Field(min_length=1, description="The question, in plain text.")
    max_new_tokens: int | None = Field(None, ge=1, strict=True, description="Longest answer, in tokens.")
    temperature: float | None = Field(
        None, ge=0, le=2, strict=True, description="0 (the default) always gives the likeliest words."
    )
    adapter: str | None = Field(
        None,
        pattern="^([0-9a-f]{64}|base)$",
        description="SHA-256 of the adapter that shall answer, or `base` for the base model alone; "
        "left out: the active one.",
    )
    images: list[str] = Field(
        [],
        max_length=16,  # the setting's own limit: of more, each would be looked at for what is wrong
        description="Pictures that the question is about: each a PNG, JPEG, WebP or DICOM file of at most "
        "10 MB in base64, with or without a `data:image/…;base64,` before it. Four at most, unless the "
        "operator chose another number. What the file says besides its picture is not kept.",
    )


class PredictBody(AskBody):
    """A question, in a new conversation unless one is named."""

    conversation_id: str | None = Field(None, max_length=36)


class TitleBody(Body):
    """A conversation's new title."""

    title: PlainText = Field(max_length=200)


class FeedbackBody(Body):
    """What a person thinks of an answer."""

    rating: Literal["up", "down"]
    comment: PlainText | None = Field(None, max_length=2000)


class ErrorView(BaseModel):
    """Why a job failed."""

    code: str
    detail: str


class GuardView(BaseModel):
    """What the guard did to an answer; `action` is `allow` when it did nothing."""

    action: str
    category: str | None
    severity: str
    sentences_replaced: int


class ModelView(BaseModel):
    """What wrote the answer."""

    id: str | None
    revision: str | None
    adapter_sha256: str | None = Field(description="Null for the base model alone.")
    prompt_version: str | None
    policy_version: str | None


class Timings(BaseModel):
    """Milliseconds since the question was accepted."""

    queued_ms: float | None
    first_sentence_ms: float | None
    total_ms: float | None


class Usage(BaseModel):
    """Tokens read and written."""

    prompt_tokens: int | None
    completion_tokens: int | None


class AnswerView(BaseModel):
    """A finished answer."""

    answer: str
    guard: GuardView
    disclaimer: str
    model: ModelView
    timings: Timings
    usage: Usage
    job_id: str
    conversation_id: str
    message_id: str | None
    guard_state: Literal["none", "emergency", "crisis"] = Field(
        description="In what need the conversation's person was found; then an answer begins with help."
    )


class JobView(BaseModel):
    """A job's state."""

    id: str
    kind: str
    lane: str
    state: str
    conversation_id: str | None
    question_id: str | None
    created_at: datetime
    started_at: datetime | None
    first_sentence_at: datetime | None
    finished_at: datetime | None
    attempt: int
    max_attempts: int
    cancel_requested: bool
    error: ErrorView | None
    model_id: str | None
    adapter_sha256: str | None = Field(
        description="The adapter that answers; null for the base model alone, or until a worker begins."
    )
    prompt_tokens: int | None
    completion_tokens: int | None
    position: int | None = Field(
        description="Place in the queue, 1 is next; null unless queued, and in the answer to a question."
    )
    links: dict[str, str]


class SentenceView(BaseModel):
    """A released sentence."""

    seq: int
    text: str
    action: str
    category: str | None


class ImageView(BaseModel):
    """A picture that came with a question; its size in pixels is that of what is kept."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    width: int
    height: int


class MessageView(BaseModel):
    """A message of a conversation."""

    id: str
    seq: int
    role: str
    text: str
    created_at: datetime
    job_id: str | None = Field(description="Of an answer.")
    given: Literal["system", "user", "assistant"] | None = Field(
        description="Whose words it was, where a program sent it with its question as said before."
    )
    images: list[ImageView]
    parent_id: str | None
    guard: GuardView | None
    feedback: Literal["up", "down"] | None


class ConversationItem(BaseModel):
    """A conversation in a list."""

    id: str
    title: str
    created_at: datetime
    updated_at: datetime
    message_count: int
    active_job_id: str | None


class ConversationView(BaseModel):
    """A whole conversation, with the answer that is being written."""

    id: str
    title: str
    created_at: datetime
    updated_at: datetime
    guard_state: str
    messages: list[MessageView]
    job: JobView | None
    released: list[SentenceView]


class AuditEventView(BaseModel):
    """One event of the log."""

    id: str
    occurred_at: datetime
    actor: str
    actor_name: str | None
    session_id: str | None
    action: str
    object: str | None
    outcome: str
    reason: str | None
    details: dict[str, Any]


class Page(BaseModel, Generic[T]):
    """Part of a list; `next_cursor` asks for the next part, null at the end."""

    items: list[T]
    next_cursor: str | None


class QueueView(BaseModel):
    """What waits and what runs."""

    queued: int
    running: int
    oldest_queued_s: float | None


class WorkerView(BaseModel):
    """A worker that reported."""

    id: str
    kind: str
    model_id: str
    started_at: datetime
    last_seen_at: datetime
    alive: bool
    stats: dict[str, Any]


class LatencyView(BaseModel):
    """How long the answers of one minute took, in milliseconds."""

    minute: datetime
    answers: int
    first_sentence_ms_p50: float | None
    first_sentence_ms_p95: float | None
    total_ms_p50: float
    total_ms_p95: float


class SystemView(BaseModel):
    """The state of the whole, for admins."""

    queue: QueueView
    workers: list[WorkerView]
    latency: list[LatencyView]
    jobs_by_state: dict[str, int]
    redis: Literal["up", "down"]
    database: Literal["up"]
