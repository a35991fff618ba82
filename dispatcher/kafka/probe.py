"""Asks the brokers whether everything that the dispatcher needs is there: topics, permissions, the group's coordinator.

`dispatcher check --kafka` asks once. A running dispatcher asks every few seconds, because its clients hide much:
a fetch that is denied isn't an error while nothing is fetched, and a missing topic looks like an empty one. The probe
writes nothing, creates nothing, and joins no group.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from types import TracebackType
from typing import Any, Final, Self

import structlog
from aiokafka import TopicPartition
from aiokafka import errors as kafka_errors
from aiokafka.client import AIOKafkaClient, ConnectionGroup, CoordinationType

from dispatcher.config.kafka_settings import KafkaSettings
from dispatcher.contract.kafka_problems import CONNECTING, STOPS_READING, KafkaReason
from dispatcher.kafka.broker_access import peer_of
from dispatcher.kafka.connection import closed, connection_arguments
from dispatcher.kafka.connection_errors import UNSUPPORTED_REQUEST, Explanation, explain_error, missing_permission
from dispatcher.kafka.group_coordinator import is_marked
from dispatcher.kafka.group_types import CONSUMER, members_by_consumer_protocol, type_of
from dispatcher.kafka.known_brokers import at_any_broker, silent_brokers, why_silent
from dispatcher.kafka.probe_requests import UNKNOWN_OPERATIONS, AuthorizedGroupsRequest, AuthorizedMetadataRequest
from dispatcher.kafka.problems import KafkaProblems
from dispatcher.kafka.topic_reader import shown
from dispatcher.telemetry import metrics

log = structlog.get_logger(__name__)

EVERY_S: Final = 10.0
AGAIN_S: Final = 2.0
"""Pause while something stops reading. A new cluster, for one, has no coordinators in its first second."""
WITHIN_S: Final = 12.0
"""Time for one look at the cluster: a little more than one connection may take."""
SOURCE: Final = "probe"
MOST_NAMED: Final = 3
"""Foreign members of a group that one report names."""
MOST_NAME: Final = 80
"""Characters of a foreign member's name."""


class AclOperation(IntEnum):
    """Operations that an ACL permits, numbered as in Kafka's protocol."""

    READ = 3
    WRITE = 4
    DESCRIBE = 8


@dataclass(frozen=True, slots=True)
class TopicNeed:
    """A topic that the dispatcher needs, and the operations that it performs on it."""

    name: str
    operations: tuple[AclOperation, ...]
    cure: str
    """The correction if the topic is missing."""
    is_required: bool = True
    """False: events are delivered without it."""


@dataclass(frozen=True, slots=True)
class GroupNeed:
    """A consumer group that the dispatcher joins."""

    name: str
    is_required: bool = True
    """False: events are delivered without it."""


@dataclass(slots=True)
class Findings:
    """Problems that one check of the cluster found."""

    problems: dict[KafkaReason, list[str]] = field(default_factory=dict)
    topics: dict[str, int] = field(default_factory=dict)
    """Partitions by topic, of those that are there."""
    without_leader: frozenset[TopicPartition] = frozenset()
    """Partitions that no broker leads: a problem only if that lasts, since leaders move while brokers restart."""
    answers: bool = True
    """A broker answered."""

    def add(self, reason: KafkaReason, detail: str, *, is_required: bool = True) -> None:
        """Adds a problem; details of one reason are joined.

        `is_required` is false if events are delivered nevertheless: the problem then gets a reason that stops nothing.
        """
        if not is_required and reason in STOPS_READING:
            reason = KafkaReason.TOPIC_CONFIGURATION
        details = self.problems.setdefault(reason, [])
        if detail not in details:
            details.append(detail)

    def add_offline(self, partitions: Iterable[TopicPartition]) -> None:
        """Adds partitions that no broker has led for a while. Only their records wait."""
        if named := shown(partitions):
            cure = "start the brokers that have their replicas"
            self.add(KafkaReason.PARTITION_OFFLINE, f"no broker leads {named}: their records wait; {cure}")

    @property
    def details(self) -> Mapping[KafkaReason, str]:
        """One sentence for each reason."""
        return {reason: "; ".join(details) for reason, details in self.problems.items()}


