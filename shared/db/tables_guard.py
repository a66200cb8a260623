"""The tables of the guard's policy: versions, which one counts, the stop switch, replays. It knows no writer.

All but `guard_replays` are insert-only: the newest row counts, and those before it are the history. With no
activation the policy that comes with the program counts, and with no stop answers are given.
"""

from sqlalchemy import JSON, Boolean, Column, ForeignKey, Integer, String, Table, Text

from shared.db.tables import metadata
from shared.db.types import Id, UtcDateTime, one_of
from shared.policies.states import ActivationKind

guard_policies = Table(
    "guard_policies",
    metadata,
    Column("version", String(32), primary_key=True),  # changes with any word of the texts
    Column("texts", JSON, nullable=False),  # the whole text of each policy file, by name
    Column("note", Text, nullable=False),
    Column("created_by", Id, ForeignKey("users.id")),  # NULL: it came with the program
    Column("created_at", UtcDateTime, nullable=False),
)

guard_activations = Table(
    "guard_activations",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column(
        "version", String(32), ForeignKey("guard_policies.version")
    ),  # NULL: whichever comes with the program
    Column("shadow", String(32), ForeignKey("guard_policies.version")),  # NULL: none judges beside it
    Column("kind", String(16), nullable=False),
    Column("by", Id, ForeignKey("users.id"), nullable=False),
    Column("at", UtcDateTime, nullable=False),
    one_of("kind", ActivationKind),
)

guard_stops = Table(
    "guard_stops",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("stopped", Boolean, nullable=False),
    Column("reason", Text),  # why answers were stopped
    Column("by", Id, ForeignKey("users.id"), nullable=False),
    Column("at", UtcDateTime, nullable=False),
)

guard_replays = Table(
    "guard_replays",
    metadata,
    Column("id", Id, primary_key=True),
    Column("job_id", Id, ForeignKey("jobs.id"), nullable=False, unique=True),
    Column("version", String(32), nullable=False),
    Column("answers", Integer, nullable=False),  # how many of the newest are judged again
    Column("counts", JSON),  # NULL until it ended
    Column("changes", JSON),  # which sentences are judged otherwise: ids and categories, nobody's words
    Column("created_by", Id, ForeignKey("users.id"), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
)
