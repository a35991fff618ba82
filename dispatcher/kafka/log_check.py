"""Finds the offset to read a partition from, and checks that its log is still the one that was read before.

A committed position, the runs of finished offsets beyond it, and a fetch position mean something only in the log that
they were made of. They are a *claim* about a log until its records have been compared. A log can be
truncated (unclean leader election) or lost and recreated (disk, topic recreated), and may have grown past the old
position before it is checked. So before a partition is begun, and again after everything that could have replaced its
log (another connection or leader, a missing topic, a time without fetches, an end below the position, offsets that go
back), the record that the fingerprint names is read and compared. If it is another one, position and runs are
discarded and the partition is read from its log's start.

A position that retention has passed is a gap: its unread records are gone, and are counted.
"""

import asyncio
from collections.abc import Collection, Iterable, Sequence
from typing import Final, Protocol

import structlog
from aiokafka import TopicPartition
from aiokafka.errors import IllegalStateError, KafkaError

from dispatcher.contract.records import Record
from dispatcher.kafka.commit_metadata import CommittedPosition, Fingerprint
from dispatcher.kafka.first_start import GonePositions
from dispatcher.kafka.log_bounds import LONGEST_ANSWER_S
from dispatcher.kafka.log_reports import LogLoss, report_if_foreign, report_lost_log, report_removed
from dispatcher.kafka.membership import Bounds, GroupClient
from dispatcher.kafka.offset_tracker import OffsetTracker
from dispatcher.kafka.partition import Partition, Probe
from dispatcher.kafka.problems import KafkaProblems
from dispatcher.tasks import Backoff, set_within

log = structlog.get_logger(__name__)

STEP_S: Final = 20.0 + LONGEST_ANSWER_S
"""Deadline of one round of checks."""
SILENT_S: Final = 3.0
"""Time to wait for a record that the log may not hold. A broker's end offset alone is not trusted: the demo's broker
reports one that is too low, and a new leader may do so for a moment. The answer to a fetch has to say so, too."""
FIRST_REPEAT_S: Final = 0.5
LONGEST_REPEAT_S: Final = 15.0


class LogOwner(Protocol):
    """The consumer, as the log check sees it."""

    def owned(self) -> Collection[Partition]:
        """Returns the partitions that are assigned to the consumer."""
        ...

    def on_readable(self) -> None:
        """Wakes the consumer: it can read a partition's records, or the record that a probe names."""
        ...

    def on_log_lost(self, partition: Partition) -> Partition:
        """Discards a partition whose log was replaced while it was read. Returns one for the new log."""
        ...


def removed_unread(claim: CommittedPosition, start: int) -> int:
    """Returns how many offsets between the position and the log's start were not finished.

    Gaps in offsets count, unless they were read.
    """
    finished = sum(min(last, start - 1) - first + 1 for first, last in claim.finished if first < start)
    return max(0, start - max(claim.position, claim.passed) - finished)


def next_probe(claim: CommittedPosition, bounds: Bounds, now: float) -> Probe | None:
    """Returns the record to check before the claim is believed, or None if the log holds none that it covers.

    A claim without a fingerprint is believed as far as the log's ends allow; the probe then learns its fingerprint.
    """
    offset = claim.position - 1 if claim.fingerprint is None else claim.fingerprint.offset
    if offset < bounds.start:
        return None
    return Probe(claim, offset, bounds.start, claim.end > bounds.end, now + SILENT_S)


def _ends_at(client: GroupClient, tp: TopicPartition, offset: int) -> bool:
    """Returns True if a fetch from this offset has been answered, and the log ended there or before it.

    Without an answer, the broker is slow, hangs, or has a quota for this client: that says nothing about the log.
    """
    end = client.fetched_end_of(tp)
    return end is not None and end <= offset


