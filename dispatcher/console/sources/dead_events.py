"""Tails the dead-letter topic, keeps it in bounded memory, and runs redrives.

A redrive is a task of `run`. If the console stops, the redrive ends between two batches; the next one continues there.
"""

import asyncio
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import structlog

from dispatcher.config.settings import Settings
from dispatcher.console.model import DeadPage, DeadQuery, RedriveJob
from dispatcher.console.sources.dead_event_index import DeadEventIndex, place_of
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import DispatcherError, NotFound
from dispatcher.kafka.history_topic import open_history
from dispatcher.kafka.producer import Producer
from dispatcher.kafka.redrive import Redrive, RedriveTally, Selection
from dispatcher.kafka.topic_reader import open_topic, translating_kafka_errors
from dispatcher.kafka.topic_tailer import TopicTailer
from dispatcher.kafka.topics import dead_letter_topic, retry_topics
from dispatcher.stores.sql.records import Orgs
from dispatcher.tasks import end
from dispatcher.telemetry import metrics

KEEP_S: Final = 30 * 86_400.0
"""Longer than the topic's own retention, usually."""
MOST_READ: Final = 200_000
"""Dead events that are read at the start."""
MOST_REDRIVES: Final = 4
"""Redrives that run at once; others are queued."""
MOST_WAITING: Final = 100
MOST_JOBS: Final = 200
"""Redrives whose state is kept; finished ones are dropped first."""
RATE: Final = 100.0
"""Events per second of one redrive, so that the endpoint can still accept new events."""
ANSWER_S: Final = 25.0
STOP_S: Final = 5.0
"""Seconds for the running batch when the console stops."""

log = structlog.get_logger(__name__)


