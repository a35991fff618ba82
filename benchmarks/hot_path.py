"""The way of an event through the process, whole and in stages, without a broker: what `instructions` counts.

Everything is the program's own, from aiokafka's decoding of a record batch to the lean transport; a prepared
answer to a fetch replaces the broker, and the endpoint is a TLS server in a process of its own. Run as
`python -m benchmarks.hot_path` under callgrind, and switches its counting on and off, or by itself, for a profile or the time.
"""

import argparse
import asyncio
import cProfile
import gc
import json
import os
import pstats
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import cramjam
import trustme
import uvloop
from aiokafka import TopicPartition
from aiokafka.consumer.fetcher import READ_COMMITTED, PartitionRecords
from aiokafka.record.memory_records import MemoryRecords

from benchmarks.callgrind import Callgrind
from benchmarks.events import events, record_batch, tenants
from benchmarks.receiver import ANSWER
from dispatcher.config.kafka_settings import KafkaSettings
from dispatcher.config.secrets import Secret
from dispatcher.config.settings import (
    DeliverySettings,
    EgressSettings,
    HistorySettings,
    LogSettings,
    MetricsSettings,
    RetrySettings,
    WebhookSettings,
)
from dispatcher.config.webhook_revision import Webhook
from dispatcher.config.webhooks import WebhookConfig
from dispatcher.contract.events import DeliveryEvent, read_event
from dispatcher.contract.feedback import encode_feedback
from dispatcher.contract.outcomes import Attempt, Delivered, Outcome, Phases
from dispatcher.contract.records import AssignmentEpoch, Origin, ProcessingAttempt, Record, RetryState
from dispatcher.contract.tenant import TenantKey
from dispatcher.delivery.deliverer import Deliverer
from dispatcher.delivery.history_recorder import HistoryRecorder
from dispatcher.delivery.lane_scheduler import LaneScheduler
from dispatcher.delivery.pending_delivery import AttemptResult, PendingDelivery
from dispatcher.delivery.permits import PERMITS_A_TURN, Priority
from dispatcher.delivery.retry_policy import RetryPolicy
from dispatcher.delivery.verdicts import DELIVERED
from dispatcher.flow.fast_path import FastPath
from dispatcher.flow.pipeline import Pipeline
from dispatcher.kafka.aiokafka_patches import ZSTD_LEVEL
from dispatcher.kafka.commit_metadata import CommittedPosition
from dispatcher.kafka.consumer import Consumer
from dispatcher.kafka.membership import Bounds
from dispatcher.kafka.read_ahead import ReadAheadLimit
from dispatcher.stores.cache import WebhookCache
from dispatcher.telemetry import metrics
from dispatcher.telemetry.logs import configure_logging
from dispatcher.telemetry.tenant_metrics import TenantMetrics
from dispatcher.transport import open_transport
from dispatcher.transport.dial import Dialled
from dispatcher.transport.endpoint import Endpoint
from dispatcher.transport.request import Request

TOPIC = "delivery-events"
BATCH = 100
"""Records of one batch: what a producer with a linger of some milliseconds writes."""
WARM_UP = 200
AT_ONCE = 16
"""Requests at once."""
LIMIT_S = 90
"""For one step: it takes seconds, and under callgrind some ten."""

Step = Callable[[int], Awaitable[None]]
"""Sends this number of events through a stage."""

_OK: Final = Attempt(0.001, status=204)


class OneWebhook:
    """A store with one webhook."""

    def __init__(self, webhook: Webhook) -> None:
        self.webhook = webhook

    async def get(self, tenant: TenantKey) -> Webhook | None:
        return self.get_cached(tenant)

    def get_cached(self, tenant: TenantKey) -> Webhook | None:
        return self.webhook if tenant == self.webhook.tenant else None


class Done:
    """A request that was answered as it went out."""

    def abort(self) -> None:
        """Nothing to stop."""


_DONE: Final = Done()


class NullTransport:
    """Takes everything at once."""

    def start_post(self, request: Request, on_result: Callable[[Attempt], None]) -> Done:
        on_result(_OK)
        return _DONE

    async def post(self, request: Request) -> Attempt:
        return _OK


