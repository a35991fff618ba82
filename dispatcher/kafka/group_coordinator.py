"""aiokafka's group coordinator with what it lacks: a lease, knowledge of fenced static members, and marked members.

aiokafka 0.14 doesn't know error 82, FENCED_INSTANCE_ID (KIP-345), and doesn't send the instance id with heartbeats and
commits. So the broker answers a static member that another process has replaced with UNKNOWN_MEMBER_ID, as it answers
one whose session has expired; aiokafka then joins again, which fences the other process, and so on for ever. Here a
static member that has to join again first asks with a heartbeat of version 3, which carries the instance id.
"""

import asyncio
import struct
from collections.abc import Iterable
from typing import ClassVar, Final

import aiokafka.consumer.consumer
import structlog
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.coordinator.protocol import ConsumerProtocolMemberMetadata
from aiokafka.errors import KafkaError
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Int16, Int32, Schema, String

from dispatcher.contract.records import STEADY_CLOCK
from dispatcher.kafka.connection_errors import UNSUPPORTED_REQUEST
from dispatcher.telemetry import metrics

log = structlog.get_logger(__name__)

FENCED_INSTANCE_ID: Final = 82
_HEARTBEAT: Final = 12
MEMBER_MARK: Final = b"feedback-dispatcher"
"""User data in the subscription of each member."""


class DispatcherAssignor(RoundRobinPartitionAssignor):  # type: ignore[misc]  # aiokafka has no types
    """Round robin, as in all versions. Marks the member as a dispatcher, since any client can join the group."""

    @classmethod
    def metadata(cls, topics: Iterable[str]) -> ConsumerProtocolMemberMetadata:
        """Returns the subscription that a member joins with."""
        return ConsumerProtocolMemberMetadata(cls.version, list(topics), MEMBER_MARK)


def is_marked(subscription: bytes) -> bool:
    """Returns True if a dispatcher has joined with this subscription. Older versions did not mark theirs."""
    try:
        return bool(ConsumerProtocolMemberMetadata.decode(subscription).user_data == MEMBER_MARK)
    except (ValueError, struct.error):
        return False


class FencedMember(KafkaError):  # type: ignore[misc]
    """Another process has joined the group under our `group_instance_id`."""


class _HeartbeatResponse(Response):  # type: ignore[misc]  # aiokafka has no types
    API_KEY = _HEARTBEAT
    API_VERSION = 3
    SCHEMA = Schema(("throttle_time_ms", Int32), ("error_code", Int16))


class _HeartbeatStruct(RequestStruct):  # type: ignore[misc]
    API_KEY = _HEARTBEAT
    API_VERSION = 3
    RESPONSE_TYPE = _HeartbeatResponse
    SCHEMA = Schema(
        ("group", String("utf-8")),
        ("generation_id", Int32),
        ("member_id", String("utf-8")),
        ("group_instance_id", String("utf-8")),
    )


class _StaticHeartbeat(Request[_HeartbeatStruct]):  # type: ignore[misc]
    """A heartbeat that names the instance: its answer distinguishes a fenced member from an expired session."""

    API_KEY: ClassVar[int] = _HEARTBEAT

    def __init__(self, *fields: object) -> None:
        self._fields = fields

    def build(self, request_struct_class: type[_HeartbeatStruct]) -> _HeartbeatStruct:
        return request_struct_class(*self._fields)


class LeasedCoordinator(GroupCoordinator):  # type: ignore[misc]
    """Reports to the listener (`membership.Assignments`) when the group last received a heartbeat of this member."""

    _group_subscription: set[str] | None
    """Topics whose partitions are watched."""
    _joined_as: tuple[int, str] | None = None
    """Generation and member id of the last join that succeeded."""
    _performed_join_prepare: bool
    """True from the revocation until the join that follows has succeeded."""

    async def _do_heartbeat(self) -> bool:
        sent_at = STEADY_CLOCK()
        answered: bool = await super()._do_heartbeat()
        if answered:
            self._report_heard(sent_at)
        return answered

    async def _on_join_complete(
        self, generation: int, member_id: str, protocol: str, member_assignment_bytes: bytes
    ) -> None:
        self._joined_as = generation, member_id
        self._report_heard(STEADY_CLOCK())
        await super()._on_join_complete(generation, member_id, protocol, member_assignment_bytes)
        if self._group_subscription is None:
            # aiokafka lets only the group's leader watch for new partitions, and the broker doesn't inform a static
            # member that comes back that it is the leader (KIP-814), so all watch. The broker ignores the others.
            self._group_subscription = set(self._subscription.subscription.topics)
            self._metadata_snapshot = self._get_metadata_snapshot()

    async def _do_rejoin_group(self, subscription: object) -> bool:
        """Joins the group, unless another process has our instance id.

        Raises:
            FencedMember: it has. aiokafka hands it to the caller of `getmany`, and waits.
        """
        try:
            await self._check_fenced()
        except FencedMember:
            raise
        except KafkaError:  # the coordinator is away: find it again before any request
            await asyncio.sleep(self._retry_backoff_ms / 1000)
            return False
        joined: bool = await super()._do_rejoin_group(subscription)
        return joined

    async def _check_fenced(self) -> None:
        if self._group_instance_id is None or self._joined_as is None:
            return
        heartbeat = _StaticHeartbeat(self.group_id, *self._joined_as, self._group_instance_id)
        try:
            response = await self._send_req(heartbeat)
        except UNSUPPORTED_REQUEST:
            return  # a broker older than 2.3 has no static members
        if response.error_code == FENCED_INSTANCE_ID:
            raise FencedMember(f"another process has joined group {self.group_id} as {self._group_instance_id}")

    async def _do_commit_offsets(self, assignment: object, offsets: object) -> None:
        """Commits in a task of its own, which goes on if the caller stops waiting: aiokafka shields it.

        A caller that stops waiting reports that. What the broker or the closed connection says later adds nothing.
        """
        task = asyncio.current_task()
        if task is not None:
            task.add_done_callback(_retrieve_broker_error)
        await super()._do_commit_offsets(assignment, offsets)

    async def coordinate_again(self) -> None:
        """Joins the group again after an unexpected error has ended the task that kept the membership.

        What is assigned is revoked first, as in any rebalance: the group may have given it to another member.
        """
        assignment = self._subscription.subscription.assignment
        if assignment is not None and not self._performed_join_prepare:
            await self._on_join_prepare(assignment)
            self._performed_join_prepare = True
        self.request_rejoin()
        await self._coordination_routine()

    def _report_heard(self, heard_at: float) -> None:
        listener = self._subscription.listener
        if listener is not None and hasattr(listener, "on_heartbeat"):
            listener.on_heartbeat(heard_at)


def _retrieve_broker_error(task: "asyncio.Task[None]") -> None:
    """Marks a commit's error as seen, so that asyncio doesn't report it as unobserved. A bug is logged."""
    error = None if task.cancelled() else task.exception()
    if error is not None and not isinstance(error, KafkaError):
        metrics.ERRORS.labels("task").inc()
        log.error("a commit failed because of a bug", exc_info=error)


def install() -> None:
    """Makes every consumer that aiokafka creates from now on use this coordinator."""
    aiokafka.consumer.consumer.GroupCoordinator = LeasedCoordinator
