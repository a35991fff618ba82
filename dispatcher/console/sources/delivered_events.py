"""Sends delivered events again: finds them in the history store, and reads them again in the topic of events."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Iterable
from itertools import islice
from typing import Final

import structlog

from dispatcher.config.settings import Settings
from dispatcher.config.webhooks import WebhookConfig
from dispatcher.console.resend_model import RedriveModel, ResendCheck, ResendQuery
from dispatcher.console.sources.history import HistoryLookup
from dispatcher.console.sources.redrive_jobs import ANSWER_S, CHECK_S, RATE, RedriveJobs, RunningJob
from dispatcher.console.sources.skip_forecast import count_skipped
from dispatcher.contract.history import HistoryEntry, HistoryOutcome
from dispatcher.contract.records import Origin
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import BrokerUnavailable, DispatcherError, NotFound
from dispatcher.kafka.history_topic import open_history
from dispatcher.kafka.producer import Producer
from dispatcher.kafka.resend import Resend, ResendTally, available_places
from dispatcher.kafka.topic_reader import open_topics
from dispatcher.kafka.topics import retry_topics
from dispatcher.stores.sql.history_search import HistoryQuery

MOST_EVENTS: Final = 10_000
"""Delivered events of one job."""
_PAGE: Final = 200
_DELIVERED: Final = frozenset({HistoryOutcome.DELIVERED})
_REDRIVEN: Final = frozenset({HistoryOutcome.REDRIVEN})
_REMEMBERED: Final = 5 * MOST_EVENTS

log = structlog.get_logger(__name__)


class DeliveredEvents:
    """Sends delivered events again under the same webhook-id."""

    def __init__(self, settings: Settings, history: HistoryLookup, jobs: RedriveJobs) -> None:
        self._settings = settings
        self._history = history
        self._jobs = jobs
        self._sent_at: OrderedDict[Origin, float] = OrderedDict()
        """When this process sent events again, of the latest ones: the history has them seconds later."""
        self._redrive_to = retry_topics(settings.kafka.prefix, settings.retry.tiers)[0]

    async def check(self, tenant: TenantKey, query: ResendQuery, config: WebhookConfig | None = None) -> ResendCheck:
        """Returns what a resend would send, and what a webhook with this configuration would skip of it.

        Raises:
            DispatcherError: broker or database don't answer.
        """
        origins, is_cut = await self._find(tenant, query)
        if not origins:
            return ResendCheck(0, 0, is_cut)
        try:
            async with asyncio.timeout(CHECK_S), open_topics(self._settings.kafka, _topics(origins)) as reader:
                kept, gone = available_places(origins, reader.ranges)
        except NotFound:  # the topic of events has another name now
            return ResendCheck(0, len(origins), is_cut)
        except TimeoutError:
            raise BrokerUnavailable from None
        skipped = () if config is None else count_skipped(config, (origins[one] for one in kept))
        return ResendCheck(len(kept), gone, is_cut, skipped)

    async def start(self, tenant: TenantKey, query: ResendQuery, by: str) -> RedriveModel:
        """Starts or queues a job, which `RedriveJobs.job` returns.

        Events that were sent again since `query.checked_at` are left out, and counted as `already`.

        Raises:
            NotFound: nothing matches, or all that match were sent again since.
            DispatcherError: too many match, a job of the tenant's delivered events is running, or broker or database
                don't answer.
        """
        origins, is_cut = await self._find(tenant, query)
        if is_cut:
            raise DispatcherError(f"more than {MOST_EVENTS:,} delivered events match: choose a shorter time")
        if not origins:
            raise NotFound("no delivered event matches, or they are no longer kept")
        already = origins.keys() & await self._sent_since(tenant, query.checked_at)
        wanted = [one for one in origins if one not in already]
        if not wanted:
            raise NotFound("these events were sent again since they were checked: check once more to send them again")
        return await self._jobs.start(
            tenant, by, len(wanted), lambda job: self._send(job, tenant, wanted, len(already)), kind="delivered"
        )

    async def _sent_since(self, tenant: TenantKey, checked_at: float | None) -> set[Origin]:
        """Returns the places of events that were sent again at that time or later, by this console or another."""
        if checked_at is None:
            return set()
        sent = {origin for origin, at in self._sent_at.items() if at >= checked_at}
        before = None
        while True:
            query = HistoryQuery(tenant=tenant, since=checked_at, outcomes=_REDRIVEN, before=before, limit=_PAGE)
            page = await self._history.search(query, orgs=frozenset({tenant.org}))
            sent |= _origins(page.items, HistoryOutcome.REDRIVEN).keys()
            before = page.next
            if before is None:
                return sent

    def _note_sent(self, origin: Origin) -> None:
        self._sent_at[origin] = time.time()
        self._sent_at.move_to_end(origin)
        if len(self._sent_at) > _REMEMBERED:
            self._sent_at.popitem(last=False)

    async def _find(self, tenant: TenantKey, query: ResendQuery) -> tuple[dict[Origin, HistoryEntry], bool]:
        """Returns matching events by place, as many as one job sends at most, and whether there are more."""
        found: dict[Origin, HistoryEntry] = {}
        for event_id in query.event_ids:
            query_of_event = HistoryQuery(tenant=tenant, webhook_id=event_id, outcomes=_DELIVERED, limit=_PAGE)
            found |= _origins((await self._history.search(query_of_event, orgs=frozenset({tenant.org}))).items)
        if query.event_ids:
            return found, False
        before = None
        while True:
            page = await self._history.search(
                HistoryQuery(
                    tenant=tenant,
                    since=query.since,
                    until=query.until,
                    outcomes=_DELIVERED,
                    reasons=query.reasons,
                    message_statuses=query.message_statuses,
                    channels=query.channels,
                    campaign_id=query.campaign_id,
                    before=before,
                    limit=_PAGE,
                ),
                orgs=frozenset({tenant.org}),
            )
            found |= _origins(page.items)
            if len(found) > MOST_EVENTS:
                return dict(islice(found.items(), MOST_EVENTS)), True
            before = page.next
            if before is None:
                return found, False

    async def _send(self, job: RunningJob, tenant: TenantKey, origins: list[Origin], already: int) -> None:
        def report(tally: ResendTally) -> None:
            job.report(total=tally.total, sent=tally.sent, gone=tally.gone, too_large=tally.too_large, already=already)

        async with (
            asyncio.timeout(ANSWER_S) as opening,
            open_topics(self._settings.kafka, _topics(origins)) as reader,
            open_history(self._settings) as history,
            Producer(self._settings.kafka) as producer,
        ):
            opening.reschedule(None)
            job.begun.set_result(None)
            resend = Resend(reader, tenant, origins, report, history, self._note_sent)
            report(resend.tally)
            report(await job.finish(resend.send(producer, self._redrive_to, RATE, job.stop)))
        log.info("delivered events sent again", job=job.id, tenant=str(tenant), sent=resend.tally.sent)


def _origins(
    entries: Iterable[HistoryEntry], outcome: HistoryOutcome = HistoryOutcome.DELIVERED
) -> dict[Origin, HistoryEntry]:
    """Returns events with this outcome by place, in order and once each."""
    return {
        Origin(one.topic, one.partition, one.offset): one
        for one in entries
        if one.outcome is outcome
        and one.topic is not None and one.partition is not None and one.offset is not None
    }  # fmt: skip


def _topics(origins: Iterable[Origin]) -> list[str]:
    return sorted({one.topic for one in origins})