class KafkaProbe:
    """Checks a cluster over its own connection. An async context manager; leaving it closes the connection."""

    def __init__(
        self,
        settings: KafkaSettings,
        topics: Sequence[TopicNeed],
        groups: Sequence[GroupNeed],
        problems: KafkaProblems | None = None,
    ) -> None:
        """Prepares a probe of `topics` and `groups` without connecting. `problems` receives connection failures."""
        self._settings = settings
        self._topics = topics
        self._groups = groups
        self._problems = problems
        self._client: AIOKafkaClient | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._close()

    async def look(self) -> Findings:
        """Returns everything that is wrong now; never raises because of a broker.

        If a connection that worked before fails, a new one is tried before that means anything: brokers end those that
        are idle, or whose login is too old (KIP-368).
        """
        had_worked = self._client is not None
        found = await self._look_once()
        if had_worked and not found.answers:
            found = await self._look_once()
        return found

    async def _look_once(self) -> Findings:
        found = Findings()
        try:
            async with asyncio.timeout(WITHIN_S):
                client = await self._connected()
                await self._look_at_topics(client, found)
                for group in self._groups:
                    await self._look_at_group(client, group, found)
            for sentence in await silent_brokers(client, WITHIN_S):
                found.add(KafkaReason.BROKER_UNREACHABLE, sentence)
        except (kafka_errors.KafkaError, OSError, TimeoutError) as error:
            found.answers = False
            found.add(*self._explain(error))
            await self._close()
        return found

    async def run(self, problems: KafkaProblems) -> None:
        """Checks the cluster every 10 s, and more often while something stops reading. Reports what is wrong.

        A partition without a leader is reported at the second look. Runs until cancelled.
        """
        without_leader: frozenset[TopicPartition] = frozenset()
        while True:
            pause_s = EVERY_S
            try:
                found = await self.look()
            except Exception:
                metrics.ERRORS.labels("task").inc()
                log.exception("kafka could not be looked at because of a bug")
                await self._close()
            else:
                found.add_offline(found.without_leader & without_leader)
                without_leader = found.without_leader
                # A connection's problem is reported by the connection itself, for its broker.
                own = {why: text for why, text in found.details.items() if why not in CONNECTING}
                problems.replace(SOURCE, own)
                if not STOPS_READING.isdisjoint(own):
                    pause_s = AGAIN_S
            await asyncio.sleep(pause_s)

    def _explain(self, error: BaseException) -> Explanation:
        address = self._settings.bootstrap_servers
        reason, detail = explain_error(error, peer_of(self._settings, address))
        return reason, f"kafka at {address}: {detail}"

    async def _connected(self) -> AIOKafkaClient:
        if self._client is None:
            client = AIOKafkaClient(**connection_arguments(self._settings, self._problems))
            try:
                await client.bootstrap()
            except BaseException:
                await closed(client.close())
                raise
            self._client = client
        return self._client

    async def _close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await closed(client.close())

    async def _look_at_topics(self, client: AIOKafkaClient, found: Findings) -> None:
        names = [need.name for need in self._topics]
        try:
            request = AuthorizedMetadataRequest(names)
            answer = await at_any_broker(client, lambda number: client.send(number, request))
        except UNSUPPORTED_REQUEST:
            return  # a broker older than Kafka 2.3, or the demo's: it doesn't say what is allowed
        topics: dict[str, tuple[Any, ...]] = {topic[1]: topic for topic in answer.topics}
        without_leader = set()
        for need in self._topics:
            error_code, _, _, partitions, operations = topics.get(need.name, (3, "", False, (), UNKNOWN_OPERATIONS))
            kind = kafka_errors.for_code(error_code)
            if kind is kafka_errors.UnknownTopicOrPartitionError:
                missing = f"topic {need.name} does not exist: {need.cure}"
                found.add(KafkaReason.TOPIC_MISSING, missing, is_required=need.is_required)
            elif kind is kafka_errors.TopicAuthorizationFailedError:
                self._add_missing(found, need, ("DESCRIBE", *(one.name for one in need.operations)))
            elif kind is kafka_errors.InvalidTopicError:
                invalid = f"{need.name} can't be a topic's name"
                found.add(KafkaReason.TOPIC_MISSING, invalid, is_required=need.is_required)
            else:
                found.topics[need.name] = len(partitions)
                without_leader |= {TopicPartition(need.name, one[1]) for one in partitions if one[2] < 0}
                lacking = _lacking(operations, need.operations)
                if lacking:
                    self._add_missing(found, need, lacking)
        found.without_leader = frozenset(without_leader)

    async def _look_at_group(self, client: AIOKafkaClient, need: GroupNeed, found: Findings) -> None:
        try:
            node = await client.coordinator_lookup(CoordinationType.GROUP, need.name)
            answer = await _described(client, node, need.name)
        except kafka_errors.GroupAuthorizationFailedError:
            self._add_missing(found, need, ("READ",))
            return
        except kafka_errors.GroupCoordinatorNotAvailableError as error:
            away = str(error.args[0]) if error.args else f"no broker coordinates group {need.name} at the moment"
            found.add(KafkaReason.COORDINATOR_UNAVAILABLE, away, is_required=need.is_required)
            return
        except UNSUPPORTED_REQUEST:
            return
        for error_code, _, state, protocol_type, _, members, operations in answer.groups:
            if kafka_errors.for_code(error_code) is kafka_errors.GroupAuthorizationFailedError:
                self._add_missing(found, need, ("READ",))
            elif lacking := _lacking(operations, (AclOperation.READ,)):
                self._add_missing(found, need, lacking)
            if members and protocol_type not in ("", "consumer"):
                other = f"group {need.name}: has members of protocol {protocol_type}: choose another kafka.group_id"
                found.add(KafkaReason.GROUP_PROTOCOL, other, is_required=need.is_required)
            elif state == "Stable":
                _add_foreign(found, need, _foreign(members, self._settings.client_id))
            elif state == "Dead":  # there is no such group, or it isn't a classic one
                await _look_at_type(client, node, need, found)

    def _add_missing(self, found: Findings, need: TopicNeed | GroupNeed, operations: Iterable[str]) -> None:
        peer = peer_of(self._settings, self._settings.bootstrap_servers)
        resource = f"{'topic' if isinstance(need, TopicNeed) else 'group'} {need.name}"
        missing = missing_permission(peer, operations, resource)
        found.add(KafkaReason.PERMISSION_MISSING, missing, is_required=need.is_required)


