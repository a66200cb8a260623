"""A policy that comes with the program is stored like any other, and nobody wrote it."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("guard_policies", schema=None) as batch_op:
        batch_op.alter_column("created_by", existing_type=sa.String(length=36), nullable=True)


def downgrade() -> None:
    # the column stays as it is: rows without an author may be there, nothing may delete them, and the code
    # before reads them as it reads any
    pass
