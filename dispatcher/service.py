"""The life of the process: every part built once, started in order, stopped in reverse.

Start: webhooks read, ops endpoint up, transport open, producer connected (a broker that is away is waited for), then
the consumers. Stop, on SIGTERM or SIGINT: readiness goes, reading stops, requests under way finish within
`delivery.drain_timeout`, positions are committed, the group is left, producer, transport and ops endpoint close. A
second signal cancels what is still under way: nothing is lost by it, only repeated.
"""

import asyncio
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from dispatcher.auth.problems import problems_of
from dispatcher.config.loader import webhook_secret_scope
from dispatcher.config.settings import KafkaSettings, Settings, TracingSettings
from dispatcher.config.webhooks import JwtAuth, Webhook, WebhookConfig
from dispatcher.contract.tenant import TenantKey
from dispatcher.delivery.deliverer import Deliverer
from dispatcher.delivery.lane_metrics import observe_lanes
from dispatcher.delivery.lane_scheduler import LaneScheduler
from dispatcher.delivery.retry_policy import RetryPolicy
from dispatcher.errors import ConfigError, Problem
from dispatcher.flow.fast_path import FastPath
from dispatcher.flow.pipeline import Pipeline
from dispatcher.health import STUCK_S, HealthCheck, HealthServer, LoopLag, Watched
from dispatcher.kafka.check import kafka_probe
from dispatcher.kafka.connection import until_answered
from dispatcher.kafka.consumer import Consumer
from dispatcher.kafka.credentials import security_problems
from dispatcher.kafka.dead_letters import DeadLetters
from dispatcher.kafka.former_topics import FormerTopics, find_and_claim_former_topics
from dispatcher.kafka.group_session import GroupSession
from dispatcher.kafka.held_events import HeldEvents
from dispatcher.kafka.held_topic import HeldTopic
from dispatcher.kafka.history_topic import open_history
from dispatcher.kafka.partition import ReadAheadLimit
from dispatcher.kafka.problems import KafkaProblems
from dispatcher.kafka.processing import Process
from dispatcher.kafka.producer import Producer
from dispatcher.kafka.readiness import kafka_checks
from dispatcher.kafka.retry_topics import RetryTopics
from dispatcher.kafka.topic_watch import TopicWatch
from dispatcher.kafka.topics import held_topic
from dispatcher.server_certificate import certificate_problems
from dispatcher.stores import WebhookSource, open_source
from dispatcher.stores.cache import WebhookCache
from dispatcher.stores.webhook_files import MAX_PROBLEMS, Rules
from dispatcher.tasks import stop_on_signals, unless
from dispatcher.telemetry import metrics
from dispatcher.telemetry.event_log import EventLog
from dispatcher.transport import Endpoint, Transport, open_transport
from dispatcher.transport.egress import EgressGuard, egress_problems
from dispatcher.transport.tls import certificate_expiries, problems_of_pem
from dispatcher.transport.token_client import TokenPosts

if TYPE_CHECKING:
    from dispatcher.telemetry.tracing import Tracing

log = structlog.get_logger(__name__)

CUT_OFF = 3
"""Exit status after a second signal: something was cut off, and will be repeated."""
FENCED = 4
"""Exit status if another process has the same `kafka.group_instance_id`: starting again would fence that one."""


async def checked_webhooks(settings: Settings) -> tuple[Sequence[Webhook], Sequence[Problem]]:
    """Returns every webhook that `run` would use, and the problems of the others.

    Raises:
        ConfigError: none can be used.
    """
    async with open_source(settings.webhooks, webhook_rules(settings)) as source:
        found = [*operator_problems(settings), *source.problems]
        return source.all(), found


def webhook_rules(settings: Settings, directory: Path | None = None) -> Rules:
    """Returns the rules for reading webhook files. `directory`: its secrets may be used, too."""
    scope = webhook_secret_scope(settings)
    if directory is not None:
        scope = replace(scope, roots=(*scope.roots, directory))
    return Rules(webhook_check(settings), scope)


def operator_problems(settings: Settings) -> list[Problem]:
    """Mistakes in what the settings name: egress, certificates of Kafka and of the ops port, tracing."""
    return [
        *egress_problems(settings.egress),
        *security_problems(settings.kafka.security),
        *certificate_problems(settings.ops.tls),
        *tracing_problems(settings.tracing),
    ]


def webhook_check(settings: Settings) -> Callable[[WebhookConfig], list[tuple[str, str]]]:
    """Returns a check beyond the webhook's model: egress guard, TLS and authentication."""
    guard = EgressGuard(settings.egress)
    return lambda config: [*_egress_problems(guard, config), *problems_of_pem(config.tls), *problems_of(config)]


