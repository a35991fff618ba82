"""Processes held events whose tenant was released, each in a task of its own, within limits of number and bytes."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Final

import structlog

from dispatcher.contract.records import ProcessingAttempt, ProcessRecord, Record
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import StillHeld
from dispatcher.kafka.group_session import GroupSession
from dispatcher.kafka.held_commits import HeldAssignment
from dispatcher.kafka.held_partition import HeldPartition
from dispatcher.kafka.held_topic import HeldTopic
from dispatcher.kafka.partition import size_of
from dispatcher.kafka.processing import process_until_outcome
from dispatcher.telemetry import metrics

log = structlog.get_logger(__name__)

IsHeld = Callable[[TenantKey], bool]

MOST_IN_FLIGHT: Final = 1_000
"""Held events that are processed at once, all tenants together, without those that are repeated."""
MOST_WITH_REPEATED: Final = 5_000
"""Held events in flight, with those that are repeated: for these, the others don't wait."""
BYTES_SHARE: Final = 8
"""The held events that are processed at once take at most this part (1/n) of `kafka.max_unfinished_bytes`."""
REST_S: Final = 2.0
"""Shortest rest of a tenant whose event was held again without an attempt."""
MOST_REST_S: Final = 60.0
"""Longest rest, even if the endpoint asked for more: an edit may have ended that pause."""


class HeldProcessor:
    """Brings held events to their outcome, or back to waiting."""

    def __init__(
        self,
        process: ProcessRecord,
        topic: HeldTopic,
        is_held: IsHeld,
        session: GroupSession,
        max_unfinished_bytes: int,
    ) -> None:
        self.in_flight = 0
        self.repeated: set[asyncio.Task[None] | None] = set()
        """Tasks of the events in flight that could not get their outcome so far and are repeated."""
        self.bytes_in_flight = 0
        self._most_bytes = max_unfinished_bytes // BYTES_SHARE
        self._process = process
        self._topic = topic
        self._is_held = is_held
        self._session = session

    @property
    def has_room(self) -> bool:
        """True if one more event may be processed."""
        is_busy = self.in_flight - len(self.repeated) >= MOST_IN_FLIGHT or self.in_flight >= MOST_WITH_REPEATED
        return not is_busy and self.bytes_in_flight < self._most_bytes

    def start(self, one: HeldAssignment, state: HeldPartition, key: TenantKey, record: Record) -> None:
        """Starts a task for an event that `HeldPartition.offer` has accepted."""
        size = size_of(record)
        self.in_flight += 1
        self.bytes_in_flight += size
        attempt = ProcessingAttempt(one.epoch)
        task = asyncio.get_running_loop().create_task(self._run(one, state, key, record, attempt))
        one.tasks[task] = attempt
        task.add_done_callback(partial(self._on_task_done, one, size))

    def _on_task_done(self, one: HeldAssignment, size: int, task: "asyncio.Task[None]") -> None:
        self.in_flight -= 1
        one.tasks.pop(task).resume = None  # breaks a reference cycle
        self.repeated.discard(task)
        self.bytes_in_flight -= size
        if not task.cancelled() and task.exception() is not None:
            metrics.ERRORS.labels("consumer").inc()
            log.error("held record's task failed", exc_info=task.exception())

    async def _run(
        self,
        one: HeldAssignment,
        state: HeldPartition,
        key: TenantKey,
        record: Record,
        attempt: ProcessingAttempt,
    ) -> None:
        """Processes the record until it has an outcome or has to wait again."""
        try:
            is_over = await process_until_outcome(
                self._session,
                record,
                attempt,
                lambda _: self._process_once(one, record, attempt),
                on_repeat=partial(self.repeated.add, asyncio.current_task()),
            )
        except StillHeld as held:
            rest_s = min(max(REST_S, held.for_s), MOST_REST_S)
            state.hold_again(key, record.offset, asyncio.get_running_loop().time() + rest_s)
            state.set_released(key, is_released=not self._is_held(key))
            return
        if is_over:
            state.finish(key, record.offset)
            one.is_dirty = True

    async def _process_once(self, one: HeldAssignment, record: Record, attempt: ProcessingAttempt) -> None:
        """Processes the record. If it has to wait again and its log has lost it, writes it again.

        Raises:
            StillHeld: it has to wait, and stays in its log.
        """
        try:
            await self._process(record, attempt)
        except StillHeld:
            if not one.is_orphan and record.offset >= one.removed_before:
                raise
            await self._topic.write_again(record)
