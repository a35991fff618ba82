"""Sends dead events back to the shortest retry tier, due at once, to be delivered under the same webhook-id.

A redriven record keeps key, value, headers and the `feedback-origin-*` of its first place, so that receivers see the
id that they know; attempts, parks and age start from zero. It doesn't go to the topic of events,
because other groups read that and no `feedback-*` header is trusted there. It also stays in the dead-letter topic: what
was sent back is noted in *marks*, records among the dead ones (key `feedback-redriven`, no value, the offsets in a
header of the same name) in the same partition. A mark comes after what it marks, so retention removes it later, and it
needs no further topic, group or right. Committed offsets would expire earlier than the dead letters
(`offsets.retention.minutes`), and could not represent an arbitrary selection.

Order: read the marks up to the end that the topic has at the start, then read again, write a batch, wait for the
broker's word, write its mark, wait again. An orderly stop ends between batches and repeats nothing; a crash repeats
at most one batch (`MAX_BATCH` records), and two concurrent redrives of the same events repeat all of them at most.
No event is lost, and receivers recognise repeats by their webhook-id.
"""

import asyncio
import math
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TypeVar

from aiokafka import TopicPartition

from dispatcher.contract.events import DeliveryEvent, read_event
from dispatcher.contract.records import PREFIX, Record, RetryState, without_retry_state
from dispatcher.contract.tenant import TenantKey
from dispatcher.delivery.history_recorder import HistoryRecorder
from dispatcher.errors import RecordTooLarge, UnreadableEvent
from dispatcher.kafka.dead_letters import is_truncated
from dispatcher.kafka.log_bounds import Range
from dispatcher.kafka.offset_tracker import Run, decode_runs, encode_runs
from dispatcher.kafka.producer import Producer
from dispatcher.kafka.topic_reader import TopicReader
from dispatcher.tasks import set_within

MARK = PREFIX + "redriven"
T = TypeVar("T")
MAX_BATCH = 100
"""Records between two marks: what a crash repeats at most."""
_BATCHES_A_SECOND = 5


@dataclass(frozen=True, slots=True)
class Selection:
    """Selects dead events; every condition that is set must hold."""

    tenant: TenantKey | None = None
    reasons: frozenset[str] = frozenset()
    """Values of `DeadReason`; none: any."""
    since: float | None = None
    """Unix seconds: died then or later."""
    until: float | None = None
    """Unix seconds: died before."""
    message_statuses: frozenset[str] = frozenset()
    """Values of the event's `feedbackStatus`: `bounce`; none: any."""
    channels: frozenset[str] = frozenset()
    """None: any."""
    campaign_id: str | None = None
    event_ids: frozenset[str] = frozenset()
    """Values of `webhook-id`; none: any."""
    positions: frozenset[tuple[int, int]] | None = None
    """Partition and offset of single records; None: any."""

    def includes(self, dead: "DeadEvent") -> bool:
        """Returns True if the selection includes the event."""
        return (
            (self.tenant is None or dead.tenant == self.tenant)
            and (not self.reasons or dead.reason in self.reasons)
            and (self.since is None or dead.died_at >= self.since)
            and (self.until is None or dead.died_at < self.until)
            and (self.positions is None or (dead.record.partition, dead.record.offset) in self.positions)
            and (not self._is_of_events or (dead.event is not None and self._includes_event(dead.event)))
        )

    @property
    def _is_of_events(self) -> bool:
        """True if a condition needs the event itself: unreadable ones don't match then."""
        return bool(self.message_statuses or self.channels or self.event_ids) or self.campaign_id is not None

    def _includes_event(self, event: DeliveryEvent) -> bool:
        return (
            (not self.message_statuses or event.status in self.message_statuses)
            and (not self.channels or event.channel in self.channels)
            and (not self.event_ids or event.webhook_id in self.event_ids)
            and (self.campaign_id is None or event.execution.campaign_id == self.campaign_id)
        )

    def ranges(self, of: Mapping[TopicPartition, Range]) -> tuple[dict[TopicPartition, Range], ...]:
        """Returns the offset ranges that can hold the selected events, and those that can hold their marks."""
        if self.positions is None:
            return dict(of), dict(of)
        offsets: defaultdict[int, list[int]] = defaultdict(list)
        for partition, offset in self.positions:
            offsets[partition].append(offset)
        within = {tp: own for tp in of if (own := offsets.get(tp.partition)) is not None}
        events = {tp: (min(own), max(own) + 1) for tp, own in within.items()}
        return events, {tp: (min(own), of[tp][1]) for tp, own in within.items()}


