"""Writes the history topic, `<group_id>.history`, from the recorder's buffer.

It has a producer of its own: a history that can't be written must not poison or delay the producer of retry topics and
dead letters. A broker that refuses or is away costs entries, each counted in `dispatcher_history_lost_total`, and
nothing else.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from types import TracebackType
from typing import Final, Self

import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from dispatcher.config.kafka_settings import KafkaSettings
from dispatcher.config.settings import Settings
from dispatcher.contract.encoded_entries import EncodedEntries
from dispatcher.delivery.history_recorder import HistoryRecorder
from dispatcher.kafka.connection import connection_arguments, stopped
from dispatcher.kafka.topics import history_topic
from dispatcher.tasks import Backoff, cancel_and_wait, set_within
from dispatcher.telemetry import metrics

FLUSH_S: Final = 1.0
"""Entries wait this long for others of their bucket."""
LAST_FLUSH_S: Final = 5.0
"""At the end of the process, time to write what is left."""
BATCH_BYTES: Final = 512 * 1024
"""Bytes that are compressed together. Entries resemble each other, so that zstd leaves an eighth of them or less."""
RECORDS_AT_A_TURN: Final = 8
"""Records handed over before other tasks have their turn: a millisecond, if they are full."""
LINGER_MS: Final = 200
FIRST_WAIT_S: Final = 0.5
LONGEST_WAIT_S: Final = 15.0

log = structlog.get_logger(__name__)


@asynccontextmanager
async def open_history(settings: Settings) -> AsyncIterator[HistoryRecorder | None]:
    """Yields a recorder whose entries are written until the context ends, or None if history is off."""
    if not settings.history.is_on:
        yield None
        return
    recorder = HistoryRecorder(settings.history)
    async with HistoryTopic(settings.kafka, history_topic(settings.kafka.prefix), recorder):
        yield recorder


class HistoryTopic:
    """Context manager that writes entries while it is open, and the rest within a deadline when it closes."""

    def __init__(self, settings: KafkaSettings, topic: str, recorder: HistoryRecorder) -> None:
        self._settings = settings
        self._topic = topic
        self._recorder = recorder
        self._writer = secrets.randbits(62)
        self._next = 0
        self._producer: AIOKafkaProducer | None = None
        self._problem = ""
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="history topic")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._task is not None:
            await cancel_and_wait(self._task)
        await self._close()

    async def _run(self) -> None:
        """Writes until cancelled, whatever the broker does."""
        backoff = Backoff(FIRST_WAIT_S, LONGEST_WAIT_S)
        while True:
            try:
                await self._start()
                backoff.reset()
                await self._write_regularly()
            except (KafkaError, OSError, TimeoutError) as error:
                self._note(f"{type(error).__name__}: {str(error)[:256]}")
            except Exception:
                metrics.ERRORS.labels("history").inc()
                log.exception("history is not written because of a bug; kept trying", topic=self._topic)
            await self._stop()
            await backoff.wait()

    async def _write_regularly(self) -> None:
        loop = asyncio.get_running_loop()
        flush_at = loop.time() + FLUSH_S
        while True:
            await set_within(self._recorder.ready, max(0.0, flush_at - loop.time()))
            self._recorder.ready.clear()
            is_due = loop.time() >= flush_at
            await self._write(everything=is_due)
            if is_due:
                flush_at = loop.time() + FLUSH_S

    async def _close(self) -> None:
        try:
            async with asyncio.timeout(LAST_FLUSH_S):
                if self._producer is None and self._recorder.buffered:
                    await self._start()
                if self._producer is not None:
                    await self._write(everything=True, at_end=True)
                    await self._producer.flush()
        except (KafkaError, OSError, TimeoutError) as error:
            log.warning("history of the last second is lost", topic=self._topic, error=type(error).__name__)
        if self._recorder.buffered:
            metrics.HISTORY_LOST.labels("not_written").inc(self._recorder.buffered)
        await self._stop()

    async def _write(self, *, everything: bool, at_end: bool = False) -> None:
        taken = self._recorder.take_all(at_end=at_end) if everything else self._recorder.take_full()
        for number, (bucket, entries) in enumerate(taken):
            await self._send(b"%d" % bucket, entries)
            if number % RECORDS_AT_A_TURN == RECORDS_AT_A_TURN - 1:
                await asyncio.sleep(0)

    async def _send(self, key: bytes, entries: EncodedEntries) -> None:
        if self._producer is None:
            return
        first, count = self._next, len(entries)
        self._next += count
        try:
            future = await self._producer.send(self._topic, entries.value(self._writer, first), key)
        except BaseException:
            metrics.HISTORY_LOST.labels("not_written").inc(count)
            raise
        future.add_done_callback(partial(self._sent, count))

    def _sent(self, count: int, future: "asyncio.Future[object]") -> None:
        error = None if future.cancelled() else future.exception()
        if future.cancelled() or error is not None:
            metrics.HISTORY_LOST.labels("not_written").inc(count)
            self._note(type(error).__name__)
        else:
            metrics.HISTORY_WRITTEN.inc(count)
            if self._problem:
                log.info("history is written again", topic=self._topic)
            self._problem = ""

    def _note(self, problem: str) -> None:
        if problem != self._problem:
            log.warning("history is not written; the gap is counted", topic=self._topic, problem=problem)
        self._problem = problem

    async def _start(self) -> None:
        producer = AIOKafkaProducer(
            **connection_arguments(self._settings),
            acks="all",
            enable_idempotence=False,  # the store drops repeats
            compression_type="zstd",
            linger_ms=LINGER_MS,
            max_batch_size=BATCH_BYTES,
            max_request_size=2 * BATCH_BYTES,
        )
        try:
            await producer.start()
        except BaseException:
            await stopped(producer)
            raise
        self._producer = producer

    async def _stop(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            await stopped(producer)
