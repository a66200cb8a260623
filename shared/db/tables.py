"""Every table. It knows the shape of the rows and nothing of who writes them.

What a person wrote or was shown is in columns named `…_ciphertext` (see shared/privacy/envelope.py);
the `key_id` beside it names the data key. The tables of
`INSERT_ONLY` are so: the migrations take UPDATE and DELETE away from the application.
"""

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from shared.auth.roles import AccountStatus, Role, SessionKind
from shared.db.types import Id, UtcDateTime, one_of
from shared.guard.verdict import Action, Audience, Severity, Side
from shared.jobs.lifecycle import EventKind, Kind, Lane, State

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

INSERT_ONLY = (
    "audit_checkpoints",
    "audit_events",
    "audit_seals",
    "audit_tiles",
    "deployments",
    "guard_activations",
    "guard_policies",
    "guard_stops",
    "job_events",
    "pictures",
)

users = Table(
    "users",
    metadata,
    Column("id", Id, primary_key=True),
    Column("name", String(100), nullable=False, unique=True),  # always lower-case
    Column("role", String(16), nullable=False),
    Column("audience", String(16), nullable=False),
    Column("status", String(16), nullable=False),
    Column("password_hash", String(255), nullable=False),
    Column("consented_at", UtcDateTime),
    Column("consent_version", String(32)),
    Column("failed_logins", Integer, nullable=False, server_default="0"),
    Column("locked_until", UtcDateTime),
    Column("created_at", UtcDateTime, nullable=False),
    Column("created_by", Id, ForeignKey("users.id")),
    Column("approved_by", Id, ForeignKey("users.id")),
    Column("password_set_by", Id),  # `operator`, or an account; NULL once its owner has set it
    Column("password_set_at", UtcDateTime),
    one_of("role", Role),
    one_of("audience", Audience),
    one_of("status", AccountStatus),
)

sessions = Table(
    "sessions",
    metadata,
    Column("sid", Id, primary_key=True),
    Column("user_id", Id, ForeignKey("users.id"), nullable=False, index=True),
    Column("kind", String(16), nullable=False),
    Column("refresh_family", Id),
    Column("token_hash", String(64), unique=True),  # of a browser's token
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime, nullable=False),
    Column("last_seen_at", UtcDateTime, nullable=False),
    Column("reauthenticated_at", UtcDateTime, nullable=False),
    Column("revoked_at", UtcDateTime),
    Column("failed_guesses", Integer, nullable=False, server_default="0"),  # at its person's own password
    Column("locked_until", UtcDateTime),
    one_of("kind", SessionKind),
)

refresh_tokens = Table(
    "refresh_tokens",
    metadata,
    Column("token_hash", String(64), primary_key=True),
    Column("sid", Id, ForeignKey("sessions.sid"), nullable=False, index=True),
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime, nullable=False),
    Column("used_at", UtcDateTime),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Id, primary_key=True),
    Column("user_id", Id, ForeignKey("users.id"), nullable=False, index=True),
    Column("name", String(100), nullable=False),
    Column("hint", String(16), nullable=False),  # the first characters, to recognise it by
    Column("key_hash", String(64), nullable=False, unique=True),
    Column("scopes", JSON, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime),
    Column("last_used_at", UtcDateTime),
    Column("revoked_at", UtcDateTime),
)

