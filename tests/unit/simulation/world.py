"""One history: events, endpoints, edits, faults, crashes and rebalances from one seed, and what must hold throughout.

Everything from the consumer to the lanes is the real thing; broker, endpoints, store and time are simulated. A history
has a stormy part, in which things go wrong, and a calm end, in which the dispatcher has to finish everything.

What is checked:
- at every commit: each record below the position, or named in the metadata, has its outcome;
- an outcome is true: delivered means that the endpoint took it, parked and dead that the topic has it;
- a record that a commit covers is never begun again;
- at the end every event is delivered, skipped or dead; none is lost, none in two final states without a reason.
"""

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import orjson
from aiokafka import TopicPartition

from dispatcher.config.settings import KafkaSettings
from dispatcher.contract.events import DeliveryEvent, read_event
from dispatcher.contract.outcomes import Attempt, Dead, Delivered, FailureReason, Outcome, Parked, Skipped
from dispatcher.contract.records import Origin, ProcessingAttempt, Record, RetryState
from dispatcher.contract.tenant import TenantKey
from dispatcher.delivery.direct_attempt import DirectAttempt
from dispatcher.delivery.pending_delivery import AttemptResult
from dispatcher.errors import UnreadableEvent
from dispatcher.flow.fast_path import RecordListener
from dispatcher.kafka.commit_metadata import decode_metadata
from dispatcher.kafka.consumer import Consumer
from dispatcher.kafka.partition import ReadAheadLimit
from dispatcher.transport.request import Request
from tests.unit.delivering.builders import Bench, FakeStore, Posting, wall
from tests.unit.examples import EMAIL_EVENT, ARecord, changed, webhook
from tests.unit.simulation.broker import Broker, Member

TOPIC = "delivery-events"
CALM_AT_S = 4.0
MOST_S = 300.0
"""A history that has not finished everything by then is stuck."""

Place = tuple[TopicPartition, int]

_EVENTS = {
    tenant: {status: orjson.dumps(changed(EMAIL_EVENT, imsOrgId=f"org-{tenant}", feedbackStatus=status, _id=None))
             for status in ("bounce", "delay")}
    for tenant in range(4)
}  # fmt: skip


def place_of(record: Record) -> Place:
    return TopicPartition(record.topic, record.partition), record.offset


@dataclass
class Endpoint:
    """How a tenant's endpoint behaves now."""

    answers: tuple[Any, ...] = (200,)
    latency_s: float = 0.02


class Process:
    """One dispatcher: a pipeline and its two consumers."""

    def __init__(self, world: "World", name: str) -> None:
        self.world = world
        self.name = name
        self.alive = True
        self.members: list[Member] = []
        chance = world.chance
        self.bench = Bench(
            delivery={
                "max_in_flight": chance.choice((1, 4, 20)), "lane_start": chance.choice((1, 4, 16)), "timeout": "2s",
                "lane_max_wait": chance.choice(("500ms", "5s")),
            },
            retry={
                "tiers": world.tiers, "max_age": world.max_age_s, "soon_attempts": chance.choice((0, 3)),
                "soon_within": "2s",
            },
            brake=world.brake,
            chance=chance.random,
            transport=self,
            producer=self,
            store=world.store,
        )  # fmt: skip
        settings = KafkaSettings.model_validate(
            {
                "bootstrap_servers": "none:1", "commit_interval": chance.choice(("200ms", "1s")),
                "partition_window": chance.choice((2, 10, 1000)),
            }
        )  # fmt: skip
        fresh, parked = ReadAheadLimit(chance.choice((2, 10, 1000)), 1_000_000), ReadAheadLimit(2, 1_000_000)
        self.consumers = (
            self._consumer(settings, "main", (TOPIC,), fresh),
            self._consumer(settings, "retry", self.bench.retry_topics.topics, chance.choice((fresh, parked))),
        )
        self.running: asyncio.Task[None] = asyncio.create_task(self._run())

    def _consumer(
        self, settings: KafkaSettings, name: str, topics: tuple[str, ...], budget: ReadAheadLimit
    ) -> Consumer:
        group = self.world.broker.group(name, topics)

        async def connect(listener: Any) -> Any:
            await asyncio.sleep(0.01)
            member = Member(group, listener)
            member.on_assigned = self.world.begins_anew
            self.members.append(member)
            return member

        return Consumer(
            settings, topics, name, partial(self.world.seen_through, self), budget, drain_timeout_s=2.0,
            due_in_s=None if name == "main" else self.bench.retry_topics.due_in_s,
            fast_path=_Watched(self) if name == "main" and self.world.has_express else None,
            connect=connect, clock=wall,
        )  # fmt: skip

    async def _run(self) -> None:
        try:
            await asyncio.gather(*(consumer.run() for consumer in self.consumers))
        finally:
            await self.bench.deliveries.close()

    async def stop(self) -> None:
        """SIGTERM."""
        for consumer in self.consumers:
            consumer.stop()
        await asyncio.wait([self.running])
        self.alive = False

    async def kill(self) -> None:
        """kill -9: from one moment to the next nothing that it does has any effect."""
        self.alive = False
        for member in self.members:
            if member.alive:
                member.die()
        self.running.cancel()
        await asyncio.wait([self.running])

    # The two ends: its transport and its producer.

    def begin(self, request: Request, ended: Callable[[Attempt], None]) -> Posting | None:
        return Posting(self, request, ended) if self.world.chance.random() < 0.7 else None

    async def post(self, request: Request) -> Attempt:
        return await self.world.post(self, request)

    async def write(self, *args: Any) -> None:
        await self.world.broker.write(*args)


