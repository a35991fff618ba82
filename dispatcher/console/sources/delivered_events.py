"""Sends delivered events again: finds them in the history store, and reads them again in the topic of events."""

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import structlog

from dispatcher.config.settings import Settings
from dispatcher.config.webhooks import WebhookConfig
from dispatcher.console.resend_model import RedriveModel, ResendCheck, ResendQuery, ResumePoint
from dispatcher.console.sources.history import HistoryLookup
from dispatcher.console.sources.redrive_jobs import ANSWER_S, CHECK_S, RATE, RedriveJobs, RunningJob
from dispatcher.console.sources.skip_forecast import count_skipped
from dispatcher.contract.history import HistoryEntry, HistoryOutcome
from dispatcher.contract.records import Origin
from dispatcher.contract.tenant import TenantKey
from dispatcher.delivery.history_recorder import HistoryRecorder
from dispatcher.errors import BrokerUnavailable, NotFound, PartitionsUnavailable
from dispatcher.kafka.history_topic import open_history
from dispatcher.kafka.producer import Producer
from dispatcher.kafka.resend import Resend, ResendTally, available_places
from dispatcher.kafka.topic_reader import SHORT_LEADER_S, open_topics, shown
from dispatcher.kafka.topics import retry_topics
from dispatcher.stores.sql.history_search import HistoryQuery

MOST_EVENTS: Final = 10_000
"""Delivered events that a check counts, and that a job keeps in memory until they are sent."""
_PAGE: Final = 200
_IDS: Final = 500
"""Events of one query for those that were sent again."""
_DELIVERED: Final = frozenset({HistoryOutcome.DELIVERED})
_REMEMBERED: Final = 5 * MOST_EVENTS
"""Events whose resend this process remembers."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Part:
    """Some of the events that match an order, the newest first. They are sent before the next part is searched for."""

    events: dict[Origin, HistoryEntry]
    left_out: int
    """Matching events that were sent again since the order's `checked_at`."""
    next: str | None
    """Cursor of the following part; None after the last one."""


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
        part = await self._part(tenant, query)
        found = ResendCheck(0, 0, part.next is not None, left_out=part.left_out)
        if not part.events:
            return found
        try:
            only = _partitions(part.events)
            async with (
                asyncio.timeout(CHECK_S),
                open_topics(
                    self._settings.kafka, _topics(only), only=only, without_silent=True, leader_s=SHORT_LEADER_S
                ) as reader,
            ):
                kept, gone = available_places(_without(part.events, reader.silent), reader.ranges)
                found = replace(found, is_at_least=found.is_at_least or bool(reader.silent))
        except NotFound:  # the topic of events has another name now
            return replace(found, gone=len(part.events))
        except TimeoutError:
            raise BrokerUnavailable from None
        skipped = () if config is None else count_skipped(config, (part.events[one] for one in kept))
        sent_at = await self._sent_again(part.events, min(one.at for one in part.events.values()) / 1000)
        before = [at for one in kept if (at := sent_at.get(one, 0.0)) > part.events[one].at / 1000]
        return replace(
            found,
            events=len(kept),
            gone=gone,
            skipped=skipped,
            sent_before=len(before),
            sent_before_since=math.floor(min(before) * 1000) / 1000 if before else None,  # as the history has it
        )

    async def start(self, tenant: TenantKey, query: ResendQuery, by: str) -> RedriveModel:
        """Starts or queues a job, which `RedriveJobs.job` returns.

        The job sends all that match, in parts of `MOST_EVENTS`, the newest first. Events that were sent again since
        `query.checked_at` are left out, and counted as `already`.

        Raises:
            NotFound: nothing matches, or all that match were sent again since.
            DispatcherError: a job of the tenant's delivered events is running, or broker or database don't answer.
        """
        now = time.time()
        # What the job itself sends is delivered after `until`; what it has sent is left out of further parts.
        resume = ResumePoint(
            now if query.until is None else min(query.until, now),
            now if query.checked_at is None else query.checked_at,
        )
        part = await self._part(tenant, replace(query, until=resume.until))
        if not part.events:
            raise NotFound(
                "these events were sent again since they were checked: check once more to send them again"
                if part.left_out
                else "no delivered event matches, or they are no longer kept"
            )
        order = replace(query, until=resume.until, checked_at=resume.checked_at)
        return await self._jobs.start(
            tenant, by, len(part.events), lambda job: self._send(job, tenant, order, part, resume), "delivered", order
        )

    async def _part(self, tenant: TenantKey, query: ResendQuery, before: str | None = None) -> _Part:
        """Returns the next events that match and were not sent again since `query.checked_at`."""
        left_out = 0
        while True:
            found, before = await self._find(tenant, query, before)
            sent_at = {} if query.checked_at is None else await self._sent_again(found, query.checked_at)
            wanted = {origin: entry for origin, entry in found.items() if origin not in sent_at}
            left_out += len(found) - len(wanted)
            if wanted or before is None:
                return _Part(wanted, left_out, before)

    async def _sent_again(self, events: Mapping[Origin, HistoryEntry], since: float) -> dict[Origin, float]:
        """Returns which of the events were sent again at that time or later, by this console or another, and when."""
        sent_at = {origin: at for origin in events if (at := self._sent_at.get(origin, 0.0)) >= since}
        ids = sorted({entry.webhook_id for entry in events.values() if entry.webhook_id is not None})
        for begin in range(0, len(ids), _IDS):
            stored = await self._history.redriven(ids[begin : begin + _IDS], since)
            sent_at |= {origin: at for origin, at in stored.items() if origin in events}
        return sent_at

    def _note_sent(self, origin: Origin) -> None:
        self._sent_at[origin] = time.time()
        self._sent_at.move_to_end(origin)
        if len(self._sent_at) > _REMEMBERED:
            self._sent_at.popitem(last=False)

    async def _find(
        self, tenant: TenantKey, query: ResendQuery, before: str | None
    ) -> tuple[dict[Origin, HistoryEntry], str | None]:
        """Returns matching events by place, about `MOST_EVENTS` at most, and the cursor of further ones.

        The entry of each is the first delivery among those that were read.
        """
        orgs, found = frozenset({tenant.org}), dict[Origin, HistoryEntry]()
        for event_id in query.event_ids:
            query_of_event = HistoryQuery(tenant=tenant, webhook_id=event_id, outcomes=_DELIVERED, limit=_PAGE)
            found |= _origins((await self._history.search_exactly(query_of_event, orgs=orgs)).items)
        if query.event_ids:
            return found, None
        while True:
            page = await self._history.search_exactly(
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
                orgs=orgs,
            )
            found |= _origins(page.items)
            before = page.next
            if before is None or len(found) >= MOST_EVENTS:
                return found, before

    async def _send(
        self, job: RunningJob, tenant: TenantKey, order: ResendQuery, part: _Part, resume: ResumePoint
    ) -> None:
        """Sends one part after the other, until nothing is left or the job is stopped."""
        progress = _Progress(job)
        left: ResumePoint | None = None
        silent: set[tuple[str, int]] = set()
        async with (
            asyncio.timeout(ANSWER_S) as opening,
            open_history(self._settings) as history,
            Producer(self._settings.kafka) as producer,
        ):
            opening.reschedule(None)
            while True:
                progress.begin(part, resume)
                if part.events:
                    unsent = await self._send_part(job, tenant, part, progress.report, history, producer)
                    left = left or (resume if unsent else None)
                    silent |= unsent
                if left is not None:
                    job.report(resume=left)
                if job.stop.is_set():
                    break
                if part.next is None:
                    job.report(resume=left)
                    break
                part = await self._part(tenant, order, part.next)
                newest_ms = max((entry.at for entry in part.events.values()), default=0)
                resume = replace(resume, until=(newest_ms + 2) / 1000)  # the range excludes its end
        log.info("delivered events sent again", job=job.id, tenant=str(tenant), sent=progress.tally.sent)
        if silent and not job.stop.is_set():
            raise PartitionsUnavailable(f"no broker answers for {shown(silent)}: events there are left")

    async def _send_part(
        self,
        job: RunningJob,
        tenant: TenantKey,
        part: _Part,
        report: Callable[[ResendTally], None],
        history: HistoryRecorder | None,
        producer: Producer,
    ) -> set[tuple[str, int]]:
        """Sends the events of one part. Returns the partitions whose events are left: no broker answers for them."""
        only = _partitions(part.events)
        async with (
            asyncio.timeout(ANSWER_S) as opening,
            open_topics(self._settings.kafka, _topics(only), only=only, without_silent=True) as reader,
        ):
            opening.reschedule(None)
            if not job.begun.done():
                job.begun.set_result(None)
            there = _without(part.events, reader.silent)
            resend = Resend(reader, tenant, there, report, history, self._note_sent)
            report(resend.tally)
            report(await job.finish(resend.send(producer, self._redrive_to, RATE, job.stop)))
            return set(reader.silent)


