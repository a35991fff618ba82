"""Finds what happened to a message by reading topics, for deployments without a history store. Reads, never commits.

The history topic has all of it, if the history is on. Without it, the topic of events holds the event, and the
topics of parked, held and dead events its later copies; deliveries leave no trace there. Topics under former names are
read, too, see `former_topics`.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from dispatcher.config.settings import Settings
from dispatcher.contract.events import DeliveryEvent, read_event
from dispatcher.contract.history import MAX_ID, HistoryEntry, HistoryOutcome, decode_record
from dispatcher.contract.recipient import normalised_address, recipient_of
from dispatcher.contract.records import PREFIX, Record, RetryState, place_of, was_parked, without_retry_state
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import UnreadableEvent
from dispatcher.history.timeline import title
from dispatcher.kafka.former_topics import find_former_names
from dispatcher.kafka.redrive import is_mark
from dispatcher.kafka.topic_reader import SHORT_LEADER_S, open_topics, shown, translating_kafka_errors
from dispatcher.kafka.topics import dead_letter_topic, held_topic, history_topic, retry_topics

OnSilent = Callable[[str], None]
_IDS: Final = ("webhook_id", "event_id", "request_id", "message_execution_id", "campaign_id")
OF_RECIPIENT: Final = -1
"""Rank of an entry or event whose recipient is the wanted one."""
NEWEST = 1_000
"""Records of each partition that are read although their timestamps are too old: some producers write seconds."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """The value to search for, in any of an event's ids or in the one that is named."""

    value: str
    field: str | None = None
    """Attribute of `HistoryEntry`: webhook_id, event_id, request_id, message_execution_id, campaign_id or recipient."""
    tenant: TenantKey | None = None
    recipients: tuple[str, ...] = ()
    """The keyed hashes of `value`, if it may be an address."""
    others: tuple[str, ...] = ()
    """Other readings of the value, see `readings`: each counts only if no event has an earlier one."""

    def rank(self, entry: HistoryEntry) -> int | None:
        """Returns which reading the entry's event has as an id: 0 for `value`, 1 for the first of `others`.

        OF_RECIPIENT if it has the recipient, None if it doesn't match.
        """
        if self.tenant is not None and _cut(entry.org, entry.sandbox) != _cut(*self.tenant):
            return None
        if self.field in (None, "recipient") and entry.recipient in self.recipients:
            return OF_RECIPIENT
        ids = {_cut(getattr(entry, name)) for name in (_IDS if self.field is None else (self.field,)) if name in _IDS}
        return next((rank for rank, value in enumerate((self.value, *self.others)) if _cut(value) in ids), None)

    def rank_of_event(self, event: DeliveryEvent) -> int | None:
        """Returns the same as `rank`, for an event that was read from a topic."""
        address = recipient_of(event)
        entry = HistoryEntry(
            at=0, outcome=HistoryOutcome.ATTEMPT, org=event.tenant.org, sandbox=event.tenant.sandbox,
            webhook_id=event.webhook_id, event_id=event.event_id, request_id=event.request_id,
            message_execution_id=event.execution.execution_id,
            campaign_id=event.execution.campaign_id,
        )  # fmt: skip
        values = map(normalised_address, (self.value, *self.others))
        is_recipient = address is not None and normalised_address(address) in values
        if is_recipient and self.field in (None, "recipient") and self.tenant in (None, event.tenant):
            return OF_RECIPIENT
        return self.rank(entry)


@dataclass(frozen=True, slots=True)
class Found:
    """One entry or record that was found."""

    at: int
    """Unix time, milliseconds."""
    webhook_id: str | None
    text: str
    place: str
    """Topic, partition and offset of the record that says it."""
    entry: HistoryEntry | None = None
    """From the history topic."""
    rank: int = 0
    """Which reading of the wanted value it has, see `Wanted.rank`."""


def of_first_reading(found: Sequence[Found]) -> list[Found]:
    """Returns what was found by the earliest reading that found anything, and what has the recipient."""
    first = min((one.rank for one in found if one.rank != OF_RECIPIENT), default=OF_RECIPIENT)
    return [one for one in found if one.rank in (OF_RECIPIENT, first)]


