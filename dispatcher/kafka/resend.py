"""Resend: delivered events go to the shortest retry tier again, read at their original places in the topic of events.

The record keeps key, value and headers, and its origin travels along, so that receivers see the webhook-id that they
know. Records are found by topic, partition and offset, which the history has. The topic of events may have dropped
them meanwhile; those are counted as gone. A resend that is repeated sends the events again: nothing is marked.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from aiokafka import TopicPartition

from dispatcher.contract.events import DeliveryEvent, read_event
from dispatcher.contract.records import Origin, Record, RetryState, without_retry_state
from dispatcher.contract.tenant import TenantKey
from dispatcher.delivery.history_recorder import HistoryRecorder
from dispatcher.errors import UnreadableEvent
from dispatcher.kafka.log_bounds import Range
from dispatcher.kafka.producer import Producer
from dispatcher.kafka.redrive import count_too_large, paced
from dispatcher.kafka.topic_reader import TopicReader

REASON = "delivered"
"""Reason of the history entry of an event that is sent again after its delivery."""
NEAR = 1_000
"""Gap between two offsets up to which the records between them are read, too, rather than passed by a seek."""


@dataclass(slots=True)
class ResendTally:
    """Progress of a resend."""

    total: int
    """Events to send: selected, and still in their topics."""
    gone: int
    """Selected, but no longer in their topics, or another tenant's record is at their place now."""
    sent: int = 0
    too_large: int = 0
    """Not sent: the retry topic doesn't accept a record of this size."""

    def __add__(self, other: "ResendTally") -> "ResendTally":
        """Returns the progress of both."""
        return ResendTally(
            self.total + other.total, self.gone + other.gone, self.sent + other.sent, self.too_large + other.too_large
        )


def available_places(origins: Iterable[Origin], ranges: Mapping[TopicPartition, Range]) -> tuple[list[Origin], int]:
    """Returns the places that are still in their topics, in order, and the number of those that are gone."""
    places = set(origins)
    kept = [one for one in places if _is_in(one, ranges.get(TopicPartition(one.topic, one.partition)))]
    return sorted(kept, key=lambda one: (one.topic, one.partition, one.offset)), len(places) - len(kept)


class Resend:
    """One resend of a tenant's delivered events."""

    def __init__(
        self,
        reader: TopicReader,
        tenant: TenantKey,
        origins: Iterable[Origin],
        report: Callable[[ResendTally], None] = lambda _: None,
        history: HistoryRecorder | None = None,
        on_sent: Callable[[Origin], None] = lambda _: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._reader = reader
        self._tenant = tenant
        self._report = report
        self._history = history
        self._on_sent = on_sent
        self._clock = clock
        self._kept, gone = available_places(origins, reader.ranges)
        self.tally = ResendTally(len(self._kept), gone)

    async def send(self, producer: Producer, topic: str, rate: float, stop: asyncio.Event) -> ResendTally:
        """Sends to a retry topic, at most `rate` events per second, until done or stopped.

        Raises:
            NotWritten: the broker refused a record.
            DispatcherError: the broker returns no records.
        """
        for wanted, part in _parts(self._kept):
            found = 0
            async for records in self._reader.within(part).records():
                chosen = [one for one in records if one.offset in wanted]
                events = [(one, event) for one in chosen if (event := self._own_event(one)) is not None]
                found += len(events)
                async for batch in paced(events, rate, stop):
                    await self._send_batch(producer, topic, batch)
                    self._report(self.tally)
                if stop.is_set():
                    return self.tally
            self.tally.gone += len(wanted) - found
            self.tally.total -= len(wanted) - found
        return self.tally

    def _own_event(self, record: Record) -> DeliveryEvent | None:
        """Returns the record's event, or None if it isn't this tenant's: the topic may have been recreated since."""
        try:
            event = read_event(record, Origin(record.topic, record.partition, record.offset))
        except UnreadableEvent:
            return None
        return event if isinstance(event, DeliveryEvent) and event.tenant == self._tenant else None

    async def _send_batch(self, producer: Producer, topic: str, batch: Sequence[tuple[Record, DeliveryEvent]]) -> None:
        now = self._clock()
        writes = []
        for record, _ in batch:
            headers = [*without_retry_state(record.headers), *RetryState.fresh(record, now).headers()]
            writes.append(producer.write(topic, record.key, record.value, headers, "redrive"))
        results = await asyncio.gather(*writes, return_exceptions=True)
        for (record, event), result in zip(batch, results, strict=True):
            if isinstance(result, BaseException):
                continue
            self.tally.sent += 1
            origin = Origin(record.topic, record.partition, record.offset)
            self._on_sent(origin)
            if self._history is not None:
                self._history.record_redriven(event, origin, REASON)
        self.tally.too_large += count_too_large(results)


def _is_in(origin: Origin, range_: Range | None) -> bool:
    return range_ is not None and range_[0] <= origin.offset < range_[1]


def _parts(origins: Sequence[Origin]) -> Iterator[tuple[frozenset[int], dict[TopicPartition, Range]]]:
    """Yields groups of nearby offsets of one partition, each with the range that contains it."""
    by_partition: defaultdict[TopicPartition, list[int]] = defaultdict(list)
    for one in origins:
        by_partition[TopicPartition(one.topic, one.partition)].append(one.offset)
    for tp, offsets in by_partition.items():
        begin = 0
        for at in range(1, len(offsets) + 1):
            if at == len(offsets) or offsets[at] - offsets[at - 1] > NEAR:
                own = offsets[begin:at]
                yield frozenset(own), {tp: (own[0], own[-1] + 1)}
                begin = at
