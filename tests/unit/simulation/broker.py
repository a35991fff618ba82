"""A broker in memory: topics with gaps in their offsets, groups that rebalance, commits with metadata, and faults.

Only what the consumer and the producer use of aiokafka, and as unkind as the real one may be: records of a new
assignment can come before the listener is called, a commit can fail, hang, or be acknowledged late, a write can be
lost or be made without an acknowledgement, a log can be truncated and grow again, credentials can be refused for a time,
and a member whose heartbeats stop is dropped from its group without hearing of it.
"""

import asyncio
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from aiokafka import ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import (
    AuthenticationFailedError,
    CommitFailedError,
    IllegalStateError,
    KafkaConnectionError,
    OffsetOutOfRangeError,
)

from dispatcher.contract.records import Record
from dispatcher.errors import NotWritten, RecordTooLarge
from dispatcher.kafka.commit_metadata import CommittedPosition, Fingerprint, decode_metadata
from dispatcher.kafka.membership import Bounds
from dispatcher.kafka.offset_tracker import Run

PARTITIONS = 2
HEARTBEAT_S = 3.0


@dataclass
class Faults:
    """The broker's present faults."""

    unwritable: set[str] = field(default_factory=set)
    away: bool = False
    """Nothing is answered: fetches and commits fail."""
    commits_hang: bool = False
    fetches_hang: bool = False
    reported_less: int = 0
    """Offsets by which each log's end is reported too low, as by a new leader."""
    metadata_unreadable: bool = False
    too_large: set[str] = field(default_factory=set)
    """Topics that accept no event: each is too large for them."""
    lost_acknowledgements: float = 0.0
    """Share of the writes that are made, and reported as failed."""


class Broker:
    """Topics, and the groups that read them."""

    def __init__(self, chance: random.Random, clock: Callable[[], float]) -> None:
        self.chance = chance
        self.clock = clock
        self.faults = Faults()
        self.partitions: defaultdict[TopicPartition, list[Record]] = defaultdict(list)
        self.written: list[Record] = []
        """Every record that ever was: each keeps its `id`, which identifies it."""
        self.starts: defaultdict[TopicPartition, int] = defaultdict(int)
        """First offset of each log: what was before it is gone."""
        self.ends: defaultdict[TopicPartition, int] = defaultdict(int)
        self.sources: defaultdict[TopicPartition, int] = defaultdict(int)
        """Counts up when clients see another connection or leader."""
        self.groups: dict[str, Group] = {}
        self.lost_acknowledgements = 0
        self.on_commit: Callable[[str, TopicPartition, int, str], None] = lambda *_: None

    def append(self, topic: str, key: bytes | None, value: bytes | None, headers: Iterable[Any]) -> Record:
        number = self.chance.randrange(PARTITIONS) if key is None else sum(key) % PARTITIONS
        there = self.partitions[TopicPartition(topic, number)]
        gap = self.chance.choice((0, 0, 0, 0, 0, 1, 7))
        tp = TopicPartition(topic, number)
        offset = max(self.ends[tp], self.starts[tp]) + gap
        timestamp = int(self.clock() * 1000)
        record = Record(topic, number, offset, timestamp, key, value, tuple(headers))
        self.written.append(record)
        there.append(record)
        self.ends[tp] = offset + 1
        for group in self.groups.values():
            group.wake()
        return record

    def append_markers(self, tp: TopicPartition, count: int) -> None:
        """Offsets that hold no record: ends of transactions, and aborted records."""
        self.ends[tp] += count
        for group in self.groups.values():
            group.wake()

    def bounds(self, tp: TopicPartition) -> Bounds:
        return Bounds(self.starts[tp], max(self.ends[tp], self.starts[tp]))

    def remove_before(self, tp: TopicPartition, offset: int) -> None:
        """Retention."""
        self.starts[tp] = max(self.starts[tp], min(offset, self.ends[tp]))
        self.partitions[tp] = [one for one in self.partitions[tp] if one.offset >= offset]

    def truncate(self, tp: TopicPartition, end: int) -> list[Record]:
        """An unclean leader election, or, to 0, a disk that is lost or a topic that is recreated.

        Returns the records that are gone.
        """
        gone = [one for one in self.partitions[tp] if one.offset >= end]
        self.partitions[tp] = [one for one in self.partitions[tp] if one.offset < end]
        left = self.partitions[tp]
        self.starts[tp] = min(self.starts[tp], end)
        self.ends[tp] = left[-1].offset + 1 if left else self.starts[tp]
        self.sources[tp] += 1
        return gone

    async def write(
        self, topic: str, key: bytes | None, value: bytes | None, headers: Iterable[Any], kind: str
    ) -> None:
        await asyncio.sleep(self.chance.choice((0.001, 0.001, 0.02)))
        if topic in self.faults.unwritable or self.faults.away:
            raise NotWritten(topic)
        if topic in self.faults.too_large and value:
            raise RecordTooLarge(f"{topic} accepts no record of {len(value)} bytes")
        self.append(topic, key, value, headers)
        if self.chance.random() < self.faults.lost_acknowledgements:
            self.lost_acknowledgements += 1
            raise NotWritten(f"{topic}: no acknowledgement")
        await asyncio.sleep(0.001)

    def group(self, name: str, topics: Sequence[str]) -> "Group":
        if name not in self.groups:
            self.groups[name] = Group(self, name, topics)
        return self.groups[name]

    def records(self, topic: str) -> list[Record]:
        return [record for number in range(PARTITIONS) for record in self.partitions[TopicPartition(topic, number)]]


