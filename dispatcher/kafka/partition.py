"""The state of a consumer's partitions, and of the records of them that are in flight."""

import asyncio
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Final, Protocol

from aiokafka import TopicPartition

from dispatcher.contract.outcomes import Outcome
from dispatcher.contract.records import AssignmentEpoch, ProcessingAttempt, Record, event_time
from dispatcher.delivery.direct_attempt import DirectAttempt
from dispatcher.delivery.pending_delivery import AttemptResult
from dispatcher.kafka.commit_metadata import (
    CommittedPosition,
    Fingerprint,
    FinishedHere,
    decode_metadata,
    encode_metadata,
    start_metadata,
)
from dispatcher.kafka.offset_tracker import MAX_METADATA_BYTES, OffsetTracker
from dispatcher.telemetry import fast_metrics, metrics

MOST_RUNS_KEPT: Final = 8_000
"""Maximum number of runs of finished records kept for a revoked partition, lowest first: a commit carries no more."""
HEADER_BYTES: Final = 100
"""Memory that a header takes in addition to its text."""


class InFlightOwner(Protocol):
    """Receives how each record in flight ends: `processing.RecordProcessor`, which imports this module."""

    def record_finished(self, item: "InFlightRecord") -> None: ...
    def start_slow_path(self, item: "InFlightRecord", first_result: AttemptResult | None) -> None: ...
    def record_ended(self, item: "InFlightRecord") -> None: ...


def size_of(record: Record) -> int:
    """Returns about how many bytes of memory a record takes."""
    size = len(record.value or b"")
    if record.key:
        size += len(record.key)
    if record.headers:
        size += sum(HEADER_BYTES + len(name) + len(value or b"") for name, value in record.headers)
    return size


class InFlightRecord(ProcessingAttempt):
    """A record that is being processed, by a direct attempt or by a task."""

    __slots__ = ("_owner", "direct_attempt", "partition", "record", "size", "task")

    def __init__(self, owner: InFlightOwner, partition: "Partition", record: Record) -> None:
        self.epoch = partition.epoch
        self.started = False
        self.resume = None
        self.partition = partition
        self.record = record
        self.read_at = time.time()
        self.size = size_of(record)
        self.direct_attempt: DirectAttempt | None = None
        self.task: asyncio.Task[None] | None = None
        self._owner = owner

    @property
    def running(self) -> "asyncio.Task[None] | None":
        """The task to await after `cancel`, if there is one."""
        return self.task or (None if self.direct_attempt is None else self.direct_attempt.task)

    def cancel(self) -> None:
        """Cancels processing; the record stays unfinished."""
        if self.task is not None:
            self.task.cancel()
        elif self.direct_attempt is not None:
            self.direct_attempt.cancel()
            if self.direct_attempt.task is None:
                self._owner.record_ended(self)

    # Callbacks of `fast_path`

    def on_finished(self, _: Outcome, /) -> None:
        """Reports that the record has its outcome."""
        self._owner.record_finished(self)

    def on_fallback(self, result: AttemptResult | None) -> None:
        """Continues on the slow path, in a task."""
        self.direct_attempt = None
        self._owner.start_slow_path(self, result)

    def on_cancelled(self) -> None:
        """Reports that a cancelled direct attempt has ended."""
        self._owner.record_ended(self)


@dataclass(frozen=True, slots=True)
class Probe:
    """A record that is read to check whether the log is the one that `claim` describes."""

    claim: CommittedPosition
    offset: int
    start: int
    """The log's first offset, when the probe was made."""
    is_beyond_end: bool
    """The log seems to end before what the claim describes."""
    gives_up_at: float
    """Loop time from when on a record that doesn't come is missing, if `is_beyond_end`."""
    accepted: CommittedPosition | None = None
    """The group's position, if that is accepted already, and the claim is what was finished here."""


