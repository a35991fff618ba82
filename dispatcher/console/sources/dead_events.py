"""Tails the dead-letter topic, keeps it in bounded memory, and starts jobs that send its events again."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import structlog

from dispatcher.config.settings import Settings
from dispatcher.config.webhooks import WebhookConfig
from dispatcher.console.model import DeadEventModel, DeadPage, DeadQuery, DeadRecord
from dispatcher.console.resend_model import DeadCount, RedriveModel, SkippedCount
from dispatcher.console.sources.dead_event_index import DeadEventIndex, place_of
from dispatcher.console.sources.redrive_jobs import ANSWER_S, CHECK_S, RATE, RedriveJobs, RunningJob
from dispatcher.console.sources.skip_forecast import count_skipped
from dispatcher.contract.records import Origin
from dispatcher.contract.tenant import TenantKey
from dispatcher.delivery.history_recorder import HistoryRecorder
from dispatcher.errors import BrokerUnavailable, NotFound, PartitionsUnavailable
from dispatcher.kafka.history_topic import open_history
from dispatcher.kafka.producer import Producer
from dispatcher.kafka.redrive import OnProgress, Redrive, RedriveTally, Selection
from dispatcher.kafka.topic_reader import SHORT_LEADER_S, TopicReader, fetch_record, open_topics, shown
from dispatcher.kafka.topic_tailer import TopicTailer
from dispatcher.kafka.topics import dead_letter_topic, retry_topics
from dispatcher.stores.sql.records import Orgs

KEEP_S: Final = 30 * 86_400.0
"""Longer than the topic's own retention, usually."""
MOST_READ: Final = 200_000
"""Dead events that are read at the start."""

log = structlog.get_logger(__name__)


