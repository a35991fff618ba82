"""Learns how long the metadata of commits may be: a broker can accept less than Kafka's default."""

import asyncio
from typing import Final

from dispatcher.contract.kafka_problems import KafkaReason
from dispatcher.kafka.offset_tracker import MAX_METADATA_BYTES
from dispatcher.kafka.problems import KafkaProblems

TRY_AGAIN_S: Final = 300.0
"""After so long the full length is tried again: the broker was repaired perhaps, or another one is the coordinator."""
LEAST_METADATA_BYTES: Final = 19
"""The shortest metadata that says anything."""


class MetadataLimit:
    """The longest metadata that the broker takes, as far as known."""

    def __init__(self, problems: KafkaProblems, source: str) -> None:
        """`problems` receives a limit that is too low, under the name `source`."""
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
            "of order: set offset.metadata.max.bytes=4096, Kafka's default"
        )
        self._problems.report(KafkaReason.COMMIT_REFUSED, detail, source=self._source, lasts_s=2 * TRY_AGAIN_S)
        return True

    def accepted(self, longest: int) -> None:
        """Ends the problem if the broker has taken as much as it refused before."""
        if 0 < self._refused <= longest:
            self._refused, self._holds_until = 0, 0.0
            self._problems.clear(KafkaReason.COMMIT_REFUSED, source=self._source)
