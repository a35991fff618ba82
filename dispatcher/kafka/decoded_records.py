"""Makes aiokafka return each record as a `Record` instead of its own class, whose fields take longer to read."""

from typing import Any, Final

from aiokafka import TopicPartition
from aiokafka.consumer.fetcher import PartitionRecords

from dispatcher.contract.records import Record

_NO_TIMESTAMP: Final = -1
"""Timestamp of a record without one, as the message formats 1 and 2 write it; format 0 has no field for it."""


def apply() -> None:
    """Replaces the function of aiokafka that builds a record."""
    PartitionRecords._consumer_record = staticmethod(_record_of)  # noqa: SLF001


def _record_of(tp: TopicPartition, decoded: Any) -> Record:
    timestamp = decoded.timestamp
    return Record(
        tp.topic,
        tp.partition,
        decoded.offset,
        _NO_TIMESTAMP if timestamp is None else timestamp,
        decoded.key,
        decoded.value,
        tuple(decoded.headers),
        decoded.timestamp_type or 0,
    )
