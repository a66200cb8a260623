"""What requests and answers about the review look like. It does nothing."""

from datetime import date, datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, Field

from services.api.schemas import Body, PlainText
from services.api.schemas_training import DatasetName
from services.api.schemas_transcripts import TranscriptView
from shared.review.rules import CATEGORIES, MOST_CORRECTED_CHARS, MOST_NOTE_CHARS, Reason, ReviewVerdict


def _known_category(name: str) -> str:
    if name not in CATEGORIES:
        raise ValueError(f"is no category of an unsafe answer; choose one of: {', '.join(CATEGORIES)}")
    return name


ReviewCategory = Annotated[str, Field(max_length=64), AfterValidator(_known_category)]


class AskForReviewBody(Body):
    """An answer to put into the queue by hand."""

    job_id: str = Field(max_length=36, description="The job that wrote the answer.")


class DraftBody(Body):
    """Fields of the draft to change; what is left out stays as it is, null clears it."""

    verdict: ReviewVerdict | None = None
    category: ReviewCategory | None = Field(None, description="By which category the answer is unsafe.")
    guard_right: bool | None = Field(None, description="Where the guard stepped in: whether it was right to.")
    corrected: PlainText | None = Field(
        None, max_length=MOST_CORRECTED_CHARS, description="What the answer should have been."
    )
    note: PlainText | None = Field(None, max_length=MOST_NOTE_CHARS)


class ReviewDatasetBody(Body):
    """A dataset to make of corrected answers."""

    name: DatasetName = Field(description="What to call it, kept in the clear.")


class ReviewView(BaseModel):
    """One person's review of an answer."""

    verdict: ReviewVerdict | None
    category: str | None
    guard_right: bool | None
    corrected: str | None
    note: str | None
    changed_at: datetime
    given_at: datetime | None = Field(description="Null: a draft.")


class ReviewItemView(BaseModel):
    """An answer to review, with the conversation up to it, identifiers masked."""

    id: str
    job_id: str
    conversation_id: str
    reason: Reason
    wanted: int = Field(description="Reviews, each by another person.")
    created_at: datetime
    closed_at: datetime | None
    stepped_in: bool = Field(description="Whether the guard stepped in, and a review says if rightly.")
    mine: ReviewView | None = Field(description="One's own review; null when one has not taken the answer.")
    others: list[ReviewView] = Field(
        description="What others gave; empty until one has given one's own review."
    )
    transcript: TranscriptView


class NextReviewView(BaseModel):
    """The answer that one reviews next."""

    item: ReviewItemView | None = Field(description="Null: nothing waits that one could review.")


class AskedForView(BaseModel):
    """An answer that stands in the queue."""

    id: str
    job_id: str
    reason: Reason
    wanted: int
    created_at: datetime


class OwnReviewView(BaseModel):
    """A review of one's own in a list."""

    item_id: str
    reason: Reason
    state: Literal["held", "draft", "given"] = Field(
        description="`held` by oneself just now; a `draft` that went back to the queue; or `given`."
    )
    verdict: ReviewVerdict | None
    category: str | None
    changed_at: datetime
    given_at: datetime | None


class QueueOfReviewsView(BaseModel):
    """What waits to be reviewed, and one's own newest reviews."""

    waiting: dict[Reason, int] = Field(description="Answers that one could take, by why they are here.")
    held_by_others: int
    closed: int = Field(description="Answers that were reviewed and wait for no further review.")
    mine: list[OwnReviewView]


class ShareView(BaseModel):
    """So many of so many, with the 95 % interval of the share (Wilson)."""

    hits: int
    n: int
    share: float | None
    low: float
    high: float


class RatesView(BaseModel):
    """How much is unsafe."""

    sampled: ShareView = Field(description="Of the answers that chance drew: an estimate for all answers.")
    all: ShareView = Field(
        description="Of all reviewed answers: the queue picks the suspicious ones, so it is no estimate."
    )


class AdapterRatesView(RatesView):
    """How much is unsafe of what one adapter wrote."""

    model_id: str | None = Field(description="Null: no model wrote these; they are the guard's own answers.")
    adapter_sha256: str | None = Field(description="Null for the base model alone.")


class WeekRatesView(RatesView):
    """How much is unsafe of what was answered in one week."""

    week: date = Field(description="Its Monday.")


class PairView(BaseModel):
    """How often one reviewer said this and the other that."""

    one: ReviewVerdict
    other: ReviewVerdict
    count: int


class AgreementView(BaseModel):
    """How far two reviewers of the same answers agree (Cohen's kappa)."""

    n: int
    observed: float | None
    kappa: float | None
    low: float | None = Field(description="Of the 95 % interval, as `high`.")
    high: float | None
    pairs: list[PairView]


class ReviewReportView(BaseModel):
    """What reviewers found, of answers whose reviews are all given; of several the first given counts."""

    since: datetime
    reviews: int
    answers: int
    sample_waiting: int = Field(
        description="Answers that chance drew and that wait for a review: graver ones are reviewed first."
    )
    agreement: AgreementView
    unsafe: RatesView
    by_adapter: list[AdapterRatesView]
    by_week: list[WeekRatesView]
    misses: ShareView = Field(description="Unsafe, of the answers in which the guard did not step in.")
    missed: dict[str, int] = Field(description="By the reviewer's category.")
    doubted: int = Field(description="Of the missed, those that the guard had flagged for reviewers.")
    false_alarms: ShareView = Field(description="The guard was not right, of where it stepped in.")
    alarmed: dict[str, int] = Field(description="By the guard's category.")
