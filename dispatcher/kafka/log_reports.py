"""Reports the fate of a partition's log: it was lost, records expired unread, or another client moved its position.

Each event has a log line of its own. Those that operators have to act on are also Kafka problems, which `/readyz` shows
for an hour.
"""

from enum import StrEnum
from typing import Final

import structlog
from aiokafka import TopicPartition

from dispatcher.contract.kafka_problems import KafkaReason
from dispatcher.kafka.commit_metadata import CommittedPosition
from dispatcher.kafka.problems import KafkaProblems, partition_name
from dispatcher.telemetry import metrics

log = structlog.get_logger(__name__)

REPORTED_S: Final = 3600.0
"""Time for which readiness reports what happened to a log."""


class LogLoss(StrEnum):
    """Why a position was discarded."""

    TRUNCATED = "truncated"
    """The log ends before it."""
    REPLACED = "replaced"
    """The log holds other records than those that were read."""


def report_lost_log(
    problems: KafkaProblems, group_id: str, tp: TopicPartition, loss: LogLoss, position: int, start: int
) -> None:
    """Counts, logs and reports that a partition's log was lost: it is read again from offset `start`."""
    metrics.LOG_RESETS.labels(tp.topic, loss.value).inc()
    place = partition_name(tp)
    log.error(
        "the log of a partition is not the one that was read before: its positions are discarded, and it is read "
        "from its start", group=group_id, partition=place, reason=loss.value, position=position, begins_at=start,
    )  # fmt: skip
    detail = f"the log of {place} was {loss.value}: read again from offset {start}"
    problems.report(KafkaReason.TOPIC_REPLACED, detail, source=place, lasts_s=REPORTED_S)


def report_removed(
    problems: KafkaProblems, group_id: str, tp: TopicPartition, position: int, start: int, removed: int
) -> None:
    """Counts, logs and reports records that retention removed from a partition before they were read."""
    metrics.RECORDS_REMOVED_UNREAD.labels(tp.topic).inc(removed)
    place = partition_name(tp)
    log.error(
        "records were removed from a partition before they were read: lost", group=group_id, partition=place,
        records=removed, position=position, log_start=start,
        cure="longer retention.ms of the topic, or more capacity; see the runbook DispatcherRecordsRemovedUnread",
    )  # fmt: skip
    detail = f"retention removed {removed} unread records of {place}, before offset {start}"
    problems.report(KafkaReason.RECORDS_EXPIRED, detail, source=place, lasts_s=REPORTED_S)


def report_if_foreign(
    problems: KafkaProblems,
    group_id: str,
    tp: TopicPartition,
    before: CommittedPosition | None,
    now: CommittedPosition | None,
) -> None:
    """Logs and reports a position that was moved forward by a client that isn't a dispatcher: it has no fingerprint.

    `before`: the position that this process has committed or found last.
    """
    if before is None or now is None or before.fingerprint is None:
        return
    if now.fingerprint is not None or now.is_start or now.position <= before.position:
        return
    place = partition_name(tp)
    log.error(
        "a client that isn't a dispatcher has committed a position: the records before it are not delivered",
        group=group_id, partition=place, position_before=before.position, position=now.position,
    )  # fmt: skip
    detail = f"a client that isn't a dispatcher has moved group {group_id} in {place} from {before.position} to "
    detail += f"{now.position}: these records are not delivered"
    problems.report(KafkaReason.GROUP_SHARED, detail, source=place, lasts_s=REPORTED_S)


def report_kept(group_id: str, tp: TopicPartition, records: int) -> None:
    """Logs that the records that were read of a log that is gone are still delivered."""
    log.warning(
        "the log of a partition is gone: what was read of it is still delivered", group=group_id,
        partition=partition_name(tp), records=records,
    )  # fmt: skip


def report_cut_off(group_id: str, tp: TopicPartition, records: int) -> None:
    """Counts and logs records of a log that is gone that the end of the process cuts off."""
    metrics.RECORDS_REMOVED_UNREAD.labels(tp.topic).inc(records)
    log.error(
        "stopped before all records of a log that is gone were delivered: lost", group=group_id,
        partition=partition_name(tp), records=records,
    )  # fmt: skip
