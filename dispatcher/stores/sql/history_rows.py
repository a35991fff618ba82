"""History entries as rows of the store, and back. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
import orjson
from sqlalchemy import RowMapping

from dispatcher.contract.history import MAX_ID, HistoryEntry, HistoryOutcome, HistoryRecord, kept_as
from dispatcher.stores.sql.history_schema import KEPT, entries

COLUMNS: Final = tuple(column.name for column in entries.columns)
Row = tuple[Any, ...]
"""Values in the order of COLUMNS."""

_MORE: Final = ("detail", "headers", "answer", "verdict", "reused", "has_earlier")
_FROM_ROW: Final = tuple(name for name in HistoryEntry.__struct_fields__ if name not in _MORE)
_INT4, _INT8 = 2**31, 2**63
_MAX_BYTES: Final = 512
"""Bytes of a stored text. Four of them fit into one row of an index of PostgreSQL, 2704 bytes."""


def rows_of(record: HistoryRecord) -> tuple[list[Row], int]:
    """Returns the rows of a record's entries, and the number of entries that no database could hold."""
    rows: list[Row] = []
    for index, entry in enumerate(record.entries):
        if _fits(record, index, entry):
            rows.append(_row(record.writer, record.first + index, entry))
    return rows, len(record.entries) - len(rows)


def entry_of(row: RowMapping | Mapping[str, Any]) -> HistoryEntry:
    """Returns the entry in a row of the store."""
    more = orjson.loads(row["more"]) if row["more"] else {}
    values = {name: row[name] for name in _FROM_ROW} | more
    values["outcome"] = HistoryOutcome(values["outcome"])
    values["org"], values["sandbox"] = values["org"] or None, values["sandbox"] or None
    return HistoryEntry(**values)


def clean(text: str) -> str:
    """Returns the text in the form that is stored: without NUL, and cut like ids. Searches use the same form."""
    cut = text[:MAX_ID].replace("\0", "\ufffd")
    return cut if cut.isascii() else cut.encode(errors="replace")[:_MAX_BYTES].decode(errors="ignore")


def _row(writer: int, number: int, entry: HistoryEntry) -> Row:
    more = {name: value for name in _MORE if (value := getattr(entry, name))}
    return (
        KEPT[kept_as(entry)],
        entry.at,
        writer,
        number,
        clean(entry.org or ""),
        clean(entry.sandbox or ""),
        entry.outcome.value,
        clean(entry.reason),
        _clean_or_none(entry.webhook_id),
        _clean_or_none(entry.event_id),
        _clean_or_none(entry.request_id),
        _clean_or_none(entry.message_execution_id),
        _clean_or_none(entry.campaign_id),
        _clean_or_none(entry.topic),
        entry.partition,
        entry.offset,
        _clean_or_none(entry.channel),
        _clean_or_none(entry.message_status),
        _clean_or_none(entry.recipient),
        entry.attempt,
        entry.duration_ms,
        entry.status,
        entry.due_at,
        entry.count,
        msgspec.json.encode(more).decode() if more else None,
    )


def _fits(record: HistoryRecord, index: int, entry: HistoryEntry) -> bool:
    ids = (entry.at, record.writer, record.first + index, entry.offset or 0, entry.due_at or 0)
    small = (entry.partition or 0, entry.attempt or 0, entry.status or 0)
    fits = all(0 <= one < _INT8 for one in ids) and all(-_INT4 <= one < _INT4 for one in small)
    return fits and 0 <= entry.count < _INT4  # counts are summed


def _clean_or_none(text: str | None) -> str | None:
    return None if text is None else clean(text)


def slot_counts(rows: Sequence[Row], slot_ms: int) -> list[Row]:
    """Counts the events of rows by organisation, sandbox, slot of time, outcome, reason and channel, in this order."""
    found: dict[tuple[Any, ...], int] = {}
    for row in rows:
        key = (row[4], row[5], row[1] // slot_ms * slot_ms, row[6], row[7], row[16] or "")
        found[key] = found.get(key, 0) + row[23]
    return [(*key, events) for key, events in sorted(found.items())]
