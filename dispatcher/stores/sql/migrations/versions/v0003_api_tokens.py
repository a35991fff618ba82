"""Tokens for the admin API, hashed."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision: str | None = "0002"


def upgrade() -> None:
    """Adds the table."""
    time = sa.DateTime(timezone=True)
    op.create_table(
        "api_tokens",
        sa.Column("id", sa.String(16), primary_key=True),
        sa.Column("hash", sa.String(64), nullable=False, unique=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("orgs", sa.JSON, nullable=True),
        sa.Column("created_at", time, nullable=False),
        sa.Column("created_by", sa.Text, nullable=False),
        sa.Column("expires_at", time, nullable=True),
        sa.Column("revoked_at", time, nullable=True),
        sa.Column("last_used_at", time, nullable=True),
    )


def downgrade() -> None:
    """Drops the table: every token is gone."""
    op.drop_table("api_tokens")
