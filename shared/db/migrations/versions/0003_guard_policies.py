"""Policies of the guard, which one counts, the stop switch; shadow verdicts; jobs that replay answers."""

import sqlalchemy as sa
from alembic import op

from shared.db.types import UtcDateTime

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


KINDS = ("infer", "verify", "validate", "train", "evaluate", "replay")


def _allow_kinds(kinds: tuple[str, ...]) -> None:
    values = ", ".join(f"'{kind}'" for kind in kinds)
    name = op.f("ck_jobs_kind_known")
    with op.batch_alter_table("jobs") as batch_op:
        batch_op.drop_constraint(name, type_="check")
        batch_op.create_check_constraint(name, f"kind IN ({values})")


def upgrade() -> None:
    _allow_kinds(KINDS)
    with op.batch_alter_table("verdicts", schema=None) as batch_op:
        batch_op.add_column(
            sa.Column("shadow", sa.Boolean(), server_default=sa.text("false"), nullable=False)
        )
        batch_op.add_column(sa.Column("sentence_seq", sa.Integer(), nullable=True))
    op.create_table(
        "guard_policies",
        sa.Column("version", sa.String(length=32), nullable=False),
        sa.Column("texts", sa.JSON(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("created_by", sa.String(length=36), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["created_by"], ["users.id"], name=op.f("fk_guard_policies_created_by_users")
        ),
        sa.PrimaryKeyConstraint("version", name=op.f("pk_guard_policies")),
    )
    op.create_table(
        "guard_activations",
        sa.Column("seq", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("version", sa.String(length=32), nullable=True),
        sa.Column("shadow", sa.String(length=32), nullable=True),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("by", sa.String(length=36), nullable=False),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.CheckConstraint(
            "kind IN ('activate', 'shadow', 'roll_back')", name=op.f("ck_guard_activations_kind_known")
        ),
        sa.ForeignKeyConstraint(["by"], ["users.id"], name=op.f("fk_guard_activations_by_users")),
        sa.ForeignKeyConstraint(
            ["shadow"], ["guard_policies.version"], name=op.f("fk_guard_activations_shadow_guard_policies")
        ),
        sa.ForeignKeyConstraint(
            ["version"], ["guard_policies.version"], name=op.f("fk_guard_activations_version_guard_policies")
        ),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_guard_activations")),
    )
    op.create_table(
        "guard_stops",
        sa.Column("seq", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("stopped", sa.Boolean(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("by", sa.String(length=36), nullable=False),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["by"], ["users.id"], name=op.f("fk_guard_stops_by_users")),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_guard_stops")),
    )
    op.create_table(
        "guard_replays",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("job_id", sa.String(length=36), nullable=False),
        sa.Column("version", sa.String(length=32), nullable=False),
        sa.Column("answers", sa.Integer(), nullable=False),
        sa.Column("counts", sa.JSON(), nullable=True),
        sa.Column("changes", sa.JSON(), nullable=True),
        sa.Column("created_by", sa.String(length=36), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["created_by"], ["users.id"], name=op.f("fk_guard_replays_created_by_users")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_guard_replays_job_id_jobs")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_guard_replays")),
        sa.UniqueConstraint("job_id", name=op.f("uq_guard_replays_job_id")),
    )


def downgrade() -> None:
    for table in ("guard_replays", "guard_stops", "guard_activations", "guard_policies"):
        op.drop_table(table)
    with op.batch_alter_table("verdicts", schema=None) as batch_op:
        batch_op.drop_column("sentence_seq")
        batch_op.drop_column("shadow")
    _allow_kinds(KINDS[:-1])