def _egress_problems(guard: EgressGuard, config: WebhookConfig) -> Iterator[tuple[str, str]]:
    problem = guard.problem_of_url(config.url)
    if problem is not None:
        yield "url", problem
    if isinstance(config.auth, JwtAuth) and config.auth.fetch is not None:
        problem = guard.problem_of_url(config.auth.fetch.token_url)
        if problem is not None:
            yield "auth.fetch.token_url", problem


def webhook_warnings(settings: Settings, config: WebhookConfig) -> Iterator[tuple[str, str]]:
    """Yields what may go wrong with a webhook that can be used, by key: `url`."""
    guard = EgressGuard(settings.egress)
    warning = guard.warning_of_url(config.url)
    if warning is not None:
        yield "url", warning
    if isinstance(config.auth, JwtAuth) and config.auth.fetch is not None:
        warning = guard.warning_of_url(config.auth.fetch.token_url)
        if warning is not None:
            yield "auth.fetch.token_url", warning


def tracing_problems(settings: TracingSettings) -> list[Problem]:
    """Returns a problem if tracing is on and OpenTelemetry is missing. Imports nothing of it if tracing is off."""
    if settings.enabled:
        try:
            import dispatcher.telemetry.tracing  # noqa: F401
        except ImportError:
            return [Problem("needs the extra: pip install 'feedback-dispatcher[otel]'", key="tracing.enabled")]
    return []


