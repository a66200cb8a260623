"""The tables of the sealed log beside its events and seals. They know no writer.

Tiles and checkpoints are insert-only. `audit_pending` holds what waits to be sealed: a trigger of
`audit_events` fills it, so that none is forgotten, and one that commits late is not passed over.
"""

from sqlalchemy import Column, Integer, LargeBinary, Table, Text

from shared.db.tables import metadata
from shared.db.types import Id, UtcDateTime

audit_pending = Table(
    "audit_pending",
    metadata,
    Column("event_id", Id, primary_key=True),
)

audit_tiles = Table(
    "audit_tiles",
    metadata,
    Column("level", Integer, primary_key=True, autoincrement=False),  # 0: of leaves; 1: of roots of those; …
    Column("number", Integer, primary_key=True, autoincrement=False),  # from 0, without gaps
    Column("hashes", LargeBinary, nullable=False),  # 256 of them, 32 bytes each (C2SP tlog-tiles)
    Column("root", LargeBinary, nullable=False),
)

audit_checkpoints = Table(
    "audit_checkpoints",
    metadata,
    Column("id", Id, primary_key=True),
    Column("size", Integer, nullable=False, index=True),  # entries of the tree
    Column("root", LargeBinary, nullable=False),
    Column("signed_at", UtcDateTime, nullable=False),
    Column("note", Text, nullable=False),  # the signed text (C2SP tlog-checkpoint)
)
