"""The topic of held events: those that wait for a change of configuration rather than for a time.

A held record stays in place until its tenant is released or the age limit is over; it is never rewritten. What was
delivered out of order is kept in snapshots: records of the same partition, found again by the commit's metadata. A
`Directory` is another kind of snapshot. It says at which offsets the events of a tenant lie, so that a restart reads
none of them to find out.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any, Final, Self

import orjson

from dispatcher.contract.records import PREFIX, Record, RecordHeaders, RetryState, without_retry_state
from dispatcher.contract.tenant import TenantKey
from dispatcher.kafka.producer import Producer

_ORG: Final = PREFIX + "org"
_SANDBOX: Final = PREFIX + "sandbox"
_FIRST_SEEN: Final = PREFIX + "first-seen"
_SNAPSHOT: Final = PREFIX + "held-snapshot"
MAX_SNAPSHOT_TENANTS: Final = 5_000
"""Tenants of one snapshot, about 100 bytes each; what the others had finished is repeated after a crash."""
MAX_UNFINISHED: Final = 20_000
"""Offsets of one snapshot. Of tenants with more, what finished behind an unfinished event is repeated after a crash."""
_METADATA: Final = "h1:"
_DIRECTORY_METADATA: Final = "h2:"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one tenant's held events in a partition are finished."""

    below: int
    """All of its events at lower offsets are finished."""
    end: int
    """All of its events from `below` to before `end` are finished, except the unfinished ones."""
    unfinished: tuple[int, ...] = ()
    """Offsets between `below` and `end`, rising."""

    def reaches_beyond(self, position: int) -> bool:
        """Returns whether an event at `position` or later is finished."""
        return self.end > position and (self.below > position or self.end > self.below)

    def covers(self, offset: int) -> bool:
        """Returns whether the tenant's event at an offset is finished."""
        return offset < self.below or (offset < self.end and offset not in self.unfinished)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The progress of every tenant whose finished events lie beyond the committed position."""

    tenants: Mapping[TenantKey, Progress]

    def encode(self) -> bytes:
        """Returns the snapshot as the value of a record."""
        rows, room = [], MAX_UNFINISHED
        for key, one in islice(self.tenants.items(), MAX_SNAPSHOT_TENANTS):
            room -= len(one.unfinished)
            rows.append([key.org, key.sandbox, one.below, *((one.end, one.unfinished) if room >= 0 else ())])
        return orjson.dumps(rows)

    @classmethod
    def of(cls, record: Record) -> Self | None:
        """Returns the snapshot in a record, or None if the record is something else."""
        try:
            tenants = {}
            for org, sandbox, below, *beyond in _content(record):
                # Version 0.2 listed what was finished beyond `below`, which is repeated once after an upgrade.
                end, unfinished = beyond if len(beyond) == 2 else (below, ())
                tenants[TenantKey(org, sandbox)] = Progress(int(below), int(end), tuple(unfinished))
            return cls(tenants)
        except (ValueError, TypeError):
            return None


@dataclass(frozen=True, slots=True)
class UnfinishedRange:
    """Offsets of the first and last unfinished event of one tenant in a partition."""

    first: int
    """No unfinished event of the tenant has a lower offset."""
    last: int
    first_seen: float
    """Unix seconds: no event was seen earlier."""
    events: int


@dataclass(frozen=True, slots=True)
class Directory:
    """The tenants with unfinished events below an offset, as found by reading up to it."""

    end: int
    """Events from here on are not covered."""
    tenants: Mapping[TenantKey, UnfinishedRange]

    def encode(self) -> bytes:
        """Returns the directory as the value of a record."""
        rows = [
            [key.org, key.sandbox, one.first, one.last, one.first_seen, one.events] for key, one in self.tenants.items()
        ]
        return orjson.dumps({"end": self.end, "tenants": rows})

    @classmethod
    def of(cls, record: Record) -> Self | None:
        """Returns the directory in a record, or None if the record is something else."""
        try:
            content = _content(record)
            tenants = {
                TenantKey(org, sandbox): UnfinishedRange(int(first), int(last), float(first_seen), int(events))
                for org, sandbox, first, last, first_seen, events in content["tenants"]
            }
            return cls(int(content["end"]), tenants)
        except (ValueError, TypeError, KeyError):
            return None


def _content(record: Record) -> Any:
    """Returns the decoded value of a snapshot of either kind. Raises ValueError if the record isn't one."""
    if not is_snapshot(record.headers):
        raise ValueError("no snapshot")
    return orjson.loads(record.value or b"")


