"""Runs the dispatcher's process: builds every part once, starts them in order, and stops them in reverse.

Start: reads the webhooks, opens the ops port and the transport, connects the producer (and waits for a broker that is
away), then runs the consumers. Stop, on SIGTERM or SIGINT: reports that it isn't ready, stops reading, lets requests
under way finish within `delivery.drain_timeout`, commits positions, leaves the groups, and closes producer, transport
and ops port. A second signal cancels what is still under way: that loses nothing, but is repeated later.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

import structlog

from dispatcher.checks import settings_warnings, store_warnings, webhook_rules, webhook_warnings
from dispatcher.config.kafka_settings import KafkaSettings
from dispatcher.config.settings import Settings, TracingSettings
from dispatcher.config.webhook_revision import Webhook
from dispatcher.contract.records import ProcessRecord
from dispatcher.contract.tenant import TenantKey
from dispatcher.delivery.deliverer import Deliverer
from dispatcher.delivery.history_recorder import HistoryRecorder
from dispatcher.delivery.lane_scheduler import LaneScheduler
from dispatcher.delivery.retry_policy import RetryPolicy
from dispatcher.errors import ConfigError, Problem
from dispatcher.flow.fast_path import FastPath
from dispatcher.flow.pipeline import Pipeline
from dispatcher.health import HealthServer
from dispatcher.kafka.check import kafka_probe
from dispatcher.kafka.clock_check import ClockCheck
from dispatcher.kafka.connection import until_answered
from dispatcher.kafka.consumer import Consumer
from dispatcher.kafka.credentials import security_problems
from dispatcher.kafka.dead_letters import DeadLetters
from dispatcher.kafka.first_start import find_earlier_start
from dispatcher.kafka.former_topics import FormerTopics, find_and_claim_former_topics
from dispatcher.kafka.groups import retry_group
from dispatcher.kafka.held_events import HeldEvents
from dispatcher.kafka.held_topic import HeldTopic
from dispatcher.kafka.history_topic import open_history
from dispatcher.kafka.open_batches import OPEN_BATCHES
from dispatcher.kafka.problems import KafkaProblems
from dispatcher.kafka.producer import Producer
from dispatcher.kafka.read_ahead import ReadAheadLimit
from dispatcher.kafka.retry_topics import RetryTopics
from dispatcher.kafka.topic_watch import TopicWatch
from dispatcher.kafka.topics import held_topic
from dispatcher.server_certificate import certificate_problems
from dispatcher.status import EventFlow, ServiceStatus
from dispatcher.stores import WebhookSource, open_source
from dispatcher.stores.cache import WebhookCache
from dispatcher.tasks import cancel_and_wait, stop_on_signals, unless_stopped
from dispatcher.telemetry import metrics
from dispatcher.telemetry.event_log import EventLog
from dispatcher.telemetry.tenant_metrics import TenantMetrics
from dispatcher.transport import Transport, open_transport
from dispatcher.transport.egress import egress_problems
from dispatcher.transport.tls import bundle_problems
from dispatcher.transport.token_client import TokenClient

if TYPE_CHECKING:
    from dispatcher.telemetry.tracing import Tracing

log = structlog.get_logger(__name__)

CUT_OFF = 3
"""Exit status after a second signal: something was cut off, and will be repeated."""
FENCED = 4
"""Exit status if another process has the same `kafka.group_instance_id`: starting again would fence that one."""
MAX_LOGGED_WARNINGS = 20
"""Warnings about webhooks that are logged at the start; `check` prints all."""


async def checked_webhooks(settings: Settings) -> tuple[Sequence[Webhook], Sequence[Problem]]:
    """Returns every webhook that `run` would use, and the problems of the others.

    Raises:
        ConfigError: none can be used.
    """
    async with checked_source(settings) as (source, problems):
        return source.all(), problems


@asynccontextmanager
async def checked_source(settings: Settings) -> AsyncIterator[tuple[WebhookSource, Sequence[Problem]]]:
    """Opens the store that `run` would use, and checks all that the settings name. Yields it with every problem.

    Raises:
        ConfigError: no webhook can be used.
    """
    own = [*operator_problems(settings), *_problems_of_other_processes(settings)]
    async with AsyncExitStack() as parts:
        try:
            source = await parts.enter_async_context(open_source(settings.webhooks, webhook_rules(settings)))
        except ConfigError as error:
            raise ConfigError(dict.fromkeys([*own, *error.problems])) from None
        yield source, [*own, *source.problems]


def _problems_of_other_processes(settings: Settings) -> list[Problem]:
    """Returns the mistakes in what the settings name for the console and the history worker."""
    found: list[Problem] = []
    if settings.console.oidc is not None:
        found += bundle_problems(settings.console.oidc.ca, "console.oidc.ca")
    if settings.notifications.smtp is not None:
        found += bundle_problems(settings.notifications.smtp.ca, "notifications.smtp.ca")
    if settings.history.url is not None:
        from dispatcher.stores.sql.database import url_problems  # it imports SQLAlchemy, which loads slowly

        found += url_problems(settings.history.url, "history.url")
    return found


def _log_warnings(settings: Settings, source: WebhookSource) -> None:
    """Logs what can be used and is probably a mistake, as `check` prints it."""
    for key, warning in settings_warnings(settings):
        log.warning("setting is probably a mistake", key=key, warning=warning)
    if not source.problems:  # otherwise there may be webhooks that can't be read now
        for warning in store_warnings(settings.webhooks, source.all()):
            log.warning("webhook directory is probably a mistake", warning=warning)
    warnings_of = webhook_warnings(settings)
    found = ((webhook, *one) for webhook in source.all() for one in warnings_of(webhook.config))
    for webhook, key, warning in islice(found, MAX_LOGGED_WARNINGS):
        log.warning(
            "webhook is probably a mistake", tenant=str(webhook.tenant), source=webhook.source, key=key, warning=warning
        )


def operator_problems(settings: Settings) -> list[Problem]:
    """Returns the mistakes in what the settings name: egress, certificates of Kafka and of the ops port, tracing."""
    return [
        *egress_problems(settings.egress),
        *security_problems(settings.kafka.security),
        *certificate_problems(settings.ops.tls),
        *tracing_problems(settings.tracing),
        *bundle_problems(settings.tracing.ca, "tracing.ca"),
    ]


def tracing_problems(settings: TracingSettings) -> list[Problem]:
    """Returns a problem if tracing is on and OpenTelemetry is missing. Imports nothing of it if tracing is off."""
    if settings.enabled:
        try:
            import dispatcher.telemetry.tracing  # noqa: F401
        except ImportError:
            return [Problem("needs the extra: pip install 'feedback-dispatcher[otel]'", key="tracing.enabled")]
    return []


class WebhookEdits:
    """Applies edits of webhooks to what the process remembers of their tenants."""

    def __init__(self, source: WebhookSource, cache: WebhookCache, lanes: LaneScheduler, status: ServiceStatus) -> None:
        self._source = source
        self._cache = cache
        self._lanes = lanes
        self._status = status

    def apply(self, tenants: set[TenantKey]) -> None:
        """Applies the edits of these tenants' webhooks."""
        for tenant in tenants:
            self._cache.invalidate(tenant)
            lane = self._lanes.get(tenant)
            if lane is not None:
                lane.enable()  # an edit lifts what held its predecessor
        self._cache.forget_absent()
        if self._status.flow is not None:
            self._status.flow.held.notice()
        self._status.configure_metrics()

    def are_awaited(self, tenant: TenantKey) -> bool:
        """Returns True if the tenant's events wait for a change of configuration, as far as this process knows."""
        lane = self._lanes.get(tenant)
        return (lane is not None and lane.endpoint.is_stopped) or self._source.is_held(tenant)