class Service:
    """One dispatcher process. `run` is its whole life."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._policy = RetryPolicy.of(settings.retry)
        self._tenants = metrics.TenantMetrics(settings.metrics)
        kafka = settings.kafka
        self._fresh = ReadAheadLimit(kafka.max_unfinished, kafka.max_unfinished_bytes)
        self._parked = ReadAheadLimit(max(1, kafka.max_unfinished // 4), kafka.max_unfinished_bytes // 4)
        self._lanes = LaneScheduler(settings.delivery, self._fresh)
        self._loop_lag = LoopLag()
        self._event_log = EventLog()
        self._stop = asyncio.Event()
        self._source: WebhookSource | None = None
        self._cache: WebhookCache | None = None
        self._pipeline: Pipeline | None = None
        self._consumers: tuple[Consumer, ...] = ()
        self._held: HeldEvents | None = None
        self._kafka_problems = KafkaProblems()
        self._topic_watch = TopicWatch(settings, self._kafka_problems)

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
            opening = open_source(settings.webhooks, webhook_rules(settings))
            source = self._source = await parts.enter_async_context(opening)
            cache = self._cache = WebhookCache(source, settings.webhooks)
            self._configure_metrics(source)
            source.on_change(self._webhooks_changed)
            await parts.enter_async_context(HealthServer(settings.ops, self._watched()))
            transport = await parts.enter_async_context(open_transport(settings.delivery, settings.egress))
            probe = await parts.enter_async_context(kafka_probe(settings, self._kafka_problems))
            tracing = await self._tracing(parts)
            flow = asyncio.create_task(self._flow(cache, transport, tracing), name="flow")
            with stop_on_signals(self._stop, flow.cancel, log):
                async with asyncio.TaskGroup() as side:
                    tasks = [
                        side.create_task(self._loop_lag.run(), name="event loop lag"),
                        side.create_task(self._event_log.run(), name="event log"),
                        side.create_task(source.run(), name="webhook source"),
                        side.create_task(probe.run(self._kafka_problems), name="kafka probe"),
                    ]
                    status = await self._finished(flow)
                    for task in tasks:
                        task.cancel()
        log.info("stopped", status=status)
        return status

    async def _finished(self, flow: "asyncio.Task[None]") -> int:
        try:
            await flow
        except asyncio.CancelledError:
            if not flow.cancelled():
                flow.cancel()  # we are cancelled ourselves: take the flow along
                with suppress(asyncio.CancelledError):
                    await flow
                raise
            return CUT_OFF
        return FENCED if any(session.fenced for session in self._sessions) else 0

    async def _tracing(self, parts: AsyncExitStack) -> "Tracing | None":
        if not self._settings.tracing.enabled:
            return None
        from dispatcher.telemetry.tracing import Tracing

        return await parts.enter_async_context(Tracing(self._settings.tracing))

    async def _flow(self, cache: WebhookCache, transport: Transport, tracing: "Tracing | None") -> None:
        """Runs the producer, then the consumers, until `stop`."""
        settings = self._settings
        async with AsyncExitStack() as parts:
            producer = await unless(
                self._stop, parts.enter_async_context(Producer(settings.kafka, self._kafka_problems))
            )
            if producer is None:
                return
            former = await unless(self._stop, self._find_former_topics())
            if former is None:
                return
            history = await parts.enter_async_context(open_history(settings))
            tokens = TokenPosts(transport)
            deliveries = Deliverer(
                settings.delivery, self._policy, self._lanes, _traced(transport, tracing), tokens,
                cache.is_current, history,
            )  # fmt: skip
            parts.push_async_callback(deliveries.close)
            retry_topics = RetryTopics(producer, settings.kafka.prefix, self._policy, former.tiers)
            held = HeldTopic(producer, held_topic(settings.kafka.prefix))
            self._pipeline = Pipeline(
                webhooks=cache if tracing is None else tracing.around_webhooks(cache),
                deliveries=deliveries,
                retry_topics=retry_topics,
                dead_letters=DeadLetters(producer, settings.kafka.prefix),
                policy=self._policy,
                max_body=settings.delivery.max_body,
                max_record_bytes=settings.kafka.max_record_bytes,
                brake=settings.dead_letters.brake,
                tenants=self._tenants,
                event_log=self._event_log,
                held_topic=held,
                history=history,
            )
            process = (
                self._pipeline.process
                if tracing is None
                else tracing.around(self._pipeline.process, settings.kafka.topic)
            )
            fast_path = FastPath(
                self._pipeline, cache, deliveries, settings.kafka.max_record_bytes, settings.delivery.max_body,
                None if tracing is None else tracing.is_sampled, history,
            )  # fmt: skip
            self._consumers = self._create_consumers(process, fast_path, retry_topics)
            self._held = HeldEvents(
                _membership_of_topics(settings.kafka, [held.topic]), held, process, self._is_held,
                self._policy.max_age_s, settings.delivery.drain_timeout,
                problems=self._kafka_problems, on_fenced=self._stop.set,
            )  # fmt: skip
            async with asyncio.TaskGroup() as tasks:
                watch_task = tasks.create_task(self._topic_watch.run(), name="topic watch")
                reading = (*self._consumers, self._held)
                running = [tasks.create_task(one.run(), name=repr(one)) for one in reading]
                await self._stop.wait()
                for consumer in reading:
                    consumer.stop()
                await asyncio.wait(running)
                watch_task.cancel()

    async def _find_former_topics(self) -> FormerTopics:
        """Returns topics of former names to drain; none, with a log line, if the broker doesn't answer."""
        try:
            return await until_answered("topics of former names", lambda: find_and_claim_former_topics(self._settings))
        except (KeyError, AttributeError, ValueError) as error:  # aiokafka, on answers that it doesn't know
            log.warning("topics of former names were not looked for", error=type(error).__name__)
            return FormerTopics()

    def _create_consumers(
        self, process: Process, fast_path: FastPath, retry_topics: RetryTopics
    ) -> tuple[Consumer, Consumer]:
        kafka, drain = self._settings.kafka, self._settings.delivery.drain_timeout
        retry = _membership_of_topics(kafka, retry_topics.topics)
        permits = self._lanes.permits

        def in_flight() -> int:
            return permits.taken

        return (
            Consumer(
                kafka, [kafka.topic], kafka.group_id, process, self._fresh, drain,
                fast_path=fast_path, in_flight=in_flight, on_fenced=self._stop.set,
                problems=self._kafka_problems,
            ),
            Consumer(
                retry, retry_topics.topics, f"{kafka.group_id}.retry", process, self._parked, drain,
                due_in_s=retry_topics.due_in_s, in_flight=in_flight, on_fenced=self._stop.set,
                problems=self._kafka_problems,
            ),
        )  # fmt: skip

    # Watching

    @property
    def _sessions(self) -> list[GroupSession]:
        """Returns the sessions of all consumers; none before the producer has connected."""
        sessions = [consumer.session for consumer in self._consumers]
        return sessions if self._held is None else [*sessions, self._held.session]

    def _webhooks_changed(self, tenants: set[TenantKey]) -> None:
        if self._cache is None or self._source is None:
            return  # the first load: nothing is cached yet
        for tenant in tenants:
            self._cache.invalidate(tenant)
            lane = self._lanes.get(tenant)
            if lane is not None:
                lane.enable()  # an edit lifts what held its predecessor
        self._cache.forget_absent()
        if self._held is not None:
            self._held.notice()
        self._configure_metrics(self._source)

    def _is_held(self, tenant: TenantKey) -> bool:
        """Returns True if the tenant's events wait for a change of configuration, as far as this process knows."""
        lane = self._lanes.get(tenant)
        return (lane is not None and lane.endpoint.is_held) or (
            self._source is not None and self._source.is_held(tenant)
        )

    def _configure_metrics(self, source: WebhookSource) -> None:
        webhooks = source.all()
        self._tenants.configure(webhook.tenant for webhook in webhooks)
        self._tenants.worst.configure(pair for webhook in webhooks for pair in _places(webhook))

    def _watched(self) -> Watched:
        return Watched(
            alive=self._alive,
            ready=self._ready,
            observe=self._observe,
            lanes=self._lanes,
            release_brakes=self._release_brakes,
            configuration=self._settings.model_dump(mode="json"),
        )

    def _alive(self) -> Sequence[HealthCheck]:
        now = asyncio.get_running_loop().time()
        checks = [HealthCheck("event loop", True, f"worst lag {self._loop_lag.worst_s:.3f} s")]
        for session in self._sessions:
            silent = now - session.last_poll if session.last_poll else 0.0
            checks.append(HealthCheck(f"consumer {session.group_id}", silent < STUCK_S, f"polled {silent:.0f} s ago"))
        return checks

    def _ready(self) -> Sequence[HealthCheck]:
        problems = self._source.problems if self._source is not None else ()
        checks = [
            HealthCheck("webhooks", not problems, _listed(problems), required=False),
            HealthCheck("running", not self._stop.is_set(), "draining" if self._stop.is_set() else ""),
        ]
        checks += kafka_checks(self._sessions, self._kafka_problems.current)
        if self._topic_watch.notices:
            checks.append(
                HealthCheck("topics of an earlier version", False, "; ".join(self._topic_watch.notices), required=False)
            )
        engaged = [key for key, brake in (self._pipeline.brakes.items() if self._pipeline else ()) if brake.engaged]
        if engaged:
            names = ", ".join(f"{topic}/{partition}" for topic, partition in engaged)
            checks.append(HealthCheck("dead-letter brake", False, f"engaged on {names}", required=False))
        return checks

    def _observe(self) -> None:
        kafka = kafka_checks(self._sessions, self._kafka_problems.current)
        metrics.KAFKA_AVAILABLE.set(float(all(check.ok for check in kafka if check.required)))
        observe_lanes(self._lanes)
        if self._pipeline is not None:
            self._pipeline.observe()
        oldest = [seen for consumer in self._consumers if (seen := consumer.observe()) is not None]
        if self._held is not None:
            self._held.observe()
        metrics.OLDEST_PENDING.set(min(oldest, default=0))
        self._tenants.worst.observe(certificate_expiries())
        metrics.TASKS.set(len(asyncio.all_tasks()))
        metrics.UNFINISHED.set(self._fresh.records + self._parked.records)
        metrics.UNFINISHED_BYTES.set(self._fresh.bytes + self._parked.bytes)

    def _release_brakes(self) -> int:
        engaged = [brake for brake in self._pipeline.brakes.values() if brake.engaged] if self._pipeline else []
        for brake in engaged:
            brake.release()
        return len(engaged)


