"""What an item of the queue and a review look like to the code that handles them. It changes nothing."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row

from shared.privacy.envelope import DataKey
from shared.review.rules import Reason, ReviewVerdict


@dataclass(frozen=True, kw_only=True)
class Item:
    """An answer that is reviewed."""

    id: str
    #: Of the answer.
    job_id: str
    conversation_id: str
    reason: Reason
    #: Reviews, each by another person.
    wanted: int
    created_at: datetime
    #: None as long as fewer reviews were given than are wanted.
    closed_at: datetime | None

    @classmethod
    def from_row(cls, row: Row[Any]) -> "Item":
        """Build from a row of `review_items`."""
        values = {name: row._mapping[name] for name in cls.__dataclass_fields__}
        return cls(**{**values, "reason": Reason(values["reason"])})


@dataclass(frozen=True, kw_only=True)
class Draft:
    """What a reviewer has filled in; all of it may be missing."""

    verdict: ReviewVerdict | None = None
    #: By which the answer is unsafe.
    category: str | None = None
    #: Where the guard stepped in: whether it should have.
    guard_right: bool | None = None
    #: What the answer should have been.
    corrected: str | None = None
    note: str | None = None


@dataclass(frozen=True, kw_only=True)
class Review:
    """One person's review of an item, in the clear."""

    reviewer_id: str
    #: Since when it is held, or was last changed; None when it was given back.
    taken_at: datetime | None
    changed_at: datetime
    #: None: a draft.
    given_at: datetime | None
    draft: Draft

    @classmethod
    def from_row(cls, row: Row[Any], key: DataKey) -> "Review":
        """Build from a row of `reviews`. Raises CannotDecrypt."""
        who = (row.item_id, row.reviewer_id)
        return cls(
            reviewer_id=row.reviewer_id,
            taken_at=row.taken_at,
            changed_at=row.changed_at,
            given_at=row.given_at,
            draft=Draft(
                verdict=None if row.verdict is None else ReviewVerdict(row.verdict),
                category=row.category,
                guard_right=row.guard_right,
                corrected=_open(key, row.corrected_ciphertext, corrected_place(*who)),
                note=_open(key, row.note_ciphertext, note_place(*who)),
            ),
        )


def seal(draft: Draft, key: DataKey, item_id: str, reviewer_id: str) -> dict[str, Any]:
    """The columns of `reviews` that hold this draft."""
    who = (item_id, reviewer_id)
    return {
        "verdict": draft.verdict,
        "category": draft.category,
        "guard_right": draft.guard_right,
        "corrected_ciphertext": _seal(key, draft.corrected, corrected_place(*who)),
        "note_ciphertext": _seal(key, draft.note, note_place(*who)),
    }


def corrected_place(item_id: str, reviewer_id: str) -> str:
    """What the ciphertext of a corrected answer is bound to."""
    return f"review_corrected:{item_id}:{reviewer_id}"


def note_place(item_id: str, reviewer_id: str) -> str:
    """What the ciphertext of a note is bound to."""
    return f"review_note:{item_id}:{reviewer_id}"


def _open(key: DataKey, sealed: bytes | None, place: str) -> str | None:
    return None if sealed is None else key.decrypt(sealed, place=place)


def _seal(key: DataKey, text: str | None, place: str) -> bytes | None:
    return None if text is None else key.encrypt(text, place=place)
