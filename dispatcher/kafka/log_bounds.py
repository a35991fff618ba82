"""Asks for the first offsets of logs and the ones after their last, so that each partition is answered for itself.

aiokafka answers for all partitions or for none: one without a leader would keep the others from being read.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from copy import copy
from typing import TYPE_CHECKING, Final

from aiokafka import TopicPartition
from aiokafka.consumer.fetcher import READ_UNCOMMITTED
from aiokafka.errors import KafkaError, LeaderNotAvailableError

from dispatcher.kafka import throttling

if TYPE_CHECKING:
    from aiokafka import AIOKafkaConsumer

LEADER_ANSWERS_S: Final = 2.5
"""Deadline for the partitions of one leader; as long again for each of them alone, if that fails. A leader that
slows this process down by a quota has more time."""
LONGEST_ANSWER_S: Final = 3 * LEADER_ANSWERS_S + 2 * throttling.LONGEST_THROTTLE_S
"""The longest that an answer takes."""

Offsets = dict[TopicPartition, int]
Range = tuple[int, int]
"""From the first offset to before the last."""
_Ask = Callable[[Sequence[TopicPartition]], Awaitable[Offsets]]


async def first_offsets(consumer: "AIOKafkaConsumer[bytes, bytes]", tps: Sequence[TopicPartition]) -> Offsets:
    """Returns the logs' first offsets, without the partitions that don't answer.

    Raises:
        KafkaError, TimeoutError: none answers.
    """
    return await _offsets(consumer, consumer.beginning_offsets, tps)


async def high_watermarks(consumer: "AIOKafkaConsumer[bytes, bytes]", tps: Sequence[TopicPartition]) -> Offsets:
    """Returns the offsets after the logs' last, open transactions included; without partitions that don't answer.

    A consumer that reads committed records only gets the end before the first open transaction from `end_offsets`.

    Raises:
        KafkaError, TimeoutError: none answers.
    """
    fetcher = copy(consumer._fetcher)  # noqa: SLF001  (the level is an attribute, which fetches in progress read)
    fetcher._isolation_level = READ_UNCOMMITTED  # noqa: SLF001
    return await _offsets(consumer, lambda tps: fetcher.end_offsets(tps, consumer._request_timeout_ms), tps)  # noqa: SLF001


async def end_offsets(consumer: "AIOKafkaConsumer[bytes, bytes]", tps: Sequence[TopicPartition]) -> Offsets:
    """Returns the offsets after the logs' last, without the partitions that don't answer.

    Raises:
        KafkaError, TimeoutError: none answers.
    """
    return await _offsets(consumer, consumer.end_offsets, tps)


async def ranges_of(
    consumer: "AIOKafkaConsumer[bytes, bytes]", tps: Sequence[TopicPartition]
) -> dict[TopicPartition, Range]:
    """Returns the logs' first offsets and the ones after their last, without the partitions that don't answer.

    Raises:
        KafkaError, TimeoutError: none answers.
    """
    firsts = await first_offsets(consumer, tps)
    ends = await end_offsets(consumer, list(firsts))
    return {tp: (firsts[tp], end) for tp, end in ends.items()}


def leader_of(consumer: "AIOKafkaConsumer[bytes, bytes]", tp: TopicPartition) -> int | None:
    """Returns the node that leads a partition, or None if none is known to."""
    leader: int | None = consumer._client.cluster.leader_for_partition(tp)  # noqa: SLF001
    return None if leader == -1 else leader


async def _offsets(consumer: "AIOKafkaConsumer[bytes, bytes]", ask: _Ask, tps: Sequence[TopicPartition]) -> Offsets:
    """Asks each leader on its own; if it fails, asks it for each of its partitions on its own."""
    if any(leader_of(consumer, tp) is None for tp in tps):  # perhaps only this client doesn't know it yet
        for topic in {tp.topic for tp in tps}:
            consumer._client.add_topic(topic)  # noqa: SLF001
        with suppress(TimeoutError):
            async with asyncio.timeout(LEADER_ANSWERS_S):
                await consumer._client.force_metadata_update()  # noqa: SLF001
    led: dict[int | None, list[TopicPartition]] = {}
    for tp in tps:
        led.setdefault(leader_of(consumer, tp), []).append(tp)
    without_leader = led.pop(None, [])
    found, failed = await _gathered(consumer, ask, list(led.values()))
    alone = [[tp] for group in failed if len(group) > 1 for tp in group]
    if alone:
        found |= (await _gathered(consumer, ask, alone))[0]
    if failed and not found:
        raise next(iter(failed.values()))
    if without_leader and not found:
        raise LeaderNotAvailableError(f"partitions without a leader: {len(without_leader)}")
    return found


async def _gathered(
    consumer: "AIOKafkaConsumer[bytes, bytes]", ask: _Ask, groups: Iterable[Sequence[TopicPartition]]
) -> tuple[Offsets, dict[tuple[TopicPartition, ...], Exception]]:
    """Asks for all groups at once. Returns the offsets that came in time, and the error of each group that failed."""
    found: Offsets = {}
    failed: dict[tuple[TopicPartition, ...], Exception] = {}

    async def answer(group: Sequence[TopicPartition]) -> None:
        try:
            leader = leader_of(consumer, group[0])
            found.update(await throttling.answered(consumer._client, leader, ask(group), LEADER_ANSWERS_S))  # noqa: SLF001
        except (KafkaError, TimeoutError) as error:
            failed[tuple(group)] = error
        except (KeyError, AttributeError) as error:  # what aiokafka makes of an odd answer
            failed[tuple(group)] = KafkaError(f"odd answer: {type(error).__name__}")

    await asyncio.gather(*map(answer, groups))
    return found, failed
