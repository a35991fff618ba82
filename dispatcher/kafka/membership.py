"""Membership of a consumer group by aiokafka: the client that reads, and the receiver of assignments."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.structs import OffsetAndMetadata

from dispatcher.config.kafka_settings import KafkaSettings
from dispatcher.contract.records import Record
from dispatcher.kafka import group_coordinator
from dispatcher.kafka.commit_metadata import CommittedPosition, decode_metadata
from dispatcher.kafka.connection import connection_arguments, stopped
from dispatcher.kafka.log_bounds import end_offsets, first_offsets, high_watermarks, leader_of
from dispatcher.kafka.log_sources import LogSources
from dispatcher.kafka.problems import KafkaProblems
from dispatcher.kafka.throttling import is_throttled
from dispatcher.telemetry import metrics

log = structlog.get_logger(__name__)

REVIVE_EVERY_S: Final = 5.0
NO_POLL_LIMIT_MS: Final = math.inf
"""Time without a fetch after which aiokafka leaves the group for ever. There is no limit, because a member without
partitions never fetches, nor does one whose partitions all wait. The loop that polls stops only with the event loop,
and then the heartbeats stop too."""

group_coordinator.install()  # before there is any consumer


@dataclass(frozen=True, slots=True)
class Bounds:
    """The offsets that a log holds: from `start` to before `end`."""

    start: int
    end: int
    """The high watermark: records of transactions that are still open are before it, though they can't be read yet."""


class Member(Protocol):
    """Receives the partitions that are assigned to it: `Consumer` or `HeldEvents`."""

    async def assigned(self, tps: Iterable[TopicPartition], /) -> None: ...
    async def revoked(self, tps: Iterable[TopicPartition], /) -> None: ...
    def heard(self, at: float, /) -> None:
        """Notes that the group answered a heartbeat that was sent at this time of the lease's clock."""
        ...


