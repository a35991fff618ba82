"""The tables of the history store. The store creates them itself: history can be read from the topic again.

What `contacts` and `unnamed` have is nowhere else: in a new store, contacts have to confirm again, and those who opted
out receive another request to confirm. `reported` and `messages` are lost, too: trouble that lasts is reported again.

SQLite has plain tables. On PostgreSQL `history_entries` is partitioned by retention class, and each class by day, so
that old entries are dropped with their partition. Times are Unix milliseconds.
"""

from typing import Final

from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    text,
)

from dispatcher.contract.history import KeptAs

SCHEMA_VERSION: Final = 1
DAY_MS: Final = 86_400_000
SLOT_MS: Final = 900_000
"""Counts are kept per quarter of an hour."""
KEPT: Final = {KeptAs.FAILED: 0, KeptAs.DELIVERED: 1, KeptAs.SKIPPED: 2}

NO_WEBHOOK: Final = "outcome = 'skipped' AND reason = 'no_webhook'"
"""Condition of the counts of tenants without a webhook, literally as their index has it."""

metadata = MetaData()

entries = Table(
    "history_entries",
    metadata,
    Column("kept", SmallInteger, nullable=False),  # the retention class, see KEPT
    Column("at", BigInteger, nullable=False),
    Column("writer", BigInteger, nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("org", Text, nullable=False),  # empty if unknown
    Column("sandbox", Text, nullable=False),
    Column("outcome", String(16), nullable=False),
    Column("reason", Text, nullable=False),
    Column("webhook_id", Text),
    Column("event_id", Text),
    Column("request_id", Text),
    Column("message_execution_id", Text),
    Column("campaign_id", Text),
    Column("topic", Text),
    Column("partition", Integer),
    Column("offset", BigInteger),
    Column("channel", Text),
    Column("message_status", Text),
    Column("recipient", Text),
    Column("attempt", Integer),
    Column("duration_ms", Float),
    Column("status", Integer),
    Column("due_at", BigInteger),
    Column("count", BigInteger, nullable=False),
    Column("more", Text),  # JSON: what is shown and not searched for
)

counts = Table(
    "history_counts",
    metadata,
    Column("org", Text, primary_key=True),
    Column("sandbox", Text, primary_key=True),
    Column("slot", BigInteger, primary_key=True),
    Column("outcome", String(16), primary_key=True),
    Column("reason", Text, primary_key=True),
    Column("channel", Text, primary_key=True),
    Column("events", BigInteger, nullable=False),
    Index("history_counts_slot", "slot"),
)

tenants = Table(
    "history_tenants",
    metadata,
    Column("org", Text, primary_key=True),
    Column("sandbox", Text, primary_key=True),
    Column("evidence", LargeBinary, nullable=False),  # contract.fleet_state.StateEvidence
    Column("state", String(16), nullable=False),
    Column("since", BigInteger, nullable=False),
    Column("revision", Text, nullable=False),  # of the webhook as last seen; empty before the first time
    Column("changed_at", BigInteger, nullable=False),  # when this revision replaced another; 0: never
    Column("is_paused", SmallInteger, nullable=False),
    Column("touched", BigInteger, nullable=False),  # when evidence was last added
)

workers = Table(
    "history_workers",
    metadata,
    Column("worker", BigInteger, primary_key=True),  # chosen at random by each process
    Column("at", BigInteger, nullable=False),  # its last sign of life
    Column("lag", BigInteger, nullable=False),  # records that it has not stored yet
    Column("current_at", BigInteger, nullable=False),  # when the store last had all that it had to store; 0: never
)

contacts = Table(
    "history_contacts",
    metadata,
    Column("org", Text, primary_key=True),
    Column("sandbox", Text, primary_key=True),
    Column("contact", String(32), primary_key=True),  # keyed hash of the address
    Column("status", String(16), nullable=False),  # asked, confirmed, stopped
    Column("asks", Integer, nullable=False),
    Column("asked_at", BigInteger, nullable=False),
    Column("changed_at", BigInteger, nullable=False),
)

unnamed = Table(
    "history_unnamed",  # a table, and no column of contacts: older versions that run beside this one insert contacts
    metadata,
    Column("org", Text, primary_key=True),
    Column("sandbox", Text, primary_key=True),
    Column("contact", String(32), primary_key=True),
    Column("unnamed_at", BigInteger, nullable=False),  # since when no webhook names the contact
)

reported = Table(
    "history_reported",
    metadata,
    Column("org", Text, primary_key=True),  # empty, with the sandbox, for the operator
    Column("sandbox", Text, primary_key=True),
    Column("memory", LargeBinary, nullable=False),  # notifications.memory.Memory
)

messages = Table(
    "history_messages",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("created_at", BigInteger, nullable=False),
    Column("org", Text, nullable=False),  # empty, with the sandbox, if it concerns more than one webhook
    Column("sandbox", Text, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("kinds", Text, nullable=False),  # of the news in it, between spaces
    Column("channel", String(16), nullable=False),  # email or webhook
    Column("recipient", Text, nullable=False),  # masked once it was sent or given up
    Column("content", Text, nullable=False),  # JSON; empty once it was sent or given up
    Column("title", Text, nullable=False),
    Column("status", String(16), nullable=False),  # waiting, sending, sent, failed, unknown
    Column("next_at", BigInteger, nullable=False),  # of a message that is being sent: when its sender counts as gone
    Column("tries", Integer, nullable=False),
    Column("is_repeat", SmallInteger, nullable=False),
    Column("problem", Text, nullable=False),
    Column("changed_at", BigInteger, nullable=False),
    Index("history_messages_status", "status", "next_at"),
    Index("history_messages_tenant", "org", "sandbox", "created_at"),
)

erased = Table(
    "history_erased",
    metadata,
    Column("recipient", Text, primary_key=True),
    Column("before", BigInteger, nullable=False),  # entries of an earlier time are not taken from the topic again
)

positions = Table(
    "history_positions",
    metadata,
    Column("topic", Text, primary_key=True),
    Column("partition", Integer, primary_key=True),
    Column("next", BigInteger, nullable=False),  # offset of the first record that is not stored
)

version = Table("history_version", metadata, Column("version", Integer, nullable=False))

KEY: Final = ("kept", "at", "writer", "number")
"""Identifies an entry. `at` is part of it because PostgreSQL wants the partition's column in a unique index."""

IDS: Final = ("webhook_id", "event_id", "request_id", "message_execution_id", "campaign_id", "recipient")
"""Columns that are searched for by value, each with an index of its own."""


ADDED_INDEXES: Final = {"status": "message_status", "channel": "channel"}
"""Indexes that stores of older versions lack, by their column."""


def index_statements() -> list[str]:
    """Returns the indexes of `history_entries`; PostgreSQL creates them in each partition."""
    key = ", ".join(f'"{name}"' for name in KEY)
    statements = [f"CREATE UNIQUE INDEX IF NOT EXISTS history_entries_key ON history_entries ({key})"]
    statements += [
        f"CREATE INDEX IF NOT EXISTS history_entries_{name} ON history_entries "
        f'("{name}", "at") WHERE "{name}" IS NOT NULL'
        for name in IDS
    ]
    statements += [
        f'CREATE INDEX IF NOT EXISTS history_entries_{name} ON history_entries ("org", "sandbox", {columns}"at")'
        for name, columns in (("tenant", ""), ("outcome", '"outcome", '), ("reason", '"reason", '))
    ]
    return statements


def added_index_statements(*, is_postgresql: bool) -> list[str]:
    """Returns the statements that create the indexes which a store of an older version lacks.

    PostgreSQL creates those of entries in new partitions only: to index the old ones would stop all writing for long.
    """
    counts_index = f"history_counts_no_webhook ON history_counts (org, sandbox, slot, events) WHERE {NO_WEBHOOK}"
    tables = [class_name(kept) for kept in KEPT.values()] if is_postgresql else ["history_entries"]
    only = "ONLY " if is_postgresql else ""
    return [f"CREATE INDEX IF NOT EXISTS {counts_index}"] + [
        f'CREATE INDEX IF NOT EXISTS {table}_{name} ON {only}{table} ("org", "sandbox", "{column}", "at")'
        for table in tables
        for name, column in ADDED_INDEXES.items()
    ]


def partition_name(kept: int, day: int) -> str:
    """Returns the partition of a class and a day, counted from 1970."""
    return f"history_entries_{kept}_{day}"


def class_name(kept: int) -> str:
    """Returns the table of a retention class."""
    return f"history_entries_{kept}"


def column_definitions() -> str:
    """Returns the columns of `history_entries` as PostgreSQL spells them."""
    from sqlalchemy.dialects import postgresql

    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    return ", ".join(
        f'"{column.name}" {column.type.compile(dialect)}{"" if column.nullable else " NOT NULL"}'
        for column in entries.columns
    )


def postgresql_statements() -> list[str]:
    """Returns the statements that create the partitioned table, its classes and indexes, if they are missing."""
    statements = [
        f"CREATE TABLE IF NOT EXISTS history_entries ({column_definitions()}) PARTITION BY LIST (kept)",
    ]
    statements += [
        f"CREATE TABLE IF NOT EXISTS {class_name(kept)} PARTITION OF history_entries "
        f'FOR VALUES IN ({kept}) PARTITION BY RANGE ("at")'
        for kept in KEPT.values()
    ]
    return statements + index_statements()


def day_statements(kept: int, day: int) -> tuple[str, str]:
    """Returns the statements that create a day's table and make it a partition, with the indexes of its class."""
    name, parent = partition_name(kept, day), class_name(kept)
    bounds = f"FOR VALUES FROM ({day * DAY_MS}) TO ({(day + 1) * DAY_MS})"
    return f"CREATE TABLE {name} (LIKE {parent})", f"ALTER TABLE {parent} ATTACH PARTITION {name} {bounds}"


JUDGE_LOCK: Final = text("SELECT pg_try_advisory_xact_lock(1751741557)")
"""Held by the worker that judges the states; the others wait."""

PLAN_LOCK: Final = text("SELECT pg_try_advisory_xact_lock(1751741558)")
"""Held by the worker that decides what is reported; the others wait."""

ADD_LOCK: Final = text("SELECT pg_advisory_xact_lock(1751741560)")
"""Taken before messages that persons asked for are counted, so that two at once don't both find room for one."""

WRITE_LOCK: Final = text("SELECT pg_advisory_xact_lock_shared(1751741559)")
"""Taken before a write looks up which persons are erased."""

ERASE_LOCK: Final = text("SELECT pg_advisory_xact_lock(1751741559)")
"""Taken before a person is noted as erased: waits for the writes that are under way, and later ones see the erasure."""

LOCK: Final = text("SELECT pg_advisory_xact_lock(1751741556)")
"""Taken before tables are made or dropped: several workers may start together."""
