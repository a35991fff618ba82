"""The history topic's records: what happened to events, many entries in one record. A published contract.

`docs/history.md` explains it to readers of the topic, `config/schema/history.json` is its JSON Schema. Fields may
be added in the same version, so readers ignore fields that they don't know. Nothing here holds a payload or an address.
"""

from collections.abc import Iterable
from enum import StrEnum
from typing import Final, NamedTuple
from zlib import crc32

import msgspec

from dispatcher.errors import UnreadableEvent

VERSION: Final = 1
BUCKETS: Final = 256
MAX_ID: Final = 256
"""Characters of an id that an entry carries; a longer one is cut."""
MAX_DETAIL: Final = 256
MAX_ANSWER: Final = 2048
"""Characters of the beginning of an answer."""


class HistoryOutcome(StrEnum):
    """The outcome that a history entry reports."""

    ATTEMPT = "attempt"
    """A POST that didn't deliver the event."""
    DELIVERED = "delivered"
    """A POST that delivered it."""
    SKIPPED = "skipped"
    PARKED = "parked"
    """Waits for another try."""
    HELD = "held"
    """Waits for a change of the webhook's configuration or state."""
    DEAD = "dead"
    REDRIVEN = "redriven"
    """Sent back from the dead letters."""


FINAL: Final = frozenset({HistoryOutcome.DELIVERED, HistoryOutcome.SKIPPED, HistoryOutcome.DEAD})
"""Outcomes after which nothing more happens by itself."""


class KeptAs(StrEnum):
    """The retention class of an entry: a key of `history.keep`."""

    FAILED = "failed"
    DELIVERED = "delivered"
    SKIPPED = "skipped"


_KEPT_AS: Final = dict.fromkeys(HistoryOutcome, KeptAs.FAILED) | {
    HistoryOutcome.DELIVERED: KeptAs.DELIVERED,
    HistoryOutcome.SKIPPED: KeptAs.SKIPPED,
}


class HistoryEntry(msgspec.Struct, rename="camel", omit_defaults=True, gc=False):
    """One thing that happened to an event. Absent fields are unknown or don't apply."""

    at: int
    """When it happened: Unix time, milliseconds."""
    outcome: HistoryOutcome
    org: str | None = None
    """Organisation; absent if the record could not be read."""
    sandbox: str | None = None
    reason: str = ""
    """Of an attempt `http_2xx`, `http_5xx`, `timeout`, …; of the others a skip, park or dead-letter reason."""
    webhook_id: str | None = None
    """The `webhook-id` header: the same for every attempt, repeat and redrive of the event."""
    event_id: str | None = None
    """XDM `_id`."""
    request_id: str | None = None
    message_execution_id: str | None = None
    campaign_id: str | None = None
    topic: str | None = None
    """Place of the event in Kafka, with partition and offset: where it first was."""
    partition: int | None = None
    offset: int | None = None
    channel: str | None = None
    message_status: str | None = None
    """`feedbackStatus`."""
    recipient: str | None = None
    """32 hexadecimal digits, BLAKE2b of the recipient's address, keyed by `history.recipient_key` (docs/history.md)."""
    attempt: int | None = None
    """Number of the POST, from 1; of the other outcomes, POSTs made so far."""
    duration_ms: float | None = None
    status: int | None = None
    """HTTP status of the answer."""
    verdict: str | None = None
    """Verdict on an attempt: `delivered`, `retry_soon`, `retry_later`, `disable_endpoint`, `dead`."""
    detail: str = ""
    """For people; without payload, token or full URL."""
    headers: dict[str, str] | None = None
    """Selected headers of the answer, names in lower case."""
    answer: str = ""
    """The answer's beginning, masked, if `history.answers` is on and the attempt failed."""
    reused: bool = False
    """The request went out on a kept-alive connection."""
    due_at: int | None = None
    """When a parked event is due, or a held one is too old and dies: Unix time, milliseconds."""
    count: int = 1
    """Events that the entry stands for: those of tenants without a webhook are counted per minute, not listed."""
    has_earlier: bool = False
    """Of `delivered` and `skipped`: the event failed, waited or was sent again before. Keep the entry as long as those,
    or the event looks unfinished once it is gone."""