class Assignments(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka has no types
    """Forwards aiokafka's callbacks. aiokafka would swallow an error in one, so it is logged here."""

    def __init__(self, member: Member) -> None:
        self._member = member
        self.missing_topics: set[str] = set()
        """Topics that did not exist when the member tried to join."""

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        await self._logging_errors(self._member.assigned(assigned))

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        await self._logging_errors(self._member.revoked(revoked))

    def on_heartbeat(self, heard_at: float) -> None:
        """Forwards the time of an answered heartbeat; called by `group_coordinator`."""
        self._member.heard(heard_at)

    async def _logging_errors(self, work: Awaitable[None]) -> None:
        try:
            await work
        except Exception:
            metrics.ERRORS.labels("consumer").inc()
            log.exception("rebalance failed because of a bug")
            raise


class GroupClient:
    """aiokafka's consumer as a member of a group, with functions that its public API lacks.

    The caller sets every position with `seek`: aiokafka's own rules for a position that is missing or gone are off.
    """

    def __init__(self, consumer: "AIOKafkaConsumer[bytes, bytes]") -> None:
        self._consumer = consumer
        self._sources = LogSources(consumer)
        self._deleted: tuple[object, set[str]] = (None, set())
        """The latest assignment, and those of its topics whose metadata lacked one of its partitions."""
        self._revived_at = -math.inf
        consumer._client.cluster.add_listener(self._metadata_changed)  # noqa: SLF001

    def assignment(self) -> set[TopicPartition]:
        """Returns the partitions that are assigned to this member."""
        found: set[TopicPartition] = self._consumer.assignment()
        return found

    async def getmany(
        self, *tps: TopicPartition, timeout_ms: int, max_records: int
    ) -> dict[TopicPartition, list[Record]]:
        """Returns records of these partitions, after waiting at most `timeout_ms` for the first.

        Raises:
            KafkaError: also an error of the group's coordinator; `OffsetOutOfRangeError` if a position is gone.
        """
        self._revive()
        found: dict[TopicPartition, list[Record]] = await self._consumer.getmany(
            *tps, timeout_ms=timeout_ms, max_records=max_records
        )
        return found

    def raise_coordination_error(self) -> None:
        """Raises an error that the group's coordinator reported, as `getmany` does."""
        self._revive()
        self._consumer._coordinator.check_errors()  # noqa: SLF001

    async def commit(self, offsets: dict[TopicPartition, tuple[int, str]]) -> None:
        """Commits positions with metadata, of partitions that are assigned to this member."""
        await self._consumer.commit(offsets)

    async def commit_for_group(self, offsets: dict[TopicPartition, tuple[int, str]]) -> None:
        """Commits positions of any partition, as a member of the group."""
        assignment = self._consumer._subscription.subscription.assignment  # noqa: SLF001
        validated = {tp: OffsetAndMetadata(*state) for tp, state in offsets.items()}
        await self._consumer._coordinator.commit_offsets(assignment, validated)  # noqa: SLF001

    async def committed(self, tps: Sequence[TopicPartition]) -> dict[TopicPartition, CommittedPosition]:
        """Returns what the group has committed, without the partitions that have no commit."""
        known = await self._consumer._coordinator.fetch_committed_offsets(tps)  # noqa: SLF001
        return {tp: decode_metadata(state.offset, state.metadata or "") for tp, state in known.items()}

    async def committed_metadata(self, tps: Sequence[TopicPartition]) -> dict[TopicPartition, tuple[int, str]]:
        """Returns committed positions with their metadata as written, without the partitions that have no commit."""
        known = await self._consumer._coordinator.fetch_committed_offsets(tps)  # noqa: SLF001
        return {tp: (state.offset, state.metadata or "") for tp, state in known.items()}

    async def bounds(self, tps: Sequence[TopicPartition]) -> dict[TopicPartition, Bounds]:
        """Returns the logs' first offsets, and the ones after their last; without the partitions that don't answer.

        Raises:
            KafkaError, TimeoutError: none answers.
        """
        starts, ends = await asyncio.gather(first_offsets(self._consumer, tps), self.end_offsets(tps))
        return {tp: Bounds(starts[tp], ends[tp]) for tp in tps if tp in starts and tp in ends}

    async def end_offsets(self, tps: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """Returns the offsets after the logs' last, open transactions included; without those that don't answer.

        Raises:
            KafkaError, TimeoutError: none answers.
        """
        return await high_watermarks(self._consumer, tps)

    async def stable_ends(self, tps: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """Returns the offsets up to which the logs can be read: those of their first open transactions, or their ends.

        Raises:
            KafkaError, TimeoutError: none answers.
        """
        return await end_offsets(self._consumer, tps)

    def stable_end_of(self, tp: TopicPartition) -> int | None:
        """Returns the offset up to which the log could be read at the last fetch, or None if that is not known."""
        state = self._state_of(tp)
        return None if state is None or state.lso is None else int(state.lso)

    def seek(self, tp: TopicPartition, offset: int) -> None:
        """Makes the client read the partition from this offset on.

        Raises:
            IllegalStateError: the partition is not assigned to this member.
        """
        self._consumer.seek(tp, offset)
        state = self._state_of(tp)
        if state is not None:
            state.highwater = None  # it is of an earlier fetch

    def fetched_end_of(self, tp: TopicPartition) -> int | None:
        """Returns the log's end according to the last fetch since `seek`, or None if none was answered yet."""
        state = self._state_of(tp)
        return None if state is None or state.highwater is None else int(state.highwater)

    def position_of(self, tp: TopicPartition) -> int | None:
        """Returns the offset that is read next, or None while there is none."""
        state = self._state_of(tp)
        return None if state is None or not state.has_valid_position else int(state.position)

    def _state_of(self, tp: TopicPartition) -> Any:
        """Returns aiokafka's state of a partition, or None if it is not assigned."""
        assignment = self._consumer._subscription.subscription.assignment  # noqa: SLF001
        return None if assignment is None else assignment.state_value(tp)

    def is_throttled(self, tp: TopicPartition) -> bool:
        """Returns True if a quota may be the reason why the partition's leader has not answered yet."""
        return is_throttled(self._consumer._client, leader_of(self._consumer, tp))  # noqa: SLF001

    def partitions_of(self, topic: str) -> list[TopicPartition]:
        """Returns all partitions of a topic, as far as known."""
        return [TopicPartition(topic, number) for number in self._consumer.partitions_for_topic(topic) or ()]

    def was_deleted(self, topic: str) -> bool:
        """Returns True if the topic was deleted since its partitions were assigned. It may exist again.

        A topic never has fewer partitions than before, so if one is gone, all of them are.
        """
        assignment, topics = self._deleted
        return topic in topics and assignment is self._consumer._subscription.subscription.assignment  # noqa: SLF001

    def source_of(self, tp: TopicPartition) -> tuple[object, ...]:
        """Returns a value that changes whenever the partition's log may have been replaced."""
        return self._sources.of(tp)

    async def stop(self) -> None:
        """Leaves the group and closes the connections."""
        await self._consumer.stop()

    def _revive(self) -> None:
        """Restarts the tasks of aiokafka that an unexpected error has ended, at most every 5 s.

        aiokafka doesn't. Without its task that fetches, polls find nothing; without the one that keeps the membership,
        they raise the same error for ever.
        """
        fetcher, coordinator = self._consumer._fetcher, self._consumer._coordinator  # noqa: SLF001
        ended = [task for task in (fetcher._fetch_task, coordinator._coordination_task) if task.done()]  # noqa: SLF001
        now = asyncio.get_running_loop().time()
        if not ended or now < self._revived_at + REVIVE_EVERY_S or self._consumer._closed:  # noqa: SLF001
            return
        self._revived_at = now
        for task in ended:
            metrics.ERRORS.labels("consumer").inc()
            error = None if task.cancelled() else task.exception()
            log.error("a task of the kafka client ended because of a bug: it is started again", exc_info=error)
        if fetcher._fetch_task in ended:  # noqa: SLF001
            # A failed request would be awaited again.
            fetcher._pending_tasks -= {one for one in fetcher._pending_tasks if one.done()}  # noqa: SLF001
            fetcher._fetch_task = asyncio.create_task(fetcher._fetch_requests_routine())  # noqa: SLF001
        if coordinator._coordination_task in ended:  # noqa: SLF001
            coordinator._coordination_task = asyncio.create_task(coordinator.coordinate_again())  # noqa: SLF001

    def _metadata_changed(self, cluster: Any) -> None:
        """Notes deleted topics. A topic that may not be described is missing from the metadata, but not deleted."""
        assignment = self._consumer._subscription.subscription.assignment  # noqa: SLF001
        if assignment is not self._deleted[0]:
            self._deleted = assignment, set()
        for tp in self._consumer.assignment():
            known = cluster.partitions_for_topic(tp.topic) or ()
            if tp.partition not in known and tp.topic not in cluster.unauthorized_topics:
                self._deleted[1].add(tp.topic)


JoinGroup = Callable[[Assignments], Coroutine[object, object, GroupClient]]
"""Joins the group and returns the started client, which reports assignments to the listener."""


async def join(
    settings: KafkaSettings,
    topics: Sequence[str],
    group_id: str,
    listener: Assignments,
    problems: KafkaProblems | None = None,
) -> GroupClient:
    """Joins the group and returns the started client, which commits nothing and chooses no position by itself.

    Raises what aiokafka raises if no broker answers.
    """
    consumer: AIOKafkaConsumer[bytes, bytes] = AIOKafkaConsumer(
        **connection_arguments(settings, problems)
        | {"request_timeout_ms": int(max(20.0, settings.session_timeout) * 1000)},
        group_id=group_id,
        group_instance_id=settings.group_instance_id,
        auto_offset_reset="none",  # `log_check` and `held_start` find every position
        enable_auto_commit=False,
        partition_assignment_strategy=(group_coordinator.DispatcherAssignor,),
        isolation_level="read_committed",
        session_timeout_ms=int(settings.session_timeout * 1000),
        heartbeat_interval_ms=int(min(3.0, settings.session_timeout / 4) * 1000),
        rebalance_timeout_ms=60_000,
        max_poll_interval_ms=NO_POLL_LIMIT_MS,
        fetch_max_bytes=settings.fetch_max_bytes,
        max_partition_fetch_bytes=min(settings.fetch_max_bytes, 1024 * 1024),
        fetch_max_wait_ms=20,
    )
    consumer.subscribe(topics, listener=listener)
    _note_missing_topics(consumer._client, listener.missing_topics)  # noqa: SLF001
    try:
        await consumer.start()
    except BaseException:
        await stopped(consumer)
        raise
    return GroupClient(consumer)


def _note_missing_topics(client: Any, missing: set[str]) -> None:
    """Adds topics that do not exist to `missing`, before the client waits for them as it starts."""
    wait_for_topic = client._wait_on_metadata  # noqa: SLF001

    async def wait(topic: str) -> Any:
        def is_unknown() -> bool:
            return client.cluster.partitions_for_topic(topic) is None

        is_updated = is_unknown() and await client.force_metadata_update()
        if is_updated and is_unknown() and topic not in client.cluster.unauthorized_topics:
            missing.add(topic)
        return await wait_for_topic(topic)

    client._wait_on_metadata = wait  # noqa: SLF001
