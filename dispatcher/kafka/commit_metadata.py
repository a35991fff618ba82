"""The metadata of a commit: the log that it describes, and what is finished beyond its position. Pure.

A committed position is valid only for the log it was made of. Kafka keeps positions apart from the records: a log can
be lost and grow again while its group's positions stay. So the metadata carries a `Fingerprint`: offset, timestamp and
checksum of the highest finished record that the commit covers. A log that has another record there, or none, is
another log.

The text has parts that commas separate. The first is `f2:` and the base64 of the fingerprint (19 bytes in all,
usually). If anything is finished beyond the position, the last holds the runs as `offset_tracker` writes them (`f1:…`).
If a log was begun at the position and nothing of it is finished, there is no record to name: the first part is then
`f2:start`, and a log that begins lower is another one, since the start of a log only rises. `f2:start:<offset>` names
that start if the position lies beyond it, past offsets without a record (aborted transactions).

Between them, `@<position>` repeats the committed position. MirrorMaker 2 translates the position for another cluster,
whose offsets are others, and commits it with the metadata of the source. So metadata beside another position describes
another log, and says nothing. Versions before did not write this part: without it, the rest is believed. They read the
fingerprint beside it, but not the runs behind it.
"""

import base64
import binascii
import zlib
from dataclasses import dataclass
from typing import Final, Self

from dispatcher.contract.records import Record
from dispatcher.kafka.offset_tracker import MAX_METADATA_BYTES, OffsetTracker, Run, decode_runs

_VERSION: Final = "f2:"
_CHECKSUM_BYTES: Final = 4
AT_START: Final = _VERSION + "start"
"""Begins the metadata of a position at which the log began when it was first read, while nothing of it is finished."""
_OWN_POSITION: Final = "@"


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Identifies a log by one of its records."""

    offset: int
    timestamp: int
    """Milliseconds, as the record has it."""
    checksum: int
    """CRC-32 of key and value."""

    @classmethod
    def of(cls, record: Record) -> Self:
        """Returns the fingerprint of the log that holds this record."""
        return cls(record.offset, record.timestamp, zlib.crc32(record.value or b"", zlib.crc32(record.key or b"")))


@dataclass(frozen=True, slots=True)
class CommittedPosition:
    """The position, finished runs and fingerprint that a group has committed for a partition."""

    position: int
    finished: tuple[Run, ...] = ()
    """Runs of finished offsets beyond the position."""
    fingerprint: Fingerprint | None = None
    """None: the commit doesn't say which log it describes."""
    is_start: bool = False
    """The log began here when it was first read, and nothing is finished: a log that begins lower is another one."""
    passed: int = 0
    """There was no record from the position up to here, when that was read: nothing is lost if it is gone."""

    @property
    def end(self) -> int:
        """The lowest end offset of a log that this position can describe."""
        ends = [self.position, *(last + 1 for _, last in self.finished)]
        return max(ends if self.fingerprint is None else [*ends, self.fingerprint.offset + 1])

    @property
    def tracker(self) -> OffsetTracker:
        """A new tracker that begins at this position."""
        return OffsetTracker(self.position, self.finished)

    def merged(self, other: Self) -> Self:
        """Returns the union: every record is finished that either position, of the same log, says is finished."""
        position = max(self.position, other.position)
        runs: list[Run] = []
        for first, last in sorted((*self.finished, *other.finished)):
            if first <= position:
                position = max(position, last + 1)
            elif runs and first <= runs[-1][1] + 1:
                runs[-1] = (runs[-1][0], max(runs[-1][1], last))
            else:
                runs.append((first, last))
        known = [one.fingerprint for one in (self, other) if one.fingerprint is not None]
        highest = max(known, key=lambda one: one.offset, default=None)
        return type(self)(position, tuple(runs), highest)


@dataclass(frozen=True, slots=True)
class FinishedHere:
    """Finished records of a partition that was revoked from this process, including those that it could not commit."""

    claim: CommittedPosition
    committed: CommittedPosition | None
    """The group's position as this process last knew it; None if there was none."""

    def may_extend(self, found: CommittedPosition | None) -> bool:
        """Returns True if what was finished here may be added to `found`, the group's current position.

        A position that is gone, went back or lost its fingerprint was set by hand: the operator wants a replay.
        """
        if self.committed is None:
            return True
        if found is None or found.position < self.committed.position:
            return False
        return found.fingerprint is not None or self.committed.fingerprint is None


