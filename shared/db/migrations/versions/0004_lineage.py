"""A run names the manifest of the dataset that it was trained on."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("training_runs", schema=None) as batch_op:
        batch_op.add_column(sa.Column("manifest_sha256", sa.String(length=64), nullable=True))
    # where the last check ended before the run was submitted, the dataset is still what the run trained on
    op.execute(
        "UPDATE training_runs SET manifest_sha256 = (SELECT datasets.manifest_sha256 FROM datasets "
        "WHERE datasets.id = training_runs.dataset_id "
        "AND datasets.validated_at <= training_runs.created_at)"
    )


def downgrade() -> None:
    with op.batch_alter_table("training_runs", schema=None) as batch_op:
        batch_op.drop_column("manifest_sha256")
