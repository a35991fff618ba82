"""Collects what happens to events until `kafka.history_topic` writes it. Never waits, never raises for a full buffer.

Entries are buffered by tenant bucket, so that many share a record. If the buffer is full, an entry is counted and
left out, because history may have gaps but deliveries must not slow down.
"""

import asyncio
import re
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Final

import structlog

from dispatcher.config.settings import HistorySettings
from dispatcher.contract.encoded_entries import EncodedEntries
from dispatcher.contract.events import DeliveryEvent
from dispatcher.contract.history import (
    MAX_ANSWER,
    MAX_DETAIL,
    MAX_ID,
    EventIds,
    HistoryEntry,
    HistoryOutcome,
    bucket_of,
)
from dispatcher.contract.outcomes import (
    CONFIGURATION_REASONS,
    Attempt,
    DeadReason,
    ParkReason,
    SkipReason,
    shown_to_tenants,
)
from dispatcher.contract.recipient import RecipientHasher, recipient_of
from dispatcher.contract.records import Origin
from dispatcher.contract.redaction import in_text
from dispatcher.contract.tenant import TenantKey
from dispatcher.delivery.pending_delivery import PendingDelivery
from dispatcher.delivery.verdicts import Judgement, Verdict, judge, reason_of
from dispatcher.telemetry import metrics

log = structlog.get_logger(__name__)

MAX_BUFFERED: Final = 16_000_000
"""Bytes of encoded entries, some 30,000: more than a second of a busy process."""
MAX_COUNTS: Final = 1_000
"""Pairs of tenant and reason that are counted within a minute; events of further tenants are counted together."""
MAX_BUCKETS_CACHED: Final = 20_000
_MINUTE_MS: Final = 60_000

_TOKEN: Final = re.compile(r"\beyJ[\w-]{5,}(\.[\w-]*)*|(?<=\bbearer )\S+", re.IGNORECASE)
"""A JWT, whole or cut off, or whatever follows Bearer: an endpoint that echoes our headers echoes it."""
_HEADER_VALUE: Final = re.compile(
    r"-?[0-9.]{1,40}|[A-Za-z]{3,9},? [0-9A-Za-z: -]{10,24}( GMT)?|disable|abort-message", re.IGNORECASE
)
"""Seconds, a date (RFC 9110, section 5.6.7), or a value of `webhook-delivery`."""
_SCHEME: Final = re.compile(
    r"\s*(basic|bearer|digest|dpop|hoba|mutual|negotiate|ntlm|oauth|scram-sha-1|scram-sha-256|vapid)(?![^\s,])",
    re.IGNORECASE,
)
"""Authentication schemes of IANA's registry (RFC 9110, section 16.4.1), and NTLM."""
_CHALLENGE_ERROR: Final = re.compile(
    r'[\s,]error="?(invalid_request|invalid_token|insufficient_scope|invalid_dpop_proof|use_dpop_nonce)(?![^",\s])'
)
"""Error codes of RFC 6750, section 3.1, and RFC 9449."""
_SHORTEST_SECRET: Final = 6
_NO_IDS: Final = EventIds()
_DELIVERED: Final = HistoryOutcome.DELIVERED
_ATTEMPT: Final = HistoryOutcome.ATTEMPT


