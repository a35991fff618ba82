"""Jobs that send dead or delivered events again: the tasks of those that this console runs, and the list of all.

The list is in the webhook database, see `stores.sql.jobs`: every console shows and stops the jobs of all. A console
writes the progress of its own jobs once a second. If the console stops, a job ends between two batches.

While the database doesn't answer, a job goes on for `UNWRITTEN_S`. Then it ends, because other consoles take it for
lost soon, and may start another one: the events would go out twice.
"""

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Sequence
from dataclasses import replace
from typing import Final, Literal, NoReturn, TypeVar

import structlog

from dispatcher.config.kafka_settings import KafkaSettings
from dispatcher.console.resend_model import RedriveModel, ResendQuery, ResumePoint
from dispatcher.console.sources.job_records import INTERRUPTIONS, job_of, stored_job
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import Busy, DispatcherError, StoreUnavailable, WouldBeSkipped
from dispatcher.kafka.topic_reader import translating_kafka_errors
from dispatcher.stores.sql.jobs import JobStore
from dispatcher.stores.sql.records import Orgs
from dispatcher.stores.sql.repeating import keep_trying
from dispatcher.tasks import cancel_and_wait, unless_stopped
from dispatcher.telemetry import metrics

RATE: Final = 100.0
"""Events per second of one job, so that the endpoint can still accept new events."""
ANSWER_S: Final = 25.0
"""Seconds for the broker's first answer to a job."""
CHECK_S: Final = 5.0
"""Seconds in which the broker has to say what it has: a person waits for the page."""
LOOK_EVERY_S: Final = 1.0
"""Seconds between two looks at the webhook of a running job."""
WRITE_EVERY_S: Final = 1.0
"""Seconds between two writes of the progress of all jobs, which also show that they go on and find who was stopped."""
UNWRITTEN_S: Final = 10.0
"""Seconds without a successful write after which a job ends. With a write's deadline and the time for the running batch
it is less than `LOST_S`."""
DELETE_EVERY_S: Final = 600.0
STOP_S: Final = 5.0
"""Seconds for the running batch when the console stops."""
MOST_REDRIVES: Final = 4
"""Jobs that run at once; others are queued."""
MOST_WAITING: Final = 100

_STOPPING: Final = "the console is starting or stopping: try again in a minute"
_STOPPED: Final = {
    "dead": "the console was stopped: send them again, none goes twice",
    "delivered": "the console was stopped: some were sent already, which the next check names",
}
_UNWRITTEN: Final = "the webhook database did not answer for long. The rest was not sent"

T = TypeVar("T")

log = structlog.get_logger(__name__)


