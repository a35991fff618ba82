"""The audit history. The database itself refuses to change or delete what is in it."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision: str | None = "0001"

_SQLITE = """
CREATE TRIGGER audit_no_{event} BEFORE {event} ON audit
BEGIN SELECT RAISE(ABORT, 'audit is append-only'); END
"""
_POSTGRESQL_FUNCTION = """
CREATE FUNCTION audit_is_append_only() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION 'audit is append-only'; END $$
"""
_POSTGRESQL_TRIGGER = """
CREATE TRIGGER audit_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit
FOR EACH STATEMENT EXECUTE FUNCTION audit_is_append_only()
"""


def upgrade() -> None:
    """Adds the table and its guards."""
    op.create_table(
        "audit",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True, autoincrement=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("action", sa.String(32), nullable=False),
        sa.Column("org", sa.Text, nullable=True),
        sa.Column("sandbox", sa.Text, nullable=True),
        sa.Column("webhook_id", sa.String(36), nullable=True),
        sa.Column("changes", sa.JSON, nullable=False),
    )
    op.create_index("audit_by_org", "audit", ["org", "id"])
    op.create_index("audit_by_webhook", "audit", ["webhook_id", "id"])
    if op.get_context().dialect.name == "sqlite":
        for event in ("UPDATE", "DELETE"):
            op.execute(_SQLITE.format(event=event))
    else:
        op.execute(_POSTGRESQL_FUNCTION)
        op.execute(_POSTGRESQL_TRIGGER)


def downgrade() -> None:
    """Drops the table: the audit history is gone."""
    op.drop_table("audit")
    if op.get_context().dialect.name != "sqlite":
        op.execute("DROP FUNCTION audit_is_append_only()")
