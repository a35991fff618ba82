"""Three Apache Kafka brokers as one cluster, for leader moves and rolling restarts.

The first node is the only controller too: while it is down, no leader moves.
"""

import asyncio
from types import TracebackType
from typing import Final, Self

from tests.kafka import topics
from tests.kafka.apache_kafka import ApacheKafka, random_cluster_id
from tests.kafka.server_properties import KafkaOptions

NODES: Final = 3
_REPLICATED: Final = {
    "default.replication.factor": "3",
    "offsets.topic.replication.factor": "3",
    "transaction.state.log.replication.factor": "3",
    "controlled.shutdown.enable": "true",
}


class KafkaCluster:
    """Three brokers; `nodes[0]` is the controller. Topics are replicated to all of them."""

    def __init__(self, message_max_bytes: int) -> None:
        self._message_max_bytes = message_max_bytes
        self.nodes: list[ApacheKafka] = []

    @property
    def bootstrap_servers(self) -> str:
        """Addresses of all brokers."""
        return ",".join(node.bootstrap_servers for node in self.nodes)

    async def leaders(self, topic: str) -> dict[int, ApacheKafka]:
        """Returns the leader of each partition, without the partitions that have none."""
        async with topics.admin_client(self.bootstrap_servers) as admin:
            (described,) = await admin.describe_topics([topic])
        return {one["partition"]: self.nodes[one["leader"] - 1] for one in described["partitions"] if one["leader"] > 0}

    async def __aenter__(self) -> Self:
        cluster_id = random_cluster_id()
        first = ApacheKafka(self._options(1, cluster_id, None))
        self.nodes.append(first)
        try:
            await first.start()
            others = [
                ApacheKafka(self._options(number, cluster_id, first.controller)) for number in range(2, NODES + 1)
            ]
            self.nodes += others
            await asyncio.gather(*(node.start() for node in others))
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._close()

    async def _close(self) -> None:
        for node in reversed(self.nodes):
            await node.close()

    def _options(self, number: int, cluster_id: str, controller: str | None) -> KafkaOptions:
        return KafkaOptions(
            node=number,
            cluster_id=cluster_id,
            controller=controller,
            auto_create_topics=False,
            message_max_bytes=self._message_max_bytes,
            heap_mb=320,
            extra=_REPLICATED,
        )
