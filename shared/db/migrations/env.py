"""Runs the one chain of migrations on the connection that shared/db/migrate.py hands in."""

from alembic import context

from shared.db.tables import metadata

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=metadata,
    render_as_batch=True,
    compare_type=True,
    user_module_prefix="",
)
with context.begin_transaction():
    context.run_migrations()
