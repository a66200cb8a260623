"""The tables of the review of answers, and of the views that auditors keep. They know no writer."""

from sqlalchemy import Boolean, Column, ForeignKey, Index, Integer, LargeBinary, String, Table

from shared.db.tables import metadata
from shared.db.types import Id, UtcDateTime

review_items = Table(
    "review_items",
    metadata,
    Column("id", Id, primary_key=True),
    Column("job_id", Id, ForeignKey("jobs.id"), nullable=False, unique=True),  # of the answer
    Column("conversation_id", Id, ForeignKey("conversations.id"), nullable=False, index=True),
    Column("reason", String(24), nullable=False),  # why it is in the queue; see shared/review/rules.py
    Column("priority", Integer, nullable=False),  # 0 is reviewed first
    Column("sampled", Boolean, nullable=False),  # drawn by chance, whatever else it is here for
    Column("wanted", Integer, nullable=False),  # reviews, each by another person
    Column("created_at", UtcDateTime, nullable=False),
    Column("closed_at", UtcDateTime),
    Index("ix_review_items_closed_at_priority_created_at", "closed_at", "priority", "created_at"),
)

reviews = Table(
    "reviews",
    metadata,
    Column("item_id", Id, ForeignKey("review_items.id"), primary_key=True),
    Column("reviewer_id", Id, ForeignKey("users.id"), primary_key=True),
    Column("taken_at", UtcDateTime),  # since when it is held, or last changed; NULL: given back
    Column("verdict", String(16)),
    Column("category", String(64)),
    Column("guard_right", Boolean),  # where the guard stepped in: whether it should have
    Column("corrected_ciphertext", LargeBinary),
    Column("note_ciphertext", LargeBinary),
    Column("salt", LargeBinary),  # of the commitment to it in the log; NULL: a draft
    Column("key_id", Id, ForeignKey("data_keys.key_id"), nullable=False),  # the conversation's
    Column("changed_at", UtcDateTime, nullable=False),
    Column("given_at", UtcDateTime),  # NULL: a draft
    Index("ix_reviews_reviewer_id_given_at", "reviewer_id", "given_at"),
)

#: Up to where the log was looked through for answers to review.
review_marks = Table(
    "review_marks",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("at", UtcDateTime, nullable=False),
)

saved_views = Table(
    "saved_views",
    metadata,
    Column("id", Id, primary_key=True),
    Column("user_id", Id, ForeignKey("users.id"), nullable=False, index=True),
    Column("view_ciphertext", LargeBinary, nullable=False),  # its name and its filters
    Column("key_id", Id, ForeignKey("data_keys.key_id"), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
)
