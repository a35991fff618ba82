"""Finds the offset to read a partition of held events from, and checks that its log is still the one that was read.

A position means something only in the log that it was made of (`log_check` has the whole story). The commit's metadata
names the last record that was read: if the log has another record there, or none, it is another log. If none was
read, it says that the position was the log's start: a log that begins lower is another one.
"""

import asyncio
from dataclasses import dataclass, replace
from typing import Final

import structlog
from aiokafka import TopicPartition
from aiokafka.errors import OffsetOutOfRangeError

from dispatcher.contract.records import Record
from dispatcher.kafka.commit_metadata import Fingerprint, decode_metadata, own_metadata
from dispatcher.kafka.held_topic import Directory, Snapshot, SnapshotOffsets
from dispatcher.kafka.log_bounds import LONGEST_ANSWER_S
from dispatcher.kafka.log_reports import LogLoss, report_if_foreign, report_lost_log, report_removed
from dispatcher.kafka.membership import Bounds, GroupClient
from dispatcher.kafka.problems import KafkaProblems, partition_name

log = structlog.get_logger(__name__)

PROBE_MS: Final = 3_000
ANSWER_S: Final = 10.0

Committed = tuple[int, str]
"""Position and metadata, as written."""


@dataclass(frozen=True, slots=True)
class HeldStart:
    """The position to begin at. Every event before it is finished; the snapshot lists what is finished beyond it."""

    position: int
    snapshot: Snapshot
    fingerprint: Fingerprint | None
    """Identifies the log by the last record that was read; None if none was."""
    committed: Committed | None
    """The group's commit, as it is known."""
    log_start: int | None = None
    """Where the log began, if nothing of it was read and `position` lies there."""
    directory: Directory | None = None
    """Places of the tenants' events, as far as an earlier reader has read; None if they are not known."""
    directory_at: int | None = None
    """Offset of the directory's record; None if it was not written."""
    snapshot_at: int | None = None
    """Offset of the newest snapshot's record, which may say less; None if none was written."""


async def find_start(
    client: GroupClient, tp: TopicPartition, finished_here: HeldStart | None, problems: KafkaProblems, group_id: str
) -> HeldStart:
    """Returns where to begin: at `finished_here`, if no other member has committed since, else at the group's commit.

    If the log is another one, it is read from its start. That is reported, as are records that retention has removed.

    Args:
        finished_here: what this process had finished when the partition was revoked, perhaps more than it could commit.

    Raises:
        KafkaError, TimeoutError: Kafka doesn't answer.
    """
    async with asyncio.timeout(ANSWER_S):
        known = (await client.committed_metadata([tp])).get(tp)
    bounds = await bounds_of(client, tp)
    start = None
    if finished_here is not None and finished_here.committed is not None and known is not None:
        report_if_foreign(problems, group_id, tp, decode_metadata(*finished_here.committed), decode_metadata(*known))
    if (
        finished_here is not None
        and finished_here.committed == known
        and await is_same_log(client, tp, finished_here, bounds)
    ):
        start = finished_here
    elif known is not None:
        start = await _committed_start(client, tp, known, bounds)
        if start is None:
            loss = LogLoss.REPLACED if known[0] <= bounds.end else LogLoss.TRUNCATED
            report_lost_log(problems, group_id, tp, loss, known[0], bounds.start)
    if start is None:
        return HeldStart(bounds.start, Snapshot({}), None, known, log_start=bounds.start)
    if start.position < bounds.start:
        report_removed(problems, group_id, tp, start.position, bounds.start, bounds.start - start.position)
    position = max(start.position, bounds.start)
    log_start = None if start.log_start is None else position
    return replace(start, position=position, committed=known, log_start=log_start)


async def bounds_of(client: GroupClient, tp: TopicPartition) -> Bounds:
    """Returns the log's first offset and the one after its last.

    Raises:
        KafkaError, TimeoutError: Kafka doesn't answer.
    """
    async with asyncio.timeout(LONGEST_ANSWER_S):
        return (await client.bounds([tp]))[tp]


async def is_same_log(client: GroupClient, tp: TopicPartition, known: HeldStart, bounds: Bounds) -> bool:
    """Returns True if the log has the record that the fingerprint names, or has removed it by retention.

    Without a fingerprint, the log counts as the same unless it begins at a lower offset than before.

    Raises:
        KafkaError, TimeoutError: Kafka doesn't answer.
    """
    fingerprint = known.fingerprint
    if fingerprint is None:
        return known.log_start is None or known.log_start <= bounds.start
    if fingerprint.offset < bounds.start:
        return True
    record = await _record_at(client, tp, fingerprint.offset, bounds)
    return record is not None and Fingerprint.of(record) == fingerprint


async def _committed_start(
    client: GroupClient, tp: TopicPartition, known: Committed, bounds: Bounds
) -> HeldStart | None:
    """Returns the start that the commit names; None if it was made of another log."""
    position, metadata = known[0], own_metadata(*known)
    claim = decode_metadata(position, metadata)
    start = HeldStart(position, Snapshot({}), claim.fingerprint, known, position if claim.is_start else None)
    if not await is_same_log(client, tp, start, bounds) or (claim.fingerprint is None and position > bounds.end):
        return None
    named = SnapshotOffsets.of(metadata)
    if named.progress is not None:
        record = await _record_at(client, tp, named.progress, bounds)
        snapshot = None if record is None else Snapshot.of(record)
        if snapshot is None:
            log.warning("held events may be repeated: their snapshot is gone", partition=partition_name(tp))
        else:
            start = replace(start, snapshot=snapshot, snapshot_at=named.progress)
    if named.directory is not None and claim.fingerprint is not None:
        record = await _record_at(client, tp, named.directory, bounds)
        directory = None if record is None else Directory.of(record)
        start = replace(start, directory=directory, directory_at=None if directory is None else named.directory)
        if start.directory is None:
            log.info("all held events are read again: their directory is gone", partition=partition_name(tp))
    return start


async def _record_at(client: GroupClient, tp: TopicPartition, offset: int, bounds: Bounds) -> "Record | None":
    """Returns the record at an offset; None if the log has none there.

    Raises:
        TimeoutError: the broker doesn't answer, though the log should have the record.
    """
    client.seek(tp, offset)
    gives_up_at = asyncio.get_running_loop().time() + LONGEST_ANSWER_S
    try:
        records = (await client.getmany(tp, timeout_ms=PROBE_MS, max_records=1)).get(tp, [])
        while not records and client.is_throttled(tp) and asyncio.get_running_loop().time() < gives_up_at:
            records = (await client.getmany(tp, timeout_ms=PROBE_MS, max_records=1)).get(tp, [])
    except OffsetOutOfRangeError:
        return None
    if records:
        return records[0] if records[0].offset == offset else None
    position, end = client.position_of(tp), client.fetched_end_of(tp)
    if (position is None or position <= offset) and (end is None or offset < max(end, bounds.end)):
        raise TimeoutError
    return None  # it was compacted away, or the log ends before it: a new leader may say so too early, and then has it
