"""Writes dead letters: records that will never be delivered, each with its reason."""

import hashlib
from collections.abc import Iterator
from typing import Final

import structlog

from dispatcher.contract.outcomes import DeadReason
from dispatcher.contract.records import PREFIX, Record, RecordHeaders, RetryState, place_of, without_retry_state
from dispatcher.errors import RecordTooLarge
from dispatcher.kafka.producer import Producer
from dispatcher.kafka.topics import dead_letter_topic
from dispatcher.telemetry import metrics

MAX_DETAIL: Final = 1000
TRUNCATED: Final = PREFIX + "truncated"
"""Header of a dead letter that couldn't carry its record whole: which parts were cut, separated by commas."""
_CUTS: Final = (
    (1 << 20, True, True),
    (256 << 10, True, True),
    (64 << 10, True, True),
    (8 << 10, True, True),
    (8 << 10, False, True),
    (8 << 10, False, False),
    (0, False, False),
)
"""Reductions tried, one after the other, if the topic doesn't accept the whole record: bytes of the value, whether with
the record's own headers, whether with its key."""

log = structlog.get_logger(__name__)

_Headers = list[tuple[str, bytes | None]]
_Letter = tuple[bytes | None, bytes | None, _Headers]


class DeadLetters:
    """The dead-letter topic. A record keeps its key, value and headers, and gets its retry state and the reason."""

    def __init__(self, producer: Producer, prefix: str) -> None:
        self._producer = producer
        self._topic = dead_letter_topic(prefix)

    @property
    def topic(self) -> str:
        """Name of the topic, `<prefix>.dead`."""
        return self._topic

    async def dead_letter(self, record: Record, retry_state: RetryState, reason: DeadReason, detail: str) -> None:
        """Writes the record with its reason; returns when the broker has acknowledged it.

        If the topic doesn't accept the whole record, the dead letter carries what fits: as much of the value as
        possible, then neither key nor headers of the record; and always its size and SHA-256, and what was cut.

        Raises:
            NotWritten: the dead letter could not be written, not even in its shortest form.
        """
        own: _Headers = [(name, value) for name, value in retry_state.headers() if name != PREFIX + "reason"]
        own.append((PREFIX + "reason", reason.value.encode()))
        own.append((PREFIX + "detail", detail[:MAX_DETAIL].encode(errors="replace")))
        try:
            headers = [*without_retry_state(record.headers), *own]
            await self._producer.write(self._topic, record.key, record.value, headers, "dead")
        except RecordTooLarge as error:
            await self._write_what_fits(record, own, error)

    async def _write_what_fits(self, record: Record, own: _Headers, refused: RecordTooLarge) -> None:
        for key, value, headers in _shorter(record, own):
            try:
                await self._producer.write(self._topic, key, value, headers, "dead")
            except RecordTooLarge:
                continue
            log.warning(
                "dead letter carries only a part of its record", record=place_of(record), kept=len(value or b""),
                size=len(record.value or b""), why=str(refused),
            )  # fmt: skip
            return
        metrics.PRODUCE_FAILURES.labels("dead").inc()
        raise refused


def _shorter(record: Record, own: _Headers) -> Iterator[_Letter]:
    """Yields ever shorter versions of the dead letter; each names what was cut."""
    whole, theirs = record.value or b"", without_retry_state(record.headers)
    own = [
        *own,
        (PREFIX + "size", str(len(whole)).encode()),
        (PREFIX + "sha256", hashlib.sha256(whole).hexdigest().encode()),
    ]
    lacking: tuple[int, bool, bool] | None = None
    for most, with_headers, with_key in _CUTS:
        value, headers, key = whole[:most], theirs if with_headers else [], record.key if with_key else None
        cut = (len(value), headers != theirs, key != record.key)
        if cut not in (lacking, (len(whole), False, False)):
            lacking = cut
            yield key, value, [*headers, *own, _truncated(record, key, value, headers=headers != theirs)]
    without_detail = [(name, text) for name, text in own if name != PREFIX + "detail"]
    yield None, b"", [*without_detail, _truncated(record, None, b"", headers=bool(theirs))]


def _truncated(record: Record, key: bytes | None, value: bytes, *, headers: bool) -> tuple[str, bytes]:
    cut = {"value": value != (record.value or b""), "headers": headers, "key": key != record.key}
    return TRUNCATED, ",".join(name for name, is_cut in cut.items() if is_cut).encode()


def is_truncated(headers: RecordHeaders) -> bool:
    """Returns True if a dead letter carries only a part of its record, so that it can't be delivered any more."""
    return any(name == TRUNCATED for name, _ in headers)
