"""Chooses the events that are traced, and derives their trace ids. Called for every event."""

import hashlib
from collections.abc import Callable
from typing import Final

from dispatcher.contract.records import Origin, Record

_LOW: Final = (1 << 64) - 1
"""The bits of a trace id that samplers by ratio compare with their bound."""
_LOT_BITS: Final = (1 << 30) - 1
_LOT_AT: Final = 34
"""Place of the event's lot in its trace id: the highest 30 of the bits that are compared."""

ProducersDecision = Callable[[Record], bool | None]
"""Returns what a record's `traceparent` says, or None if it has none that can be read."""


class TraceChoice:
    """Decides as the SDK's sampler will: by the producer's trace, else by the trace id that the event will get."""

    def __init__(self, bound: int, producers_decision: ProducersDecision) -> None:
        """Prepares the choice. `bound`: that of the SDK's sampler by ratio, which samples the trace ids below it."""
        self._bound = bound
        self._highest_lot = bound >> _LOT_AT
        self._producers_decision = producers_decision

    def includes(self, record: Record) -> bool:
        """Returns whether a record on the topic of events gets spans."""
        if record.headers:
            decided = self._producers_decision(record)
            if decided is not None:
                return decided
        return self._includes(record.topic, record.partition, record.offset, record.timestamp)

    def includes_place(self, origin: Origin, timestamp: int) -> bool:
        """Returns whether an event without a producer's trace gets spans, see `trace_id`."""
        return self._includes(origin.topic, origin.partition, origin.offset, timestamp)

    def _includes(self, topic: str, partition: int, offset: int, timestamp: int) -> bool:
        drawn = _lot(partition, offset, timestamp)
        if drawn != self._highest_lot:
            return drawn < self._highest_lot
        return trace_id(Origin(topic, partition, offset), timestamp) & _LOW < self._bound


def trace_id(origin: Origin, timestamp: int) -> int:
    """Returns the trace id of an event without a producer's trace. `timestamp`: milliseconds since 1970, of its record.

    The timestamp distinguishes a topic from an earlier one of the same name, and from one in another cluster. The lot
    in it decides alone for all but one event in a billion: it takes a hundredth of the time of a trace id.
    """
    place = f"{origin}/{timestamp}".encode()
    digest = int.from_bytes(hashlib.blake2b(place, digest_size=16, person=b"trace").digest(), "big")
    lot = _lot(origin.partition, origin.offset, timestamp)
    return digest & ~(_LOT_BITS << _LOT_AT) | lot << _LOT_AT or 1


def _lot(partition: int, offset: int, timestamp: int) -> int:
    """Returns 30 bits that are equally distributed over the records of a partition, and independent of their order.

    Multiplies and shifts by turns, as the finaliser of MurmurHash3 does. With 30 bits no product is larger than what
    mypyc multiplies in a register.
    """
    mixed = (offset ^ timestamp << 11 ^ partition << 21) & _LOT_BITS
    mixed = ((mixed ^ mixed >> 15) * 0x1CE4_E5B9) & _LOT_BITS
    mixed = ((mixed ^ mixed >> 13) * 0x1331_11EB) & _LOT_BITS
    return mixed ^ mixed >> 15
