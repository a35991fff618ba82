"""Dates of secrets: when each was added, and when those of a deleted webhook were erased."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision: str | None = "0004"


def upgrade() -> None:
    """Adds the columns. Earlier versions erased the secrets of a webhook when they deleted it."""
    time = sa.DateTime(timezone=True)
    op.add_column("webhook_secrets", sa.Column("added_at", time, nullable=True))
    op.add_column("webhooks", sa.Column("erased_at", time, nullable=True))
    op.execute("UPDATE webhooks SET erased_at = deleted_at WHERE deleted_at IS NOT NULL")


def downgrade() -> None:
    """Erases the secrets of deleted webhooks: earlier versions can't restore them and would keep them forever."""
    connection = op.get_bind()
    webhooks = sa.table("webhooks", sa.column("id"), sa.column("config", sa.JSON), sa.column("erased_at"),
                        sa.column("deleted_at"))  # fmt: skip
    kept = sa.select(webhooks.c.id, webhooks.c.config).where(
        webhooks.c.deleted_at.is_not(None), webhooks.c.erased_at.is_(None)
    )
    secrets = sa.table("webhook_secrets", sa.column("webhook_id"))
    for row in connection.execute(kept).mappings().all():
        config = {**row["config"], "headers": {}}
        connection.execute(sa.update(webhooks).where(webhooks.c.id == row["id"]).values(config=config))
        connection.execute(sa.delete(secrets).where(secrets.c.webhook_id == row["id"]))
    op.drop_column("webhooks", "erased_at")
    op.drop_column("webhook_secrets", "added_at")
