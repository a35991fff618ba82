"""Limits the metadata of commits to the length that the broker accepts, which can be less than Kafka's default."""

import asyncio
from typing import Final

from aiokafka.errors import InvalidCommitOffsetSizeError, OffsetMetadataTooLargeError

from dispatcher.contract.kafka_problems import KafkaReason
from dispatcher.kafka.offset_tracker import MAX_METADATA_BYTES
from dispatcher.kafka.problems import KafkaProblems

SIZE_REFUSED: Final = (OffsetMetadataTooLargeError, InvalidCommitOffsetSizeError)
"""One partition's metadata is too long for the broker, or that of all partitions together."""
TRY_AGAIN_S: Final = 300.0
"""Time after which the full length is tried again: the broker may be repaired, or another one be the coordinator."""
LEAST_METADATA_BYTES: Final = 19
"""Length of the shortest useful metadata."""


class MetadataLimit:
    """The longest metadata that the broker is known to accept for one consumer group's commits."""

    def __init__(self, problems: KafkaProblems, source: str) -> None:
        """Starts at Kafka's default. A lower limit of the broker is reported to `problems` under the name `source`."""
        self._problems = problems
        self._source = source
        self._refused = 0
        """The shortest length that was refused; 0 if that is over."""
        self._holds_until = 0.0
        """Loop time until which nothing longer than half of it is tried."""

    def bytes_now(self) -> int:
        """Returns the bytes that the next commit's metadata may have."""
        if asyncio.get_running_loop().time() >= self._holds_until:
            return MAX_METADATA_BYTES
        half = self._refused // 2
        return half if half >= LEAST_METADATA_BYTES else 0

    def lower(self, refused: int) -> bool:
        """Lowers the limit after the broker refused this size. Returns False if it was empty already."""
        if not refused:
            return False
        self._refused = refused
        self._holds_until = asyncio.get_running_loop().time() + TRY_AGAIN_S
        detail = (
            f"the broker refuses commit metadata of {refused} bytes; with less, a crash repeats what was finished out "
            "of order: set offset.metadata.max.bytes=4096 and message.max.bytes=1048588, Kafka's defaults, or more"
        )
        self._problems.report(KafkaReason.COMMIT_REFUSED, detail, source=self._source, lasts_s=2 * TRY_AGAIN_S)
        return True

    def accepted(self, longest: int) -> None:
        """Records an accepted commit. If it was as long as a refused one, the limit and the reported problem end.

        `longest`: bytes of the commit's longest metadata.
        """
        if 0 < self._refused <= longest:
            self._refused, self._holds_until = 0, 0.0
            self._problems.clear(KafkaReason.COMMIT_REFUSED, source=self._source)
