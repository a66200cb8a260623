"""A job's answer is one message, and the database keeps it so."""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # of an answer that was stored twice the last stays: it is the one shown where others were hidden for it
    op.execute(
        "UPDATE messages SET job_id = NULL, hidden_at = coalesce(hidden_at, created_at) "
        "WHERE EXISTS (SELECT 1 FROM messages AS later "
        "WHERE later.job_id = messages.job_id AND later.seq > messages.seq)"
    )
    with op.batch_alter_table("messages", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_messages_job_id"))
        batch_op.create_index(batch_op.f("ix_messages_job_id"), ["job_id"], unique=True)


def downgrade() -> None:
    with op.batch_alter_table("messages", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_messages_job_id"))
        batch_op.create_index(batch_op.f("ix_messages_job_id"), ["job_id"], unique=False)
