"""Writes records and waits for the broker's word: acks=all, idempotent where the broker can."""

from collections.abc import Sequence
from types import TracebackType
from typing import Self

import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, UnknownError, UnsupportedVersionError

from dispatcher.config.settings import KafkaSettings
from dispatcher.errors import NotWritten
from dispatcher.kafka.connection import connection_arguments, stopped, until_answered
from dispatcher.kafka.problems import KafkaProblems
from dispatcher.telemetry import metrics

log = structlog.get_logger(__name__)


class Producer:
    """A producer for retry, dead-letter and attempt records. Enter to start it; it waits for a broker that is away."""

    def __init__(self, settings: KafkaSettings, problems: KafkaProblems | None = None) -> None:
        """`problems`: where what keeps it from writing is reported, if anywhere."""
        self._settings = settings
        self._problems = problems
        self._producer: AIOKafkaProducer | None = None

    async def __aenter__(self) -> Self:
        self._producer = await until_answered("producer", self._started)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._producer is not None:
            await stopped(self._producer)

    async def write(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Sequence[tuple[str, bytes]],
        kind: str,
        partition: int | None = None,
    ) -> None:
        """Write one record; returns when the broker has it. The key chooses the partition where none is given.

        Raises:
            NotWritten: it has not, or did not say so in time. The caller keeps the event.
        """
        if self._producer is None:
            raise NotWritten("the producer is not started")
        try:
            await self._producer.send_and_wait(topic, value, key, partition, headers=list(headers))
        except (KafkaError, TimeoutError, OSError) as error:
            metrics.PRODUCE_FAILURES.labels(kind).inc()
            log.warning("record not written", topic=topic, error=type(error).__name__, detail=str(error)[:256])
            raise NotWritten(f"{topic}: {type(error).__name__}") from error

    async def _started(self) -> AIOKafkaProducer:
        if self._settings.idempotence == "off":
            return await self._start(idempotent=False)
        try:
            return await self._start(idempotent=True)
        except KafkaError as error:
            if self._settings.idempotence == "on" or not _means_unsupported(error):
                raise
            log.warning("the broker has no idempotent producers: a lost acknowledgement may write a record twice")
            return await self._start(idempotent=False)

    async def _start(self, *, idempotent: bool) -> AIOKafkaProducer:
        producer = AIOKafkaProducer(
            **connection_arguments(self._settings),
            acks="all",
            enable_idempotence=idempotent,
            linger_ms=5,
            max_request_size=self._settings.max_record_bytes * 2 + 64 * 1024,
        )
        try:
            await producer.start()
        except BaseException:
            await stopped(producer)
            raise
        return producer


def _means_unsupported(error: Exception) -> bool:
    # A broker that doesn't know InitProducerId says so with UNSUPPORTED_VERSION, the embedded one with code -1.
    return isinstance(error, UnsupportedVersionError | UnknownError)
