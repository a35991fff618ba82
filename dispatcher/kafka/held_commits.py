"""The state of each assigned partition of held events, and the commits of that state.

A commit's metadata names the log, see `commit_metadata`, and up to two records of the same partition: the snapshot of
what is finished out of order, and the directory of the tenants' events. A snapshot that can't be written doesn't stop
the commits: the partition is committed with the newest one that was, which stays true.
"""

import asyncio
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import structlog
from aiokafka import TopicPartition

from dispatcher.config.kafka_settings import KafkaSettings
from dispatcher.contract.records import AssignmentEpoch, ProcessingAttempt, Record
from dispatcher.errors import RecordTooLarge
from dispatcher.kafka.commit_metadata import Fingerprint, encode_metadata, start_metadata
from dispatcher.kafka.committing import CommitFailures
from dispatcher.kafka.held_partition import HeldPartition
from dispatcher.kafka.held_start import HeldStart
from dispatcher.kafka.held_topic import Directory, HeldTopic, Snapshot, SnapshotOffsets
from dispatcher.kafka.membership import GroupClient
from dispatcher.kafka.metadata_limit import SIZE_REFUSED, MetadataLimit
from dispatcher.kafka.offset_tracker import OffsetTracker
from dispatcher.kafka.problems import KafkaProblems, partition_name
from dispatcher.telemetry import metrics

log = structlog.get_logger(__name__)

COMMIT_WITHIN_S: Final = 10.0
SNAPSHOT_S: Final = 3.0
"""Deadline of the snapshots of one commit: the other partitions wait for them."""
SNAPSHOT_AGAIN_S: Final = 30.0
"""Time after which a snapshot that could not be written is tried again."""
DIRECTORY_EVERY: Final = 5_000
"""Number of records read between two directories. A restart reads at most this many again in each partition."""
MOST_TENANTS: Final = 5_000
"""Tenants of one directory, about 100 bytes each. A restart reads a partition with more of them from its position."""

State = tuple[int, int | None, tuple[int, int] | None]
"""Content of a commit: position, the offset of the snapshot, and the directory's end and offset."""
NO_SNAPSHOT: Final = Snapshot({})


@dataclass(slots=True, eq=False)
class HeldAssignment:
    """One assignment of one partition."""

    tp: TopicPartition
    epoch: AssignmentEpoch
    state: HeldPartition | None = None
    """None until the committed position is known."""
    buffer: deque[Record] = field(default_factory=deque)
    tasks: dict["asyncio.Task[None]", ProcessingAttempt] = field(default_factory=dict)
    committed: State | None = None
    last: Record | None = None
    """The last record that was read: it identifies the log."""
    snapshot: Snapshot = NO_SNAPSHOT
    """The newest one that was written in this assignment, or was too large for it."""
    snapshot_at: int | None = None
    """Offset of the newest snapshot that was written, perhaps in an earlier assignment."""
    write_again_at: float = 0.0
    """Loop time until which no snapshot is written, because one was not."""
    directory: tuple[int, int] | None = None
    """End of the newest directory that was written, and the offset of its record."""
    directory_due: int = 0
    """Offset at which the directory is written again."""
    is_dirty: bool = True
    start: HeldStart | None = None
    """Where reading began, with the group's newest commit. Until `state` is known: what was finished earlier."""
    source: "tuple[object, ...] | None" = None
    """Where the log was read from when it was checked last: the leader and the connection to it. None: check it now,
    because it didn't have the position."""
    is_orphan: bool = False
    """Its log is gone: its events in flight are finished here, since no other reader will ever have them."""
    removed_before: int = 0
    """Offset before which retention has removed every record, as far as is known."""
    unanswered_at: float = 0.0
    """Loop time at which Kafka last didn't answer what has to be known before it is read; 0 if it answered."""

    def begin(self, start: HeldStart, max_age_s: float) -> HeldPartition:
        """Creates the partition's state from the position and snapshots at which reading starts. Returns the state."""
        self.start = start
        self.state = HeldPartition(start.position, start.snapshot.tenants, max_age_s, start.directory)
        self.snapshot_at = start.snapshot_at
        if start.directory is not None and start.directory_at is not None:
            self.directory = (start.directory.end, start.directory_at)
            self.directory_due = start.directory.end + DIRECTORY_EVERY
        return self.state

    def remove_before(self, log_start: int) -> int:
        """Passes over what retention has removed, see `HeldPartition.remove_before`. Keeps what is buffered of it."""
        if self.state is None or (self.buffer and self.buffer[0].offset < log_start):
            return log_start
        if self.start is not None and self.start.log_start is not None:
            self.start = replace(self.start, log_start=max(self.start.log_start, log_start))
        self.removed_before, self.is_dirty = log_start, True
        return self.state.remove_before(log_start)

    @property
    def fingerprint(self) -> Fingerprint | None:
        """Identifies the log, as far as it was read; None if nothing was."""
        if self.last is not None:
            return Fingerprint.of(self.last)
        return None if self.start is None else self.start.fingerprint

    def what_is_finished(self) -> HeldStart | None:
        """Returns what is finished, for the time when this process is assigned the partition again."""
        if self.state is None or self.start is None:
            return self.start
        position, snapshot = self.state.to_commit()
        directory = None if self.fingerprint is None else self.state.directory()
        finished = replace(self.start, position=position, snapshot=snapshot, fingerprint=self.fingerprint)
        return replace(finished, directory=directory, directory_at=None, snapshot_at=self.snapshot_at)

    def metadata_at(self, position: int, progress: int | None, most_bytes: int) -> str:
        """Returns the metadata for a commit of this position, which names its log and its snapshots if they fit.

        `progress`: the offset of a snapshot. Without room for all of it, the snapshots are left out first.
        """
        if self.fingerprint is None and self.start is not None and self.start.log_start == position:
            return start_metadata(position, position, most_bytes)
        end, at = (0, None) if self.directory is None else self.directory
        named = SnapshotOffsets(progress, at if end > position and self.fingerprint is not None else None)
        log_only = encode_metadata(OffsetTracker(position), self.fingerprint, most_bytes)
        text = ",".join(filter(None, (log_only, named.encode())))
        return text if len(text) <= most_bytes else log_only


