"""Processes each record until it has an outcome. Only then is its offset marked as done.

Each record is an `InFlightRecord`, owned here. `fast_path` begins it if there is one; otherwise, or after a fallback,
it gets a task of its own.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import Context
from functools import partial
from typing import Final, Protocol

import structlog

from dispatcher.contract.outcomes import Outcome
from dispatcher.contract.records import ProcessingAttempt, ProcessRecord, Record, place_of
from dispatcher.delivery.direct_attempt import DirectAttempt
from dispatcher.delivery.pending_delivery import AttemptResult
from dispatcher.errors import BrakeEngaged, Draining, NotWritten, StillHeld, StoreUnavailable
from dispatcher.kafka.group_session import FIRST_REPEAT_S, GroupSession
from dispatcher.kafka.partition import InFlightRecord, Partition
from dispatcher.kafka.read_ahead import ReadAheadLimit
from dispatcher.tasks import Backoff
from dispatcher.telemetry import metrics

log = structlog.get_logger(__name__)


LONGEST_REPEAT_S: Final = 30.0


class FastPath(Protocol):
    """Delivers records without a task. Implemented by `flow.fast_path`, and by a test double of the simulation."""

    def start(self, record: Record, processing: ProcessingAttempt, owner: InFlightRecord, /) -> DirectAttempt | None:
        """Processes the record without awaiting. Returns the attempt in progress; None if finished or declined."""
        ...

    def resume(
        self, record: Record, processing: ProcessingAttempt, first_result: AttemptResult, /
    ) -> Awaitable[Outcome]:
        """Continues with a record after its first attempt. Returns its outcome."""
        ...


async def process_until_outcome(
    session: GroupSession,
    record: Record,
    attempt: ProcessingAttempt,
    process: Callable[[AttemptResult | None], Awaitable[object]],
    on_repeat: Callable[[], None],
    first_result: AttemptResult | None = None,
) -> bool:
    """Repeats `process` until the record has an outcome. Returns False if its assignment ended first.

    Args:
        process: called with `first_result`, and with None when it is repeated.
        on_repeat: called each time that it has to be repeated, before waiting.

    Raises:
        StillHeld: the event of a held record has to wait again.
    """
    backoff = Backoff(FIRST_REPEAT_S, LONGEST_REPEAT_S)
    while True:
        is_repeated = True
        try:
            await process(first_result)
        except Draining:
            if not attempt.epoch.active:
                return False
            is_repeated = False
        except StillHeld:
            raise
        except (StoreUnavailable, NotWritten, BrakeEngaged) as error:
            session.note_repeat(record, error)
        except Exception as error:  # noqa: BLE001  (logged there)
            metrics.ERRORS.labels("consumer").inc()
            session.note_repeat(record, error, is_bug=True)
        else:
            return True
        attempt.started, first_result = False, None
        if is_repeated:
            on_repeat()
            await backoff.wait()
        else:  # outside of the `except`, where compiled code must not await: docs/decisions/0008
            await session.until_member()


class RecordProcessor:
    """Processes the records of one consumer until each has its outcome."""

    def __init__(
        self,
        process: ProcessRecord,
        read_ahead: ReadAheadLimit,
        fast_path: FastPath | None,
        session: GroupSession,
        on_finished: Callable[[], None],
        on_ended: Callable[[Partition], None],
    ) -> None:
        """Prepares a processor without records.

        Args:
            process: brings a record to its outcome.
            read_ahead: counts the records begun.
            fast_path: begins records that need no task; None if every record gets one.
            session: reports when this process is a member of its group again.
            on_finished: called for each record that has its outcome.
            on_ended: called with the partition of each record that is over, with an outcome or without.
        """
        self._process = process
        self._read_ahead = read_ahead
        self._fast_path = fast_path
        self._session = session
        self._on_finished = on_finished
        self._on_ended = on_ended
        self._running_loop: asyncio.AbstractEventLoop | None = None

    @property
    def _loop(self) -> asyncio.AbstractEventLoop:
        """The event loop, kept because looking it up takes a system call each time (getpid, until Python 3.12)."""
        if self._running_loop is None:
            self._running_loop = asyncio.get_running_loop()
        return self._running_loop

    def begin(self, partition: Partition, record: Record) -> None:
        """Processes a record, unless it is known to be finished. Call with rising offsets."""
        partition.consumed.inc()
        tracker = partition.tracker
        already = tracker.was_finished(record.offset)
        tracker.start(record.offset)
        if already:
            tracker.finish(record.offset)
            metrics.EVENTS_RESUMED.inc()
            self._on_finished()
            return
        item = partition.in_flight[record.offset] = InFlightRecord(self, partition, record)
        self._read_ahead.add(item.size)
        if self._fast_path is None:
            self.start_slow_path(item, None)
        else:
            item.direct_attempt = self._fast_path.start(record, item, item)

    async def _run(self, item: InFlightRecord, first_result: AttemptResult | None) -> None:
        """Processes the record until it has an outcome. Only then is its offset marked as done."""
        process, on_repeat = partial(self._process_once, item), partial(self._set_aside, item)
        if await process_until_outcome(self._session, item.record, item, process, on_repeat, first_result):
            self._done(item)

    def _set_aside(self, item: InFlightRecord) -> None:
        """Makes reading go on without this record: it may wait long, for the brake, a topic or the store."""
        partition, offset = item.partition, item.record.offset
        if offset not in partition.repeated:
            partition.repeated.add(offset)
            partition.repeated_bytes += item.size
            self._read_ahead.set_aside()

    def _take_back(self, item: InFlightRecord) -> None:
        partition, offset = item.partition, item.record.offset
        if offset in partition.repeated:
            partition.repeated.remove(offset)
            partition.repeated_bytes -= item.size
            self._read_ahead.take_back()

    def _process_once(self, item: InFlightRecord, first_result: AttemptResult | None) -> Awaitable[Outcome]:
        if first_result is None or self._fast_path is None:
            return self._process(item.record, item)
        return self._fast_path.resume(item.record, item, first_result)

    def _done(self, item: InFlightRecord) -> None:
        """Marks the record's offset as done: it has its outcome."""
        item.partition.finish(item.record)
        self._on_finished()

    # Callbacks of the records in flight

    def record_finished(self, item: InFlightRecord) -> None:
        """Marks the record as done and removes it."""
        self._done(item)
        self.record_ended(item)

    def start_slow_path(self, item: InFlightRecord, first_result: AttemptResult | None) -> None:
        """Starts a task for the record in a new context, because the caller may be the task of another traced event."""
        item.task = self._loop.create_task(self._run(item, first_result), context=Context())
        item.task.add_done_callback(partial(self._task_ended, item))

    def record_ended(self, item: InFlightRecord) -> None:
        """Removes a record that is over, with an outcome or without."""
        partition = item.partition
        del partition.in_flight[item.record.offset]
        item.direct_attempt = None  # breaks a reference cycle, so that neither waits for the garbage collector
        self._read_ahead.remove(item.size, self._loop.time())
        self._on_ended(partition)

    def _task_ended(self, item: InFlightRecord, task: "asyncio.Task[None]") -> None:
        item.resume = None  # breaks a reference cycle
        self._take_back(item)
        self.record_ended(item)
        if not task.cancelled() and task.exception() is not None:
            metrics.ERRORS.labels("consumer").inc()
            log.error("record's task failed", place=place_of(item.record), exc_info=task.exception())