class Group:
    """A consumer group: stops its world at each join and leave."""

    def __init__(self, broker: Broker, name: str, topics: Sequence[str]) -> None:
        self.broker = broker
        self.name = name
        self.tps = [TopicPartition(topic, number) for topic in topics for number in range(PARTITIONS)]
        self.members: list[Member] = []
        self.generation = 0
        self.commits: dict[TopicPartition, tuple[int, str]] = {}
        self._processing = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    def wake(self) -> None:
        for member in self.members:
            member.woken.set()

    def rebalance_soon(self) -> None:
        task = asyncio.create_task(self._rebalance())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @property
    def is_stable(self) -> bool:
        """True if it has members, and no rebalance is under way or to come."""
        return bool(self.members) and not self._tasks

    async def settled(self) -> None:
        while self._tasks:
            await asyncio.gather(*self._tasks)

    async def _rebalance(self) -> None:
        async with self._processing:
            while any(member.cut_off for member in self.members):
                await asyncio.sleep(0.1)  # until it comes back or is dropped
            members = [member for member in self.members if member.alive]
            for member in members:
                member.reassigning = True
            await asyncio.gather(*(one.listener.on_partitions_revoked(set(one.assigned)) for one in members))
            await asyncio.sleep(self.broker.chance.choice((0.0, 0.01, 0.2)))
            self.generation += 1
            members = [member for member in members if member.alive and not member.dropped]
            self.broker.chance.shuffle(members)
            for number, member in enumerate(members):
                member.assign(self.tps[number :: len(members)])
            await asyncio.sleep(self.broker.chance.choice((0.0, 0.01)))
            await asyncio.gather(
                *(one.listener.on_partitions_assigned(set(one.assigned)) for one in members if one.alive)
            )

    def covers(self, tp: TopicPartition) -> tuple[int, list[Run]]:
        """Position and runs of the last commit; nothing if it describes a log that is gone."""
        claim = decode_metadata(*self.commits.get(tp, (0, "")))
        if not self.describes(tp, claim):
            return 0, []
        position = claim.position if claim.fingerprint is None else min(claim.position, claim.fingerprint.offset + 1)
        return position, list(claim.finished)

    def describes(self, tp: TopicPartition, claim: CommittedPosition) -> bool:
        """True if the commit was made of the log as it is now."""
        if claim.fingerprint is None:
            return claim.end <= self.broker.bounds(tp).end
        there = self.broker.partitions[tp]
        return any(one.offset == claim.fingerprint.offset and Fingerprint.of(one) == claim.fingerprint for one in there)

    def finished(self) -> bool:
        """Whether every record of its topics is covered by a commit's position."""
        return all(
            self.covers(tp)[0] > self.broker.partitions[tp][-1].offset for tp in self.tps if self.broker.partitions[tp]
        )


