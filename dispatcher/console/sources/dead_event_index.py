"""In-memory index of dead letters, for search. Pure. Contains personal data: recipients' addresses."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from dispatcher.console.model import DeadEventModel, DeadPage, DeadQuery
from dispatcher.console.sources.fair_buffer import FairBuffer
from dispatcher.contract.recipient import recipient_of
from dispatcher.contract.records import PREFIX, Record
from dispatcher.contract.search_text import first_known
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import NotFound
from dispatcher.kafka.redrive import DeadEvent, is_mark, marked_offsets
from dispatcher.stores.sql.records import Orgs

MOST_KEPT: Final = 20_000
"""Dead events of all tenants, about 60 MB."""
MOST_ON_PAGE: Final = 200

_Place = tuple[int, int]
"""Partition and offset."""
_Order = tuple[float, int, int]
"""Time of death in milliseconds, partition, offset: newer is greater."""


@dataclass(frozen=True, slots=True)
class _IndexedEvent:
    dead_event: DeadEventModel
    place: _Place

    @property
    def order(self) -> _Order:
        return (round(self.dead_event.died_at * 1000), *self.place)


class DeadEventIndex:
    """The newest dead events, and which of them were sent again by a redrive."""

    def __init__(self, most: int = MOST_KEPT, max_record_bytes: float = math.inf) -> None:
        """Creates an empty index of at most `most` events; a redrive sends none over `max_record_bytes`."""
        self._max_record_bytes = max_record_bytes
        self._by_tenant: FairBuffer[TenantKey | None, _Place] = FairBuffer(most, most)
        self._kept: dict[_Place, _IndexedEvent] = {}
        self._redriven: set[_Place] = set()
        self._newest_first: list[_IndexedEvent] | None = None

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def is_all(self) -> bool:
        """True if nothing was evicted."""
        return not self._by_tenant.lost

    def append(self, records: Sequence[Record]) -> None:
        """Adds dead events, and applies the marks of redrives."""
        for record in records:
            if is_mark(record):
                places = ((record.partition, offset) for offset in marked_offsets(record))
                self._redriven.update(place for place in places if place in self._kept)
                continue
            place = (record.partition, record.offset)
            dead_event = dead_event_of(record, self._max_record_bytes)
            self._kept[place] = _IndexedEvent(dead_event, place)
            for gone in self._by_tenant.add(dead_event.tenant, place):
                del self._kept[gone]
                self._redriven.discard(gone)
        self._newest_first = None

    def reset(self) -> None:
        """Empties the index, because the topic is about to be read again."""
        self._by_tenant.clear()
        self._kept.clear()
        self._redriven.clear()
        self._newest_first = None

    def search(self, query: DeadQuery, *, orgs: Orgs) -> DeadPage:
        """Returns a page of the organisations' dead events; the campaign may be written as people paste it.

        Raises:
            NotFound: the cursor is invalid.
        """
        query = self.with_known_campaign(query, orgs=orgs)
        before = None if query.before is None else _order_in(query.before)
        limit = max(1, min(query.limit, MOST_ON_PAGE))
        matching = [kept for kept in self._of(query.tenant) if self._matches(kept, query, orgs)]
        rest = matching if before is None else [kept for kept in matching if kept.order < before]
        shown = rest[:limit]
        cursor = "-".join(map(str, map(int, shown[-1].order))) if len(rest) > limit else None
        with_tenant = [(tenant, kept) for kept in matching if (tenant := kept.dead_event.tenant) is not None]
        by_tenant = Counter(tenant for tenant, _ in with_tenant)
        sendable = Counter(tenant for tenant, kept in with_tenant if kept.dead_event.can_be_sent)
        return DeadPage(tuple(map(self._fact, shown)), len(matching), cursor, by_tenant, sendable, self.is_all)

    def matching(self, query: DeadQuery, *, orgs: Orgs) -> Sequence[DeadEventModel]:
        """Returns all of the organisations' dead events that match, the newest first, whatever the query's limit.

        The campaign must be that of the events, as `with_known_campaign` returns it.
        """
        return [kept.dead_event for kept in self._of(query.tenant) if self._matches(kept, query, orgs)]

    def known_campaign(self, text: str, *, tenant: TenantKey | None, orgs: Orgs) -> str | None:
        """Returns the first of a text's `readings` that is the campaign of a kept dead event; None if none is.

        Events that were sent again count, and no other filter matters: list, count and redrive select one campaign.
        """
        kept = (one.dead_event for one in self._of(tenant))
        return first_known(text, {one.campaign_id for one in kept if _may_see(one, orgs)})

    def with_known_campaign(self, query: DeadQuery, *, orgs: Orgs) -> DeadQuery:
        """Returns the query with the campaign as the events have it; as it was typed if none is known."""
        if query.campaign_id is None:
            return query
        known = self.known_campaign(query.campaign_id, tenant=query.tenant, orgs=orgs)
        return replace(query, campaign_id=known or query.campaign_id)

    def get(self, dead_id: str, *, orgs: Orgs) -> DeadEventModel:
        """Returns a dead event. Raises NotFound if it isn't kept, or belongs to another organisation."""
        kept = self._kept.get(place_of(dead_id))
        if kept is None or not _may_see(kept.dead_event, orgs):
            raise NotFound("there is no such dead event, or it is no longer kept")
        return self._fact(kept)

    def count(self, tenant: TenantKey, since: float) -> int:
        """Returns how many events died since then and were not sent again."""
        places = (place for place in self._by_tenant.of(tenant) if place not in self._redriven)
        return sum(self._kept[place].dead_event.died_at >= since for place in places)

    def _of(self, tenant: TenantKey | None) -> Sequence[_IndexedEvent]:
        if tenant is not None:
            own = [self._kept[place] for place in self._by_tenant.of(tenant)]
            return sorted(own, key=lambda kept: kept.order, reverse=True)
        if self._newest_first is None:
            self._newest_first = sorted(self._kept.values(), key=lambda kept: kept.order, reverse=True)
        return self._newest_first

    def _matches(self, kept: _IndexedEvent, query: DeadQuery, orgs: Orgs) -> bool:
        dead_event = kept.dead_event
        return (
            _may_see(dead_event, orgs)
            and (not query.event_ids or dead_event.event_id in query.event_ids)
            and (query.redriven is None or query.redriven == (kept.place in self._redriven))
            and (not query.sendable or dead_event.can_be_sent)
            and (not query.reasons or dead_event.reason in query.reasons)
            and (not query.message_statuses or dead_event.message_status in query.message_statuses)
            and (not query.channels or dead_event.channel in query.channels)
            and (query.campaign_id is None or dead_event.campaign_id == query.campaign_id)
            and (query.since is None or dead_event.died_at >= query.since)
            and (query.until is None or dead_event.died_at < query.until)
        )

    def _fact(self, kept: _IndexedEvent) -> DeadEventModel:
        return replace(kept.dead_event, redriven=True) if kept.place in self._redriven else kept.dead_event


