"""Chooses the events that are traced, and derives their trace ids. Called for every event."""

import hashlib
from collections.abc import Callable
from typing import Final
from zlib import crc32

from dispatcher.contract.records import Record, place_of

_LOW: Final = (1 << 64) - 1
"""The bits of a trace id that samplers by ratio compare with their bound."""
_CHECKSUM: Final = 0xFFFF_FFFF << 32
"""The bits of a trace id that hold the place's checksum: the highest of those that are compared."""

ProducersDecision = Callable[[Record], bool | None]
"""Returns what a record's `traceparent` says, or None if it has none that can be read."""


class TraceChoice:
    """Decides as the SDK's sampler will: by the producer's trace, else by the trace id that the event will get."""

    def __init__(self, bound: int, producers_decision: ProducersDecision) -> None:
        """Prepares the choice. `bound`: that of the SDK's sampler by ratio, which samples the trace ids below it."""
        self._bound = bound
        self._highest_checksum = bound >> 32
        self._producers_decision = producers_decision

    def includes(self, record: Record) -> bool:
        """Returns whether a record on the topic of events gets spans."""
        if record.headers:
            decided = self._producers_decision(record)
            if decided is not None:
                return decided
        return self.includes_place(place_of(record), record.timestamp)

    def includes_place(self, origin: str, timestamp: int) -> bool:
        """Returns whether an event without a producer's trace gets spans, see `trace_id`.

        A checksum decides for all but one event in four billion: it takes a quarter of the time of a trace id.
        """
        checksum = crc32(f"{origin}/{timestamp}".encode())
        if checksum != self._highest_checksum:
            return checksum < self._highest_checksum
        return trace_id(origin, timestamp) & _LOW < self._bound


def trace_id(origin: str, timestamp: int) -> int:
    """Returns the trace id of an event without a producer's trace. `timestamp`: milliseconds since 1970, of its record.

    The timestamp distinguishes a topic from an earlier one of the same name, and from one in another cluster.
    """
    place = f"{origin}/{timestamp}".encode()
    digest = int.from_bytes(hashlib.blake2b(place, digest_size=16, person=b"trace").digest(), "big")
    return (digest & ~_CHECKSUM) | crc32(place) << 32 or 1