def encode_metadata(
    tracker: OffsetTracker, fingerprint: Fingerprint | None, most_bytes: int = MAX_METADATA_BYTES
) -> str:
    """Returns the metadata for the tracker's position, with as many runs as fit into the maximum length.

    Without room for the fingerprint it is empty: runs are never committed without the log that they describe.
    """
    position = tracker.position
    log_only = "" if position is None or fingerprint is None else _VERSION + _encode(position, fingerprint)
    if position is None or len(log_only) > most_bytes:
        return ""
    with_position = f"{log_only},{_OWN_POSITION}{position}".lstrip(",")
    runs = tracker.metadata(most_bytes - len(with_position) - 1)
    if runs:
        return f"{with_position},{runs}"
    return with_position if log_only and len(with_position) <= most_bytes else log_only


def start_metadata(position: int, log_start: int, most_bytes: int = MAX_METADATA_BYTES) -> str:
    """Returns the metadata for a position before which no record was when it was read from `log_start`.

    Empty if there is no room for it.
    """
    start = AT_START if position == log_start else f"{AT_START}:{log_start}"
    texts = (f"{start},{_OWN_POSITION}{position}", start)
    return next((text for text in texts if len(text) <= most_bytes), "")


def own_metadata(position: int, metadata: str) -> str:
    """Returns the metadata without the position that it repeats; empty if it was made for another position."""
    parts = metadata.split(",")
    named = [part for part in parts if part.startswith(_OWN_POSITION)]
    if any(part != f"{_OWN_POSITION}{position}" for part in named):
        return ""
    return ",".join(part for part in parts if part not in named)


def decode_metadata(position: int, metadata: str) -> CommittedPosition:
    """Reads what `encode_metadata` or `start_metadata` wrote. Damaged or foreign metadata adds nothing."""
    metadata = own_metadata(position, metadata)
    if not metadata.startswith(_VERSION):
        return CommittedPosition(position, tuple(decode_runs(position, metadata)))
    if metadata == AT_START:
        return CommittedPosition(position, is_start=True)
    start = metadata.removeprefix(AT_START + ":")
    if start.isascii() and start.isdigit() and len(start) < 20 and int(start) <= position:
        return CommittedPosition(int(start), is_start=True, passed=position)
    text, _, runs = metadata[len(_VERSION) :].partition(",")
    fingerprint = _decode(position, text)
    if fingerprint is None:
        return CommittedPosition(position)
    return CommittedPosition(position, tuple(decode_runs(position, runs)), fingerprint)


def _encode(position: int, fingerprint: Fingerprint) -> str:
    numbers = _signed(fingerprint.offset - position) + _signed(fingerprint.timestamp)
    return base64.b64encode(numbers + fingerprint.checksum.to_bytes(_CHECKSUM_BYTES, "big")).decode()


def _decode(position: int, text: str) -> Fingerprint | None:
    try:
        packed = base64.b64decode(text, validate=True)
        distance, rest = _take_signed(packed)
        timestamp, rest = _take_signed(rest)
    except (binascii.Error, ValueError):
        return None
    if len(rest) != _CHECKSUM_BYTES or position + distance < 0:
        return None
    return Fingerprint(position + distance, timestamp, int.from_bytes(rest, "big"))


def _signed(number: int) -> bytes:
    """Encodes a number with zigzag and LEB128, which makes small numbers of either sign short."""
    left = number << 1 if number >= 0 else (-number << 1) - 1
    out = bytearray()
    while left > 0x7F:
        out.append(left & 0x7F | 0x80)
        left >>= 7
    out.append(left)
    return bytes(out)


def _take_signed(packed: bytes) -> tuple[int, bytes]:
    number = 0
    for at, byte in enumerate(packed[:10]):
        number |= (byte & 0x7F) << 7 * at
        if not byte & 0x80:
            return (number >> 1) ^ -(number & 1), packed[at + 1 :]
    raise ValueError("no number of 64 bits")