class HistoryRecorder:
    """Buffers the history entries of one process."""

    def __init__(self, settings: HistorySettings, clock: Callable[[], float] = time.time) -> None:
        self._hasher = None if settings.recipient_key is None else RecipientHasher(settings.recipient_key.reveal())
        self.keep_answer = MAX_ANSWER if settings.answers else 0
        """Bytes of an answer's body that entries may show."""
        self._clock = clock
        self._buffers: dict[int, EncodedEntries] = {}
        self._full: deque[tuple[int, EncodedEntries]] = deque()
        """Entries that fill a record, with their bucket."""
        self._buckets: dict[TenantKey, int] = {}
        self._counts: Counter[tuple[TenantKey | None, SkipReason]] = Counter()
        """Events of the minute that are not listed; the tenant is None for those that are counted together."""
        self._counted_minute = 0
        self._bytes = 0
        self.ready = asyncio.Event()
        """Set when a record is full."""

    def ids_of(self, event: DeliveryEvent) -> EventIds:
        """Returns the ids that all entries of the event repeat. Called once, so that its address needn't be kept."""
        execution, request_id, event_id = event.execution, event.request_id, event.event_id
        execution_id, campaign_id = execution.execution_id, execution.campaign_id
        recipient = None
        if self._hasher is not None and (address := recipient_of(event)):
            recipient = self._hasher.hash(address)
        return EventIds(
            event_id and event_id[:MAX_ID],
            request_id and request_id[:MAX_ID],
            execution_id and execution_id[:MAX_ID],
            campaign_id and campaign_id[:MAX_ID],
            recipient,
        )

    def record_attempt(self, pending: PendingDelivery, number: int, attempt: Attempt, judgement: Judgement) -> None:
        """Records one POST. The entry of the POST that delivers is also the event's outcome."""
        ids, origin, tenant = pending.ids or _NO_IDS, pending.origin, pending.webhook.tenant
        is_delivered = judgement.verdict is Verdict.DELIVERED
        shown = shown_to_tenants(attempt)
        if shown is not attempt:
            attempt, judgement = shown, judge(shown)
        entry = HistoryEntry(
            int(self._clock() * 1000),
            _DELIVERED if is_delivered else _ATTEMPT,
            tenant.org,
            tenant.sandbox,
            reason_of(attempt),
            pending.webhook_id,
            ids.event_id,
            ids.request_id,
            ids.message_execution_id,
            ids.campaign_id,
            None if origin is None else origin.topic,
            None if origin is None else origin.partition,
            None if origin is None else origin.offset,
            pending.channel[:MAX_ID],
            pending.status[:MAX_ID],
            ids.recipient,
            number,
            int(attempt.elapsed_s * 10_000 + 0.5) / 10,  # takes a third of the time of `round`
            attempt.status,
            "delivered" if is_delivered else judgement.verdict.name.lower(),
            "",
            None,
            "",
            attempt.reused,
            None,
            1,
            is_delivered and (number > 1 or pending.has_waited),
        )
        if not is_delivered:
            entry.detail = in_text(attempt.detail[:MAX_DETAIL])
            entry.headers = _headers(attempt)
            if attempt.body:
                entry.answer = _masked(attempt.answer, pending.webhook.config.header_texts().values())[:MAX_ANSWER]
        self._add(tenant, entry)

    def record_skipped(
        self, event: DeliveryEvent, origin: Origin, reason: SkipReason, *, has_webhook: bool, has_earlier: bool
    ) -> None:
        """Records an event that isn't sent. Events of tenants without a webhook are counted, not listed.

        Args:
            has_webhook: False if the tenant has none.
            has_earlier: the event has entries already. It is listed in any case, or its timeline would have no end.
        """
        if has_earlier or (has_webhook and reason is not SkipReason.NO_WEBHOOK):
            entry = self._entry(HistoryOutcome.SKIPPED, event, origin, reason.value)
            entry.has_earlier = has_earlier
            self._add(event.tenant, entry)
        else:
            self._count(event.tenant, reason)

    def count_other_event(self) -> None:
        """Counts an event that isn't message feedback: it is read no further, so its tenant is unknown."""
        self._count(None, SkipReason.NOT_FEEDBACK)

    def record_parked(
        self, event: DeliveryEvent, origin: Origin, reason: ParkReason, attempts: int, due_at: float, detail: str
    ) -> None:
        """Records an event that was written to a retry topic or to the held events. `due_at`: Unix seconds."""
        outcome = HistoryOutcome.HELD if reason in CONFIGURATION_REASONS else HistoryOutcome.PARKED
        entry = self._entry(outcome, event, origin, reason.value, attempts, detail)
        entry.due_at = int(due_at * 1000)
        self._add(event.tenant, entry)

    def record_dead(
        self, event: DeliveryEvent | None, origin: Origin, reason: DeadReason, attempts: int, detail: str
    ) -> None:
        """Records a dead letter; `event` is None if the record can't be read."""
        entry = self._entry(HistoryOutcome.DEAD, event, origin, reason.value, attempts, detail)
        self._add(None if event is None else event.tenant, entry)

    def record_redriven(self, event: DeliveryEvent | None, origin: Origin, reason: str) -> None:
        """Records a dead event that was sent back; `reason` is the one it died of."""
        self._add(
            None if event is None else event.tenant,
            self._entry(HistoryOutcome.REDRIVEN, event, origin, reason),
        )

    @property
    def buffered(self) -> int:
        """Number of entries that wait to be written."""
        return sum(len(entries) for _, entries in self._full) + sum(map(len, self._buffers.values()))

    def take_full(self) -> Iterator[tuple[int, EncodedEntries]]:
        """Removes and yields the entries that fill a record, each with its bucket."""
        while self._full:
            bucket, entries = self._full.popleft()
            self._bytes -= entries.size
            yield bucket, entries

    def take_all(self, *, at_end: bool = False) -> Iterator[tuple[int, EncodedEntries]]:
        """Removes and yields all entries. Counts of the current minute stay, unless the process ends."""
        self._write_counts(at_end=at_end)
        self._full.extend(self._buffers.items())
        self._buffers = {}
        yield from self.take_full()

    def _entry(
        self, outcome: HistoryOutcome, event: DeliveryEvent | None, origin: Origin, reason: str,
        attempts: int | None = None, detail: str = "",
    ) -> HistoryEntry:  # fmt: skip
        ids = _NO_IDS if event is None else self.ids_of(event)
        return HistoryEntry(
            at=int(self._clock() * 1000),
            outcome=outcome,
            org=None if event is None else event.tenant.org,
            sandbox=None if event is None else event.tenant.sandbox,
            reason=reason,
            webhook_id=None if event is None else event.webhook_id,
            event_id=ids.event_id,
            request_id=ids.request_id,
            message_execution_id=ids.message_execution_id,
            campaign_id=ids.campaign_id,
            topic=origin.topic,
            partition=origin.partition,
            offset=origin.offset,
            channel=None if event is None else event.channel[:MAX_ID],
            message_status=None if event is None else event.status[:MAX_ID],
            recipient=ids.recipient,
            attempt=attempts,
            detail=in_text(detail[:MAX_DETAIL]),
        )

    def _add(self, tenant: TenantKey | None, entry: HistoryEntry) -> None:
        if self._bytes >= MAX_BUFFERED:
            metrics.HISTORY_LOST.labels("buffer_full").inc(entry.count)
            return
        bucket = self._bucket(tenant)
        entries = self._buffers.get(bucket)
        if entries is None:
            entries = self._buffers[bucket] = EncodedEntries()
        try:
            self._bytes += entries.add(entry)
        except Exception:  # a text that isn't Unicode costs this entry, never the delivery
            metrics.ERRORS.labels("history").inc()
            metrics.HISTORY_LOST.labels("not_written").inc(entry.count)
            log.exception("a history entry is lost because of a bug")
            return
        if entries.is_full:
            del self._buffers[bucket]
            self._full.append((bucket, entries))
            self.ready.set()

    def _bucket(self, tenant: TenantKey | None) -> int:
        if tenant is None:
            return bucket_of(None, None)
        bucket = self._buckets.get(tenant)
        if bucket is None:
            if len(self._buckets) >= MAX_BUCKETS_CACHED:
                self._buckets.clear()
            bucket = self._buckets[tenant] = bucket_of(tenant.org, tenant.sandbox)
        return bucket

    def _count(self, tenant: TenantKey | None, reason: SkipReason) -> None:
        minute = int(self._clock() * 1000) // _MINUTE_MS
        if minute != self._counted_minute:
            self._write_counts(at_end=True)
            self._counted_minute = minute
        key = tenant, reason
        if key not in self._counts and len(self._counts) >= MAX_COUNTS:
            key = None, reason
        self._counts[key] += 1

    def _write_counts(self, *, at_end: bool) -> None:
        if not at_end and int(self._clock() * 1000) // _MINUTE_MS == self._counted_minute:
            return
        counts, self._counts = self._counts, Counter()
        for (tenant, reason), count in counts.items():
            self._add(tenant, self._count_entry(tenant, reason, count))

    def _count_entry(self, tenant: TenantKey | None, reason: SkipReason, count: int) -> HistoryEntry:
        return HistoryEntry(
            at=self._counted_minute * _MINUTE_MS,
            outcome=HistoryOutcome.SKIPPED,
            org=None if tenant is None else tenant.org[:MAX_ID],
            sandbox=None if tenant is None else tenant.sandbox[:MAX_ID],
            reason=reason.value,
            count=count,
        )


def _headers(attempt: Attempt) -> dict[str, str] | None:
    """Returns selected headers of the answer. A value in another form may echo a secret and is not kept."""
    found = {"retry-after": attempt.retry_after, "webhook-delivery": attempt.webhook_delivery}
    kept = {
        name: value.strip() if _HEADER_VALUE.fullmatch(value.strip()) else "(not readable)"
        for name, value in found.items()
        if value
    }
    if attempt.www_authenticate:
        kept["www-authenticate"] = _challenge(attempt.www_authenticate)
    return kept or None


def _challenge(value: str) -> str:
    """Returns scheme and error code of a challenge: `Bearer error="invalid_token"`. The rest may echo a secret."""
    scheme, error = _SCHEME.match(value), _CHALLENGE_ERROR.search(value)
    if scheme is None:
        return "(not readable)"
    return scheme[1] if error is None else f'{scheme[1]} error="{error[1]}"'


def _masked(answer: str, headers: Iterable[str]) -> str:
    """Returns the answer without the tenant's header parameters, tokens, addresses and numbers."""
    for value in headers:
        if len(value) >= _SHORTEST_SECRET:
            answer = answer.replace(value, "(header)")
    return in_text(_TOKEN.sub("(token)", answer))