async def _described(client: AIOKafkaClient, node: int, group: str) -> Any:
    """Returns the coordinator's description of a group.

    Raises:
        GroupCoordinatorNotAvailableError: the coordinator can't be reached; the message says why.
    """
    try:
        return await client.send(node, AuthorizedGroupsRequest([group]), group=ConnectionGroup.COORDINATION)
    except (kafka_errors.NodeNotReadyError, kafka_errors.RequestTimedOutError) as error:
        broker = client.cluster.broker_metadata(node)
        if broker is None:
            raise
        why = f"group {group}: its coordinator can't be reached: {why_silent(client, broker)[1]}"
        raise kafka_errors.GroupCoordinatorNotAvailableError(why) from error


async def _look_at_type(client: AIOKafkaClient, node: int, need: GroupNeed, found: Findings) -> None:
    """Adds members that have converted the group to the newer consumer protocol, or a type that shuts us out."""
    kind = await type_of(client, node, need.name)
    if kind == CONSUMER:
        _add_foreign(found, need, await members_by_consumer_protocol(client, node, need.name))
    elif kind not in ("", "classic"):
        tool = {"share": "kafka-share-groups.sh", "streams": "kafka-streams-groups.sh"}.get(kind, "its own tool")
        text = f"group {need.name}: is a {kind} group, with or without members: delete it ({tool} --delete), or choose "
        found.add(KafkaReason.GROUP_PROTOCOL, f"{text}another kafka.group_id", is_required=need.is_required)


def _add_foreign(found: Findings, need: GroupNeed, members: Sequence[tuple[str, str, str]]) -> None:
    """Adds members that aren't dispatchers, if there are any; each has an id, a client id and a host."""
    if members:
        foreign = _named(members)
        also = f"{foreign} also reads in group {need.name}, and its events are not delivered"
        found.add(KafkaReason.GROUP_SHARED, f"{also}: give it a group of its own")


def _foreign(members: Iterable[tuple[Any, ...]], client_id: str) -> list[tuple[str, str, str]]:
    """Returns id, client id and host of a classic group's members that aren't dispatchers.

    Older versions do not mark themselves: during a rolling upgrade, they are recognised by their client id. Of a member
    that the broker doesn't describe, as the embedded one, nothing is known.
    """
    return [
        (member, client, host)
        for member, client, host, subscription, _ in members
        if client != client_id and not is_marked(subscription) and (client or subscription)
    ]


def _named(members: Sequence[tuple[str, str, str]]) -> str:
    names = sorted(
        f"member {member[:MOST_NAME]} of client {client[:MOST_NAME]} at {host.lstrip('/')}"
        for member, client, host in members
    )
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


def _lacking(operations: int, needed: Sequence[AclOperation]) -> list[str]:
    """Returns the names of the needed operations that are missing in `operations`, a bit field."""
    if operations == UNKNOWN_OPERATIONS:
        return []
    return [one.name for one in needed if not operations >> one & 1]
