"""What auditors' searches, saved views and exports look like over HTTP. It does nothing."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, StringConstraints, model_validator

from services.api.schemas import Body, Moment, PlainText
from services.api.schemas_review import ReviewCategory
from shared.audit.record import Outcome
from shared.guard.verdict import Action, Category
from shared.review.rules import ReviewVerdict

Typed = Annotated[str, StringConstraints(max_length=160)]
Words = Annotated[PlainText, Field(max_length=300)]


class EventFilters(Body):
    """Which events of the log; what is left out does not matter."""

    actor: Typed | None = Field(None, description="An account's id or name.")
    action: Typed | None = Field(None, description="May end in `*`, as in `guard.*`.")
    object: Typed | None = Field(None, description="E.g. `conversation:<id>`.")
    outcome: Outcome | None = None
    since: Moment | None = Field(None, description="With a time zone, e.g. 2026-01-31T12:00:00Z.")
    until: Moment | None = None


class EventsQuery(EventFilters):
    """A page of events."""

    limit: int = Field(20, ge=1, le=100)
    cursor: str | None = Field(None, max_length=200)


class ConversationFilters(Body):
    """Which conversations; what is left out does not matter."""

    person: Typed | None = Field(None, description="An account's id or name.")
    since: Moment | None = Field(None, description="Written in at this moment or later.")
    until: Moment | None = Field(None, description="Begun before this moment.")
    adapter: str | None = Field(
        None, pattern="^([0-9a-f]{64}|base)$", description="One that answered in it; `base`: none did."
    )
    model: Typed | None = Field(None, description="The base model that answered in it.")
    action: Action | None = Field(None, description="What the guard did in it.")
    category: Category | None = Field(None, description="Why the guard did something in it.")
    flagged: bool | None = Field(None, description="Whether the guard stepped in or doubted.")
    thumbs_down: bool | None = Field(None, description="Whether its person found an answer bad.")
    reviewed: bool | None = Field(None, description="Whether an answer in it was reviewed.")
    review_verdict: ReviewVerdict | None = Field(
        None, description="What a reviewer said of an answer, once no further review of it is wanted."
    )
    review_category: ReviewCategory | None = Field(
        None,
        description="By which category a reviewer found an answer unsafe; counts as `review_verdict` does.",
    )


class ConversationsQuery(ConversationFilters):
    """A page of conversations."""

    limit: int = Field(20, ge=1, le=100)
    cursor: str | None = Field(None, max_length=200)


class WordFilters(ConversationFilters):
    """Which conversations, by words too."""

    words: Words | None = Field(
        None, description='Words that all occur in it; "a phrase" in quotation marks within one message.'
    )


class SearchBody(WordFilters):
    """A page of conversations, by words too: in a body, so that they are in no address and no proxy's log."""

    limit: int = Field(20, ge=1, le=100)
    cursor: str | None = Field(None, max_length=200)


class FoundView(BaseModel):
    """A conversation that was found; nothing of its text."""

    id: str
    user_id: str
    user_name: str
    created_at: datetime
    updated_at: datetime
    message_count: int
    hidden: bool = Field(description="Whether its person took it out of their list.")
    action: str = Field(description="The gravest that the guard did; `allow`: nothing.")
    category: str | None
    severity: str
    thumbs_down: int
    reviewed: bool
    adapters: list[str] = Field(description="SHA-256 of those that answered; `base` for the model alone.")
    models: list[str]


class FoundPageView(BaseModel):
    """A page of conversations, newest first."""

    items: list[FoundView]
    next_cursor: str | None
    stopped: bool = Field(
        description="Whether the search for a phrase stopped at its bound: ask on with `next_cursor`."
    )
    not_searchable_yet: int = Field(description="Messages that wait to be made searchable, usually seconds.")


class ViewBody(Body):
    """A search to be kept under a name."""

    name: PlainText = Field(max_length=100)
    filters: WordFilters


class ViewView(BaseModel):
    """A search that was kept."""

    id: str
    name: str
    filters: dict[str, Any]
    created_at: datetime


class ViewsView(BaseModel):
    """One's own views, by name."""

    items: list[ViewView]


class ExportBody(Body):
    """What to export. A list of conversations comes without their texts."""

    what: Literal["events", "conversations"]
    format: Literal["csv", "jsonl", "fhir"] = Field(
        description="`fhir`: AuditEvent of FHIR R4, one JSON document a line; for events only."
    )
    events: EventFilters | None = Field(None, description="Which events; all, if left out.")
    conversations: WordFilters | None = Field(None, description="Which conversations; all, if left out.")

    @model_validator(mode="after")
    def _fits_together(self) -> "ExportBody":
        if self.what == "events" and self.conversations is not None:
            raise ValueError("has filters of conversations, but exports events; send `events` instead")
        if self.what == "conversations" and self.events is not None:
            raise ValueError("has filters of events, but exports conversations; send `conversations` instead")
        if self.what == "conversations" and self.format == "fhir":
            raise ValueError("can be `fhir` for events only; choose `csv` or `jsonl`")
        return self