class _Watched:
    """The consumer's shortcut: watches the real one."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._world = process.world

    def begin(self, record: Record, processing: ProcessingAttempt, owner: RecordListener) -> DirectAttempt | None:
        self._world.begins(record)
        return self._process.bench.fast_path.begin(record, processing, _Heard(self._world, record, owner))

    async def go_on(self, record: Record, processing: ProcessingAttempt, first_result: AttemptResult) -> Outcome:
        outcome = await self._process.bench.fast_path.go_on(record, processing, first_result)
        self._world.ends(record, outcome)
        return outcome


@dataclass
class _Heard:
    world: "World"
    record: Record
    owner: RecordListener

    def on_finished(self, outcome: Outcome, /) -> None:
        self.world.flights += 1
        self.world.ends(self.record, outcome)
        self.owner.on_finished(outcome)

    def on_fallback(self, result: AttemptResult | None) -> None:
        self.owner.on_fallback(result)

    def on_cancelled(self) -> None:
        self.owner.on_cancelled()


@dataclass
class World:
    """The history of one seed."""

    seed: int
    chance: random.Random = field(init=False)

    def __post_init__(self) -> None:
        chance = self.chance = random.Random(self.seed)
        self.broker = Broker(chance, wall)
        self.broker.on_commit = self._check_commit
        self.store = FakeStore()
        self.endpoints = defaultdict[str, Endpoint](Endpoint)
        self.tiers = chance.choice((["500ms"], ["500ms", "2s"], ["300ms", "1s", "3s"]))
        self.max_age_s = chance.choice((5,) * 12 + (60,))
        self.brake = chance.choice((0, 500, 500, 3))
        self.has_express = chance.random() < 0.8
        self.flights = 0
        """Records that had their outcome without a task."""
        self.processes: list[Process] = []
        self.origins: dict[Origin, ARecord] = {}
        self.webhook_ids: dict[str, Origin] = {}
        self.outcomes: defaultdict[Place, list[Outcome]] = defaultdict(list)
        self.first_result: set[Place] = set()
        self.covered: set[Place] = set()
        """Places that the commit, from which the present owner of their partition began, covers."""
        self.taken: Counter[Origin] = Counter()
        """2xx answers."""
        self.skipped: Counter[Origin] = Counter()
        self.repeats = 0
        """Finals beyond the first of an event."""
        self.licences = 0
        """How many finals more than events there may be."""
        self.calm = False
        self.wrong: list[str] = []
        """What did not hold. Collected, since the dispatcher outlives an exception anywhere."""

    def hold(self, what: object, otherwise: str) -> None:
        """It must."""
        if not what:
            self.wrong.append(otherwise)

    # What happens

    async def live(self) -> None:
        """The whole history."""
        self._start()
        for number in range(3):
            if self.chance.random() < 0.9:
                self._edit(number)
        async with asyncio.TaskGroup() as storm:
            storm.create_task(self._produce())
            for what in (self._endpoints_vary, self._webhooks_vary, self._broker_varies, self._processes_vary):
                if self.chance.random() < 0.6:
                    storm.create_task(self._now_and_then(what))
        await self._become_calm()
        await self._finish()
        for process in self.processes:
            if process.alive:
                await process.stop()
        for group in self.broker.groups.values():
            await group.settled()
        self._check_end()

    def _start(self) -> None:
        self.processes.append(Process(self, f"p{len(self.processes)}"))

    async def _produce(self) -> None:
        for _ in range(self.chance.randint(1, 25)):
            await asyncio.sleep(self.chance.choice((0, 0, 0, 0.05, 0.5)))
            value: bytes | None = _EVENTS[self.chance.randrange(4)][self.chance.choice(("bounce",) * 6 + ("delay",))]
            if self.chance.random() < 0.1:
                value = self.chance.choice((None, b"{", b"[]", b"\xff"))
            record = self.broker.append(TOPIC, bytes([self.chance.randrange(200)]), value, ())
            origin = Origin(record.topic, record.partition, record.offset)
            self.origins[origin] = record
            try:
                event = read_event(record, origin)
            except UnreadableEvent:
                continue
            assert isinstance(event, DeliveryEvent)
            self.webhook_ids[event.webhook_id] = origin

    async def _now_and_then(self, what: Any) -> None:
        end = asyncio.get_running_loop().time() + CALM_AT_S
        while asyncio.get_running_loop().time() < end:
            await asyncio.sleep(self.chance.uniform(0.05, 2))
            work = what()
            if isinstance(work, Coroutine):
                await work

    def _endpoints_vary(self) -> None:
        hang = FailureReason.TIMEOUT
        self.endpoints[f"org-{self.chance.randrange(3)}"] = Endpoint(
            self.chance.choice(
                ((200,), (200, 503), (503,), (404,), (400,), (200, 410), (301,), (hang,), ("lost",), (200, "lost", hang),
                 (FailureReason.CONNECT_REFUSED,), (FailureReason.RESET, 200), ((429, "1"),), ((503, "30"), 200))
            ),
            self.chance.choice((0.001, 0.02, 0.3)),
        )  # fmt: skip

    def _webhooks_vary(self) -> None:
        number = self.chance.randrange(3)
        what = self.chance.random()
        if what < 0.2:
            self.store.webhooks.pop(TenantKey(f"org-{number}", "prod"), None)
        elif what < 0.4:
            self.store.away = not self.store.away
        else:
            self._edit(number)

    def _edit(self, number: int) -> None:
        self.store.put(
            webhook(
                TenantKey(f"org-{number}", "prod"),
                url=f"https://org-{number}.example/{self.chance.random()}",
                enabled=self.calm or self.chance.random() < 0.9,
                rate_limit=self.chance.choice((None, None, "50/s", "5/s")),
            )
        )

    def _broker_varies(self) -> None:
        faults = self.broker.faults
        faults.unwritable = set(self.chance.sample([f"{TOPIC}.dead", f"{TOPIC}.retry.500ms", f"{TOPIC}.retry.1s"], 2))
        if self.chance.random() < 0.5:
            faults.unwritable = set()
        faults.too_large = {f"{TOPIC}.retry.1s"} if self.chance.random() < 0.2 else set()
        faults.away = self.chance.random() < 0.15
        faults.commits_hang = self.chance.random() < 0.15
        faults.metadata_unreadable = self.chance.random() < 0.2
        faults.lost_acknowledgements = self.chance.choice((0, 0, 0.2))

    async def _processes_vary(self) -> None:
        living = [process for process in self.processes if process.alive]
        what = self.chance.random()
        if len(living) < 2 and what < 0.5:
            self._start()
        elif living and what < 0.75:
            await self.chance.choice(living).kill()
        elif living:
            await self.chance.choice(living).stop()

    async def _become_calm(self) -> None:
        self.calm = True
        self.broker.faults.__init__()  # type: ignore[misc]
        self.endpoints.clear()
        self.store.away = False
        for number in range(3):
            if TenantKey(f"org-{number}", "prod") in self.store.webhooks:
                self._edit(number)
        if not any(process.alive for process in self.processes):
            self._start()

    async def _finish(self) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        while not all(group.finished() for group in self.broker.groups.values()):
            await asyncio.sleep(0.5)
            for process in self.processes:
                for brake in process.bench.pipeline.brakes.values():
                    brake.release()
            assert not self.wrong, self.wrong
            assert loop.time() - began < MOST_S, f"stuck: {[process.consumers for process in self.processes]}"

    # What is seen

    async def post(self, process: Process, request: Request) -> Attempt:
        origin = self.webhook_ids[dict(request.headers)["webhook-id"]]
        org = request.endpoint.host.removesuffix(".example")
        self.hold(_org_of(self.origins[origin]) == org, "an event met another tenant's webhook")
        self.hold(process.alive, "a process that is gone sends")
        endpoint = self.endpoints[org]
        answer = self.chance.choice(endpoint.answers)
        await asyncio.sleep(endpoint.latency_s)
        if answer == "lost":  # it was taken, and the answer never arrived
            self.taken[origin] += 1
            self.licences += 1
            answer = FailureReason.TIMEOUT
        if answer == 200:
            self.taken[origin] += 1
        if answer is FailureReason.TIMEOUT:
            await asyncio.sleep(request.timeout_s)
        await asyncio.sleep(endpoint.latency_s)
        if isinstance(answer, FailureReason):
            return Attempt(0.1, failure=answer, reused=self.chance.random() < 0.5)
        if isinstance(answer, tuple):
            return Attempt(0.1, status=answer[0], retry_after=answer[1])
        return Attempt(0.1, status=answer)

    def begins_anew(self, tps: list[TopicPartition]) -> None:
        """Partitions have an owner, who begins at their commits: what was begun and is not covered comes again."""
        for tp in tps:
            group = next(one for one in self.broker.groups.values() if tp in one.tps)
            position, runs = group.covers(tp)
            named = {offset for first, last in runs for offset in range(first, last + 1)}
            if self.broker.faults.metadata_unreadable or self.broker.faults.away:
                named = set()
            for record in self.broker.partitions[tp]:
                place = place_of(record)
                covered = record.offset < position or record.offset in named
                (self.covered.add if covered else self.covered.discard)(place)
                if place in self.first_result and not covered:
                    self.licences += 1
                    self.first_result.discard(place)

    async def seen_through(self, process: Process, record: Record, processing: ProcessingAttempt) -> Outcome:
        """The consumer's `process`: watches the real one."""
        self.begins(record)
        outcome = await process.bench.pipeline.process(record, processing)
        self.ends(record, outcome)
        return outcome

    def begins(self, record: Record) -> None:
        """A record is begun."""
        place = place_of(record)
        self.hold(place not in self.covered or self._unsure(), f"{place} is begun again, though a commit covers it")
        self.first_result.add(place)

    def ends(self, record: Record, outcome: Outcome) -> None:
        """A record has its outcome."""
        self.outcomes[place_of(record)].append(outcome)
        self._check_outcome(record, outcome)

    def _unsure(self) -> bool:
        return self.broker.faults.metadata_unreadable or self.broker.faults.away

    # What must hold

    def _check_outcome(self, record: Record, outcome: Outcome) -> None:
        origin = RetryState.of(record).origin
        match outcome:
            case Delivered():
                self.hold(self.taken[origin], f"{origin} is said to be delivered, and was not")
            case Skipped():
                self.skipped[origin] += 1
            case Parked(tier):
                topic = f"{TOPIC}.retry.{self.tiers[tier]}"
                there = any(RetryState.of(one).origin == origin for one in self.broker.records(topic))
                self.hold(there, f"{origin} is said to be parked, and is not")
            case Dead():
                self.hold(origin in self._dead(), f"{origin} is said to be dead, and is not in the dead letters")

    def _check_commit(self, group: str, tp: TopicPartition, position: int, metadata: str) -> None:
        runs = decode_metadata(position, metadata).finished
        self.hold(len(metadata) <= 4096, f"metadata {metadata}")
        for record in self.broker.partitions[tp]:
            if record.offset < position or any(first <= record.offset <= last for first, last in runs):
                self.hold(self.outcomes[place_of(record)], f"{tp} is committed to {position} without {record.offset}")

    def _dead(self) -> Counter[Origin]:
        return Counter(RetryState.of(one).origin for one in self.broker.records(f"{TOPIC}.dead"))

    def _check_end(self) -> None:
        dead = self._dead()
        finals = {origin: self.taken[origin] + self.skipped[origin] + dead[origin] for origin in self.origins}
        lost = [origin for origin, count in finals.items() if not count]
        self.hold(not lost, f"lost: {lost}")
        self.licences += self.broker.lost_acknowledgements
        self.repeats = sum(finals.values()) - len(finals)
        most = self.licences
        self.hold(self.repeats <= most, f"{self.repeats} repeats, though no more than {most} were under way")
        self.hold(set(dead) | set(self.taken) | set(self.skipped) <= set(self.origins), "an event out of nothing")
        for process in self.processes:
            self.hold(" 0/" in repr(process.bench.lanes), f"a slot leaked: {process.bench.lanes}")
            self.hold(not any(consumer.unfinished for consumer in process.consumers), "a task leaked")
            failed = None if process.running.cancelled() else process.running.exception()
            self.hold(failed is None, f"a process died: {failed!r}")
        assert not self.wrong, self.wrong


def _org_of(record: ARecord) -> str:
    org: str = orjson.loads(record.value or b"")["header"]["imsOrgId"]
    return org


async def history(seed: int) -> World:
    """Live through one."""
    world = World(seed)
    await world.live()
    return world
