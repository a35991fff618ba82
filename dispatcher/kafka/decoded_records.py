"""Makes a `Record` of each record that aiokafka decodes, in place of its own class, which takes longer to read."""

from typing import Any, Final

from aiokafka import TopicPartition
from aiokafka.consumer.fetcher import PartitionRecords

from dispatcher.contract.records import Record

_NO_TIMESTAMP: Final = -1
"""What newer formats carry for a record without a timestamp; the oldest has no field for it."""


def apply() -> None:
    """Patches aiokafka's class."""
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
