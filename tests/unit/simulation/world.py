"""One history: events, endpoints, edits, faults, crashes and rebalances from one seed, and what must hold throughout.

Everything from the consumer to the lanes is the real thing; broker, endpoints, store and time are simulated. A history
has a stormy part, in which things go wrong, and a calm end, in which the dispatcher has to finish everything.

What is checked:
- at every commit: each record below the position, or named in the metadata, has its outcome;
- an outcome is true: delivered means that the endpoint took it, parked and dead that the topic has it;
- a record that a commit covers is never begun again;
- a process never begins a record that it has finished, unless its log was truncated;
- a process that the group has dropped begins no request until it has joined again;
- at the end every event is delivered, skipped or dead; none is lost, none in two final states without a reason. Only
  records that were in a log when it was truncated may be missing, and of these none that a process had begun if it
  kept its partitions from then on.

An event is identified by its key, a record by its serial number: a log that was truncated gives its offsets again.
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

from dispatcher.config.kafka_settings import KafkaSettings
from dispatcher.contract.events import DeliveryEvent, read_event
from dispatcher.contract.outcomes import Attempt, Dead, Delivered, FailureReason, Outcome, Parked, Skipped
from dispatcher.contract.records import Lease, Origin, ProcessingAttempt, Record
from dispatcher.contract.tenant import TenantKey
from dispatcher.delivery.direct_attempt import DirectAttempt
from dispatcher.delivery.pending_delivery import AttemptResult
from dispatcher.errors import NotWritten, UnreadableEvent
from dispatcher.flow.fast_path import RecordListener
from dispatcher.kafka.commit_metadata import decode_metadata
from dispatcher.kafka.consumer import Consumer
from dispatcher.kafka.read_ahead import ReadAheadLimit
from dispatcher.transport.request import Request
from tests.unit.delivering.builders import Bench, FakeStore, Posting, wall
from tests.unit.examples import EMAIL_EVENT, changed, webhook
from tests.unit.simulation.broker import Broker, Member

TOPIC = "delivery-events"
CALM_AT_S = 4.0
MOST_S = 300.0
"""A history that has not finished everything by then is stuck."""

SESSION_S = 6.0

Serial = int
Number = bytes
"""Key of an event and of its copies in the tiers and the dead letters."""

_ID = "the-event"
_EVENTS = {
    (tenant, status, own_id): orjson.dumps(
        changed(EMAIL_EVENT, imsOrgId=f"org-{tenant}", feedbackStatus=status, _id=own_id)
    )
    for tenant in range(4) for status in ("bounce", "delay") for own_id in (None, _ID)
}  # fmt: skip


def serial_of(record: Record) -> Serial:
    """A log that was truncated gives a record's offset to another one, so that the object is what identifies it."""
    return id(record)


def number_of(record: Record) -> Number:
    assert record.key is not None
    return record.key


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
        self.stopping = False
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
                "partition_window": chance.choice((2, 10, 1000)), "session_timeout": SESSION_S,
            }
        )  # fmt: skip
        fresh, parked = ReadAheadLimit(chance.choice((2, 10, 1000)), 1_000_000), ReadAheadLimit(2, 1_000_000)
        self.consumers = (
            self._consumer(settings, "main", (TOPIC,), fresh),
            self._consumer(settings, "retry", self.bench.retry_topics.topics, chance.choice((fresh, parked))),
        )
        self.running: asyncio.Task[None] = asyncio.create_task(self._run())

    def _consumer(
        self, settings: KafkaSettings, name: str, topics: tuple[str, ...], read_ahead: ReadAheadLimit
    ) -> Consumer:
        group = self.world.broker.group(name, topics)

        async def connect(listener: Any) -> Any:
            await asyncio.sleep(0.01)
            while self.world.password_differs:  # a client that is refused tries again
                await asyncio.sleep(0.1)
            member = Member(group, listener, SESSION_S if self.world.has_sessions else None)
            member.on_assigned = self.world.begins_anew
            self.members.append(member)
            return member

        return Consumer(
            settings, topics, name, partial(self.world.seen_through, self), read_ahead, drain_timeout_s=2.0,
            due_in_s=None if name == "main" else self.bench.retry_topics.due_in_s,
            fast_path=_Watched(self) if name == "main" and self.world.has_fast_path else None,
            connect=connect, clock=wall, lease=Lease(now=asyncio.get_running_loop().time),
        )  # fmt: skip

    async def _run(self) -> None:
        try:
            await asyncio.gather(*(consumer.run() for consumer in self.consumers))
        finally:
            await self.bench.deliverer.close()

    async def stop(self) -> None:
        """SIGTERM."""
        self.stopping = True
        for consumer in self.consumers:
            consumer.stop()
        await asyncio.wait([self.running])
        self.alive = self.stopping = False

    async def kill(self) -> None:
        """kill -9: from one moment to the next nothing that it does has any effect."""
        self.alive = False
        for member in self.members:
            if member.alive:
                member.die()
        self.running.cancel()
        await asyncio.wait([self.running])

    async def cut_off(self, for_s: float, *, refused: bool = False) -> None:
        """Cuts it off from Kafka's group for this time; `refused`: its credentials are refused, and writes fail too."""
        members = [member for member in self.members if member.alive]
        for member in members:
            member.cut_off, member.refused = True, refused
        await asyncio.sleep(for_s)
        for member in members:
            member.cut_off = member.refused = False
            member.woken.set()

    @property
    def is_dropped(self) -> bool:
        """True if none of its consumers is a member of its group any more."""
        living = [member for member in self.members if member.alive]
        return bool(living) and all(member.dropped for member in living)

    @property
    def is_cut_off(self) -> bool:
        return any(member.cut_off or member.dropped for member in self.members)

    # The two ends: its transport and its producer.

    def start_post(self, request: Request, on_result: Callable[[Attempt], None]) -> Posting | None:
        return Posting(self, request, on_result) if self.world.chance.random() < 0.7 else None

    async def post(self, request: Request) -> Attempt:
        return await self.world.post(self, request)

    async def write(self, *args: Any) -> None:
        if any(member.refused for member in self.members):
            raise NotWritten("the broker refuses the credentials")
        await self.world.broker.write(*args)


