"""Removes header parameters that the keys can't protect: in the audit history and in deleted webhooks.

Those of webhooks in use are encrypted by `dispatcher webhooks migrate` itself, which knows the keys.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision: str | None = "0003"

_MASK = "<secret>"
_SQLITE = """
CREATE TRIGGER audit_no_{event} BEFORE {event} ON audit
BEGIN SELECT RAISE(ABORT, 'audit is append-only'); END
"""


def upgrade() -> None:
    """Masks the values of header parameters in the history, and drops those of deleted webhooks."""
    is_sqlite = op.get_context().dialect.name == "sqlite"
    op.execute("DROP TRIGGER audit_no_UPDATE" if is_sqlite else "ALTER TABLE audit DISABLE TRIGGER audit_append_only")
    connection = op.get_bind()
    audit = sa.table("audit", sa.column("id"), sa.column("changes", sa.JSON))
    for row in connection.execute(sa.select(audit)).mappings().all():
        masked = {path: _masked(path, change) for path, change in dict(row["changes"]).items()}
        if masked != row["changes"]:
            connection.execute(sa.update(audit).where(audit.c.id == row["id"]).values(changes=masked))
    op.execute(_SQLITE.format(event="UPDATE") if is_sqlite else "ALTER TABLE audit ENABLE TRIGGER audit_append_only")
    webhooks = sa.table("webhooks", sa.column("id"), sa.column("config", sa.JSON), sa.column("deleted_at"))
    deleted = sa.select(webhooks.c.id, webhooks.c.config).where(webhooks.c.deleted_at.is_not(None))
    for row in connection.execute(deleted).mappings().all():
        config = {**row["config"], "headers": {}}
        connection.execute(sa.update(webhooks).where(webhooks.c.id == row["id"]).values(config=config))


def downgrade() -> None:
    """Does nothing: what was masked is gone, and earlier versions can't read what is encrypted."""


def _masked(path: str, change: object) -> object:
    if not path.startswith("headers.") or not isinstance(change, dict):
        return change
    return {
        side: value if value is None or str(value).startswith("<secret ") else _MASK for side, value in change.items()
    }
