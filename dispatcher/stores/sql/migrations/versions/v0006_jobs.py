"""Jobs that send events again, for all consoles."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision: str | None = "0005"


def upgrade() -> None:
    """Adds the table."""
    time = sa.DateTime(timezone=True)
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("org", sa.Text, nullable=False),
        sa.Column("sandbox", sa.Text, nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("started_by", sa.Text, nullable=False),
        sa.Column("started_at", time, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("stopping", sa.Boolean, nullable=False),
        sa.Column("alive_at", time, nullable=False),
        sa.Column("finished_at", time, nullable=True),
        sa.Column("progress", sa.JSON, nullable=False),
        sa.Column("selection", sa.JSON, nullable=True),
    )
    op.create_index("jobs_of_tenant", "jobs", ["org", "sandbox", "started_at"])
    op.create_index(
        "jobs_one_unfinished",
        "jobs",
        ["org", "sandbox", "kind"],
        unique=True,
        sqlite_where=sa.text("finished_at IS NULL"),
        postgresql_where=sa.text("finished_at IS NULL"),
    )


def downgrade() -> None:
    """Drops the table: the list of jobs is gone. Those that run stop by themselves."""
    op.drop_table("jobs")