class LogChecker:
    """Sets the position of each partition of a consumer. Everything but `run` is called by the consumer's poll loop."""

    def __init__(
        self,
        owner: LogOwner,
        group_id: str,
        problems: KafkaProblems,
        start_at_end: Iterable[str] = (),
        gone_positions: GonePositions | None = None,
    ) -> None:
        """Prepares a checker.

        Args:
            start_at_end: topics that are read from their ends if the group has no position yet.
            gone_positions: notices that a group has none any more; None if nothing shows it.
        """
        self._owner = owner
        self._group_id = group_id
        self._problems = problems
        self._start_at_end = set(start_at_end)
        """Topics that may have to be started at their ends. Without those in which the group is known to have, or to
        have had, a position, and those that were created after it started."""
        self._gone_positions = gone_positions
        self._wanted = asyncio.Event()

    def request(self) -> None:
        """Requests a check of the partitions that need one."""
        self._wanted.set()

    def suspect(self, partition: Partition, *, is_out_of_range: bool = False) -> None:
        """Stops reading a partition whose log may have been replaced, until that is checked."""
        if partition.probe is not None and partition.probe.accepted is not None:
            partition.finished_here, is_out_of_range = None, False  # the position that was accepted is in range
        partition.probe = None
        partition.suspect = True
        partition.is_out_of_range |= is_out_of_range
        self._wanted.set()

    def start_at_beginning(self, topics: Iterable[str]) -> None:
        """Notes topics that were created after the group was started: nothing of them is skipped."""
        self._exclude_first_start(set(topics))

    async def run(self, client: GroupClient) -> None:
        """Checks what was requested until cancelled. Repeats if the broker doesn't answer."""
        backoff = Backoff(FIRST_REPEAT_S, LONGEST_REPEAT_S)
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            try:
                async with asyncio.timeout(STEP_S):
                    complete = await self._check_requested(client)
                backoff.reset()
                if complete:
                    continue
            # aiokafka raises KeyError and AttributeError on odd answers.
            except (KafkaError, OSError, TimeoutError, KeyError, AttributeError) as error:
                log.warning(
                    "positions can't be looked up; trying again", group=self._group_id, error=type(error).__name__,
                    detail=str(error)[:256],
                )  # fmt: skip
            rest_s = backoff.next_s()
            await asyncio.sleep(min(rest_s, FIRST_REPEAT_S))
            if await set_within(self._wanted, rest_s - FIRST_REPEAT_S):
                backoff.reset()  # another partition needs a check, which may be possible
            self._wanted.set()

    async def _check_requested(self, client: GroupClient) -> bool:
        """Checks every partition that needs it. Returns False if one has to be checked again a little later."""
        partitions = [one for one in self._owner.owned() if one.needs_check]
        if not partitions:
            return True
        fresh = [one for one in partitions if not one.restored and one.claim is None]
        if fresh:
            committed = await client.committed([one.tp for one in fresh])
            for partition in fresh:
                partition.claim = committed.get(partition.tp)
                if (memory := partition.finished_here) is not None:
                    report_if_foreign(self._problems, self._group_id, partition.tp, memory.committed, partition.claim)
            self._exclude_first_start({tp.topic for tp in committed})
            if self._gone_positions is not None:
                topics = {one.tp.topic for one in fresh if one.claim is None}
                self._start_at_end -= await self._gone_positions.find(client, topics, self._start_at_end)
        bounds = await client.bounds([one.tp for one in partitions])
        if self._start_at_end:
            await self._commit_ends(client, [one for one in fresh if one.claim is None])
        complete = True
        for partition in partitions:
            if not partition.needs_check:
                continue
            known = bounds.get(partition.tp)
            claim = None if known is None else self._claim_of(partition, known)
            if known is None or claim is None:
                complete = False
            else:
                self._check(client, partition, claim, known)
        return complete

    def _exclude_first_start(self, topics: set[str]) -> None:
        self._start_at_end -= topics
        if self._gone_positions is not None:
            self._gone_positions.exclude(topics)

    async def _commit_ends(self, client: GroupClient, partitions: Iterable[Partition]) -> None:
        """Commits the ends of all partitions at once as the positions of the group's very first start.

        The member that owns a topic's first partition commits for all of them; the others wait for that. A partition
        without a position that is found later was added later, and is read from its start.
        """
        for topic in {one.tp.topic for one in partitions} & self._start_at_end:
            every = client.partitions_of(topic)
            known = await client.committed(every)
            if not known and every and min(every) in {one.tp for one in partitions}:
                ends = await client.stable_ends(every)  # the records of an open transaction are still to come
                if len(ends) < len(every):
                    continue  # a partition without an answer would be read from its start
                await client.commit_for_group({tp: (end, "") for tp, end in ends.items()})
                log.info("first start of the group: begins at the end", group=self._group_id, topic=topic)
                known = {tp: CommittedPosition(end) for tp, end in ends.items()}
            if known:
                self._start_at_end.discard(topic)
                for partition in partitions:
                    partition.claim = partition.claim or known.get(partition.tp)

    def _claim_of(self, partition: Partition, bounds: Bounds) -> CommittedPosition | None:
        """Returns the position to continue at, or None if it is not known yet."""
        if partition.restored:
            last = partition.last_read
            fingerprint = partition.fingerprint if last is None else Fingerprint.of(last)
            is_start = fingerprint is None and partition.next_offset == partition.log_start
            return CommittedPosition(partition.next_offset, (), fingerprint, is_start, partition.reached)
        if partition.claim is None and partition.tp.topic not in self._start_at_end:
            return CommittedPosition(bounds.start, is_start=True)
        return partition.claim

    def _check(self, client: GroupClient, partition: Partition, claim: CommittedPosition, bounds: Bounds) -> None:
        probe = next_probe(claim, bounds, asyncio.get_running_loop().time())
        partition.source = client.source_of(partition.tp)
        try:
            if claim.end > bounds.end and (partition.is_out_of_range or probe is None):
                self._discard(client, partition, claim, bounds.start, LogLoss.TRUNCATED)
            elif claim.is_start and bounds.start < claim.position:
                self._discard(client, partition, claim, bounds.start, LogLoss.REPLACED)
            elif probe is None:
                self._accept(client, partition, claim, bounds.start)
            else:
                client.seek(partition.tp, probe.offset)
                partition.probe = probe
                self._owner.on_readable()
        except IllegalStateError:
            log.info("partition was revoked while its log was checked", group=self._group_id, partition=str(partition))

    def examine(
        self, client: GroupClient, partition: Partition, records: Sequence[Record], position: int | None
    ) -> None:
        """Compares the record of a probe with the expected one. `position` is the offset that the client reads next."""
        probe = partition.probe
        if probe is None:
            return
        if client.source_of(partition.tp) != partition.source:
            partition.probe = None
            self._wanted.set()  # another connection than the one asked, or another leader: its log may end elsewhere
            return
        passed = position is not None and position > probe.offset  # over what compaction or a transaction has left
        silent = probe.is_beyond_end and asyncio.get_running_loop().time() > probe.gives_up_at
        silent = silent and _ends_at(client, partition.tp, probe.offset)
        if not records and not passed and not silent:
            return
        partition.probe = None
        expected = probe.claim.fingerprint
        found = Fingerprint.of(records[0]) if records and records[0].offset == probe.offset else None
        try:
            if probe.accepted is not None:
                is_same = found is not None and found == expected
                claim = probe.accepted.merged(probe.claim) if is_same else probe.accepted
                partition.finished_here = None  # it has been compared
                self._accept(client, partition, claim, probe.start)
            elif not records and not passed:
                self._discard(client, partition, probe.claim, probe.start, LogLoss.TRUNCATED)
            elif expected is None or found == expected:
                # A position may lie further on, behind a gap in the offsets; a log that was truncated fills the gap.
                position = probe.claim.position if found is None else min(probe.claim.position, found.offset + 1)
                claim = CommittedPosition(position, probe.claim.finished, found)
                self._accept(client, partition, claim, probe.start)
            else:
                self._discard(client, partition, probe.claim, probe.start, LogLoss.REPLACED)
        except IllegalStateError:
            log.info("partition was revoked while its log was checked", group=self._group_id, partition=str(partition))

    def _accept(self, client: GroupClient, partition: Partition, claim: CommittedPosition, start: int) -> None:
        """Continues at the claimed position: the claim describes this log."""
        recalled = self._recall(client, partition, claim, start)
        if recalled is None:
            return
        claim = recalled
        begin = max(claim.position, start)
        client.seek(partition.tp, begin)
        removed = removed_unread(claim, start)
        if removed:
            report_removed(self._problems, self._group_id, partition.tp, claim.position, start, removed)
        if not partition.restored:
            log_start = begin if claim.is_start else None
            partition.restore(OffsetTracker(begin, claim.finished), claim.fingerprint, log_start)
        partition.suspect = partition.is_out_of_range = False
        partition.next_offset = partition.reached = begin
        self._owner.on_readable()

    def _recall(
        self, client: GroupClient, partition: Partition, claim: CommittedPosition, start: int
    ) -> CommittedPosition | None:
        """Returns the claim, extended by what this process finished before the partition was taken from it.

        Returns None if the log has to be compared first: another member may have committed since, of another log.
        """
        memory = partition.finished_here
        if memory is None or partition.restored or not memory.may_extend(partition.claim):
            return claim
        described, extended = memory.claim.fingerprint, claim.merged(memory.claim)
        is_known = (extended.position, extended.finished) == (claim.position, claim.finished)
        if is_known or described is None or described.offset < start:
            return claim
        client.seek(partition.tp, described.offset)
        gives_up_at = asyncio.get_running_loop().time() + SILENT_S
        partition.probe = Probe(memory.claim, described.offset, start, True, gives_up_at, accepted=claim)
        self._owner.on_readable()
        return None

    def _discard(
        self, client: GroupClient, partition: Partition, claim: CommittedPosition, start: int, loss: LogLoss
    ) -> None:
        """Reads the log from its start: the claim describes another log."""
        client.seek(partition.tp, start)
        report_lost_log(self._problems, self._group_id, partition.tp, loss, claim.position, start)
        successor = self._owner.on_log_lost(partition) if partition.restored else partition
        successor.restore(OffsetTracker(start), None, start)
        successor.source, successor.next_offset = partition.source, start
        successor.suspect = successor.is_out_of_range = False
        self._owner.on_readable()
