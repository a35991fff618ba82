"""Notes the times at which nothing could be fetched of a partition: its topic may be another one afterwards.

A topic that is deleted and created again can have the same leader, over the same connection, and have grown past the
old position: a client that fetched nothing meanwhile sees a log that has grown. So the answers to fetches are noted.
One that follows an error, or comes long after the one before it (the process was stopped, the network stood still, the
partition's records had to wait), ends a gap, and the log is compared before it is read on.
"""

import math
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from functools import wraps
from typing import Any, Final

from aiokafka import TopicPartition
from aiokafka.errors import OffsetOutOfRangeError
from aiokafka.protocol.fetch import FetchRequest

from dispatcher.contract.records import STEADY_CLOCK

GAP_S: Final = 2.0
"""Time without an answer that makes a gap. An idle partition is fetched every 20 ms."""
TOLERANCE: Final = 2.0
"""After a gap, a wait counts as another gap only beyond this multiple of it, until one is shorter than `GAP_S` again.
Otherwise a log would be compared after every fetch, and never read, on a link on which each fetch takes long."""

Send = Callable[..., Awaitable[Any]]


def fetched_partitions(request: Any, response: Any) -> Iterator[tuple[TopicPartition, int]]:
    """Yields the partitions that a fetch was answered for, with their error codes; nothing of any other request."""
    if isinstance(request, FetchRequest):
        for topic, partitions in response.topics:
            for number, error_code, *_ in partitions:
                yield TopicPartition(topic, number), error_code


class FetchGaps:
    """Counts the gaps in what is fetched of each partition."""

    def __init__(self, clock: Callable[[], float] = STEADY_CLOCK) -> None:
        """`clock`: steady seconds."""
        self._clock = clock
        self._answered: dict[TopicPartition, tuple[float, float]] = {}
        """When each partition was last fetched without an error, and the time after which the next answer is late."""
        self._gaps: Counter[TopicPartition] = Counter()

    def count(self, tp: TopicPartition) -> int:
        """Returns the number of gaps so far."""
        return self._gaps[tp]

    def note(self, tp: TopicPartition, error_code: int) -> None:
        """Notes the answer to a fetch. A gap counts when it is over, so that an error that lasts counts once."""
        if error_code == OffsetOutOfRangeError.errno:
            return  # the log is compared because of that
        if error_code:
            self._answered[tp] = (-math.inf, GAP_S)
            return
        now = self._clock()
        before, late_after_s = self._answered.get(tp, (now, GAP_S))
        waited_s = now - before
        if waited_s <= GAP_S:
            late_after_s = GAP_S
        elif waited_s > late_after_s:
            self._gaps[tp] += 1
            late_after_s = TOLERANCE * waited_s
        self._answered[tp] = (now, late_after_s)

    def watching(self, send: Send) -> Send:
        """Returns `send` of a client, which notes the answers to fetches."""

        @wraps(send)
        async def sent(node_id: Any, request: Any, **named: Any) -> Any:
            response = await send(node_id, request, **named)
            for tp, error_code in fetched_partitions(request, response):
                self.note(tp, error_code)
            return response

        return sent
