"""Reports partitions that wait for a transaction: nothing behind its first record can be read before it has ended."""

from typing import Final

from dispatcher.contract.kafka_problems import KafkaReason
from dispatcher.kafka.membership import GroupClient
from dispatcher.kafka.partition import Partition
from dispatcher.kafka.problems import KafkaProblems

OPEN_S: Final = 60.0
"""Kafka's default `transaction.timeout.ms`: the transaction hangs, or its producer allows itself more time."""
REPORTED_S: Final = 45.0


def note_open_transaction(problems: KafkaProblems, client: GroupClient, partition: Partition, now: float) -> None:
    """Reports the partition if it has waited for the same transaction for a minute. `now`: loop time."""
    tp = partition.tp
    stable, position = client.stable_end_of(tp), client.position_of(tp)
    if stable is None or position is None or not 0 <= stable <= position < partition.end:
        partition.waits_at = None
        problems.clear(KafkaReason.OPEN_TRANSACTION, source=str(partition))
    elif partition.waits_at != stable:
        partition.waits_at, partition.waits_since = stable, now
    elif now - partition.waits_since >= OPEN_S:
        detail = (
            f"{partition} waits for a transaction that has been open since offset {stable} for over a minute: if its "
            f"producer is gone, end it with `kafka-transactions.sh … abort --topic {tp.topic} --partition "
            f"{tp.partition} --start-offset {stable}`"
        )
        problems.report(KafkaReason.OPEN_TRANSACTION, detail, source=str(partition), lasts_s=REPORTED_S)