class Service:
    """One dispatcher process. `run` starts it, delivers until a signal, and stops it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._policy = RetryPolicy.of(settings.retry)
        self._tenants = TenantMetrics(settings.metrics)
        kafka = settings.kafka
        self._fresh_limit = ReadAheadLimit(kafka.max_unfinished, kafka.max_unfinished_bytes)
        OPEN_BATCHES.set_limits(kafka.max_unfinished_bytes)
        self._parked_limit = ReadAheadLimit(max(1, kafka.max_unfinished // 4), kafka.max_unfinished_bytes // 4)
        self._lanes = LaneScheduler(settings.delivery, self._fresh_limit)
        self._event_log = EventLog()
        self._stop = asyncio.Event()
        self._kafka_problems = KafkaProblems()
        self._topic_watch = TopicWatch(settings, self._kafka_problems)
        self._clock_check = ClockCheck(self._kafka_problems)

    async def run(self) -> int:
        """Runs until a signal. Returns the exit status: 0 if everything was finished or left untouched.

        Raises:
            ConfigError: the webhooks can't be used.
        """
        metrics.initialise()
        settings = self._settings
        problems = operator_problems(settings)
        if problems:
            raise ConfigError(problems)
        async with AsyncExitStack() as parts:
            source = await parts.enter_async_context(open_source(settings.webhooks, webhook_rules(settings)))
            await asyncio.to_thread(_log_warnings, settings, source)  # it looks into directories
            status = self._create_status(source)
            cache = WebhookCache(source, settings.webhooks)
            edits = WebhookEdits(source, cache, self._lanes, status)
            source.on_change(edits.apply)
            await parts.enter_async_context(HealthServer(settings.ops, status.ops_callbacks(settings)))
            transport = await parts.enter_async_context(open_transport(settings.delivery, settings.egress))
            probe = await parts.enter_async_context(kafka_probe(settings, self._kafka_problems))
            tracing = await self._tracing(parts)
            flow = asyncio.create_task(self._deliver(cache, edits, status, transport, tracing), name="flow")
            with stop_on_signals(self._stop, flow.cancel, log):
                async with asyncio.TaskGroup() as side:
                    tasks = [
                        side.create_task(status.loop_lag.run(), name="event loop lag"),
                        side.create_task(self._event_log.run(), name="event log"),
                        side.create_task(source.run(), name="webhook source"),
                        side.create_task(probe.run(self._kafka_problems), name="kafka probe"),
                        side.create_task(self._clock_check.run(), name="clock check"),
                    ]
                    exit_status = await _finished(flow, status)
                    await cancel_and_wait(*tasks)
        log.info("stopped", status=exit_status)
        return exit_status

    def _create_status(self, source: WebhookSource) -> ServiceStatus:
        status = ServiceStatus(
            source, self._lanes, self._tenants, (self._fresh_limit, self._parked_limit), self._kafka_problems,
            self._topic_watch, self._stop,
        )  # fmt: skip
        status.configure_metrics()
        return status

    async def _tracing(self, parts: AsyncExitStack) -> "Tracing | None":
        if not self._settings.tracing.enabled:
            return None
        from dispatcher.telemetry.tracing import Tracing

        return await parts.enter_async_context(Tracing(self._settings.tracing))

    async def _deliver(
        self,
        cache: WebhookCache,
        edits: WebhookEdits,
        status: ServiceStatus,
        transport: Transport,
        tracing: "Tracing | None",
    ) -> None:
        """Runs the producer, then the consumers, until `stop`."""
        async with AsyncExitStack() as parts:
            opening = parts.enter_async_context(
                Producer(self._settings.kafka, self._kafka_problems, self._clock_check.note_own_append)
            )
            producer = await unless_stopped(self._stop, opening)
            if producer is None:
                return
            former = await unless_stopped(self._stop, self._find_former_topics())
            if former is None:
                return
            history = await parts.enter_async_context(open_history(self._settings))
            deliverer = Deliverer(
                self._settings.delivery, self._policy, self._lanes, _traced(transport, tracing), TokenClient(transport),
                cache.is_current, history,
            )  # fmt: skip
            parts.push_async_callback(deliverer.close)
            status.flow = self._create_flow(producer, former, deliverer, cache, edits, tracing, history)
            await self._read(status.flow)

    def _create_flow(
        self,
        producer: Producer,
        former: FormerTopics,
        deliverer: Deliverer,
        cache: WebhookCache,
        edits: WebhookEdits,
        tracing: "Tracing | None",
        history: HistoryRecorder | None,
    ) -> EventFlow:
        settings = self._settings
        prefix = settings.kafka.prefix
        retry_topics = RetryTopics(producer, prefix, self._policy, former.tiers)
        held = HeldTopic(producer, held_topic(prefix))
        pipeline = Pipeline(
            webhooks=cache if tracing is None else tracing.around_webhooks(cache),
            deliverer=deliverer,
            retry_topics=retry_topics,
            dead_letters=DeadLetters(producer, prefix),
            policy=self._policy,
            max_body=settings.delivery.max_body,
            max_record_bytes=settings.kafka.max_record_bytes,
            brake=settings.dead_letters.brake,
            tenants=self._tenants,
            event_log=self._event_log,
            held_topic=held,
            history=history,
            age_clock=self._clock_check.age_now,
        )
        process = pipeline.process if tracing is None else tracing.around(pipeline.process, settings.kafka.topic)
        fast_path = FastPath(
            pipeline, cache, deliverer, settings.kafka.max_record_bytes, settings.delivery.max_body,
            None if tracing is None else tracing.is_sampled, history,
        )  # fmt: skip
        consumers = self._create_consumers(process, fast_path, retry_topics)
        held_events = HeldEvents(
            _with_member_name(settings.kafka, [held.topic]), held, process, edits.are_awaited,
            self._policy.max_age_s, settings.delivery.drain_timeout,
            problems=self._kafka_problems, on_fenced=self._stop.set, event_log=self._event_log,
            clock=self._clock_check.age_now,
        )  # fmt: skip
        return EventFlow(pipeline, consumers, held_events)

    async def _read(self, flow: EventFlow) -> None:
        """Runs the consumers until `stop`, and then until they have drained."""
        async with asyncio.TaskGroup() as tasks:
            watch_task = tasks.create_task(self._topic_watch.run(), name="topic watch")
            reading: tuple[Consumer | HeldEvents, ...] = (*flow.consumers, flow.held)
            running = [tasks.create_task(one.run(), name=repr(one)) for one in reading]
            await self._stop.wait()
            for consumer in reading:
                consumer.stop()
            await asyncio.wait(running)
            await cancel_and_wait(watch_task)

    async def _find_former_topics(self) -> FormerTopics:
        """Returns topics of former names to drain; none, with a log line, if the broker doesn't answer."""
        try:
            return await until_answered("topics of former names", lambda: find_and_claim_former_topics(self._settings))
        except (KeyError, AttributeError, ValueError) as error:  # aiokafka, on answers that it doesn't know
            log.warning("topics of former names were not looked for", error=type(error).__name__)
            return FormerTopics()

    def _create_consumers(
        self, process: ProcessRecord, fast_path: FastPath, retry_topics: RetryTopics
    ) -> tuple[Consumer, Consumer]:
        kafka, drain = self._settings.kafka, self._settings.delivery.drain_timeout
        retry = _with_member_name(kafka, retry_topics.topics)
        permits = self._lanes.permits

        def in_flight() -> int:
            return permits.taken

        return (
            Consumer(
                kafka, [kafka.topic], kafka.group_id, process, self._fresh_limit, drain,
                fast_path=fast_path, in_flight=in_flight, on_fenced=self._stop.set,
                problems=self._kafka_problems, on_append=self._clock_check.note_append, event_log=self._event_log,
                find_earlier_start=partial(find_earlier_start, self._settings),
            ),
            Consumer(
                retry, retry_topics.topics, retry_group(kafka.group_id), process, self._parked_limit, drain,
                due_in_s=retry_topics.due_in_s, in_flight=in_flight, on_fenced=self._stop.set,
                problems=self._kafka_problems, on_append=self._clock_check.note_append, event_log=self._event_log,
            ),
        )  # fmt: skip


async def _finished(flow: "asyncio.Task[None]", status: ServiceStatus) -> int:
    """Waits for the end of the flow. Returns the exit status."""
    try:
        await flow
    except asyncio.CancelledError:
        if not flow.cancelled():
            flow.cancel()  # we are cancelled ourselves: take the flow along
            with suppress(asyncio.CancelledError):
                await flow
            raise
        return CUT_OFF
    return FENCED if any(session.fenced for session in status.sessions) else 0


def _with_member_name(kafka: KafkaSettings, topics: Sequence[str]) -> KafkaSettings:
    """Returns the settings with a static member name that depends on the topics.

    A static member that comes back under its name gets the partitions that it had, even if it subscribes to other
    topics (Kafka compares the protocol's name only). After a change of the tiers or of their names it has to be new.
    """
    if kafka.group_instance_id is None:
        return kafka
    digest = hashlib.sha256("\n".join(sorted(topics)).encode()).hexdigest()[:8]
    return kafka.model_copy(update={"group_instance_id": f"{kafka.group_instance_id}-{digest}"})


def _traced(transport: Transport, tracing: "Tracing | None") -> Transport:
    if tracing is None:
        return transport
    from dispatcher.transport.traced import TracedTransport

    return TracedTransport(transport, tracing)
