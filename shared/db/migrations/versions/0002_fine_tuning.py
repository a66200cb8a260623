"""Datasets, training runs, adapters, evaluations and which adapter answers; more kinds of jobs."""

import sqlalchemy as sa
from alembic import op

from shared.db.types import UtcDateTime

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


KINDS = ("infer", "verify", "validate", "train", "evaluate")


EVENTS = (
    "submitted",
    "claimed",
    "retried",
    "lease_expired",
    "drained",
    "postponed",
    "cancel_requested",
    "succeeded",
    "failed",
    "cancelled",
)


def _allow_kinds(table: str, kinds: tuple[str, ...]) -> None:
    values = ", ".join(f"'{kind}'" for kind in kinds)
    name = op.f(f"ck_{table}_kind_known")
    with op.batch_alter_table(table) as batch_op:
        batch_op.drop_constraint(name, type_="check")
        batch_op.create_check_constraint(name, f"kind IN ({values})")


def upgrade() -> None:
    _allow_kinds("jobs", KINDS)
    _allow_kinds("job_events", EVENTS)
    op.create_table(
        "comparisons",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("user_id", sa.String(length=36), nullable=False),
        sa.Column("adapter_left", sa.String(length=64), nullable=True),
        sa.Column("adapter_right", sa.String(length=64), nullable=True),
        sa.Column("job_left", sa.String(length=36), nullable=False),
        sa.Column("job_right", sa.String(length=36), nullable=False),
        sa.Column("blind", sa.Boolean(), nullable=False),
        sa.Column("vote", sa.String(length=8), nullable=True),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("voted_at", UtcDateTime(), nullable=True),
        sa.ForeignKeyConstraint(["job_left"], ["jobs.id"], name=op.f("fk_comparisons_job_left_jobs")),
        sa.ForeignKeyConstraint(["job_right"], ["jobs.id"], name=op.f("fk_comparisons_job_right_jobs")),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_comparisons_user_id_users")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_comparisons")),
    )
    with op.batch_alter_table("comparisons", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_comparisons_user_id"), ["user_id"], unique=False)

    op.create_table(
        "datasets",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("source", sa.String(length=16), nullable=False),
        sa.Column("source_name", sa.String(length=255), nullable=False),
        sa.Column("options", sa.JSON(), nullable=False),
        sa.Column("key_id", sa.String(length=36), nullable=False),
        sa.Column("job_id", sa.String(length=36), nullable=True),
        sa.Column("bytes", sa.BigInteger(), nullable=True),
        sa.Column("sha256", sa.String(length=64), nullable=True),
        sa.Column("shape", sa.String(length=32), nullable=True),
        sa.Column("rows_train", sa.Integer(), nullable=True),
        sa.Column("rows_validation", sa.Integer(), nullable=True),
        sa.Column("manifest", sa.JSON(), nullable=True),
        sa.Column("manifest_sha256", sa.String(length=64), nullable=True),
        sa.Column("report_ciphertext", sa.LargeBinary(), nullable=True),
        sa.Column("progress", sa.JSON(), nullable=True),
        sa.Column("progress_at", UtcDateTime(), nullable=True),
        sa.Column("error", sa.String(length=64), nullable=True),
        sa.Column("error_detail", sa.Text(), nullable=True),
        sa.Column("created_by", sa.String(length=36), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("validated_at", UtcDateTime(), nullable=True),
        sa.Column("hidden_at", UtcDateTime(), nullable=True),
        sa.CheckConstraint(
            "state IN ('receiving', 'validating', 'ready', 'rejected')", name=op.f("ck_datasets_state_known")
        ),
        sa.ForeignKeyConstraint(["created_by"], ["users.id"], name=op.f("fk_datasets_created_by_users")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_datasets_job_id_jobs")),
        sa.ForeignKeyConstraint(["key_id"], ["data_keys.key_id"], name=op.f("fk_datasets_key_id_data_keys")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_datasets")),
    )
    op.create_table(
        "training_runs",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("job_id", sa.String(length=36), nullable=False),
        sa.Column("dataset_id", sa.String(length=36), nullable=False),
        sa.Column("recipe", sa.JSON(), nullable=False),
        sa.Column("base_model", sa.String(length=255), nullable=False),
        sa.Column("base_revision", sa.String(length=64), nullable=True),
        sa.Column("estimate", sa.JSON(), nullable=True),
        sa.Column("waiting_reason", sa.Text(), nullable=True),
        sa.Column("total_steps", sa.Integer(), nullable=True),
        sa.Column("metrics", sa.JSON(), nullable=True),
        sa.Column("created_by", sa.String(length=36), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["created_by"], ["users.id"], name=op.f("fk_training_runs_created_by_users")),
        sa.ForeignKeyConstraint(
            ["dataset_id"], ["datasets.id"], name=op.f("fk_training_runs_dataset_id_datasets")
        ),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_training_runs_job_id_jobs")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_training_runs")),
        sa.UniqueConstraint("job_id", name=op.f("uq_training_runs_job_id")),
    )
    with op.batch_alter_table("training_runs", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_training_runs_dataset_id"), ["dataset_id"], unique=False)

    op.create_table(
        "adapters",
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.String(length=36), nullable=False),
        sa.Column("dataset_id", sa.String(length=36), nullable=False),
        sa.Column("base_model", sa.String(length=255), nullable=False),
        sa.Column("base_revision", sa.String(length=64), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("card", sa.Text(), nullable=False),
        sa.Column("verify_job_id", sa.String(length=36), nullable=True),
        sa.Column("verification", sa.JSON(), nullable=True),
        sa.Column("recalled_reason", sa.Text(), nullable=True),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("status_at", UtcDateTime(), nullable=False),
        sa.CheckConstraint(
            "status IN ('candidate', 'approved', 'active', 'archived', 'recalled')",
            name=op.f("ck_adapters_status_known"),
        ),
        sa.ForeignKeyConstraint(
            ["dataset_id"], ["datasets.id"], name=op.f("fk_adapters_dataset_id_datasets")
        ),
        sa.ForeignKeyConstraint(
            ["run_id"], ["training_runs.id"], name=op.f("fk_adapters_run_id_training_runs")
        ),
        sa.ForeignKeyConstraint(["verify_job_id"], ["jobs.id"], name=op.f("fk_adapters_verify_job_id_jobs")),
        sa.PrimaryKeyConstraint("sha256", name=op.f("pk_adapters")),
        sa.UniqueConstraint("name", "version", name=op.f("uq_adapters_name_version")),
    )
    with op.batch_alter_table("adapters", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_adapters_run_id"), ["run_id"], unique=False)

    op.create_table(
        "training_notes",
        sa.Column("run_id", sa.String(length=36), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["run_id"], ["training_runs.id"], name=op.f("fk_training_notes_run_id_training_runs")
        ),
        sa.PrimaryKeyConstraint("run_id", "seq", name=op.f("pk_training_notes")),
    )
    op.create_table(
        "training_steps",
        sa.Column("run_id", sa.String(length=36), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.Column("loss", sa.Float(), nullable=True),
        sa.Column("eval_loss", sa.Float(), nullable=True),
        sa.Column("learning_rate", sa.Float(), nullable=True),
        sa.Column("grad_norm", sa.Float(), nullable=True),
        sa.Column("tokens_per_s", sa.Float(), nullable=True),
        sa.Column("memory_mb", sa.Float(), nullable=True),
        sa.ForeignKeyConstraint(
            ["run_id"], ["training_runs.id"], name=op.f("fk_training_steps_run_id_training_runs")
        ),
        sa.PrimaryKeyConstraint("run_id", "step", name=op.f("pk_training_steps")),
    )
    op.create_table(
        "deployments",
        sa.Column("seq", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("base_model", sa.String(length=255), nullable=False),
        sa.Column("adapter_sha256", sa.String(length=64), nullable=True),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("override_reason", sa.Text(), nullable=True),
        sa.Column("by", sa.String(length=36), nullable=False),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.CheckConstraint(
            "kind IN ('promote', 'roll_back', 'recall')", name=op.f("ck_deployments_kind_known")
        ),
        sa.ForeignKeyConstraint(
            ["adapter_sha256"], ["adapters.sha256"], name=op.f("fk_deployments_adapter_sha256_adapters")
        ),
        sa.ForeignKeyConstraint(["by"], ["users.id"], name=op.f("fk_deployments_by_users")),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_deployments")),
    )
    with op.batch_alter_table("deployments", schema=None) as batch_op:
        batch_op.create_index("ix_deployments_base_model_seq", ["base_model", "seq"], unique=False)

    op.create_table(
        "evaluations",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("job_id", sa.String(length=36), nullable=False),
        sa.Column("adapter_sha256", sa.String(length=64), nullable=False),
        sa.Column("dataset_id", sa.String(length=36), nullable=False),
        sa.Column("figures", sa.JSON(), nullable=True),
        sa.Column("gate", sa.JSON(), nullable=True),
        sa.Column("passed", sa.Boolean(), nullable=True),
        sa.Column("samples_ciphertext", sa.LargeBinary(), nullable=True),
        sa.Column("key_id", sa.String(length=36), nullable=True),
        sa.Column("created_by", sa.String(length=36), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["adapter_sha256"], ["adapters.sha256"], name=op.f("fk_evaluations_adapter_sha256_adapters")
        ),
        sa.ForeignKeyConstraint(["created_by"], ["users.id"], name=op.f("fk_evaluations_created_by_users")),
        sa.ForeignKeyConstraint(
            ["dataset_id"], ["datasets.id"], name=op.f("fk_evaluations_dataset_id_datasets")
        ),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_evaluations_job_id_jobs")),
        sa.ForeignKeyConstraint(
            ["key_id"], ["data_keys.key_id"], name=op.f("fk_evaluations_key_id_data_keys")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_evaluations")),
        sa.UniqueConstraint("job_id", name=op.f("uq_evaluations_job_id")),
    )
    with op.batch_alter_table("evaluations", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_evaluations_adapter_sha256"), ["adapter_sha256"], unique=False)


def downgrade() -> None:
    with op.batch_alter_table("evaluations", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_evaluations_adapter_sha256"))

    op.drop_table("evaluations")
    with op.batch_alter_table("deployments", schema=None) as batch_op:
        batch_op.drop_index("ix_deployments_base_model_seq")

    op.drop_table("deployments")
    op.drop_table("training_steps")
    op.drop_table("training_notes")
    with op.batch_alter_table("adapters", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_adapters_run_id"))

    op.drop_table("adapters")
    with op.batch_alter_table("training_runs", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_training_runs_dataset_id"))

    op.drop_table("training_runs")
    op.drop_table("datasets")
    with op.batch_alter_table("comparisons", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_comparisons_user_id"))

    op.drop_table("comparisons")
    _allow_kinds("job_events", tuple(kind for kind in EVENTS if kind != "postponed"))
    _allow_kinds("jobs", KINDS[:1])