class _Progress:
    """Reports the numbers of a job over all its parts."""

    def __init__(self, job: RunningJob) -> None:
        self._job = job
        self._already = 0
        self._earlier = ResendTally(0, 0)
        """Of the parts before this one."""
        self._tally = ResendTally(0, 0)

    @property
    def tally(self) -> ResendTally:
        """The numbers of all parts so far."""
        return self._earlier + self._tally

    def begin(self, part: _Part, resume: ResumePoint) -> None:
        """Starts a part. `resume`: where to go on unless it and all further ones are sent."""
        self._earlier = self.tally
        self._already += part.left_out
        self.report(ResendTally(len(part.events), 0))
        self._job.report(already=self._already, total_is_at_least=part.next is not None, resume=resume)

    def report(self, tally: ResendTally) -> None:
        """Reports the numbers of the current part."""
        self._tally = tally
        whole = self.tally
        self._job.report(total=whole.total, gone=whole.gone, sent=whole.sent, too_large=whole.too_large)


def _origins(entries: Iterable[HistoryEntry]) -> dict[Origin, HistoryEntry]:
    """Returns delivered events by place, once each with the earliest of these entries, which are the newest first."""
    return {
        Origin(one.topic, one.partition, one.offset): one
        for one in entries
        if one.outcome is HistoryOutcome.DELIVERED
        and one.topic is not None and one.partition is not None and one.offset is not None
    }  # fmt: skip


def _partitions(origins: Iterable[Origin]) -> set[tuple[str, int]]:
    return {(one.topic, one.partition) for one in origins}


def _topics(partitions: Iterable[tuple[str, int]]) -> list[str]:
    return sorted({topic for topic, _ in partitions})


def _without(origins: Iterable[Origin], silent: Collection[tuple[str, int]]) -> list[Origin]:
    return [one for one in origins if (one.topic, one.partition) not in silent]