@dataclass(slots=True, eq=False)
class Partition:
    """The state of one assignment of a partition, for one log."""

    tp: TopicPartition
    epoch: AssignmentEpoch = field(default_factory=AssignmentEpoch)
    tracker: OffsetTracker = field(default_factory=OffsetTracker)
    buffer: deque[Record] = field(default_factory=deque)
    """Fetched, not begun."""
    restored: bool = False
    """True if it has its position, and the log is known to be the one that the position describes."""
    claim: CommittedPosition | None = None
    """The commit for the partition when it was assigned; None without a commit, and until it is known."""
    finished_here: FinishedHere | None = None
    """Records that this process finished in an earlier assignment, while `restored` is false."""
    suspect: bool = False
    """True if the log may have been replaced since: nothing more is read until it is checked."""
    probe: Probe | None = None
    """The check in progress: a record of the log that is read and compared."""
    is_out_of_range: bool = False
    """True if the broker has refused a position of it since the last check."""
    source: "tuple[object, ...] | None" = None
    """Where the log was read from at the last check: the leader and the connection to it."""
    next_offset: int = 0
    """The offset after the last record that was read, once `restored`."""
    reached: int = 0
    """The offset that the client reads next: beyond `next_offset` if no record follows it (transactions, compaction).
    """
    waits_at: int | None = None
    """Where the open transaction begins whose end the partition waits for, or None."""
    waits_since: float = 0.0
    """Loop time since when it waits there."""
    last_read: Record | None = None
    highest_finished: Record | None = None
    fingerprint: Fingerprint | None = None
    """Identifies the log by the highest record that was finished when the partition was restored or last committed."""
    log_start: int | None = None
    """Where the log began when it was first read, if that is the position that it was restored to."""
    is_orphan: bool = False
    """Its log is gone: what was read of it is finished here, since no other reader will ever have it."""
    in_flight: "dict[int, InFlightRecord]" = field(default_factory=dict)
    """Records that are begun and not ended, by offset."""
    repeated: set[int] = field(default_factory=set)
    """Offsets of the records in flight that could not get their outcome so far and are repeated."""
    repeated_bytes: int = 0
    due_timer: asyncio.TimerHandle | None = None
    committed: tuple[int, str] | None = None
    end: int = 0
    """The partition's end, as the broker last reported it."""

    consumed: fast_metrics.Count = field(init=False)

    def __post_init__(self) -> None:
        self.consumed = metrics.EVENTS_CONSUMED.labels(self.tp.topic)

    def __str__(self) -> str:
        return f"{self.tp.topic}/{self.tp.partition}"

    @property
    def unfinished(self) -> int:
        """Number of records that were read and are not finished."""
        return len(self.in_flight) + len(self.buffer)

    @property
    def needs_check(self) -> bool:
        """True if the position or the log has to be checked and no check has begun."""
        return (not self.restored or self.suspect) and self.probe is None and self.epoch.active

    @property
    def is_readable(self) -> bool:
        """True if records may be fetched: to be processed, or to check the log."""
        return (self.restored and not self.suspect) or self.probe is not None

    def restore(self, tracker: OffsetTracker, fingerprint: Fingerprint | None, log_start: int | None = None) -> None:
        """Sets the initial tracker and the known facts about the log."""
        self.tracker = tracker
        self.fingerprint = fingerprint
        self.log_start = log_start
        self.finished_here = None
        self.restored = True

    def finish(self, record: Record) -> None:
        """Marks the record as finished: it has its outcome."""
        self.tracker.finish(record.offset)
        highest = self.highest_finished
        if highest is None or record.offset > highest.offset:
            self.highest_finished = record

    def note_reached(self, offset: int | None) -> bool:
        """Notes the offset that the client reads next. Returns True if that moves the position, past a gap."""
        if offset is None:
            return False
        self.reached = offset
        return not self.buffer and not self.in_flight and self.tracker.pass_gap(offset)

    def to_commit(self, most_bytes: int = MAX_METADATA_BYTES) -> tuple[int, str] | None:
        """Returns position and metadata if they differ from the last commit, else None."""
        position = self.tracker.position
        if position is None or not self.restored:
            return None
        fingerprint = self._newest_fingerprint()
        if fingerprint is None and self.log_start is not None:
            # The tracker may be further on, behind a gap in the offsets. A log that was lost may fill the gap.
            start = start_metadata(position, self.log_start, most_bytes)
            state = (position, start) if start else (self.log_start, "")
        else:
            state = (position, encode_metadata(self.tracker, fingerprint, most_bytes))
        return None if state == self.committed else state

    def _newest_fingerprint(self) -> Fingerprint | None:
        highest = self.highest_finished
        if highest is not None and (self.fingerprint is None or highest.offset > self.fingerprint.offset):
            self.fingerprint = Fingerprint.of(highest)
        return self.fingerprint

    def what_is_finished(self) -> FinishedHere | None:
        """Returns what is finished, in case this process is assigned the partition again; None if unknown."""
        position, fingerprint = self.tracker.position, self._newest_fingerprint()
        if position is None or not self.restored or fingerprint is None:
            return self.finished_here
        # It may lie further on, behind a gap in the offsets; a log that was truncated fills the gap.
        position = min(position, fingerprint.offset + 1)
        runs = tuple(islice(self.tracker.finished_beyond(), MOST_RUNS_KEPT))
        committed = self.claim if self.committed is None else decode_metadata(*self.committed)
        return FinishedHere(CommittedPosition(position, runs, fingerprint), committed)

    def end_epoch(self) -> None:
        """Ends the assignment's epoch: nothing more is begun, and fetched records are dropped."""
        self.epoch.active = False
        self.buffer.clear()
        if self.due_timer is not None:
            self.due_timer.cancel()

    def oldest(self, now: float) -> float | None:
        """Returns the unix time of the oldest record in flight, or None if there is none. `now`: unix time."""
        return min((event_time(item.record, item.read_at, now) for item in self.in_flight.values()), default=None)

    def observe(self) -> None:
        """Sets the partition's gauges for a scrape."""
        position = self.tracker.position
        if position is not None:
            lag = max(0, max(self.end, self.tracker.highest + 1) - position)
            metrics.LAG.labels(self.tp.topic, str(self.tp.partition)).set(lag)
            metrics.FINISHED_OFFSET.labels(self.tp.topic, str(self.tp.partition)).set(position)

    def forget(self) -> None:
        """Removes the partition's gauges: another process reports them now."""
        for gauge in (metrics.LAG, metrics.FINISHED_OFFSET):
            with suppress(KeyError):
                gauge.remove(self.tp.topic, str(self.tp.partition))