class _Watched:
    """The consumer's shortcut: watches the real one."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._world = process.world

    def start(self, record: Record, processing: ProcessingAttempt, owner: RecordListener) -> DirectAttempt | None:
        self._world.begins(self._process, record)
        return self._process.bench.fast_path.start(record, processing, _Heard(self._process, record, owner))

    async def resume(self, record: Record, processing: ProcessingAttempt, first_result: AttemptResult) -> Outcome:
        outcome = await self._process.bench.fast_path.resume(record, processing, first_result)
        self._world.ends(self._process, record, outcome)
        return outcome


@dataclass
class _Heard:
    process: Process
    record: Record
    owner: RecordListener

    def on_finished(self, outcome: Outcome, /) -> None:
        self.process.world.flights += 1
        self.process.world.ends(self.process, self.record, outcome)
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
        self.has_fast_path = chance.random() < 0.8
        self.has_sessions = chance.random() < 0.3
        """Members send heartbeats, and are dropped without them."""
        self.loses_logs = chance.random() < 0.3
        self.rotates_passwords = chance.random() < 0.3
        self.password_differs = False
        """The broker refuses the password that the processes read; connections that are open already work on."""
        self.flights = 0
        """Records that had their outcome without a task."""
        self.processes: list[Process] = []
        self.events: dict[Number, Record] = {}
        self.webhook_ids: dict[str, Number] = {}
        self.outcomes: defaultdict[Serial, list[Outcome]] = defaultdict(list)
        self.finished_by: defaultdict[Serial, set[str]] = defaultdict(set)
        """The processes that brought each record to an outcome."""
        self.first_result: set[Serial] = set()
        self.covered: set[Serial] = set()
        """Records that the commit, from which the present owner of their partition began, covers."""
        self.left_by_truncation: set[Serial] = set()
        """Records that no process had begun when their log was truncated. One that has fetched them may begin them
        before it notices, and again from the log's start."""
        self.taken: Counter[Number] = Counter()
        """2xx answers."""
        self.skipped: Counter[Number] = Counter()
        self.gone: dict[Number, tuple[str, int] | None] = {}
        """Events of which a copy was in a log when it was truncated. Group and generation if a process had begun it."""
        self.lost = 0
        """Events that were lost with a log."""
        self.repeats = 0
        """Finals beyond the first of an event."""
        self.licences = 0
        """How many finals more than events there may be."""
        self.calm = False
        self.wrong: list[str] = []
        """Promises that did not hold. Collected, since the dispatcher survives an exception anywhere."""

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
            if self.has_sessions:
                storm.create_task(self._now_and_then(self._process_stands_still))
            if self.loses_logs:
                storm.create_task(self._now_and_then(self._log_is_truncated))
            if self.rotates_passwords:
                storm.create_task(self._now_and_then(self._password_changes))
            if self.chance.random() < 0.2:
                storm.create_task(self._now_and_then(self._fetches_hang))
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
        for number in range(self.chance.randint(1, 25)):
            await asyncio.sleep(self.chance.choice((0, 0, 0, 0.05, 0.5)))
            # Without an id of its own an event is identified by its offset, which a truncated log gives again.
            own_id = _ID if self.loses_logs or self.chance.random() < 0.5 else None
            event_name = self.chance.randrange(4), self.chance.choice(("bounce",) * 6 + ("delay",)), own_id
            value: bytes | None = _EVENTS[event_name].replace(_ID.encode(), b"%d" % number)
            if self.chance.random() < 0.1:
                value = self.chance.choice((None, b"{", b"[]", b"\xff"))
            record = self.broker.append(TOPIC, b"%d" % number, value, ())
            self.events[number_of(record)] = record
            try:
                event = read_event(record, Origin(record.topic, record.partition, record.offset))
            except UnreadableEvent:
                continue
            assert isinstance(event, DeliveryEvent)
            self.webhook_ids[event.webhook_id] = number_of(record)

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

    async def _fetches_hang(self) -> None:
        """A new leader that is slow, and reports ends that are too low."""
        for tp in list(self.broker.sources):
            self.broker.sources[tp] += 1
        self.broker.faults.fetches_hang = True
        self.broker.faults.reported_less = self.chance.choice((1, 3))
        try:
            await asyncio.sleep(self.chance.uniform(0.5, 6))
        finally:
            self.broker.faults.fetches_hang, self.broker.faults.reported_less = False, 0

    async def _processes_vary(self) -> None:
        living = [process for process in self.processes if process.alive]
        what = self.chance.random()
        if len(living) < 2 and what < 0.5:
            self._start()
        elif living and what < 0.75:
            await self.chance.choice(living).kill()
        elif living:
            await self.chance.choice(living).stop()

    async def _process_stands_still(self) -> None:
        living = [process for process in self.processes if process.alive and not process.is_cut_off]
        if living:
            await self.chance.choice(living).cut_off(self.chance.choice((1.0, SESSION_S + 2, 3 * SESSION_S)))

    async def _password_changes(self) -> None:
        """The broker has another password before its clients' files do. Some of their connections outlive the time."""
        for_s = self.chance.choice((0.5, 3.0, SESSION_S + 2))
        living = [process for process in self.processes if process.alive and not process.is_cut_off]
        self.password_differs = True
        try:
            async with asyncio.TaskGroup() as refused:
                for process in living:
                    if self.chance.random() < 0.7:
                        refused.create_task(process.cut_off(for_s, refused=True))
                refused.create_task(asyncio.sleep(for_s))
        finally:
            self.password_differs = False

    def _log_is_truncated(self) -> None:
        """What was begun of the log that is left may be begun once more: it is read from its start."""
        group = self.chance.choice(list(self.broker.groups.values()))
        tp = self.chance.choice(group.tps)
        end = self.chance.choice((0, self.chance.randint(0, self.broker.bounds(tp).end)))
        stable = group.is_stable and not any(process.stopping for process in self.processes)
        for record in self.broker.truncate(tp, end):
            was_begun = stable and serial_of(record) in self.first_result
            self.gone[number_of(record)] = (group.name, group.generation) if was_begun else None
        for record in self.broker.partitions[tp]:
            self.covered.discard(serial_of(record))
            if serial_of(record) in self.first_result:
                self.licences += 1
                self.first_result.discard(serial_of(record))
            else:
                self.left_by_truncation.add(serial_of(record))

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
        while not self._is_finished():
            await asyncio.sleep(0.5)
            for process in self.processes:
                for brake in process.bench.pipeline.brakes.values():
                    brake.release()
            assert not self.wrong, self.wrong
            assert loop.time() - began < MOST_S, f"stuck: {[process.consumers for process in self.processes]}"

    def _is_finished(self) -> bool:
        if self.loses_logs and any(one.unfinished for process in self.processes for one in process.consumers):
            return False  # records of a log that is gone
        return all(group.finished() for group in self.broker.groups.values())

    # What is seen

    async def post(self, process: Process, request: Request) -> Attempt:
        number = self.webhook_ids[dict(request.headers)["webhook-id"]]
        org = request.endpoint.host.removesuffix(".example")
        self.hold(_org_of(self.events[number]) == org, "an event met another tenant's webhook")
        self.hold(process.alive, "a process that is gone sends")
        self.hold(not process.is_dropped, "a process that the group has dropped sends")
        endpoint = self.endpoints[org]
        answer = self.chance.choice(endpoint.answers)
        await asyncio.sleep(endpoint.latency_s)
        if answer == "lost":  # it was taken, and the answer never arrived
            self.taken[number] += 1
            self.licences += 1
            answer = FailureReason.TIMEOUT
        if answer == 200:
            self.taken[number] += 1
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
                covered = record.offset < position or record.offset in named
                (self.covered.add if covered else self.covered.discard)(serial_of(record))
                if serial_of(record) in self.first_result and not covered:
                    self.licences += 1
                    self.first_result.discard(serial_of(record))

    async def seen_through(self, process: Process, record: Record, processing: ProcessingAttempt) -> Outcome:
        """The consumer's `process`: watches the real one."""
        self.begins(process, record)
        outcome = await process.bench.pipeline.process(record, processing)
        self.ends(process, record, outcome)
        return outcome

    def begins(self, process: Process, record: Record) -> None:
        """A record is begun."""
        serial = serial_of(record)
        unsure = self._unsure() or process.is_cut_off
        if serial in self.first_result and serial in self.left_by_truncation:
            self.left_by_truncation.discard(serial)
            self.licences += 1
        self.hold(serial not in self.covered or unsure, f"{record} is begun again, though a commit covers it")
        again = process.name in self.finished_by[serial] and not self.loses_logs
        self.hold(not again, f"{process.name} begins {record} again, though it has finished it")
        self.first_result.add(serial)

    def ends(self, process: Process, record: Record, outcome: Outcome) -> None:
        """A record has its outcome."""
        self.outcomes[serial_of(record)].append(outcome)
        self.finished_by[serial_of(record)].add(process.name)
        self._check_outcome(record, outcome)

    def _unsure(self) -> bool:
        return self.broker.faults.metadata_unreadable or self.broker.faults.away

    # What must hold

    def _check_outcome(self, record: Record, outcome: Outcome) -> None:
        number = number_of(record)
        match outcome:
            case Delivered():
                self.hold(self.taken[number], f"{record} is said to be delivered, and was not")
            case Skipped():
                self.skipped[number] += 1
            case Parked(tier):
                topic = f"{TOPIC}.retry.{self.tiers[tier]}"
                there = number in self.gone or any(one.key == number for one in self.broker.records(topic))
                self.hold(there, f"{record} is said to be parked, and is not")
            case Dead():
                self.hold(number in self._dead(), f"{record} is said to be dead, and is not in the dead letters")

    def _check_commit(self, group: str, tp: TopicPartition, position: int, metadata: str) -> None:
        claim = decode_metadata(position, metadata)
        runs = claim.finished
        self.hold(len(metadata) <= 4096, f"metadata {metadata}")
        if not self.broker.groups[group].describes(tp, claim):
            self.hold(self.loses_logs, f"{tp}: the commit describes another log")
            return  # the process doesn't know yet that the log was truncated
        for record in self.broker.partitions[tp]:
            if record.offset < position or any(first <= record.offset <= last for first, last in runs):
                self.hold(self.outcomes[serial_of(record)], f"{tp} is committed to {position} without {record.offset}")

    def _dead(self) -> Counter[Number]:
        return Counter(number_of(one) for one in self.broker.records(f"{TOPIC}.dead"))

    def _may_be_lost(self, number: Number) -> bool:
        """True if a copy of the event was in a log that was truncated, and no process had to finish it."""
        if number not in self.gone:
            return False
        begun = self.gone[number]
        return begun is None or self.broker.groups[begun[0]].generation != begun[1]

    def _check_end(self) -> None:
        dead = self._dead()
        finals = {number: self.taken[number] + self.skipped[number] + dead[number] for number in self.events}
        lost = [number for number, count in finals.items() if not count and not self._may_be_lost(number)]
        self.hold(not lost, f"lost: {lost}")
        self.lost = sum(not count for count in finals.values())
        self.licences += self.broker.lost_acknowledgements
        self.repeats = sum(finals.values()) - len(finals) + self.lost
        most = self.licences
        self.hold(self.repeats <= most, f"{self.repeats} repeats, though no more than {most} were under way")
        self.hold(set(dead) | set(self.taken) | set(self.skipped) <= set(self.events), "an event out of nothing")
        for process in self.processes:
            self.hold(" 0/" in repr(process.bench.lanes), f"a permit leaked: {process.bench.lanes}")
            self.hold(not any(consumer.unfinished for consumer in process.consumers), "a task leaked")
            failed = None if process.running.cancelled() else process.running.exception()
            self.hold(failed is None, f"a process died: {failed!r}")
        assert not self.wrong, self.wrong


def _org_of(record: Record) -> str:
    org: str = orjson.loads(record.value or b"")["header"]["imsOrgId"]
    return org


async def history(seed: int) -> World:
    """Live through one."""
    world = World(seed)
    await world.live()
    return world