data_keys = Table(
    "data_keys",
    metadata,
    Column("key_id", Id, primary_key=True),
    Column("scope", String(16), nullable=False),  # conversation | dataset | image | person | search
    Column("owner_id", Id, nullable=False, index=True),  # the conversation, dataset, …
    Column("subject_reference", String(255)),  # the person the text is about, where one is named
    Column("wrapped_key", LargeBinary),  # NULL once destroyed
    Column("master_key_version", Integer, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("destroyed_at", UtcDateTime),
)

conversations = Table(
    "conversations",
    metadata,
    Column("id", Id, primary_key=True),
    Column("user_id", Id, ForeignKey("users.id"), nullable=False),
    Column("key_id", Id, ForeignKey("data_keys.key_id"), nullable=False),
    Column("title_ciphertext", LargeBinary),
    Column("guard_state", String(16), nullable=False, server_default="none"),  # none | emergency | crisis
    Column("legal_hold", Boolean, nullable=False, server_default=text("false")),
    Column("retention_class", String(32), nullable=False, server_default="default"),
    Column("created_at", UtcDateTime, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    Column("message_count", Integer, nullable=False, server_default="0"),
    Column("hidden_at", UtcDateTime),
    Index("ix_conversations_user_id_updated_at", "user_id", "updated_at"),
)

messages = Table(
    "messages",
    metadata,
    Column("id", Id, primary_key=True),
    Column("conversation_id", Id, ForeignKey("conversations.id"), nullable=False),
    Column("seq", Integer, nullable=False),
    Column("parent_id", Id, ForeignKey("messages.id")),
    Column("role", String(16), nullable=False),  # user | assistant
    Column("parts", JSON, nullable=False),  # kinds, and which pictures; their text is encrypted
    Column("ciphertext", LargeBinary, nullable=False),
    Column("key_id", Id, ForeignKey("data_keys.key_id"), nullable=False),
    Column("job_id", Id, index=True, unique=True),  # of an answer: no job gives two
    Column("created_at", UtcDateTime, nullable=False),
    Column("hidden_at", UtcDateTime),
    UniqueConstraint("conversation_id", "seq"),
)

pictures = Table(
    "pictures",
    metadata,
    Column("id", Id, primary_key=True),
    Column("conversation_id", Id, ForeignKey("conversations.id"), nullable=False),
    Column("message_id", Id, ForeignKey("messages.id"), nullable=False),
    Column("position", Integer, nullable=False),  # among those of its message, from 1
    Column("width", Integer, nullable=False),
    Column("height", Integer, nullable=False),
    Column("ciphertext", LargeBinary, nullable=False),  # of a PNG
    Column("key_id", Id, ForeignKey("data_keys.key_id"), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    UniqueConstraint("message_id", "position"),
)

feedback = Table(
    "feedback",
    metadata,
    Column("message_id", Id, ForeignKey("messages.id"), primary_key=True),
    Column("user_id", Id, ForeignKey("users.id"), primary_key=True),
    Column("rating", String(8), nullable=False),  # up | down
    Column("comment_ciphertext", LargeBinary),
    Column("key_id", Id, ForeignKey("data_keys.key_id"), nullable=False),
    Column("updated_at", UtcDateTime, nullable=False, index=True),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", Id, primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("lane", String(16), nullable=False),
    Column("state", String(16), nullable=False),
    Column("user_id", Id, ForeignKey("users.id"), nullable=False),
    Column("conversation_id", Id, ForeignKey("conversations.id"), index=True),
    Column("question_id", Id, ForeignKey("messages.id")),
    Column("parent_job_id", Id),
    Column("batch_id", Id),
    Column("audience", String(16), nullable=False),
    Column("attempt", Integer, nullable=False, server_default="0"),
    Column("max_attempts", Integer, nullable=False),
    Column("epoch", Integer, nullable=False, server_default="0"),
    Column("event_seq", Integer, nullable=False, server_default="1"),
    Column("worker_id", String(100)),
    Column("lease_expires_at", UtcDateTime),
    Column("available_at", UtcDateTime, nullable=False),
    Column("dispatched_at", UtcDateTime),
    Column("deadline_at", UtcDateTime),
    Column("cancel_requested_at", UtcDateTime),
    Column("idempotency_key", String(255)),
    Column("request_hmac", String(64)),
    Column("model_id", String(255)),
    Column("model_revision", String(64)),
    Column("adapter_sha256", String(64)),
    Column("prompt_version", String(32)),
    Column("policy_version", String(32)),
    Column("seed", Integer),
    Column("sampling", JSON, nullable=False),
    Column("prompt_tokens", Integer),
    Column("completion_tokens", Integer),
    Column("payload_ciphertext", LargeBinary),
    Column("key_id", Id, ForeignKey("data_keys.key_id")),
    Column("error", String(64)),  # a code; the sentence beside it never quotes anybody
    Column("error_detail", Text),
    Column("finish_reason", String(16)),
    Column("created_at", UtcDateTime, nullable=False),
    Column("started_at", UtcDateTime),
    Column("first_sentence_at", UtcDateTime),
    Column("finished_at", UtcDateTime),
    one_of("kind", Kind),
    one_of("lane", Lane),
    one_of("state", State),
    one_of("audience", Audience),
    UniqueConstraint("user_id", "idempotency_key"),
    Index("ix_jobs_state_kind_available_at", "state", "kind", "available_at"),
    Index("ix_jobs_user_id_created_at", "user_id", "created_at"),
    Index("ix_jobs_user_id_state", "user_id", "state"),
    Index(
        "uq_jobs_active_conversation",
        "conversation_id",
        unique=True,
        sqlite_where=text("state IN ('queued', 'running')"),
        postgresql_where=text("state IN ('queued', 'running')"),
    ),
)

job_events = Table(
    "job_events",
    metadata,
    Column("job_id", Id, ForeignKey("jobs.id"), primary_key=True),
    Column("seq", Integer, primary_key=True),
    Column("at", UtcDateTime, nullable=False),
    Column("kind", String(24), nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("worker_id", String(100)),
    Column("reason", String(64)),
    one_of("kind", EventKind),
)

verdicts = Table(
    "verdicts",
    metadata,
    Column("id", Id, primary_key=True),
    Column("job_id", Id, ForeignKey("jobs.id"), nullable=False, index=True),
    Column("side", String(16), nullable=False),
    Column("action", String(16), nullable=False),
    Column("severity", String(16), nullable=False),
    Column("category", String(64)),
    Column("layer", String(32), nullable=False),
    Column("source", String(100), nullable=False),
    Column("score", Float, nullable=False),
    Column("policy_version", String(32), nullable=False),
    Column("span_hmac", String(64)),
    Column(
        "shadow", Boolean, nullable=False, server_default=text("false")
    ),  # changed nothing, shown to nobody
    Column("sentence_seq", Integer),  # of the released sentence that a shadow judged
    Column("created_at", UtcDateTime, nullable=False),
    one_of("side", Side),
    one_of("action", Action),
    one_of("severity", Severity),
)

released_sentences = Table(
    "released_sentences",
    metadata,
    Column("job_id", Id, ForeignKey("jobs.id"), primary_key=True),
    Column("seq", Integer, primary_key=True),  # from 1, without gaps
    Column("epoch", Integer, nullable=False),
    Column("action", String(16), nullable=False),
    Column("ciphertext", LargeBinary, nullable=False),
    Column("suppressed_ciphertext", LargeBinary),
    Column("key_id", Id, ForeignKey("data_keys.key_id"), nullable=False),
    Column("verdict_id", Id, ForeignKey("verdicts.id")),
    Column("created_at", UtcDateTime, nullable=False),
    one_of("action", Action),
)

audit_events = Table(
    "audit_events",
    metadata,
    Column("id", Id, primary_key=True),
    Column("occurred_at", UtcDateTime, nullable=False, index=True),
    Column("actor", String(100), nullable=False, index=True),  # a user's id, `system` or `operator`
    Column("session_id", String(64)),
    Column("action", String(64), nullable=False, index=True),
    Column("object", String(160), index=True),  # e.g. `conversation:…`
    Column("outcome", String(16), nullable=False),  # done | denied | failed
    Column("reason", String(255)),
    Column("canonical_bytes", LargeBinary, nullable=False),
    Column("schema_version", Integer, nullable=False),
)

audit_seals = Table(
    "audit_seals",
    metadata,
    Column("sequence", Integer, primary_key=True, autoincrement=False),
    Column("event_id", Id, ForeignKey("audit_events.id"), nullable=False, unique=True),
    Column("leaf_hash", LargeBinary, nullable=False),
    Column("sealed_at", UtcDateTime, nullable=False),
)

leases = Table(
    "leases",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("holder", String(100), nullable=False),
    Column("expires_at", UtcDateTime, nullable=False),
)

workers = Table(
    "workers",
    metadata,
    Column("id", String(100), primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("model_id", String(255), nullable=False),
    Column("started_at", UtcDateTime, nullable=False),
    Column("last_seen_at", UtcDateTime, nullable=False),
    Column("stats", JSON, nullable=False),
)