class DeadLetterReader:
    """Tails the dead-letter topic, keeps its events in bounded memory, and redrives out of it.

    The caller runs `run` as a task.
    """

    def __init__(self, settings: Settings, jobs: RedriveJobs, memory: DeadEventIndex | None = None) -> None:
        self._settings = settings
        self._kafka = settings.kafka
        self._topic = dead_letter_topic(settings.kafka.prefix)
        self._redrive_to = retry_topics(settings.kafka.prefix, settings.retry.tiers)[0]
        max_bytes = settings.kafka.max_record_bytes
        self.memory = DeadEventIndex(max_record_bytes=max_bytes) if memory is None else memory
        self.follower = TopicTailer(
            settings.kafka, self._topic, self.memory, keep_s=KEEP_S, most_read=MOST_READ,
            if_missing="create it with `dispatcher topics --create`",
        )  # fmt: skip
        self.jobs = jobs
        """The jobs that it starts, beside those of delivered events; the caller runs them."""
        self.get = self.memory.get
        self.count = self.memory.count
        self.known_campaign = self.memory.known_campaign
        self.with_known_campaign = self.memory.with_known_campaign

    @property
    def problem(self) -> str | None:
        """Why results may be incomplete, or None."""
        if self.follower.problem is not None:
            return self.follower.problem
        if not self.follower.is_complete or not self.memory.is_all:
            return "there are more dead events than the console keeps: of those with most, only the latest are shown"
        return None

    def search(self, query: DeadQuery, *, orgs: Orgs) -> DeadPage:
        """Returns a page of the kept dead events, and whether more may match than are kept."""
        return replace(self.memory.search(query, orgs=orgs), is_complete=self.problem is None)

    async def count_matching(self, tenant: TenantKey, query: DeadQuery) -> DeadCount:
        """Returns how many dead events of a tenant a redrive would send again.

        They are counted in memory if that has all, else in the topic, for `CHECK_S` seconds.

        Raises:
            DispatcherError: the broker can't be reached.
        """
        if self.problem is None:
            return DeadCount(self._expected(tenant, query))
        redrive = None
        try:
            async with (
                asyncio.timeout(CHECK_S),
                open_topics(self._kafka, [self._topic], without_silent=True, leader_s=SHORT_LEADER_S) as topic,
            ):
                selection = _selection_of(tenant, query)
                redrive = self._new_redrive(await self._dead_since(topic, selection), selection)
                await redrive.count()
                return DeadCount(redrive.tally.total, is_at_least=bool(topic.silent))
        except TimeoutError:
            if redrive is None:
                raise BrokerUnavailable from None
            return DeadCount(redrive.tally.total, is_at_least=True)

    async def record(self, dead_id: str) -> DeadRecord:
        """Reads the record of a dead event of any organisation.

        Raises:
            NotFound: it isn't a dead event, or no longer in the topic.
            DispatcherError: the broker can't be reached.
        """
        self.get(dead_id, orgs=None)
        try:
            async with asyncio.timeout(CHECK_S):
                record = await fetch_record(self._kafka, Origin(self._topic, *place_of(dead_id)))
        except TimeoutError:
            raise BrokerUnavailable from None
        return DeadRecord(record.key, record.value, tuple((name, value) for name, value in record.headers))

    async def run(self) -> None:
        """Tails the topic until cancelled."""
        await self.follower.run()

    async def redrive(
        self, tenant: TenantKey, *, ids: frozenset[str] | None, query: DeadQuery, by: str, orgs: Orgs
    ) -> RedriveModel:
        """Sends some (`ids`) or all matching dead events again. The query is ignored if `ids` is given.

        The campaign must be that of the events, as for `count_matching`: see `with_known_campaign`.
        Returns once the job runs or is queued behind others.

        Raises:
            NotFound: an id isn't that of a dead event of this tenant, or the caller can't see the tenant.
            DispatcherError: the broker can't be reached, or a redrive of the tenant is running.
        """
        selection, expected = self._selection(tenant, ids, query, orgs)
        return await self.jobs.start(tenant, by, expected, lambda job: self._redrive(job, tenant, selection))

    def _selection(
        self, tenant: TenantKey, ids: frozenset[str] | None, query: DeadQuery, orgs: Orgs
    ) -> tuple[Selection, int]:
        if orgs is not None and tenant.org not in orgs:
            raise NotFound("there is no such webhook")
        if ids is not None:
            if any(self.get(one, orgs=orgs).tenant != tenant for one in ids):
                raise NotFound("there is no such dead event, or it is no longer kept")
            return Selection(tenant, positions=frozenset(map(place_of, ids))), len(ids)
        return _selection_of(tenant, query), self._expected(tenant, query)

    def would_be_skipped(
        self, tenant: TenantKey, config: WebhookConfig, *, ids: frozenset[str] | None, query: DeadQuery
    ) -> tuple[SkippedCount, ...]:
        """Returns how many of the kept dead events that a redrive would send the webhook would skip, by rule.

        The query is ignored if `ids` is given.
        """
        events = self._redrivable(tenant, DeadQuery() if ids is not None else query)
        return count_skipped(config, (one for one in events if ids is None or one.id in ids))

    def _expected(self, tenant: TenantKey, query: DeadQuery) -> int:
        """Returns how many of the kept dead events a redrive would send again."""
        return len(self._redrivable(tenant, query))

    def _redrivable(self, tenant: TenantKey, query: DeadQuery) -> Sequence[DeadEventModel]:
        own = replace(query, tenant=tenant, redriven=False, sendable=True)
        return self.memory.matching(own, orgs=frozenset({tenant.org}))

    async def _dead_since(self, topic: TopicReader, selection: Selection) -> TopicReader:
        """Returns a reader of the topic from the first record on that can be selected."""
        dead = topic.reaching(self.follower.read_to)
        return dead if selection.since is None else await dead.since(selection.since)

    def _new_redrive(
        self,
        dead: TopicReader,
        selection: Selection,
        report: OnProgress = lambda _: None,
        history: HistoryRecorder | None = None,
    ) -> Redrive:
        return Redrive(dead, selection, report, history, max_record_bytes=self._kafka.max_record_bytes)

    async def _redrive(self, job: RunningJob, tenant: TenantKey, selection: Selection) -> None:
        def report(tally: RedriveTally) -> None:
            job.report(
                total=tally.total,
                sent=tally.sent,
                already=tally.already,
                gone=tally.gone,
                unreadable=tally.unreadable,
                truncated=tally.truncated,
                too_large=tally.too_large,
            )

        places = selection.positions
        only = None if places is None else {(self._topic, partition) for partition, _ in places}
        async with (
            asyncio.timeout(ANSWER_S) as opening,
            open_topics(self._kafka, [self._topic], only=only, without_silent=only is None) as dead,
            open_history(self._settings) as history,
        ):
            opening.reschedule(None)
            job.begun.set_result(None)
            redrive = self._new_redrive(await self._dead_since(dead, selection), selection, report, history)
            report(await redrive.count())
            async with asyncio.timeout(ANSWER_S) as connecting, Producer(self._kafka) as producer:
                connecting.reschedule(None)
                report(await job.finish(redrive.send(producer, self._redrive_to, RATE, job.stop)))
        log.info("dead events sent again", job=job.id, tenant=str(tenant), sent=redrive.tally.sent)
        if dead.silent and not job.stop.is_set():
            raise PartitionsUnavailable(f"no broker answers for {shown(dead.silent)}: dead events there are left")


def _selection_of(tenant: TenantKey, query: DeadQuery) -> Selection:
    return Selection(
        tenant,
        query.reasons,
        query.since,
        query.until,
        query.message_statuses,
        query.channels,
        query.campaign_id,
        query.event_ids,
    )
