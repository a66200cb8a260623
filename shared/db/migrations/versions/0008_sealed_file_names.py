"""The name of a dataset's file is sealed like its rows: a name may say whose letters these are.

A migration has no key. The gateway that does the maintenance seals the names that are there; until then, and
after a downgrade for those that were sealed (as the empty text), the code reads `source_name`.
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("datasets", schema=None) as batch_op:
        batch_op.add_column(sa.Column("source_name_ciphertext", sa.LargeBinary(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("datasets", schema=None) as batch_op:
        batch_op.drop_column("source_name_ciphertext")
