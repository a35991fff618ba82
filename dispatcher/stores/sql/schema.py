"""The tables that this version of the program uses; `migrations` creates them.

Times are UTC. SQLite accepts any value in any column, so that a row that was edited by hand may hold an odd one. A time
that can't be read becomes `NO_TIME`, and other JSON than expected an empty object or list: a query reads the others.

`change_counter` has one row: every change of a webhook increases it first and so holds its lock until
the commit. Changes are therefore serialised, and a reader that has seen a value of the counter has seen all changes up
to it.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    text,
)

NOTIFY_CHANNEL: Final = "dispatcher_webhooks"
"""PostgreSQL channel for the notice of each change; the payload is the counter's value."""


NO_TIME: Final = datetime.fromtimestamp(0, UTC)
"""The time of a column that holds something else. It is long past: a token that ends then has ended."""


class UtcTime(TypeDecorator[datetime]):
    """An aware datetime in UTC, even if the database doesn't store the zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any]:
        """Returns the conversion of values from the database."""
        convert = super().result_processor(dialect, coltype)

        def read(value: object) -> object:
            try:
                return value if convert is None else convert(value)
            except (TypeError, ValueError, OverflowError):
                return NO_TIME

        return read

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Converts a value for the database: to UTC, so that texts sort as times."""
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Converts a value from the database."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Json(TypeDecorator[Any]):
    """JSON that is an object or a list."""

    impl = JSON
    cache_ok = True

    def __init__(self, kind: type[dict[Any, Any]] | type[list[Any]] = dict, *, none_as_null: bool = False) -> None:
        super().__init__(none_as_null=none_as_null)
        self.kind = kind
        self.may_be_none = none_as_null

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any]:
        """Returns the conversion of values from the database."""
        convert = super().result_processor(dialect, coltype)

        def read(value: object) -> object:
            if value is None and self.may_be_none:
                return None
            try:
                found = value if convert is None else convert(value)
            except (TypeError, ValueError):
                return self.kind()
            return found if isinstance(found, self.kind) else self.kind()

        return read


# SQLite generates ids only in a column of type INTEGER.
_COUNTING = BigInteger().with_variant(Integer(), "sqlite")

metadata = MetaData()

webhooks = Table(
    "webhooks",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("org", Text, nullable=False),
    Column("sandbox", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("url", Text, nullable=False),
    Column("channels", Text, nullable=False),  # " email sms ", for the inventory's filter
    Column("enabled", Boolean, nullable=False),
    Column("search", Text, nullable=False),  # name, org, sandbox and host, case-folded
    Column("config", Json, nullable=False),  # the whole configuration, with fingerprints instead of secrets
    Column("version", Integer, nullable=False),
    Column("changed", BigInteger, nullable=False),  # the change counter at the last change
    Column("created_at", UtcTime, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("updated_at", UtcTime, nullable=False),
    Column("updated_by", Text, nullable=False),
    Column("deleted_at", UtcTime, nullable=True),
    Column("erased_at", UtcTime, nullable=True),  # when the secrets of a deleted webhook were erased
    Index("webhooks_changed", "changed"),
)
Index(
    "webhooks_one_per_tenant",
    webhooks.c.org,
    webhooks.c.sandbox,
    unique=True,
    sqlite_where=text("deleted_at IS NULL"),
    postgresql_where=text("deleted_at IS NULL"),
)

secrets = Table(
    "webhook_secrets",
    metadata,
    Column("webhook_id", String(36), ForeignKey("webhooks.id", ondelete="CASCADE"), primary_key=True),
    Column("path", Text, primary_key=True),  # auth.sign.key, signing.secrets.0
    Column("ciphertext", Text, nullable=False),
    Column("fingerprint", String(12), nullable=False),
    Column("added_at", UtcTime, nullable=True),  # null: by a version before 0005
)

change_counter = Table(
    "change_counter",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),  # always 1
    Column("value", BigInteger, nullable=False),
)

audit = Table(
    "audit",
    metadata,
    Column("id", _COUNTING, primary_key=True, autoincrement=True),
    Column("at", UtcTime, nullable=False),
    Column("actor", Text, nullable=False),
    Column("action", String(32), nullable=False),
    Column("org", Text, nullable=True),
    Column("sandbox", Text, nullable=True),
    Column("webhook_id", String(36), nullable=True),
    Column("changes", Json, nullable=False),
    Index("audit_by_org", "org", "id"),
    Index("audit_by_webhook", "webhook_id", "id"),
)

api_tokens = Table(
    "api_tokens",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("hash", String(64), nullable=False, unique=True),  # SHA-256, hexadecimal
    Column("name", Text, nullable=False),
    Column("role", String(16), nullable=False),
    Column("orgs", Json(list, none_as_null=True), nullable=True),  # null: every organisation
    Column("created_at", UtcTime, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("expires_at", UtcTime, nullable=True),
    Column("revoked_at", UtcTime, nullable=True),
    Column("last_used_at", UtcTime, nullable=True),
)

ended_sessions = Table(
    "ended_sessions",
    metadata,
    Column("id", String(64), primary_key=True),  # of a session, or of a sign-in link
    Column("expires_at", UtcTime, nullable=False),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("org", Text, nullable=False),
    Column("sandbox", Text, nullable=False),
    Column("kind", String(16), nullable=False),  # dead or delivered: the events that it sends again
    Column("started_by", Text, nullable=False),
    Column("started_at", UtcTime, nullable=False),
    Column("state", String(16), nullable=False),
    Column("stopping", Boolean, nullable=False),  # a person has stopped it: read by the console that runs it
    Column("alive_at", UtcTime, nullable=False),  # when that console has written last
    Column("finished_at", UtcTime, nullable=True),
    Column("progress", Json, nullable=False),
    Column(
        "selection", Json(none_as_null=True), nullable=True
    ),  # of delivered events: to send the rest after a failure
    Index("jobs_of_tenant", "org", "sandbox", "started_at"),
)
Index(
    "jobs_one_unfinished",
    jobs.c.org,
    jobs.c.sandbox,
    jobs.c.kind,
    unique=True,
    sqlite_where=text("finished_at IS NULL"),
    postgresql_where=text("finished_at IS NULL"),
)
