"""Handlers for the history of events: search, timeline of one event, counts by reason, and erasure of a person."""

import time
from typing import Final

from dispatcher.console.api.models import (
    CountModel,
    CountsModel,
    Erased,
    Erasure,
    EventHistory,
    HistoryEntryModel,
    HistoryPageModel,
    HistorySearchOrder,
    SkippedQuery,
)
from dispatcher.console.api.route import Call, Empty, Reply
from dispatcher.console.api_errors import ApiError
from dispatcher.console.request_body import in_any_case
from dispatcher.console.services import Services
from dispatcher.console.sources.history import HistoryLookup
from dispatcher.contract.history import HistoryEntry, HistoryOutcome
from dispatcher.contract.records import Origin
from dispatcher.contract.tenant import TenantKey
from dispatcher.history.timeline import forgotten_end, reason_in_words, remedy_of, title
from dispatcher.stores.sql.history_search import HistoryQuery
from dispatcher.stores.sql.records import AuditAction

_WINDOW_S: Final = {"1h": 3600.0, "24h": 86_400.0, "7d": 7 * 86_400.0}


async def search_history(call: Call[Empty, HistorySearchOrder]) -> Reply:
    asked, lookup = call.body, _lookup(call.services)
    recipients = () if asked.recipient_hash is None else (asked.recipient_hash,)
    if asked.recipient is not None:
        recipients = (*recipients, *_hashes(lookup, asked.recipient))
    tenant = None if asked.org is None or asked.sandbox is None else TenantKey(asked.org, asked.sandbox)
    query = HistoryQuery(
        tenant=tenant,
        any_id=asked.id,
        recipients=recipients,
        campaign_id=asked.campaign,
        since=None if asked.since is None else asked.since.timestamp(),
        until=None if asked.until is None else asked.until.timestamp(),
        outcomes=frozenset(map(HistoryOutcome, asked.outcomes)),
        reasons=in_any_case(asked.reasons),
        message_statuses=in_any_case(asked.message_statuses),
        channels=in_any_case(asked.channels),
        before=asked.before,
        limit=asked.limit,
    )
    page = await lookup.search(query, orgs=call.person.orgs)
    return Reply(HistoryPageModel(items=tuple(map(_entry, page.items)), next=page.next, problem=await lookup.problem()))


async def get_event_history(call: Call[Empty, Empty]) -> Reply:
    webhook = await call.services.webhooks.get(call.id, orgs=call.person.orgs)
    lookup = _lookup(call.services)
    found = await lookup.timeline(call.path["event"], tenant=webhook.tenant)
    if not found.entries:
        problem = await lookup.problem()
        why = f"{problem[:1].upper()}{problem[1:]}." if problem else "It may be older than what is kept."
        raise ApiError(404, "not_found", f"Nothing is known about such an event. {why}")
    is_end_forgotten = bool(forgotten_end(found.entries, call.services.settings.history.keep, time.time()))
    items = tuple(map(_entry, found.entries))
    return Reply(EventHistory(items=items, is_cut=found.is_cut, is_end_forgotten=is_end_forgotten))


async def get_counts(call: Call[SkippedQuery, Empty]) -> Reply:
    webhook = await call.services.webhooks.get(call.id, orgs=call.person.orgs)
    now = time.time()
    found = await _lookup(call.services).counts(webhook.tenant, now - _WINDOW_S[call.query.window], now + 60)
    items = tuple(
        CountModel.of(
            one,
            outcome=one.outcome.value,
            text=reason_in_words(one.outcome, one.reason),
            remedy=remedy_of(one.outcome, one.reason),
        )
        for one in found
    )
    return Reply(CountsModel(window=call.query.window, items=items))


async def erase_history(call: Call[Empty, Erasure]) -> Reply:
    lookup, asked = _lookup(call.services), call.body
    hashes = (asked.recipient_hash,) if asked.recipient_hash else _hashes(lookup, asked.recipient or "")
    entries = sum([await lookup.erase(hashed) for hashed in hashes])
    await call.services.audit.record(
        AuditAction.ERASE_PERSON, by=call.person.name, details={"recipient_hash": list(hashes), "entries": entries}
    )
    return Reply(Erased(entries=entries))


def _lookup(services: Services) -> HistoryLookup:
    if services.history is None:
        raise ApiError(404, "no_history", "There is no history store: the operator sets history.url.")
    return services.history


def _hashes(lookup: HistoryLookup, address: str) -> tuple[str, ...]:
    hashes = lookup.hashes(address)
    if not hashes:
        detail = "Entries hold no trace of recipients: the operator sets history.recipient_key."
        raise ApiError(422, "no_recipient_key", detail)
    return hashes


def _entry(entry: HistoryEntry) -> HistoryEntryModel:
    origin = None
    if entry.topic is not None and entry.partition is not None and entry.offset is not None:
        origin = Origin(entry.topic, entry.partition, entry.offset)
    return HistoryEntryModel.of(
        entry,
        at=entry.at / 1000,
        outcome=entry.outcome.value,
        text=title(entry),
        recipient_hash=entry.recipient,
        due_at=None if entry.due_at is None else entry.due_at / 1000,
        headers=entry.headers or {},
        origin=origin,
    )