class HistoryRecord(msgspec.Struct):
    """The value of one record. `writer`, and `first` plus its index, identify an entry, even a repeated one."""

    version: int
    writer: int
    """Chosen at random by each process that writes."""
    first: int
    """Number of the first entry; the others follow without gaps."""
    entries: list[HistoryEntry]


class _UncheckedRecord(msgspec.Struct):
    """A record whose entries are not decoded yet."""

    version: int
    writer: int
    first: int
    entries: list[msgspec.Raw]


class DecodedRecord(NamedTuple):
    """The readable entries of a record."""

    runs: list[HistoryRecord]
    """The record, without the entries that can't be read: a part for each stretch between them, numbered as before."""
    unreadable: int = 0
    """Entries that can't be read, such as those with an outcome of a later version."""
    problem: str = ""
    """Why the first of them can't be read."""


class EventIds(msgspec.Struct, gc=False):
    """Ids of one event, which each of its entries repeats."""

    event_id: str | None = None
    request_id: str | None = None
    message_execution_id: str | None = None
    campaign_id: str | None = None
    recipient: str | None = None
    """Hashed."""


def kept_as(entry: HistoryEntry) -> KeptAs:
    """Returns the entry's retention class. An event's end is kept as long as the failures and waits before it."""
    return KeptAs.FAILED if entry.has_earlier else _KEPT_AS[entry.outcome]


def classes_of(outcomes: Iterable[HistoryOutcome]) -> frozenset[KeptAs]:
    """Returns the retention classes that may hold entries with these outcomes."""
    return frozenset({KeptAs.FAILED, *(_KEPT_AS[outcome] for outcome in outcomes)})


encode_entry: Final = msgspec.json.Encoder().encode
"""Returns an entry as `EncodedEntries` and a record hold it."""
_decoder = msgspec.json.Decoder(HistoryRecord)
_unchecked_decoder = msgspec.json.Decoder(_UncheckedRecord)
_entry_decoder = msgspec.json.Decoder(HistoryEntry)
_ERRORS: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def bucket_of(org: str | None, sandbox: str | None) -> int:
    """Returns the tenant's bucket: CRC-32 of `org/sandbox` modulo 256. Its decimal text is the record's key."""
    return crc32(f"{org or ''}/{sandbox or ''}".encode(errors="replace")) % BUCKETS


def decode_record(value: bytes | None) -> DecodedRecord:
    """Returns the entries in a record's value. An entry that can't be read costs none of the others.

    Raises:
        UnreadableEvent: the value isn't a history record, or is one of a newer version.
    """
    try:
        record = _decoder.decode(value or b"")
    except _ERRORS:
        return _decode_one_by_one(value or b"")
    _check_version(record.version)
    return DecodedRecord([record])


def _decode_one_by_one(value: bytes) -> DecodedRecord:
    try:
        record = _unchecked_decoder.decode(value)
    except _ERRORS as error:
        raise UnreadableEvent(f"no history record: {str(error)[:200]}") from None
    _check_version(record.version)
    runs = [HistoryRecord(record.version, record.writer, record.first, [])]
    problems = []
    for number, raw in enumerate(record.entries, record.first):
        try:
            runs[-1].entries.append(_entry_decoder.decode(raw))
        except _ERRORS as error:
            problems.append(f"entry {number}: {str(error)[:200]}")
            runs.append(HistoryRecord(record.version, record.writer, number + 1, []))
    return DecodedRecord([run for run in runs if run.entries], len(problems), next(iter(problems), ""))


def _check_version(version: int) -> None:
    if version != VERSION:
        raise UnreadableEvent(f"history record of version {version}: this program reads version {VERSION}")
