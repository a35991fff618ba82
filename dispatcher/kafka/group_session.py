"""A consumer's session in its group: what every reader of topics needs, whatever it does with the records.

The session knows how long the group is sure to leave the consumer its partitions (the lease), whether another process
has taken the member's place, when the consumer last polled, and whether the brokers answer. It reports the problems of
the consumer to `KafkaProblems`; `readiness` and liveness read its fields.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from typing import Final, TypeVar

import structlog
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from dispatcher.config.kafka_settings import KafkaSettings
from dispatcher.contract.kafka_problems import KafkaReason
from dispatcher.contract.records import Lease, Record, place_of
from dispatcher.kafka.connection import report_error, until_answered
from dispatcher.kafka.group_coordinator import FencedMember
from dispatcher.kafka.log_bounds import LONGEST_ANSWER_S
from dispatcher.kafka.membership import GroupClient
from dispatcher.kafka.problems import KafkaProblems, partition_name
from dispatcher.tasks import Backoff, set_within, unless_stopped
from dispatcher.telemetry import metrics
from dispatcher.telemetry.event_log import EventLog

log = structlog.get_logger(__name__)

WATCH_S: Final = 5.0
FIRST_REPEAT_S: Final = 1.0
LONGEST_POLL_WAIT_S: Final = 5.0
"""After an error of the client: the client goes on only once its errors were taken."""
MOST_NAMED: Final = 5
"""Partitions that one report names."""
REPORTED_S: Final = 45.0
"""Time without another error after which a reported error of the client is forgotten."""

SILENCE: Final = frozenset({KafkaReason.UNREACHABLE, KafkaReason.NAME_NOT_FOUND, KafkaReason.BROKERS_MOVED})
"""Reasons that mean that no broker answers. With any other one, a broker has said something."""

Joined = TypeVar("Joined")


class GroupSession:
    """The membership of one consumer in its group. It lasts over reconnections and rebalances."""

    def __init__(
        self,
        settings: KafkaSettings,
        group_id: str,
        problems: KafkaProblems | None = None,
        *,
        lease: Lease | None = None,
        on_fenced: Callable[[], None] | None = None,
        on_renewed: Callable[[], None] | None = None,
        event_log: EventLog | None = None,
    ) -> None:
        """Prepares a session without connecting.

        Args:
            problems: collects the consumer's Kafka problems.
            lease: replaces the lease on the steady clock, for tests.
            on_fenced: called when another process has taken this member's place.
            on_renewed: called when the group answers again after the lease was over.
            event_log: limits the lines about records that are processed again.
        """
        self._settings = settings
        self.group_id = group_id
        self.problems = problems or KafkaProblems()
        self.lease = Lease() if lease is None else lease
        self._on_fenced = on_fenced
        self._on_renewed = on_renewed
        self._event_log = event_log or EventLog()
        self._renewed = asyncio.Event()
        self.stopping = asyncio.Event()
        """Set when the consumer has to drain and leave the group."""
        self.joined = False
        """True after the first assignment, even an empty one."""
        self.last_poll = 0.0
        """Seconds of the event loop's clock; 0 before the first poll."""
        self.broker_answers = False
        self.fenced: str | None = None
        """Why the group has shut this member out for good, or None."""

    @property
    def source(self) -> str:
        """The name under which the consumer's problems are reported."""
        return f"consumer {self.group_id}"

    async def connect(self, join: Callable[[], Coroutine[object, object, Joined]]) -> Joined | None:
        """Joins the group; waits for a broker that is away. Returns None if the consumer is stopped first."""
        connecting = until_answered(self.source, join, self._settings, self.problems, group_id=self.group_id)
        return await unless_stopped(self.stopping, connecting)

    def on_assigned(self) -> None:
        """Notes that the group has assigned partitions, maybe none."""
        metrics.REBALANCES.inc()
        self.joined = self.broker_answers = True

    def heard(self, at: float) -> None:
        """Extends the lease: the group answered what was sent at this time of the lease's clock."""
        was_over = self.lease.is_over
        self.lease.ends_at = at + self._settings.session_timeout
        if was_over and not self.lease.is_over:
            self.problems.clear(KafkaReason.SESSION_LOST, source=self.source)
            self._renewed.set()
            if self._on_renewed is not None:
                self._on_renewed()

    async def until_member(self) -> None:
        """Waits until the lease is valid, so that this member is sure to own its partitions."""
        await asyncio.sleep(0)
        while self.lease.is_over:
            self._renewed.clear()
            await set_within(self._renewed, FIRST_REPEAT_S)

    def on_poll(self, now: float) -> None:
        """Notes a poll, and reports a lease that is over. `now`: seconds of the event loop's clock."""
        self.last_poll = now
        if self.lease.is_over:
            session = f"kafka.session_timeout ({self._settings.session_timeout:g} s)"
            detail = f"group {self.group_id} has not answered within {session}: nothing is sent until it does"
            self.problems.report(KafkaReason.SESSION_LOST, detail, source=self.source)

    async def poll(self, step: Callable[[], Awaitable[None]]) -> None:
        """Calls `step` again and again, until cancelled or fenced.

        Errors are reported, whatever they are, and waited for with growing waits. A fenced member stops.
        """
        backoff = Backoff(FIRST_REPEAT_S, LONGEST_POLL_WAIT_S)
        while True:
            try:
                await step()
                backoff.reset()
            except FencedMember as error:
                self._stop_fenced(str(error.args[0]))
                return
            except Exception as error:  # noqa: BLE001
                self.report(error)
                await backoff.wait()

    def _stop_fenced(self, reason: str) -> None:
        """Stops the member: joining again would take the other process's place, and so on for ever."""
        self.fenced = reason
        detail = f"{reason}: give each process a kafka.group_instance_id of its own, or none"
        self.problems.report(KafkaReason.MEMBER_FENCED, detail, source=self.source)
        self.stopping.set()
        if self._on_fenced is not None:
            self._on_fenced()

    def note_repeat(self, record: Record, error: Exception, *, is_bug: bool = False) -> None:
        """Counts that a record is processed again. The first of a partition and kind of error in a minute is logged."""
        metrics.EVENTS_REPEATED.inc()
        event = "record kept for another try" + (" because of a bug" if is_bug else "")
        if self._event_log.sampled(event, None, f"{type(error).__name__} {record.topic}/{record.partition}"):
            log.warning(event, place=place_of(record), why=str(error)[:256], exc_info=error if is_bug else None)

    async def watch(
        self,
        client: GroupClient,
        partitions: Callable[[], Collection[TopicPartition]],
        on_ends: Callable[[dict[TopicPartition, int]], None] | None = None,
    ) -> None:
        """Asks every 5 s for the ends of the partitions, until cancelled: it shows whether the brokers answer."""
        while True:
            await asyncio.sleep(WATCH_S)
            tps = list(partitions())
            if not tps:
                continue
            try:
                async with asyncio.timeout(LONGEST_ANSWER_S + 1):
                    ends = await client.end_offsets(tps)
            except Exception as error:  # noqa: BLE001
                if self.report(error) in SILENCE:
                    self.broker_answers = False
                continue
            self.broker_answers = True
            self.problems.clear(KafkaReason.UNREACHABLE, source=self.source)
            self._report_offline([tp for tp in tps if tp not in ends])
            if on_ends is not None:
                on_ends(ends)

    def _report_offline(self, tps: Sequence[TopicPartition]) -> None:
        """Reports partitions that don't answer while others do, or that all answer again."""
        if not tps:
            self.problems.clear(KafkaReason.PARTITION_OFFLINE, source=self.source)
            return
        named = ", ".join(partition_name(tp) for tp in sorted(tps)[:MOST_NAMED])
        more = f" and {len(tps) - MOST_NAMED} more" if len(tps) > MOST_NAMED else ""
        detail = f"no broker answers for {named}{more}: their records wait; start the brokers that have their replicas"
        self.problems.report(KafkaReason.PARTITION_OFFLINE, detail, source=self.source, lasts_s=REPORTED_S)

    def report(self, error: BaseException) -> KafkaReason:
        """Reports an error of the client under the consumer's name. Returns its reason.

        aiokafka raises KeyError and AttributeError, among others, on odd answers. They are logged in full, since they
        may also be a bug.
        """
        if not isinstance(error, KafkaError | OSError):
            metrics.ERRORS.labels("consumer").inc()
            log.error("the consumer goes on after an odd answer or a bug", group=self.group_id, exc_info=error)
        return report_error(
            self.problems, self.source, error, self._settings, group_id=self.group_id, lasts_s=REPORTED_S
        )  # fmt: skip
