"""Jobs that send dead or delivered events again: a registry in memory, and the tasks that run them.

If the console stops, a job ends between two batches. Each console process has jobs of its own: another one doesn't show
or stop them, and starts a second job for the same tenant.
"""

import asyncio
import time
import uuid
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Final, Literal, TypeVar

import structlog

from dispatcher.config.kafka_settings import KafkaSettings
from dispatcher.console.resend_model import RedriveModel, ResendQuery, ResumePoint
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import AlreadyRunning, Busy, DispatcherError, NotFound, StoreUnavailable, WouldBeSkipped
from dispatcher.kafka.topic_reader import translating_kafka_errors
from dispatcher.stores.sql.records import Orgs
from dispatcher.tasks import cancel_and_wait
from dispatcher.telemetry import metrics

RATE: Final = 100.0
"""Events per second of one job, so that the endpoint can still accept new events."""
ANSWER_S: Final = 25.0
"""Seconds for the broker's first answer to a job."""
CHECK_S: Final = 5.0
"""Seconds in which the broker has to say what it has: a person waits for the page."""
LOOK_EVERY_S: Final = 1.0
"""Seconds between two looks at the webhook of a running job."""
STOP_S: Final = 5.0
"""Seconds for the running batch when the console stops."""
MOST_REDRIVES: Final = 4
"""Jobs that run at once; others are queued."""
MOST_WAITING: Final = 100
MOST_JOBS: Final = 200
"""Jobs whose state is kept; finished ones are dropped first."""

_STOPPED: Final = {
    "dead": "the console was stopped: send them again, none goes twice",
    "delivered": "the console was stopped: some were sent already, which the next check names",
}

T = TypeVar("T")

log = structlog.get_logger(__name__)


class RunningJob:
    """Handle with which the work of a job reports its progress and sees that it has to stop."""

    def __init__(self, jobs: "RedriveJobs", job_id: str) -> None:
        self._jobs = jobs
        self.id = job_id
        self.stop = asyncio.Event()
        """Set when a person stops the job: the running batch is finished."""
        self.begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Has its result when the work has reached the broker."""
        self.error: Exception | None = None
        """What the work failed with."""

    def report(self, **changes: int | ResumePoint | None) -> None:
        """Updates the job's numbers, and the point that it has reached: fields of `RedriveModel`."""
        self._jobs.update(self.id, **changes)

    async def finish(self, sending: Coroutine[object, object, T]) -> T:
        """Awaits `sending`. If the console stops, the running batch gets `STOP_S` to finish."""
        task = asyncio.ensure_future(sending)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            self.stop.set()
            await asyncio.wait({task}, timeout=STOP_S)
            raise
        finally:
            await cancel_and_wait(task)


JobFunction = Callable[[RunningJob], Awaitable[None]]
WhySkipped = Callable[[TenantKey], Awaitable[str]]
"""Returns why events that are sent again would be skipped; empty if they would not be."""