async def find_in_history_topic(
    settings: Settings, wanted: Wanted, since: float, on_silent: OnSilent = lambda _: None
) -> list[Found] | None:
    """Returns the entries in the history topics, the oldest first; None if there is none.

    `on_silent` is called with the names of partitions that are left out: no broker answers for them.

    Raises:
        BrokerUnavailable: the broker can't be reached.
    """
    found: dict[tuple[int, int], Found] = {}
    with translating_kafka_errors(settings.kafka):
        existing, former = await find_former_names(settings)
    names = [name for name in (history_topic(settings.kafka.prefix), *former.history) if name in existing]
    for topic in names:
        async for record in _records(settings, topic, since, on_silent):
            try:
                decoded = decode_record(record.value)
            except UnreadableEvent:
                continue
            for run in decoded.runs:
                for number, entry in enumerate(run.entries, run.first):
                    if (rank := wanted.rank(entry)) is not None:
                        key = run.writer, number  # repeats have the same
                        found[key] = Found(entry.at, entry.webhook_id, title(entry), place_of(record), entry, rank)
    return of_first_reading(sorted(found.values(), key=lambda one: one.at)) if names else None


async def find_in_event_topics(
    settings: Settings, wanted: Wanted, since: float, on_silent: OnSilent = lambda _: None
) -> list[Found]:
    """Returns the event's records in the topic of events and in those of parked, held and dead events, oldest first.

    `on_silent`: see `find_in_history_topic`.

    Raises:
        BrokerUnavailable: the broker can't be reached.
    """
    kafka = settings.kafka
    found: list[Found] = []
    with translating_kafka_errors(kafka):
        existing, former = await find_former_names(settings)
    waiting = dict.fromkeys((held_topic(kafka.prefix), *former.held), "Held")
    waiting |= dict.fromkeys((dead_letter_topic(kafka.prefix), *former.dead), "Dead")
    names = (kafka.topic, *retry_topics(kafka.prefix, settings.retry.tiers), *former.tiers, *waiting)
    for topic in [name for name in names if name in existing]:
        async for record in _records(settings, topic, since, on_silent):
            event = _event_in(record)
            if event is not None and (rank := wanted.rank_of_event(event)) is not None:
                text = _in_words(record, waiting.get(topic))
                found.append(Found(record.timestamp, event.webhook_id, text, place_of(record), rank=rank))
    return of_first_reading(sorted(found, key=lambda one: one.at))


async def _records(settings: Settings, topic: str, since: float, on_silent: OnSilent) -> AsyncIterator[Record]:
    """Yields the records from a time on, by their timestamps, and the newest ones whatever their timestamps say."""
    async with open_topics(
        settings.kafka, [topic], passes_over_unreadable=True, without_silent=True, leader_s=SHORT_LEADER_S
    ) as whole:
        if whole.silent:
            on_silent(shown(whole.silent))
        recent = await whole.since(since)
        reader = whole.within(
            {
                tp: (min(recent.ranges[tp][0], max(first, end - NEWEST)), end)
                for tp, (first, end) in whole.ranges.items()
            }
        )
        async for records in reader.records():
            for record in records:
                if topic == settings.kafka.topic:  # as when it is delivered, no `feedback-*` header is believed there
                    record = replace(record, headers=tuple(without_retry_state(record.headers)))
                yield record


def _event_in(record: Record) -> DeliveryEvent | None:
    if is_mark(record):
        return None
    try:
        event = read_event(record, RetryState.of(record).origin)
    except UnreadableEvent:
        return None
    return event if isinstance(event, DeliveryEvent) else None


def _cut(*texts: str | None) -> tuple[str | None, ...]:
    """Returns texts as the history has them."""
    return tuple(text and text[:MAX_ID] for text in texts)


def _in_words(record: Record, outcome: str | None) -> str:
    """Describes a record. `outcome`: of a topic whose events all have the same."""
    state = RetryState.of(record)
    so_far = f"after {state.attempts} attempts" if state.attempts else "before the first attempt"
    last = "" if state.last_status is None else f", last answer {state.last_status}"
    if outcome is not None:
        detail = (dict(record.headers).get(PREFIX + "detail") or b"").decode(errors="replace")
        return f"{outcome} {so_far}{last}: {state.reason}" + (f", {detail}" if detail else "")
    if state.parks:
        return f"Parked {so_far}{last}: {state.reason}"
    return "Sent back from the dead letters" if was_parked(record.headers) else "Arrived"