class HeldCommitter:
    """Commits the positions of the partitions of held events, and writes their snapshots."""

    def __init__(self, topic: HeldTopic, settings: KafkaSettings, group_id: str, problems: KafkaProblems) -> None:
        self._topic = topic
        self._failures = CommitFailures(settings, group_id, problems)
        self._lock = asyncio.Lock()
        self._limit = MetadataLimit(problems, f"consumer {group_id}")

    async def commit(self, client: GroupClient | None, partitions: Iterable[HeldAssignment]) -> bool:
        """Commits what has changed of these partitions. Returns False if that failed: the next commit covers it."""
        async with self._lock:
            dirty = [one for one in partitions if one.is_dirty and one.state is not None]
            for one in dirty:
                one.is_dirty = False
            committed = False
            try:
                await self._commit(client, dirty)
                committed = True
                self._failures.clear()
            except Exception as error:  # noqa: BLE001  (reported there)
                self._failures.report(error)
            finally:
                for one in dirty if not committed else ():
                    one.is_dirty = True
            return committed

    async def _commit(self, client: GroupClient | None, partitions: Sequence[HeldAssignment]) -> None:
        """Commits the partitions that have news."""
        known = [(one, one.state) for one in partitions if one.state is not None]
        described = await asyncio.gather(*(self._describe(*one) for one in known))
        states = {one: state for (one, _), state in zip(known, described, strict=True) if state != one.committed}
        if not states or client is None:
            return
        offsets = await self._send(client, states)
        for one, state in states.items():
            one.committed = state
            if one.start is not None:
                one.start = replace(one.start, committed=offsets[one.tp])

    async def _send(
        self, client: GroupClient, states: Mapping[HeldAssignment, State]
    ) -> dict[TopicPartition, tuple[int, str]]:
        """Commits these states, and returns what was written. Shortens metadata whose length the broker refuses."""
        while True:
            most_bytes = self._limit.bytes_now()
            offsets = {
                one.tp: (position, one.metadata_at(position, snapshot, most_bytes))
                for one, (position, snapshot, _) in states.items()
            }
            longest = max(len(metadata) for _, metadata in offsets.values())
            try:
                async with asyncio.timeout(COMMIT_WITHIN_S):
                    await client.commit(offsets)
            except SIZE_REFUSED:
                if not self._limit.lower(longest):
                    raise
            else:
                self._limit.accepted(longest)
                return offsets

    async def _describe(self, one: HeldAssignment, state: HeldPartition) -> State:
        """Returns the state to commit for a partition. Writes snapshots that are due first, if they can be written."""
        position, snapshot = state.to_commit()
        if asyncio.get_running_loop().time() < one.write_again_at:
            one.is_dirty = True
        else:
            try:
                async with asyncio.timeout(SNAPSHOT_S):
                    await self._write_directory(one, state, position)
                    await self._write_snapshot(one, snapshot)
            except Exception as error:  # noqa: BLE001  (whatever it is, it must not stop the commits)
                metrics.COMMIT_FAILURES.inc()
                one.write_again_at = asyncio.get_running_loop().time() + SNAPSHOT_AGAIN_S
                one.is_dirty = True
                log.warning(
                    "committed without a new snapshot: a restart may repeat held events",
                    partition=partition_name(one.tp), error=type(error).__name__, why=str(error)[:256],
                )  # fmt: skip
        return position, one.snapshot_at if snapshot.tenants else None, one.directory

    async def _write_directory(self, one: HeldAssignment, state: HeldPartition, position: int) -> None:
        """Writes the partition's directory if enough was read since the last one."""
        if state.seen_to < max(one.directory_due, position + DIRECTORY_EVERY):
            return
        directory = state.directory()
        if len(directory.tenants) <= MOST_TENANTS:
            at = await self._write(one.tp, directory)
            if at is not None:
                one.directory = (directory.end, at)
        one.directory_due = directory.end + DIRECTORY_EVERY

    async def _write_snapshot(self, one: HeldAssignment, snapshot: Snapshot) -> None:
        """Writes what is finished beyond the position, if that has changed."""
        if snapshot == one.snapshot:
            return
        at = await self._write(one.tp, snapshot) if snapshot.tenants else None
        one.snapshot = snapshot
        one.snapshot_at = one.snapshot_at if at is None else at

    async def _write(self, tp: TopicPartition, snapshot: Snapshot | Directory) -> int | None:
        """Writes a snapshot. Returns its offset, or None if the topic doesn't accept a record of its size."""
        try:
            return await self._topic.write_snapshot(tp.partition, snapshot)
        except RecordTooLarge as error:
            metrics.COMMIT_FAILURES.inc()
            log.warning(
                "a restart will read held events again, or repeat some",
                partition=partition_name(tp),
                why=str(error)[:256],
            )
            return None