class FakeKafka:
    """The part of aiokafka that the consumer uses. Returns the number of records that was set, decoded by aiokafka's own code."""

    def __init__(self) -> None:
        self.listener: Any = None
        self.left = 0
        self._more = asyncio.Event()
        self._next = 0
        values = list(events(tenants(1), BATCH))
        self._batch = record_batch(values, int(time.time() * 1000) - 1000)

    def give(self, count: int) -> None:
        """`count` is a multiple of the batch."""
        self.left += count
        self._more.set()

    def decoded(self) -> list[Record]:
        """The next batch."""
        records = PartitionRecords(
            TopicPartition(TOPIC, 0), MemoryRecords(self._batch), [], 0, None, None, True, READ_COMMITTED
        )
        first, self._next = self._next, self._next + BATCH
        decoded: list[Record] = []
        for record in records:
            object.__setattr__(record, "offset", first + record.offset)
            decoded.append(record)
        return decoded

    async def connect(self, listener: Any) -> Any:
        """Stands in for joining a group."""
        await listener.on_partitions_assigned([TopicPartition(TOPIC, 0)])
        return self

    def assignment(self) -> set[TopicPartition]:
        return {TopicPartition(TOPIC, 0)}

    async def getmany(
        self, *tps: TopicPartition, timeout_ms: int, max_records: int
    ) -> dict[TopicPartition, list[Record]]:
        while not self.left:
            self._more.clear()
            await self._more.wait()
        found: list[Record] = []
        while self.left and len(found) < max_records:
            found += self.decoded()
            self.left -= BATCH
        return {TopicPartition(TOPIC, 0): found}

    async def commit(self, offsets: object) -> None:
        """Nothing to keep."""

    async def commit_for_group(self, offsets: object) -> None:
        """Nothing to keep."""

    async def committed(self, tps: object) -> dict[TopicPartition, CommittedPosition]:
        return {}

    async def bounds(self, tps: Iterable[TopicPartition]) -> dict[TopicPartition, Bounds]:
        return {tp: Bounds(0, end) for tp, end in (await self.end_offsets(tps)).items()}

    def seek(self, tp: TopicPartition, offset: int) -> None:
        """It begins at its start."""

    def position_of(self, tp: TopicPartition) -> int:
        return self._next

    def stable_end_of(self, tp: TopicPartition) -> None:
        """No transaction is open."""

    def partitions_of(self, topic: str) -> list[TopicPartition]:
        return [TopicPartition(TOPIC, 0)]

    def source_of(self, tp: TopicPartition) -> tuple[object, ...]:
        return ()

    def raise_coordination_error(self) -> None:
        """There is none."""

    async def end_offsets(self, tps: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(tps, self._next + self.left)

    async def stop(self) -> None:
        """Nothing to leave."""


class Services:
    """The parts of a process, made as `service` makes them."""

    def __init__(self, url: str, config: dict[str, Any], directory: Path) -> None:
        self.kafka = KafkaSettings.model_validate({"bootstrap_servers": "none:1", "commit_interval": "60s"})
        # The lane doesn't grow: every connection is there after the warm-up, and no handshake is counted.
        self.delivery = DeliverySettings.model_validate(
            {"lane_start": AT_ONCE, "lane_max": AT_ONCE, "timeout": 30, "connect_timeout": 30} | config
        )
        self.egress = EgressSettings.model_validate(
            {"allow": ["127.0.0.0/8", "localhost"], "ca_bundle": str(directory / "ca.pem")}
        )
        tenant = tenants(1)[0]
        self.webhook = Webhook.of(
            WebhookConfig.model_validate({"name": "one", "org": tenant.org, "sandbox": tenant.sandbox, "url": url}),
            "here",
        )
        self.cache = WebhookCache(OneWebhook(self.webhook), WebhookSettings.model_validate({"path": "."}))
        self.policy = RetryPolicy.of(RetrySettings.model_validate({}))
        self.fresh = ReadAheadLimit(self.kafka.max_unfinished, self.kafka.max_unfinished_bytes)

    def deliveries(self, transport: Any) -> Deliverer:
        unused: Any = None
        lanes = LaneScheduler(self.delivery, self.fresh)
        return Deliverer(self.delivery, self.policy, lanes, transport, unused, self.cache.is_current)

    def pipeline(self, deliverer: Deliverer) -> Pipeline:
        unused: Any = None
        nothing_parked: Any = SimpleNamespace(topics=())
        tenants = TenantMetrics(MetricsSettings())
        tenants.configure([self.webhook.tenant])
        return Pipeline(
            webhooks=self.cache,
            deliverer=deliverer,
            retry_topics=nothing_parked,
            dead_letters=unused,
            policy=self.policy,
            max_body=self.delivery.max_body,
            max_record_bytes=self.kafka.max_record_bytes,
            brake=500,
            tenants=tenants,
        )

    def fast_path(self, deliverer: Deliverer, pipeline: Pipeline) -> FastPath:
        return FastPath(pipeline, self.cache, deliverer, self.kafka.max_record_bytes, self.delivery.max_body)

    @asynccontextmanager
    async def consumed(
        self, process: Callable[[Record, ProcessingAttempt], Awaitable[Outcome]], fast_path: FastPath | None = None
    ) -> AsyncIterator[Step]:
        """A consumer that hands each record to `fast_path`, or to `process`."""
        kafka = FakeKafka()
        consumer = Consumer(
            self.kafka, [TOPIC], "group", process, self.fresh, 1, fast_path=fast_path, connect=kafka.connect
        )
        running = asyncio.create_task(consumer.run())

        async def step(count: int) -> None:
            kafka.give(count)
            give_up_at = time.monotonic() + LIMIT_S
            while kafka.left or consumer.unfinished:
                if time.monotonic() > give_up_at:
                    raise RuntimeError(f"{count} events were not finished within {LIMIT_S} s: {consumer!r}")
                await asyncio.sleep(0.1)

        try:
            await asyncio.sleep(0)
            yield step
        finally:
            consumer.stop()
            await running


# The stages. Each gives its step; what it makes beforehand isn't counted.


@asynccontextmanager
async def decode(_: Services) -> AsyncIterator[Step]:
    """A record batch to records: aiokafka."""
    kafka = FakeKafka()

    async def step(count: int) -> None:
        for _ in range(count // BATCH):
            kafka.decoded()

    yield step


@asynccontextmanager
async def read(_: Services) -> AsyncIterator[Step]:
    """A record to a delivery event: `RetryState.of`, `read_event`."""
    records = FakeKafka().decoded()

    async def step(count: int) -> None:
        for number in range(count):
            record = records[number % BATCH]
            read_event(record, RetryState.of(record).origin)

    yield step


@asynccontextmanager
async def encode(_: Services) -> AsyncIterator[Step]:
    """An event to a body: `encode_feedback`."""
    event = _an_event()

    async def step(count: int) -> None:
        for _ in range(count):
            encode_feedback(event, 1)

    yield step


@asynccontextmanager
async def deliver(parts: Services) -> AsyncIterator[Step]:
    """`Deliverer.deliver` with a transport that takes everything at once: lane, request, verdict, metrics."""
    deliveries = parts.deliveries(NullTransport())
    webhook = await parts.cache.get(parts.webhook.tenant)
    assert webhook is not None
    event, body, epoch = _an_event(), b"x" * 662, AssignmentEpoch()

    async def step(count: int) -> None:
        for number in range(count):
            await deliveries.deliver(
                PendingDelivery.of(event, webhook, body, 0, Priority.NEW, ProcessingAttempt(epoch))
            )
            await _turn_over(number)

    yield step


@asynccontextmanager
async def pipeline(parts: Services) -> AsyncIterator[Step]:
    """`Pipeline.process` with that transport: read, webhook, eligibility, encode, deliver, metrics."""
    made, records, epoch = parts.pipeline(parts.deliveries(NullTransport())), FakeKafka().decoded(), AssignmentEpoch()

    async def step(count: int) -> None:
        for number in range(count):
            await made.process(records[number % BATCH], ProcessingAttempt(epoch))
            await _turn_over(number)

    yield step


@asynccontextmanager
async def direct_attempt(parts: Services) -> AsyncIterator[Step]:
    """`FastPath.start` with that transport: what `pipeline` does, without a task."""
    deliveries = parts.deliveries(NullTransport())
    made, records, epoch = (
        parts.fast_path(deliveries, parts.pipeline(deliveries)),
        FakeKafka().decoded(),
        AssignmentEpoch(),
    )
    await parts.cache.get(parts.webhook.tenant)
    owner = Delivering()

    async def step(count: int) -> None:
        for number in range(count):
            made.start(records[number % BATCH], ProcessingAttempt(epoch), owner)
            await _turn_over(number)

    yield step


async def _turn_over(number: int) -> None:
    """As many events as a turn of the event loop has slots: its next turn."""
    if number % PERMITS_A_TURN == PERMITS_A_TURN - 1:
        await asyncio.sleep(0)


class Delivering:
    """An owner to which only deliveries are reported."""

    def on_finished(self, outcome: Outcome, /) -> None:
        """As it should be."""

    def on_fallback(self, result: AttemptResult | None) -> None:
        raise RuntimeError(f"it falls back to the slow path: {result}")

    def on_cancelled(self) -> None:
        raise RuntimeError("no record is cancelled here")


@asynccontextmanager
async def consume(parts: Services) -> AsyncIterator[Step]:
    """The consumer with nothing to do for a record: decode, task, tracker, budget, commit."""
    done = Delivered(1)

    async def process(record: Record, processing: ProcessingAttempt) -> Outcome:
        return done

    async with parts.consumed(process) as step:
        yield step


class NullDialer:
    """Connections that answer every request at once, without a socket."""

    async def dial(
        self,
        scheme: str,
        host: str,
        port: int,
        context: object,
        timeout_s: float,
        deadline: float,
        factory: Callable[[], Any],
    ) -> Dialled[Any]:
        protocol = factory()
        transport: Any = NullConnection(protocol)
        protocol.connection_made(transport)
        return Dialled(transport, transport, protocol, Phases(), is_resumed=False)

    def watch(self, host: str) -> None:
        """No host is resolved here."""

    def retirement(self, now: float) -> float:
        return now + 3600.0


class NullConnection:
    """The transport of such a connection."""

    def __init__(self, protocol: asyncio.Protocol) -> None:
        self._protocol = protocol
        self._loop = asyncio.get_running_loop()

    def write(self, data: bytes) -> None:
        self._loop.call_soon(self._protocol.data_received, ANSWER)

    def get_extra_info(self, name: str) -> None:
        return None

    def get_write_buffer_size(self) -> int:
        return 0

    def abort(self) -> None:
        """Nothing to close."""

    close = abort


@asynccontextmanager
async def post_null(parts: Services) -> AsyncIterator[Step]:
    """`Http1Transport.post` by connections without a socket: the transport's own share."""
    async with open_transport(parts.delivery, parts.egress) as transport:
        transport._dialer = NullDialer()  # type: ignore[attr-defined]
        yield _posting(transport, parts.webhook)


@asynccontextmanager
async def post(parts: Services) -> AsyncIterator[Step]:
    """The transport's `post` to the TLS server, 16 at once: with TLS, event loop and system calls."""
    async with open_transport(parts.delivery, parts.egress) as transport:
        yield _posting(transport, parts.webhook)


@asynccontextmanager
async def whole(parts: Services) -> AsyncIterator[Step]:
    """Everything: a record batch to POSTs at the TLS server and finished offsets."""
    async with open_transport(parts.delivery, parts.egress) as transport:
        deliveries = parts.deliveries(transport)
        pipeline = parts.pipeline(deliveries)
        async with parts.consumed(pipeline.process, parts.fast_path(deliveries, pipeline)) as step:
            yield step


@asynccontextmanager
async def history(parts: Services) -> AsyncIterator[Step]:
    """What the history adds to an event: ids, the recipient's hash, the entry, its share of a record, compression."""
    secret = Secret(b"k" * 32)
    recorder = HistoryRecorder(HistorySettings.model_construct(store="none", recipient_key=secret, answers=False))
    event, epoch, attempt = _an_event(), AssignmentEpoch(), Attempt(0.012, 200, reused=True)

    async def step(count: int) -> None:
        made = [
            PendingDelivery.of(
                event, parts.webhook, b"", 0, Priority.NEW, ProcessingAttempt(epoch), Origin(TOPIC, 0, number)
            )
            for number in range(count)
        ]
        for pending in made:
            pending.ids = recorder.ids_of(event)  # type: ignore[misc]
            recorder.record_attempt(pending, 1, attempt, DELIVERED)
            if recorder.ready.is_set():
                recorder.ready.clear()
                for _, entries in recorder.take_full():
                    cramjam.zstd.compress(entries.value(1, 1), level=ZSTD_LEVEL)

    yield step


STAGES = (decode, read, encode, deliver, pipeline, direct_attempt, consume, post_null, post, whole, history)


def _an_event() -> DeliveryEvent:
    event = read_event(FakeKafka().decoded()[0], Origin(TOPIC, 0, 0))
    assert isinstance(event, DeliveryEvent)
    return event


def _posting(transport: Any, webhook: Webhook) -> Step:
    endpoint = Endpoint.of(webhook.config)
    headers = (
        ("webhook-id", "msg_0123456789abcdef0123456789abcdef"), ("webhook-timestamp", "1753171200"),
        ("webhook-attempt", "1"), ("webhook-event-time", "2025-07-22T08:00:00.000Z"),
    )  # fmt: skip
    body = encode_feedback(_an_event(), 1)

    async def some(count: int) -> None:
        for _ in range(count):
            attempt = await transport.post(Request(endpoint, headers, body, 30, 30))
            assert attempt.status == 204, attempt

    async def step(count: int) -> None:
        each, rest = divmod(count, AT_ONCE)
        async with asyncio.TaskGroup() as tasks:
            for number in range(AT_ONCE):
                tasks.create_task(some(each + (number < rest)))

    return step


# Running them


async def run(names: list[str], count: int, transport: str, how: str) -> dict[str, float]:
    """Runs the stages one by one, counted, timed or profiled. Returns microseconds per event if they are timed."""
    wanted = [stage for stage in STAGES if stage.__name__ in names]
    callgrind, found = Callgrind(), {}
    if how == "count" and not callgrind.listens:
        raise SystemExit("this runs under callgrind: call benchmarks.instructions")
    configure_logging(LogSettings(level="warning"))
    metrics.initialise()
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        port = stack.enter_context(_server(directory))
        for stage in wanted:
            parts = Services(f"https://localhost:{port}/hook", {"transport": transport}, directory)
            async with stage(parts) as step:
                await step(WARM_UP)
                gc.collect()
                gc.freeze()
                gc.disable()  # when it runs depends on what was made before
                if how == "count":
                    callgrind.start()
                    await step(BATCH)  # translated by valgrind again, now with counters
                    callgrind.zero()
                    await step(count)
                    callgrind.dump(stage.__name__)
                    callgrind.stop()
                elif how == "time":
                    began = time.process_time()
                    await step(count)
                    found[stage.__name__] = (time.process_time() - began) / count * 1e6
                else:
                    await _profiled(step, count)
                gc.enable()
    return found


async def _profiled(step: Step, count: int) -> None:
    profile = cProfile.Profile()
    profile.enable()
    await step(count)
    profile.disable()
    print(f"of {count} events: calls, and seconds (a profile weighs Python calls too heavily)")
    pstats.Stats(profile).sort_stats("tottime").print_stats(45)


def _server(directory: Path) -> Any:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(directory / "ca.pem"))
    certificate = directory / "server.pem"
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(certificate))
    return _Server(certificate)


class _Server:
    def __init__(self, certificate: Path) -> None:
        self._certificate = certificate

    def __enter__(self) -> int:
        command = [sys.executable, "-m", "benchmarks.receiver", str(self._certificate)]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("LD_")}
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


def main() -> None:
    """Prints the microseconds as JSON, or the profiles."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("how", choices=["count", "time", "profile"])
    parser.add_argument("--events", type=int, default=1000)
    parser.add_argument("--transport", choices=["lean", "aiohttp"], default="lean")
    parser.add_argument("stages", nargs="*", default=[stage.__name__ for stage in STAGES])
    given = parser.parse_intermixed_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        found = runner.run(run(given.stages, given.events, given.transport, given.how))
    if found:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