class RunningJob:
    """A job of this process. Its work reports the progress here, and sees that it has to stop."""

    def __init__(self, job: RedriveModel) -> None:
        self.id = job.id
        self.job = job
        """The job as it is now; the database has it up to a second later."""
        self.written: RedriveModel | None = None
        """The job as the database has it."""
        self.written_at: float | None = None
        """Loop time at which the last successful write began; None before the job is in the database."""
        self.why_halted = ""
        """Why the rest isn't sent although no person has stopped the job; empty if nothing prevents it."""
        self.stop = asyncio.Event()
        """Set when the job has to stop: the running batch is finished."""
        self.begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Has its result when the work has reached the broker."""
        self.error: Exception | None = None
        """What the work failed with."""

    def report(self, **changes: int | ResumePoint | None) -> None:
        """Updates the job's numbers, and the point that it has reached: fields of `RedriveModel`."""
        self.update(**changes)

    def update(self, **changes: object) -> None:
        """Changes fields of the job."""
        self.job = replace(self.job, **changes)  # type: ignore[arg-type]

    def request_stop(self) -> None:
        """Stops the job for a person."""
        self.stop.set()
        if not self.job.is_over:
            self.update(stopping=True)

    def halt(self, why: str) -> None:
        """Stops the job, which then has failed for this reason."""
        self.why_halted = self.why_halted or why
        self.stop.set()

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
    """Starts, stops and lists jobs. Its owner runs `run` as a task.

    Every method raises `StoreUnavailable` if the database doesn't answer.
    """

    def __init__(self, kafka: KafkaSettings, store: JobStore, why_skipped: WhySkipped | None = None) -> None:
        self._kafka = kafka
        self._store = store
        self._why_skipped = why_skipped
        self._running: dict[str, RunningJob] = {}
        """This console's jobs, until their end is in the database."""
        self._permits = asyncio.Semaphore(MOST_REDRIVES)
        self._tasks: asyncio.TaskGroup | None = None

    async def run(self) -> None:
        """Runs the jobs until cancelled. Their end is in the database then, if that answers."""
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                writing = _repeated(self._write, WRITE_EVERY_S, "the progress of redrives could not be written")
                deleting = _repeated(self._store.delete_old, DELETE_EVERY_S, "old redrives could not be deleted")
                tasks.create_task(writing, name="progress of redrives")
                tasks.create_task(deleting, name="old redrives")
                try:
                    await asyncio.Event().wait()
                finally:
                    self._tasks = None
        finally:
            await self._write_ends()

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
            AlreadyRunning: a job of this tenant and kind is unfinished, on any console.
            Busy: too many jobs of this console are unfinished, or it is starting or stopping.
            Exception: the work failed at once, with this.
        """
        others = sum(not one.job.is_over for one in self._running.values())
        is_turn = others < MOST_REDRIVES  # then no other job is queued
        state: Literal["running", "waiting"] = "running" if is_turn else "waiting"
        job = RedriveModel(uuid.uuid4().hex, *tenant, by, 0.0, total, state=state, kind=kind, query=query)
        running = await self._add(job)
        if self._tasks is None or others >= MOST_REDRIVES + MOST_WAITING:  # now that it isn't AlreadyRunning
            crowd = f"{others} others are waiting for their turn: try again in a minute"
            raise await self._discarded(running, Busy(_STOPPING if self._tasks is None else crowd))
        task = self._tasks.create_task(self._run_job(running, work), name=f"redrive of {tenant}")
        if not is_turn:
            return running.job
        await asyncio.wait({running.begun, task}, return_when=asyncio.FIRST_COMPLETED)
        if not running.begun.done() and (running.error is not None or task.cancelled()):
            raise await self._discarded(running, running.error or Busy(_STOPPING))
        return running.job

    async def _add(self, job: RedriveModel) -> RunningJob:
        """Adds a job to the database. It counts as one of this console's from the beginning.

        Raises:
            AlreadyRunning, Busy: see `start`.
        """
        if self._tasks is None:
            raise Busy(_STOPPING)
        running = self._running[job.id] = RunningJob(job)
        now = asyncio.get_running_loop().time()
        try:
            stored = await self._store.add(stored_job(job))
        except BaseException:
            del self._running[job.id]
            raise
        running.update(started_at=stored.started_at)
        running.written, running.written_at = running.job, now
        return running

    async def _discarded(self, running: RunningJob, error: Exception) -> Exception:
        """Deletes a job that did not begin. Returns the error; if the database doesn't answer, the job ends with it."""
        if not running.job.is_over:
            _end(running, "failed", str(error))
        try:
            await self._store.discard(running.id)
        except StoreUnavailable as away:
            metrics.STORE_FAILURES.inc()
            log.warning("a redrive that did not begin stays in the list", job=running.id, problem=str(away)[:300])
        else:
            self._running.pop(running.id, None)
        return error

    async def add_failed(
        self, tenant: TenantKey, by: str, kind: Literal["dead", "delivered"], problem: str
    ) -> RedriveModel:
        """Adds a job that could not be started, so that its problem is shown beside others that were."""
        job = RedriveModel(uuid.uuid4().hex, *tenant, by, 0.0, 0, state="failed", problem=problem, kind=kind)
        return job_of(await self._store.add(stored_job(job)))

    async def get(self, job_id: str, *, orgs: Orgs) -> RedriveModel:
        """Returns a job of any console. Raises NotFound if these organisations have none with this id."""
        return job_of(await self._store.get(job_id, orgs=orgs))

    async def search(
        self, *, orgs: Orgs, tenant: TenantKey | None = None, ids: Collection[str] | None = None
    ) -> Sequence[RedriveModel]:
        """Returns the kept jobs of these organisations, the newest first: `MOST_LISTED` at most."""
        return [job_of(one) for one in await self._store.search(orgs=orgs, tenant=tenant, ids=ids)]

    async def stop(self, job_id: str, *, orgs: Orgs) -> RedriveModel:
        """Stops a job after its running batch; within seconds if another console runs it.

        Does nothing if the job is over. Raises NotFound.
        """
        job = job_of(await self._store.request_stop(job_id, orgs=orgs))
        if (running := self._running.get(job_id)) is not None:
            running.request_stop()
        return job

    async def _run_job(self, running: RunningJob, work: JobFunction) -> None:
        try:
            if await unless_stopped(running.stop, self._permits.acquire()):
                try:
                    await self._work_in_turn(running, work)
                finally:
                    self._permits.release()
            if running.why_halted:
                log.warning("redrive halted", job=running.id, problem=running.why_halted)
                _end(running, "failed", running.why_halted)
            else:
                _end(running, "stopped" if running.job.stopping else "done")
        except DispatcherError as error:
            running.error = error
            log.warning("redrive failed", job=running.id, error=str(error))
            _end(running, "failed", error.for_tenants)
        except asyncio.CancelledError:
            _end(running, "failed", _STOPPED[running.job.kind])
            raise
        except Exception as error:
            running.error = error
            metrics.ERRORS.labels("task").inc()
            log.exception("redrive failed because of a bug", job=running.id)
            _end(running, "failed", f"{type(error).__name__}, a bug of ours")

    async def _work_in_turn(self, running: RunningJob, work: JobFunction) -> None:
        if running.stop.is_set():
            return
        if why := await self._why_not(running):
            raise WouldBeSkipped(why)
        running.update(state="running")
        await self._work_while_accepted(running, work)

    async def _work_while_accepted(self, running: RunningJob, work: JobFunction) -> None:
        """Works until done or stopped. Halts if the webhook is switched off or deleted meanwhile.

        Dead events that were sent nevertheless would be skipped, and would count as sent again.
        """
        watch = asyncio.create_task(self._halt_if_skipped(running), name="webhook of a redrive")
        try:
            with translating_kafka_errors(self._kafka):
                await work(running)
        finally:
            await cancel_and_wait(watch)

    async def _halt_if_skipped(self, running: RunningJob) -> None:
        """Halts a job once its events would be skipped."""
        while not running.stop.is_set():
            await asyncio.sleep(LOOK_EVERY_S)
            if why := await self._why_not(running):
                running.halt(f"{why}. The rest was not sent")

    async def _why_not(self, running: RunningJob) -> str:
        """Returns why the job's events would be skipped; empty if they would not be, or if that isn't known."""
        try:
            return "" if self._why_skipped is None else await self._why_skipped(running.job.tenant)
        except StoreUnavailable as error:
            log.warning("the webhook of a redrive can't be looked up", job=running.id, problem=str(error)[:300])
            return ""

    async def _write(self) -> None:
        """Writes what has changed, and that unfinished jobs go on. Stops those that were stopped on another console.

        Halts those that another console takes for lost now, or soon.
        """
        now = asyncio.get_running_loop().time()
        known = [one for one in self._running.values() if one.written_at is not None]
        unfinished = [one for one in known if not one.job.is_over]
        changed = [(one, one.job) for one in known if one.job is not one.written]
        if not known:
            return
        try:
            stopping = await self._store.write([one.id for one in unfinished], [stored_job(job) for _, job in changed])
        except Exception:
            _halt_unwritten(unfinished)
            raise
        for one, job in changed:
            one.written = job
            if job.is_over:
                self._running.pop(one.id, None)
        for one in unfinished:
            if one.id not in stopping:
                one.halt(INTERRUPTIONS[one.job.kind])
                continue
            one.written_at = now
            if stopping[one.id]:
                one.request_stop()

    async def _write_ends(self) -> None:
        """Writes how the jobs have ended, because this process ends. Otherwise, they are lost half a minute later."""
        try:
            await self._write()
        except StoreUnavailable as error:
            metrics.STORE_FAILURES.inc()
            log.warning("the end of redrives could not be written", jobs=len(self._running), problem=str(error)[:300])


def _repeated(
    step: Callable[[], Awaitable[object]], every_s: float, problem: str
) -> Coroutine[object, object, NoReturn]:
    return keep_trying(
        step, every_s, component="task", if_unavailable=problem, if_bug=f"{problem} because of a bug",
        failures=metrics.STORE_FAILURES,
    )  # fmt: skip


def _end(running: RunningJob, state: Literal["done", "stopped", "failed"], problem: str = "") -> None:
    running.update(state=state, problem=problem, stopping=False)


def _halt_unwritten(jobs: Iterable[RunningJob]) -> None:
    """Halts jobs that could not be written for long."""
    now = asyncio.get_running_loop().time()
    for one in jobs:
        if one.written_at is not None and now - one.written_at > UNWRITTEN_S:
            one.halt(_UNWRITTEN)
