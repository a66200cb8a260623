"""The tables of search, of holds, and of access in an emergency. They know no writer.

`search_pending` holds the messages that are not searchable yet; a trigger of `messages` fills it.
"""

from sqlalchemy import Column, ForeignKey, Index, LargeBinary, String, Table

from shared.db.tables import metadata
from shared.db.types import Id, UtcDateTime

search_pending = Table(
    "search_pending",
    metadata,
    Column("message_id", Id, primary_key=True),
)

search_terms = Table(
    "search_terms",
    metadata,
    Column("term", LargeBinary, primary_key=True),  # a keyed hash of a word
    Column("conversation_id", Id, ForeignKey("conversations.id"), primary_key=True),
    Index("ix_search_terms_conversation_id", "conversation_id"),
    sqlite_with_rowid=False,  # the key is the whole row: half the size, and one look instead of two
)

legal_holds = Table(
    "legal_holds",
    metadata,
    Column("id", Id, primary_key=True),
    Column("subject", String(64), nullable=False, index=True),  # `user:<id>` or `conversation:<id>`
    Column("reference", String(64), nullable=False),  # the number of the case; nobody's words
    Column("placed_at", UtcDateTime, nullable=False),
    Column("placed_by", Id, ForeignKey("users.id"), nullable=False),
    Column("lifted_at", UtcDateTime),
    Column("lifted_by", Id, ForeignKey("users.id")),
)

access_grants = Table(
    "access_grants",
    metadata,
    Column("id", Id, primary_key=True),
    Column("user_id", Id, ForeignKey("users.id"), nullable=False, index=True),  # who may look
    Column("conversation_id", Id, ForeignKey("conversations.id"), nullable=False, index=True),
    Column("reason_ciphertext", LargeBinary, nullable=False),
    Column("key_id", Id, ForeignKey("data_keys.key_id"), nullable=False),
    Column("granted_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime, nullable=False),
    Column("ended_at", UtcDateTime),
)

#: Rows of a dataset that come from conversations: what becomes of them when those are erased.
dataset_conversations = Table(
    "dataset_conversations",
    metadata,
    Column("dataset_id", Id, ForeignKey("datasets.id"), primary_key=True),
    Column("conversation_id", Id, ForeignKey("conversations.id"), primary_key=True, index=True),
)