@dataclass(frozen=True, slots=True)
class DeadEvent:
    """A record of the dead-letter topic."""

    record: Record
    tenant: TenantKey | None
    """None if neither the record nor its headers can be read."""
    reason: str
    """A `DeadReason`; empty if another program wrote the record."""
    died_at: float
    """Unix seconds."""
    retry_state: RetryState
    event: DeliveryEvent | None
    """None if the record can't be read as one. Holds personal data."""

    @classmethod
    def of(cls, record: Record) -> "DeadEvent":
        """Returns the dead event in a record."""
        retry_state = RetryState.of(record)
        event = _event(record, retry_state)
        tenant = _tenant_in_headers(record) if event is None else event.tenant
        return cls(record, tenant, retry_state.reason, record.timestamp / 1000, retry_state, event)

    @property
    def is_truncated(self) -> bool:
        """True if the dead letter carries only a part of the event."""
        return is_truncated(self.record.headers)

    def is_readable(self, max_record_bytes: float) -> bool:
        """Returns True if the dispatcher can read the event: it accepts values of at most `max_record_bytes`."""
        return self.event is not None and len(self.record.value or b"") <= max_record_bytes

    def can_be_sent(self, max_record_bytes: float) -> bool:
        """Returns True if a redrive sends the event; it leaves the others in the topic."""
        return self.is_readable(max_record_bytes) and not self.is_truncated


def is_mark(record: Record) -> bool:
    """Returns True if a record of the dead-letter topic is a mark and not a dead event."""
    return record.key == MARK.encode() and record.value is None and any(name == MARK for name, _ in record.headers)


@dataclass(slots=True)
class RedriveTally:
    """Counts of what a redrive has found and sent back so far."""

    selected: Counter[tuple[TenantKey, str]] = field(default_factory=Counter)
    """Events to send back, by tenant and reason."""
    sent: int = 0
    already: int = 0
    """Selected, but sent back by an earlier redrive."""
    gone: int = 0
    """Selected by position, but no longer in the topic."""
    unreadable: int = 0
    """Selected, but not sent back: they still can't be read as events, and would only stop a partition (the brake)."""
    truncated: int = 0
    """Selected, but not sent back: the dead letter carries only a part of the event."""
    too_large: int = 0
    """Not sent back: the retry topic doesn't accept a record of this size."""
    repeatable: int = 0
    """Sent back without a mark: the next redrive will repeat them."""

    @property
    def total(self) -> int:
        """Events to send back."""
        return self.selected.total()


OnProgress = Callable[[RedriveTally], None]


class Redrive:
    """Redrives the selected dead events. Call `count` first, then `send`."""

    def __init__(
        self,
        dead: TopicReader,
        selection: Selection,
        on_progress: OnProgress = lambda _: None,
        history: HistoryRecorder | None = None,
        clock: Callable[[], float] = time.time,
        max_record_bytes: float = math.inf,
    ) -> None:
        """Prepares a redrive of the events that `selection` selects in the dead-letter topic.

        `max_record_bytes`: a larger value is unreadable, as for the dispatcher.
        """
        events, marks = selection.ranges(dead.ranges)
        self._dead = dead.within(events)
        self._marks = dead.within(marks)
        self._selection = selection
        self._on_progress = on_progress
        self._history = history
        self._clock = clock
        self._max_record_bytes = max_record_bytes
        self._redriven: defaultdict[tuple[str, int], set[int]] = defaultdict(set)
        self.tally = RedriveTally()

    async def count(self) -> RedriveTally:
        """Reads the marks and counts what is to be sent back. Sends nothing."""
        async for records in self._marks.records():
            for record in filter(is_mark, records):
                self._redriven[record.topic, record.partition].update(marked_offsets(record))
        async for chosen in self._selected_batches():
            self.tally.selected.update(
                (dead.tenant, dead.reason or "unknown") for dead in chosen if dead.tenant is not None
            )
        if self._selection.positions is not None:
            known = self.tally.total + self.tally.already + self.tally.truncated + self.tally.unreadable
            self.tally.gone = len(self._selection.positions) - known
        return self.tally

    async def send(self, producer: Producer, topic: str, rate: float, stop: asyncio.Event) -> RedriveTally:
        """Sends events back to a retry topic, at most `rate` a second, until done or stopped.

        An event that is too large for the topic is counted and stays a dead letter.

        Raises:
            NotWritten: the broker refused a record or its mark; what was sent before is marked.
        """
        self.tally.already = self.tally.truncated = self.tally.unreadable = 0
        async for chosen in self._selected_batches():
            async for batch in paced(chosen, rate, stop):
                await self._send_batch(producer, topic, batch)
                self._on_progress(self.tally)
            if stop.is_set():
                break
        return self.tally

    async def _selected_batches(self) -> AsyncIterator[list[DeadEvent]]:
        """Yields the selected events in batches of one partition: those that can be sent and have not been."""
        async for records in self._dead.records():
            events = [DeadEvent.of(record) for record in records if not is_mark(record)]
            selected = [dead for dead in events if self._selection.includes(dead)]
            fresh = [dead for dead in selected if not self._was_redriven(dead.record)]
            whole = [dead for dead in fresh if not dead.is_truncated]
            self.tally.already += len(selected) - len(fresh)
            self.tally.truncated += len(fresh) - len(whole)
            readable = [dead for dead in whole if dead.is_readable(self._max_record_bytes)]
            self.tally.unreadable += len(whole) - len(readable)
            if readable:
                yield readable

    def _was_redriven(self, record: Record) -> bool:
        return record.offset in self._redriven[record.topic, record.partition]

    async def _send_batch(self, producer: Producer, topic: str, batch: Sequence[DeadEvent]) -> None:
        now = self._clock()
        writes = [
            producer.write(topic, dead.record.key, dead.record.value, fresh_headers(dead.record, now), "redrive")
            for dead in batch
        ]
        results = await asyncio.gather(*writes, return_exceptions=True)
        sent_back = [dead for dead, result in zip(batch, results, strict=True) if not isinstance(result, BaseException)]
        sent = [dead.record for dead in sent_back]
        self.tally.sent += len(sent)
        if self._history is not None:
            for dead in sent_back:
                self._history.record_redriven(dead.event, dead.retry_state.origin, dead.reason)
        if sent:
            self.tally.repeatable += len(sent)
            await _mark(producer, sent)
            self.tally.repeatable -= len(sent)
        self.tally.too_large += count_too_large(results)