def dead_event_of(record: Record, max_record_bytes: float = math.inf) -> DeadEventModel:
    """Returns the dead event in a record of the dead-letter topic; a redrive sends none over `max_record_bytes`."""
    dead = DeadEvent.of(record)
    event, retry_state = dead.event, dead.retry_state
    headers = dict(record.headers)
    return DeadEventModel(
        id=f"{record.partition}-{record.offset}",
        org=None if dead.tenant is None else dead.tenant.org,
        sandbox=None if dead.tenant is None else dead.tenant.sandbox,
        event_id=None if event is None else event.webhook_id,
        died_at=dead.died_at,
        first_seen=retry_state.first_seen if PREFIX + "first-seen" in headers else None,
        reason=dead.reason,
        detail=(headers.get(PREFIX + "detail") or b"").decode(errors="replace")[:1000],
        attempts=retry_state.attempts,
        last_status=retry_state.last_status,
        message_status=None if event is None else event.status,
        channel=None if event is None else event.channel,
        recipient=None if event is None else recipient_of(event),
        redriven=False,
        origin=retry_state.origin,
        campaign_id=None if event is None else event.execution.campaign_id,
        can_be_sent=dead.can_be_sent(max_record_bytes),
    )


def place_of(dead_id: str) -> _Place:
    """Returns partition and offset of a dead event's id. Raises NotFound if it isn't such an id."""
    partition, dash, offset = dead_id.partition("-")
    if not dash or not _is_number(partition) or not _is_number(offset):
        raise NotFound("there is no such dead event, or it is no longer kept")
    return int(partition), int(offset)


def _may_see(dead_event: DeadEventModel, orgs: Orgs) -> bool:
    return orgs is None or dead_event.org in orgs


def _order_in(cursor: str) -> _Order:
    parts = cursor.split("-")
    if len(parts) != 3 or not all(map(_is_number, parts)):
        raise NotFound("there is no such page: begin at the first one")
    return int(parts[0]), int(parts[1]), int(parts[2])


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 19
