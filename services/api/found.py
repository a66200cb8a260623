"""Turns what auditors ask for into a search for conversations, and what is found into what they see."""

from dataclasses import asdict, fields
from typing import Any

from services.api.schemas_finding import ConversationFilters, FoundView
from services.api.telling import told
from shared.finding_filters import Filters
from shared.found import Found
from shared.ids import is_id
from shared.privacy.envelope import Envelope
from shared.privacy.search import words_of

_NAMES = {each.name for each in fields(Filters)}


def filters_of(query: ConversationFilters) -> Filters:
    """The filters of a request; an empty text filters nothing, and a list without words has none."""
    given = query.model_dump(include=_NAMES)
    return Filters(**{name: value for name, value in given.items() if value != ""})


def told_conversations(envelope: Envelope, filters: Filters) -> dict[str, Any]:
    """The filters as the log may keep them: words, names and models as HMACs.

    The same words have the same HMAC, however they are written.
    """
    return told(
        envelope,
        {
            "person": (filters.person, is_id(filters.person or "")),
            "since": (filters.since and filters.since.isoformat(), True),
            "until": (filters.until and filters.until.isoformat(), True),
            "adapter": (filters.adapter, True),
            "model": (filters.model, False),
            "action": (filters.action, True),
            "category": (filters.category, True),
            "flagged": (filters.flagged, True),
            "thumbs_down": (filters.thumbs_down, True),
            "reviewed": (filters.reviewed, True),
            "review_verdict": (filters.review_verdict, True),
            "review_category": (filters.review_category, True),
            "words": (filters.words and " ".join(words_of(filters.words)), False),
        },
    )


def found_view(found: Found) -> FoundView:
    """What was found, as it is shown."""
    return FoundView(**asdict(found))