class Member:
    """A group member with the part of AIOKafkaConsumer's interface that the dispatcher's consumer uses."""

    def __init__(
        self, group: Group, listener: ConsumerRebalanceListener, session_timeout_s: float | None = None
    ) -> None:
        """`session_timeout_s`: None if the member is never dropped, and sends no heartbeats."""
        self.session_timeout_s = session_timeout_s
        self.heard_at = asyncio.get_running_loop().time()
        self.cut_off = False
        """No heartbeat, fetch or commit gets through: the process stands still, its network does, or it is refused."""
        self.refused = False
        """Its connections are gone, and the broker refuses the credentials of new ones. Implies `cut_off`."""
        self.dropped = False
        """The group has given its partitions to others."""
        self.group = group
        self.listener = listener
        self.alive = True
        self.reassigning = True
        self.assigned: list[TopicPartition] = []
        self.positions: dict[TopicPartition, int] = {}
        self.fetched_ends: dict[TopicPartition, int] = {}
        self.generation = -1
        self.woken = asyncio.Event()
        self.on_assigned: Callable[[list[TopicPartition]], None] = lambda _: None
        group.members.append(self)
        group.rebalance_soon()
        self._heartbeats = None if session_timeout_s is None else asyncio.create_task(self._heartbeat())

    async def _heartbeat(self) -> None:
        """Extends the lease while heartbeats get through; drops the member when its session has expired."""
        loop = asyncio.get_running_loop()
        assert self.session_timeout_s is not None
        while True:
            if self.dropped and not self.cut_off:  # it learns this, and joins again
                await self.listener.on_partitions_revoked(set(self.assigned))
                self.assigned, self.dropped, self.reassigning = [], False, True
                self.group.members.append(self)
                self.group.rebalance_soon()
            elif not self.cut_off:
                self.heard_at = loop.time()
                self.listener.on_heartbeat(self.heard_at)
            elif not self.dropped and loop.time() > self.heard_at + self.session_timeout_s:
                self.dropped = True
                self.group.members.remove(self)
                self.group.rebalance_soon()
            await asyncio.sleep(0.5 if self.cut_off else HEARTBEAT_S)

    def assign(self, tps: list[TopicPartition]) -> None:
        self.assigned = list(tps)
        self.positions = {}  # `seek` gives each
        self.generation = self.group.generation
        self.reassigning = False
        if self.session_timeout_s is not None and not self.cut_off:
            self.heard_at = asyncio.get_running_loop().time()
            self.listener.on_heartbeat(self.heard_at)
        self.on_assigned(self.assigned)
        self.woken.set()

    def assignment(self) -> set[TopicPartition]:
        return set(self.assigned)

    async def getmany(
        self, *tps: TopicPartition, timeout_ms: int, max_records: int
    ) -> dict[TopicPartition, list[Record]]:
        deadline = asyncio.get_running_loop().time() + timeout_ms / 1000
        while True:
            if self.refused:
                raise AuthenticationFailedError
            if self.group.broker.faults.away:
                raise KafkaConnectionError
            if not self.reassigning and not self.cut_off and (found := self._taken(tps, max_records)):
                return found
            self.woken.clear()
            try:
                async with asyncio.timeout_at(deadline):
                    await self.woken.wait()
            except TimeoutError:
                if not self.reassigning:
                    return {}
                deadline += 0.25  # a rebalance is waited for, however long it takes

    def _taken(self, tps: Sequence[TopicPartition], max_records: int) -> dict[TopicPartition, list[Record]]:
        found: dict[TopicPartition, list[Record]] = {}
        if self.group.broker.faults.fetches_hang:
            return found
        for tp in self.assigned:
            if tp not in tps or tp not in self.positions:
                continue
            bounds = self._bounds(tp)
            self.fetched_ends[tp] = bounds.end
            if not bounds.start <= self.positions[tp] <= bounds.end:
                if found:
                    return found  # the error is raised by the next call
                raise OffsetOutOfRangeError({tp: self.positions[tp]})
            batch = [one for one in self.group.broker.partitions[tp] if one.offset >= self.positions[tp]]
            batch = batch[: min(max_records, self.group.broker.chance.randint(1, 20))]
            if batch:
                self.positions[tp] = batch[-1].offset + 1
                found[tp] = batch
            else:
                self.positions[tp] = bounds.end  # over markers of transactions, and what they have aborted
        return found

    async def commit(self, offsets: dict[TopicPartition, tuple[int, str]]) -> None:
        faults = self.group.broker.faults
        generation = self.generation
        while faults.commits_hang and self.alive:
            await asyncio.sleep(0.5)
        await asyncio.sleep(0.002)
        self._raise_if_away()
        if (
            not self.alive
            or self.dropped
            or generation != self.group.generation
            or not set(offsets) <= set(self.assigned)
        ):
            raise CommitFailedError
        for tp, (offset, metadata) in offsets.items():
            self.group.broker.on_commit(self.group.name, tp, offset, metadata)
            self.group.commits[tp] = (offset, metadata)
        if self.group.broker.chance.random() < 0.03:
            raise KafkaConnectionError  # made, and not acknowledged
        await asyncio.sleep(0.002)

    async def commit_for_group(self, offsets: dict[TopicPartition, tuple[int, str]]) -> None:
        await asyncio.sleep(0.002)
        self._raise_if_away()
        if not self.alive or self.dropped or self.generation != self.group.generation:
            raise CommitFailedError
        self.group.commits.update(offsets)

    async def end_offsets(self, tps: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        return {tp: bounds.end for tp, bounds in (await self.bounds(list(tps))).items()}

    async def stable_ends(self, tps: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        return await self.end_offsets(tps)

    def stable_end_of(self, tp: TopicPartition) -> int | None:
        return self._bounds(tp).end

    async def committed(self, tps: Sequence[TopicPartition]) -> dict[TopicPartition, CommittedPosition]:
        await asyncio.sleep(0.002)
        faults = self.group.broker.faults
        if faults.metadata_unreadable:
            raise KeyError("an odd answer")
        self._raise_if_away()
        return {tp: decode_metadata(*self.group.commits[tp]) for tp in tps if tp in self.group.commits}

    async def committed_metadata(self, tps: Sequence[TopicPartition]) -> dict[TopicPartition, tuple[int, str]]:
        await self.committed(tps)
        return {tp: self.group.commits[tp] for tp in tps if tp in self.group.commits}

    async def bounds(self, tps: Sequence[TopicPartition]) -> dict[TopicPartition, Bounds]:
        self._raise_if_away()
        await asyncio.sleep(0.002)
        less, every = self.group.broker.faults.reported_less, {tp: self._bounds(tp) for tp in tps}
        return {tp: Bounds(one.start, max(one.start, one.end - less)) for tp, one in every.items()}

    def _bounds(self, tp: TopicPartition) -> Bounds:
        return self.group.broker.bounds(tp)

    def seek(self, tp: TopicPartition, offset: int) -> None:
        if tp not in self.assigned:
            raise IllegalStateError(f"{tp} is not assigned")
        self.positions[tp] = offset
        self.fetched_ends.pop(tp, None)
        self.woken.set()

    def fetched_end_of(self, tp: TopicPartition) -> int | None:
        return self.fetched_ends.get(tp)

    def position_of(self, tp: TopicPartition) -> int | None:
        return self.positions.get(tp)

    def partitions_of(self, topic: str) -> list[TopicPartition]:
        return [tp for tp in self.group.tps if tp.topic == topic]

    def was_deleted(self, topic: str) -> bool:
        return False

    def is_throttled(self, tp: TopicPartition) -> bool:
        return False

    def source_of(self, tp: TopicPartition) -> tuple[object, ...]:
        return (self.group.broker.sources[tp],)

    def raise_coordination_error(self) -> None:
        if self.refused:
            raise AuthenticationFailedError
        if self.group.broker.faults.away:
            raise KafkaConnectionError

    def _raise_if_away(self) -> None:
        if self.refused:
            raise AuthenticationFailedError
        if self.group.broker.faults.away or self.cut_off:
            raise KafkaConnectionError

    async def stop(self) -> None:
        """Leave the group; of a process that was killed, the group finds out by itself."""
        if self.alive:
            self.die()

    def die(self) -> None:
        self.alive = self.cut_off = self.refused = False
        if self._heartbeats is not None:
            self._heartbeats.cancel()
        if self in self.group.members:
            self.group.members.remove(self)
        self.group.rebalance_soon()