def is_snapshot(headers: RecordHeaders) -> bool:
    """Returns True if a record is a snapshot rather than an event."""
    return any(name == _SNAPSHOT for name, _ in headers)


@dataclass(frozen=True, slots=True)
class SnapshotOffsets:
    """The offsets at which a commit's metadata names snapshots of its partition."""

    progress: int | None = None
    directory: int | None = None

    def encode(self) -> str:
        """Returns the metadata that names them; empty if there are none."""
        named = (
            (_DIRECTORY_METADATA, self.directory),
            (_METADATA, self.progress),
        )  # versions before read the last part
        return ",".join(f"{prefix}{offset}" for prefix, offset in named if offset is not None)

    @classmethod
    def of(cls, metadata: str) -> Self:
        """Parses the parts of a commit's metadata that `encode` wrote, and ignores the others."""
        parts = metadata.split(",")
        return cls(_offset(parts, _METADATA), _offset(parts, _DIRECTORY_METADATA))


def _offset(parts: list[str], prefix: str) -> int | None:
    text = next((one.removeprefix(prefix) for one in parts if one.startswith(prefix)), "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else None


def tenant_of(headers: RecordHeaders) -> TenantKey:
    """Returns the tenant of a held record from its headers, so that its value need not be read."""
    return _tenant_of(dict(headers))


def waiting_event(record: Record) -> tuple[TenantKey, float] | None:
    """Returns tenant and `RetryState.first_seen` of a held record, and reads no more. Returns None for a snapshot."""
    found = dict(record.headers)
    if _SNAPSHOT in found:
        return None
    try:
        first_seen = float(found.get(_FIRST_SEEN) or b"")
    except ValueError:
        first_seen = math.nan
    return _tenant_of(found), first_seen if math.isfinite(first_seen) else record.timestamp / 1000


def _tenant_of(found: Mapping[str, bytes | None]) -> TenantKey:
    return _tenant(found.get(_ORG) or b"", found.get(_SANDBOX) or b"")


@lru_cache(10_000)
def _tenant(org: bytes, sandbox: bytes) -> TenantKey:
    return TenantKey(org.decode(errors="replace"), sandbox.decode(errors="replace"))


def tenant_headers(tenant: TenantKey) -> list[tuple[str, bytes]]:
    """Returns the headers that `tenant_of` reads."""
    return [(_ORG, tenant.org.encode(errors="replace")), (_SANDBOX, tenant.sandbox.encode(errors="replace"))]


class HeldTopic:
    """Writes held events. A record keeps key, value and headers; headers for its retry state and tenant are added."""

    def __init__(self, producer: Producer, topic: str) -> None:
        self._producer = producer
        self.topic = topic

    async def hold(self, record: Record, retry_state: RetryState, tenant: TenantKey) -> None:
        """Writes the record; returns when the broker has acknowledged it.

        Raises:
            NotWritten: the broker has not acknowledged it.
        """
        headers = [*without_retry_state(record.headers), *retry_state.headers(), *tenant_headers(tenant)]
        await self._producer.write(self.topic, record.key, record.value, headers, "retry")

    async def write_again(self, record: Record) -> None:
        """Writes a held record again as it is, after its log has lost it.

        Raises:
            NotWritten: the broker has not acknowledged it.
        """
        await self._producer.write(self.topic, record.key, record.value, record.headers, "retry")

    async def write_snapshot(self, partition: int, snapshot: Snapshot | Directory) -> int:
        """Writes a snapshot to a partition. Returns its offset.

        Raises:
            RecordTooLarge: the topic accepts no record of this size.
            NotWritten: it was not written.
        """
        headers = [(_SNAPSHOT, b"1")]
        return await self._producer.write(self.topic, None, snapshot.encode(), headers, "retry", partition)
