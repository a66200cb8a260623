"""The tables of fine-tuning: datasets, runs, adapters and which adapter answers. It knows no writer.

Text of uploaded rows is in storage and in columns named `…_ciphertext`, never in the clear. `deployments`
is insert-only: the newest row of a base model says which adapter answers, and the rows before it are
the history that a roll-back goes back in.
"""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    String,
    Table,
    Text,
    UniqueConstraint,
)

from shared.db.tables import metadata
from shared.db.types import Id, UtcDateTime, one_of
from shared.training.states import AdapterStatus, DatasetState, DeploymentKind

datasets = Table(
    "datasets",
    metadata,
    Column("id", Id, primary_key=True),
    Column("name", String(100), nullable=False),
    Column("state", String(16), nullable=False),
    Column("source", String(16), nullable=False),  # upload | path | hub
    Column("source_name", String(255), nullable=False),  # the hub id; empty for a file
    Column("source_name_ciphertext", LargeBinary),  # the file's name, or its path on the server
    Column("options", JSON, nullable=False),  # see shared/training/options.py
    Column("key_id", Id, ForeignKey("data_keys.key_id"), nullable=False),
    Column("job_id", Id, ForeignKey("jobs.id")),  # of the newest validation
    Column("bytes", BigInteger),  # of what was uploaded
    Column("sha256", String(64)),  # of what was uploaded
    Column("shape", String(32)),  # how the rows were recognised
    Column("rows_train", Integer),
    Column("rows_validation", Integer),
    Column("manifest", JSON),  # every part with its sha256, rows and bytes; never changed once set
    Column("manifest_sha256", String(64)),
    Column("report_ciphertext", LargeBinary),
    Column("progress", JSON),  # done, total and what is being done, while it is received or validated
    Column("progress_at", UtcDateTime),
    Column("error", String(64)),
    Column("error_detail", Text),
    Column("created_by", Id, ForeignKey("users.id"), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("validated_at", UtcDateTime),
    Column("hidden_at", UtcDateTime),
    one_of("state", DatasetState),
)

training_runs = Table(
    "training_runs",
    metadata,
    Column("id", Id, primary_key=True),
    Column("name", String(100), nullable=False),
    Column("job_id", Id, ForeignKey("jobs.id"), nullable=False, unique=True),
    Column("dataset_id", Id, ForeignKey("datasets.id"), nullable=False, index=True),
    Column("manifest_sha256", String(64)),  # the dataset's, when the run was submitted
    Column("recipe", JSON, nullable=False),  # see services/worker_train/recipe.py
    Column("base_model", String(255), nullable=False),  # the catalogue's name
    Column("base_revision", String(64)),  # known once the weights were read
    Column("estimate", JSON),  # memory and time, as judged before the start
    Column("waiting_reason", Text),  # why a queued run does not start
    Column("total_steps", Integer),
    Column("metrics", JSON),  # at the end
    Column("created_by", Id, ForeignKey("users.id"), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
)

#: One row a step; a step that is trained again after a crash replaces its row.
training_steps = Table(
    "training_steps",
    metadata,
    Column("run_id", Id, ForeignKey("training_runs.id"), primary_key=True),
    Column("step", Integer, primary_key=True),
    Column("at", UtcDateTime, nullable=False),
    Column("loss", Float),
    Column("eval_loss", Float),
    Column("learning_rate", Float),
    Column("grad_norm", Float),
    Column("tokens_per_s", Float),  # supervised tokens
    Column("memory_mb", Float),
)

#: What a person should know of a run: resumed, batch halved, stopped early. Our words, nobody's text.
training_notes = Table(
    "training_notes",
    metadata,
    Column("run_id", Id, ForeignKey("training_runs.id"), primary_key=True),
    Column("seq", Integer, primary_key=True),
    Column("at", UtcDateTime, nullable=False),
    Column("text", Text, nullable=False),
)

adapters = Table(
    "adapters",
    metadata,
    Column("sha256", String(64), primary_key=True),  # of adapter_model.safetensors: a version never changes
    Column("files_sha256", String(64)),  # of its configuration and probe; see shared/training/adapters.py
    Column("name", String(100), nullable=False),
    Column("version", Integer, nullable=False),
    Column("run_id", Id, ForeignKey("training_runs.id"), nullable=False, index=True),
    Column("dataset_id", Id, ForeignKey("datasets.id"), nullable=False),
    Column("base_model", String(255), nullable=False),
    Column("base_revision", String(64), nullable=False),
    Column("status", String(16), nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("card", Text, nullable=False),  # the model card, Markdown
    Column("verify_job_id", Id, ForeignKey("jobs.id")),
    Column("verification", JSON),  # what the serving engine found; NULL until it loaded the adapter
    Column("recalled_reason", Text),
    Column("created_at", UtcDateTime, nullable=False),
    Column("status_at", UtcDateTime, nullable=False),
    UniqueConstraint("name", "version"),
    one_of("status", AdapterStatus),
)

evaluations = Table(
    "evaluations",
    metadata,
    Column("id", Id, primary_key=True),
    Column("job_id", Id, ForeignKey("jobs.id"), nullable=False, unique=True),
    Column("adapter_sha256", String(64), ForeignKey("adapters.sha256"), nullable=False, index=True),
    Column("dataset_id", Id, ForeignKey("datasets.id"), nullable=False),
    Column("figures", JSON),  # base and candidate, with intervals; NULL until it ended
    Column("gate", JSON),  # each figure's limit, value and whether it passed
    Column("passed", Boolean),
    Column("samples_ciphertext", LargeBinary),  # best and worst answers side by side
    Column("key_id", Id, ForeignKey("data_keys.key_id")),
    Column("created_by", Id, ForeignKey("users.id"), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
)

deployments = Table(
    "deployments",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("base_model", String(255), nullable=False),
    Column("adapter_sha256", String(64), ForeignKey("adapters.sha256")),  # NULL: the base model alone
    Column("kind", String(16), nullable=False),
    Column("override_reason", Text),  # why an admin promoted past a gate that failed
    Column("by", Id, ForeignKey("users.id"), nullable=False),
    Column("at", UtcDateTime, nullable=False),
    one_of("kind", DeploymentKind),
    Index("ix_deployments_base_model_seq", "base_model", "seq"),
)

comparisons = Table(
    "comparisons",
    metadata,
    Column("id", Id, primary_key=True),
    Column("user_id", Id, ForeignKey("users.id"), nullable=False, index=True),
    Column("adapter_left", String(64)),  # NULL: the base model
    Column("adapter_right", String(64)),
    Column("job_left", Id, ForeignKey("jobs.id"), nullable=False),
    Column("job_right", Id, ForeignKey("jobs.id"), nullable=False),
    Column("blind", Boolean, nullable=False),
    Column("vote", String(8)),  # left | right | tie
    Column("created_at", UtcDateTime, nullable=False),
    Column("voted_at", UtcDateTime),
)
