"""Sessions that ended early and sign-in links that were used, for all consoles."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision: str | None = "0006"


def upgrade() -> None:
    """Adds the table."""
    op.create_table(
        "ended_sessions",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
    )


def downgrade() -> None:
    """Drops the table: copies of the cookies of sessions that ended early are valid again until they expire."""
    op.drop_table("ended_sessions")