class DeadLetterReader:
    """Implements `model.DeadEvents`; the caller runs `run` as a task."""

    def __init__(
        self, settings: Settings, memory: DeadEventIndex | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self._settings = settings
        self._kafka = settings.kafka
        self._topic = dead_letter_topic(settings.kafka.prefix)
        self._redrive_to = retry_topics(settings.kafka.prefix, settings.retry.tiers)[0]
        self._clock = clock
        self.memory = memory or DeadEventIndex()
        self.follower = TopicTailer(
            settings.kafka, self._topic, self.memory, keep_s=KEEP_S, most_read=MOST_READ,
            if_missing="make it with `dispatcher topics --create`",
        )  # fmt: skip
        self._jobs: OrderedDict[str, RedriveJob] = OrderedDict()
        self._permits = asyncio.Semaphore(MOST_REDRIVES)
        self._tasks: asyncio.TaskGroup | None = None
        self.get = self.memory.get
        self.count = self.memory.count

    @property
    def problem(self) -> str | None:
        """Why results may be incomplete, or None."""
        if self.follower.problem is not None:
            return self.follower.problem
        if not self.follower.is_complete or not self.memory.is_all:
            return "there are more dead events than the console keeps: of those with most, only the latest are shown"
        return None

    def search(self, query: DeadQuery, *, orgs: Orgs) -> DeadPage:
        """Returns a page of the kept dead events; see `model.DeadEvents`."""
        return replace(self.memory.search(query, orgs=orgs), is_complete=self.problem is None)

    async def run(self) -> None:
        """Tails the topic and runs redrives until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            try:
                await self.follower.run()
            finally:
                self._tasks = None

    async def redrive(
        self, tenant: TenantKey, *, ids: frozenset[str] | None, query: DeadQuery, by: str, orgs: Orgs
    ) -> RedriveJob:
        """Starts or queues a redrive of some or all matching events; see `model.DeadEvents`.

        The query is ignored if `ids` is given.
        """
        selection, expected = self._selection(tenant, ids, query, orgs)
        unfinished = [job for job in self._jobs.values() if not job.is_over]
        if any(job.tenant == tenant for job in unfinished):
            raise DispatcherError(f"events of {tenant} are being sent again already: wait until that is done")
        if len(unfinished) >= MOST_REDRIVES + MOST_WAITING:
            raise DispatcherError(f"{len(unfinished)} others are waiting for their turn: try again in a minute")
        if self._tasks is None:
            raise DispatcherError("the console is starting or stopping: try again in a minute")
        is_turn = len(unfinished) < MOST_REDRIVES  # then none waits either
        job = RedriveJob(
            uuid.uuid4().hex, tenant, by, self._clock(), expected, state="running" if is_turn else "waiting"
        )
        self._add_job(job)
        begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        task = self._tasks.create_task(self._run_job(job.id, selection, begun), name=f"redrive of {tenant}")
        if not is_turn:
            return job
        await asyncio.wait({begun, task}, return_when=asyncio.FIRST_COMPLETED)
        job = self._jobs[job.id]
        if not begun.done():
            del self._jobs[job.id]
            raise DispatcherError(job.problem or "the console is stopping")
        return job

    def job(self, job_id: str, *, orgs: Orgs) -> RedriveJob:
        """Returns a redrive. Raises NotFound if it doesn't exist in these organisations."""
        job = self._jobs.get(job_id)
        if job is None or (orgs is not None and job.tenant.org not in orgs):
            raise NotFound("there is no such redrive, or it is long past")
        return job

    def _selection(
        self, tenant: TenantKey, ids: frozenset[str] | None, query: DeadQuery, orgs: Orgs
    ) -> tuple[Selection, int]:
        if orgs is not None and tenant.org not in orgs:
            raise NotFound("there is no such webhook")
        if ids is not None:
            if any(self.get(one, orgs=orgs).tenant != tenant for one in ids):
                raise NotFound("there is no such dead event, or it is no longer kept")
            return Selection(tenant, positions=frozenset(map(place_of, ids))), len(ids)
        expected = self.memory.search(replace(query, tenant=tenant, redriven=False, before=None, limit=1), orgs=orgs)
        selection = Selection(tenant, query.reasons, query.since, query.until, query.message_status)
        return selection, expected.total

    async def _run_job(self, job_id: str, selection: Selection, begun: "asyncio.Future[None]") -> None:
        try:
            async with self._permits:
                self._update(job_id, state="running")
                with translating_kafka_errors(self._kafka):
                    await self._redrive(job_id, selection, begun)
            self._update(job_id, state="done")
        except DispatcherError as error:
            log.warning("redrive failed", job=job_id, error=str(error))
            self._update(job_id, state="failed", problem=error.for_tenants)
        except asyncio.CancelledError:
            self._update(job_id, state="failed", problem="the console was stopped: send them again, none goes twice")
            raise
        except Exception as error:
            metrics.ERRORS.labels("task").inc()
            log.exception("redrive failed because of a bug", job=job_id)
            self._update(job_id, state="failed", problem=f"{type(error).__name__}, a bug of ours")

    async def _redrive(self, job_id: str, selection: Selection, begun: "asyncio.Future[None]") -> None:
        def report(tally: RedriveTally) -> None:
            self._update(job_id, total=tally.total, sent=tally.sent, already=tally.already, gone=tally.gone)

        async with (
            asyncio.timeout(ANSWER_S) as opening,
            open_topic(self._kafka, self._topic) as dead,
            open_history(self._settings) as history,
        ):
            opening.reschedule(None)
            begun.set_result(None)
            redrive = Redrive(dead.reaching(self.follower.read_to), selection, report, history)
            report(await redrive.count())
            async with asyncio.timeout(ANSWER_S) as connecting, Producer(self._kafka) as producer:
                connecting.reschedule(None)
                stop = asyncio.Event()
                sending = asyncio.ensure_future(redrive.send(producer, self._redrive_to, RATE, stop))
                try:
                    report(await asyncio.shield(sending))
                finally:
                    stop.set()  # if cancelled: the running batch is finished and marked
                    await asyncio.wait({sending}, timeout=STOP_S)
                    await end(sending)
        tenant = self._jobs[job_id].tenant
        log.info("dead events sent again", job=job_id, tenant=str(tenant), sent=redrive.tally.sent)

    def _add_job(self, job: RedriveJob) -> None:
        self._jobs[job.id] = job
        for job_id, old in list(self._jobs.items()):
            if len(self._jobs) > MOST_JOBS and old.is_over:
                del self._jobs[job_id]

    def _update(self, job_id: str, **changes: object) -> None:
        if job_id in self._jobs:
            self._jobs[job_id] = replace(self._jobs[job_id], **changes)  # type: ignore[arg-type]