def _listed(problems: Sequence[Problem]) -> str:
    rest = len(problems) - MAX_PROBLEMS
    more = [f"{rest:,} more problems"] if rest > 0 else []
    return "; ".join([*map(str, problems[:MAX_PROBLEMS]), *more])


def _membership_of_topics(kafka: KafkaSettings, topics: Sequence[str]) -> KafkaSettings:
    """Returns the settings with a static member name that depends on the topics.

    A static member that comes back under its name gets the partitions that it had, even if it subscribes to other
    topics (Kafka compares the protocol's name only). After a change of the tiers or of their names it has to be new.
    """
    if kafka.group_instance_id is None:
        return kafka
    digest = hashlib.sha256("\n".join(sorted(topics)).encode()).hexdigest()[:8]
    return kafka.model_copy(update={"group_instance_id": f"{kafka.group_instance_id}-{digest}"})


def _places(webhook: Webhook) -> Iterator[tuple[tuple[str, int], TenantKey]]:
    """Yields host and port of the webhook's servers."""
    config = webhook.config
    urls = [config.url]
    if isinstance(config.auth, JwtAuth) and config.auth.fetch is not None:
        urls.append(config.auth.fetch.token_url)
    for url in urls:
        endpoint = Endpoint.at(url)
        yield (endpoint.host, endpoint.port), webhook.tenant


def _traced(transport: Transport, tracing: "Tracing | None") -> Transport:
    if tracing is None:
        return transport
    from dispatcher.transport.traced import TracedTransport

    return TracedTransport(transport, tracing)
