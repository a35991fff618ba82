"""Notices when the log of a partition may have been replaced while a consumer reads it.

A topic that is deleted and created again, or a log that is truncated, may have grown past the old position before the
next fetch: offsets alone don't show it. The log has to be compared after a change of its leader or of the connection to
it, after a time in which the metadata had no leader, and after a gap in the fetches, see `fetch_gaps`.
"""

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from aiokafka import TopicPartition
from aiokafka.client import ConnectionGroup

from dispatcher.kafka.fetch_gaps import FetchGaps
from dispatcher.kafka.log_bounds import leader_of

if TYPE_CHECKING:
    from aiokafka import AIOKafkaConsumer


class LogSources:
    """Watches the leader and the connection of each partition that one consumer reads.

    Create it before the consumer's first fetch.
    """

    def __init__(self, consumer: "AIOKafkaConsumer[bytes, bytes]") -> None:
        self._consumer = consumer
        self._moves: Counter[TopicPartition] = Counter()
        """How often each partition was seen without a leader, or not at all."""
        self._gaps = FetchGaps()
        self._last_seen: dict[TopicPartition, tuple[object, ...]] = {}
        client = consumer._client  # noqa: SLF001
        client.send = self._gaps.watching(client.send)
        client.cluster.add_listener(self._metadata_changed)

    def of(self, tp: TopicPartition) -> tuple[object, ...]:
        """Returns a value that changes whenever the partition's log may have been replaced."""
        leader = leader_of(self._consumer, tp)
        connection = self._consumer._client._conns.get((leader, ConnectionGroup.DEFAULT))  # noqa: SLF001
        return leader, connection, self._moves[tp], self._gaps.count(tp)

    def changed(self, tps: Iterable[TopicPartition]) -> list[TopicPartition]:
        """Returns the partitions whose log may have been replaced since the last call; all of them at the first."""
        now = {tp: self.of(tp) for tp in tps}
        changed = [tp for tp, source in now.items() if self._last_seen.get(tp) != source]
        self._last_seen.update(now)
        return changed

    def _metadata_changed(self, _cluster: Any) -> None:
        """Notes partitions that lack a leader: the topic is being deleted, or the next leader may have lost records."""
        self._moves.update(tp for tp in self._consumer.assignment() if leader_of(self._consumer, tp) is None)