class RedriveJobs:
    """All redrive jobs of this console. Its owner runs `run` as a task."""

    def __init__(
        self, kafka: KafkaSettings, clock: Callable[[], float] = time.time, why_skipped: WhySkipped | None = None
    ) -> None:
        self._kafka = kafka
        self._why_skipped = why_skipped
        self._clock = clock
        self._jobs: OrderedDict[str, RedriveModel] = OrderedDict()
        self._running: dict[str, RunningJob] = {}
        self._permits = asyncio.Semaphore(MOST_REDRIVES)
        self._tasks: asyncio.TaskGroup | None = None

    async def run(self) -> None:
        """Runs the jobs until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            try:
                await asyncio.Event().wait()
            finally:
                self._tasks = None

    async def start(
        self,
        tenant: TenantKey,
        by: str,
        total: int,
        work: JobFunction,
        kind: Literal["dead", "delivered"] = "dead",
        query: ResendQuery | None = None,
    ) -> RedriveModel:
        """Starts or queues a job. Returns when its work has reached the broker, or the job is queued.

        Args:
            query: the order of delivered events.

        Raises:
            AlreadyRunning: a job of this tenant and kind is unfinished.
            Busy: too many jobs are unfinished, or the console is starting or stopping.
            Exception: the work failed at once, with this.
        """
        unfinished = [job for job in self._jobs.values() if not job.is_over]
        for one in unfinished:
            if (one.tenant, one.kind) == (tenant, kind):
                raise AlreadyRunning(
                    f"{kind} events of {tenant} are being sent again already: wait until that job is done, or stop it",
                    one.id,
                )
        if len(unfinished) >= MOST_REDRIVES + MOST_WAITING:
            raise Busy(f"{len(unfinished)} others are waiting for their turn: try again in a minute")
        if self._tasks is None:
            raise Busy("the console is starting or stopping: try again in a minute")
        is_turn = len(unfinished) < MOST_REDRIVES  # then no other job is queued
        state: Literal["running", "waiting"] = "running" if is_turn else "waiting"
        job = RedriveModel(uuid.uuid4().hex, *tenant, by, self._clock(), total, state=state, kind=kind, query=query)
        self._add(job)
        running = self._running[job.id] = RunningJob(self, job.id)
        task = self._tasks.create_task(self._run_job(running, work), name=f"redrive of {tenant}")
        if not is_turn:
            return job
        await asyncio.wait({running.begun, task}, return_when=asyncio.FIRST_COMPLETED)
        job = self._jobs[job.id]
        if not running.begun.done():
            del self._jobs[job.id]
            raise running.error or Busy("the console is stopping: try again in a minute")
        return job

    def add_failed(self, tenant: TenantKey, by: str, kind: Literal["dead", "delivered"], problem: str) -> RedriveModel:
        """Keeps a job that could not be started, so that its problem is shown beside others that were."""
        now = self._clock()
        job = RedriveModel(
            uuid.uuid4().hex, *tenant, by, now, 0, state="failed", problem=problem, kind=kind, finished_at=now
        )
        self._add(job)
        return job

    def job(self, job_id: str, *, orgs: Orgs) -> RedriveModel:
        """Returns a job. Raises NotFound if this process has none in these organisations."""
        job = self._jobs.get(job_id)
        if job is None or (orgs is not None and job.org not in orgs):
            raise NotFound(
                "there is no such redrive here: it is long past, the console was restarted, "
                "or another pod of the console runs it"
            )
        return job

    def jobs(self, *, orgs: Orgs, tenant: TenantKey | None = None) -> Sequence[RedriveModel]:
        """Returns the kept jobs of these organisations, the newest first."""
        return [
            job
            for job in reversed(self._jobs.values())
            if (orgs is None or job.org in orgs) and tenant in (None, job.tenant)
        ]

    def stop(self, job_id: str, *, orgs: Orgs) -> RedriveModel:
        """Stops a job after its running batch. Does nothing if the job is over. Raises NotFound."""
        job = self.job(job_id, orgs=orgs)
        running = self._running.get(job_id)
        if running is not None and not job.is_over:
            running.stop.set()
            self.update(job_id, stopping=True)
        return self._jobs[job_id]

    def update(self, job_id: str, **changes: object) -> None:
        """Changes fields of a job, if the job is still kept."""
        if job_id in self._jobs:
            self._jobs[job_id] = replace(self._jobs[job_id], **changes)  # type: ignore[arg-type]

    async def _run_job(self, running: RunningJob, work: JobFunction) -> None:
        job_id = running.id
        try:
            async with self._permits:
                if not running.stop.is_set():
                    if why := await self._why_not(running):
                        raise WouldBeSkipped(why)
                    self.update(job_id, state="running")
                    await self._work_while_accepted(running, work)
            self._end(job_id, "stopped" if self._jobs[job_id].stopping else "done")
        except DispatcherError as error:
            running.error = error
            log.warning("redrive failed", job=job_id, error=str(error))
            self._end(job_id, "failed", error.for_tenants)
        except asyncio.CancelledError:
            self._end(job_id, "failed", _STOPPED[self._jobs[job_id].kind])
            raise
        except Exception as error:
            running.error = error
            metrics.ERRORS.labels("task").inc()
            log.exception("redrive failed because of a bug", job=job_id)
            self._end(job_id, "failed", f"{type(error).__name__}, a bug of ours")
        finally:
            self._running.pop(job_id, None)

    async def _work_while_accepted(self, running: RunningJob, work: JobFunction) -> None:
        """Works until done or stopped.

        Raises:
            WouldBeSkipped: the webhook was switched off or deleted meanwhile. Dead events that were sent nevertheless
                would be skipped, and would count as sent again.
        """
        watch = asyncio.create_task(self._stop_if_skipped(running), name="webhook of a redrive")
        try:
            with translating_kafka_errors(self._kafka):
                await work(running)
        finally:
            await cancel_and_wait(watch)
        if not watch.cancelled() and (why := watch.result()):
            raise WouldBeSkipped(f"{why}. The rest was not sent")

    async def _stop_if_skipped(self, running: RunningJob) -> str:
        """Stops a job once its events would be skipped. Returns why they would be."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            if why := await self._why_not(running):
                running.stop.set()
                return why

    async def _why_not(self, running: RunningJob) -> str:
        """Returns why the job's events would be skipped; empty if they would not be, or if that isn't known."""
        try:
            return "" if self._why_skipped is None else await self._why_skipped(self._jobs[running.id].tenant)
        except StoreUnavailable as error:
            log.warning("the webhook of a redrive can't be looked up", job=running.id, problem=str(error)[:300])
            return ""

    def _end(self, job_id: str, state: Literal["done", "stopped", "failed"], problem: str = "") -> None:
        self.update(job_id, state=state, problem=problem, stopping=False, finished_at=self._clock())

    def _add(self, job: RedriveModel) -> None:
        self._jobs[job.id] = job
        for job_id, old in list(self._jobs.items()):
            if len(self._jobs) > MOST_JOBS and old.is_over:
                del self._jobs[job_id]