async def paced(items: Sequence[T], rate: float, stop: asyncio.Event) -> AsyncIterator[Sequence[T]]:
    """Yields the items in batches, at most `rate` items per second, until `stop` is set."""
    size = max(1, min(MAX_BATCH, int(rate / _BATCHES_A_SECOND)))
    for at in range(0, len(items), size):
        if stop.is_set():
            return
        began, batch = time.monotonic(), items[at : at + size]
        yield batch
        await set_within(stop, len(batch) / rate - (time.monotonic() - began))


def count_too_large(results: Sequence[object]) -> int:
    """Returns how many writes were refused because the record is too large. Raises the first other error."""
    for result in results:
        if isinstance(result, BaseException) and not isinstance(result, RecordTooLarge):
            raise result
    return sum(isinstance(result, RecordTooLarge) for result in results)


def fresh_headers(record: Record, now: float) -> list[tuple[str, bytes | None]]:
    """Returns the headers of a record that is sent back: its own, its origin, and a retry state that begins now."""
    dead = RetryState.of(record)
    fresh = RetryState(dead.origin, round(now, 3), origin_timestamp=dead.origin_timestamp)
    return [*without_retry_state(record.headers), *fresh.headers()]


async def _mark(producer: Producer, records: Sequence[Record]) -> None:
    """Writes a mark for records of one partition, in rising order, that were sent back."""
    first = records[0]
    runs = encode_runs(0, _runs(record.offset for record in records))
    await producer.write(first.topic, MARK.encode(), None, [(MARK, runs.encode())], "redrive", first.partition)


def marked_offsets(record: Record) -> Iterable[int]:
    """Yields the offsets that a mark names as sent back, all in its own partition and none after the mark."""
    text = dict(record.headers).get(MARK) or b""
    for first, last in decode_runs(0, text.decode(errors="replace")):
        yield from range(first, min(last, record.offset) + 1)


def _runs(offsets: Iterable[int]) -> list[Run]:
    """Returns the runs of consecutive offsets; a gap ends a run."""
    grouped = groupby(enumerate(offsets), key=lambda pair: pair[1] - pair[0])
    runs = [[offset for _, offset in group] for _, group in grouped]
    return [(run[0], run[-1]) for run in runs]


def _event(record: Record, retry_state: RetryState) -> DeliveryEvent | None:
    try:
        event = read_event(record, retry_state.origin)
    except UnreadableEvent:
        return None
    return event if isinstance(event, DeliveryEvent) else None


def _tenant_in_headers(record: Record) -> TenantKey | None:
    headers = dict(record.headers)
    org, sandbox = headers.get("imsOrgId"), headers.get("sandboxName")
    return TenantKey(org.decode(errors="replace"), sandbox.decode(errors="replace")) if org and sandbox else None
