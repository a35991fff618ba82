"""Collects what the ops port and the metrics report about a dispatcher process: liveness, readiness, gauges."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from dispatcher.config.settings import Settings
from dispatcher.config.webhook_auth import JwtAuth
from dispatcher.config.webhooks import WebhookConfig
from dispatcher.contract.tenant import TenantKey
from dispatcher.delivery.lane_metrics import observe_lanes
from dispatcher.delivery.lane_scheduler import LaneScheduler
from dispatcher.errors import Problem
from dispatcher.flow.pipeline import Pipeline
from dispatcher.health import STUCK_S, HealthCheck, LoopLag, OpsCallbacks
from dispatcher.kafka.consumer import Consumer
from dispatcher.kafka.group_session import GroupSession
from dispatcher.kafka.held_events import HeldEvents
from dispatcher.kafka.problems import KafkaProblems
from dispatcher.kafka.read_ahead import ReadAheadLimit
from dispatcher.kafka.readiness import kafka_checks
from dispatcher.kafka.topic_watch import TopicWatch
from dispatcher.stores import WebhookSource
from dispatcher.stores.webhook_file import MAX_PROBLEMS
from dispatcher.telemetry import metrics
from dispatcher.telemetry.tenant_metrics import TenantMetrics
from dispatcher.transport.certificate_expiry import certificate_expiries
from dispatcher.transport.endpoint import Endpoint


@dataclass(frozen=True, slots=True)
class EventFlow:
    """The parts that events go through. They exist once a broker has answered."""

    pipeline: Pipeline
    consumers: Sequence[Consumer]
    held: HeldEvents

    @property
    def sessions(self) -> list[GroupSession]:
        """The sessions of all consumers."""
        return [*(consumer.session for consumer in self.consumers), self.held.session]


Place = tuple[str, int]
"""Host and port of a server."""


@dataclass(frozen=True, slots=True)
class _Servers:
    """The servers of a webhook: its endpoint's and its token endpoint's."""

    config: WebhookConfig
    places: tuple[Place, ...]


class ServiceStatus:
    """Collects what the parts of a process report."""

    def __init__(
        self,
        source: WebhookSource,
        lanes: LaneScheduler,
        tenants: TenantMetrics,
        read_ahead: Sequence[ReadAheadLimit],
        kafka_problems: KafkaProblems,
        topic_watch: TopicWatch,
        stop: asyncio.Event,
    ) -> None:
        """Prepares the status of these parts. `stop`: set as soon as the process drains."""
        self._source = source
        self._lanes = lanes
        self._tenants = tenants
        self._read_ahead = read_ahead
        self._kafka_problems = kafka_problems
        self._topic_watch = topic_watch
        self._stop = stop
        self._servers: dict[TenantKey, _Servers] = {}
        self.loop_lag = LoopLag()
        self.flow: EventFlow | None = None
        """None until a broker has answered."""

    @property
    def sessions(self) -> list[GroupSession]:
        """The sessions of all consumers; none before a broker has answered."""
        return [] if self.flow is None else self.flow.sessions

    def ops_callbacks(self, settings: Settings) -> OpsCallbacks:
        """Returns the callbacks of the ops port."""
        return OpsCallbacks(
            alive=self._alive,
            ready=self._ready,
            observe=self._observe,
            lanes=self._lanes,
            release_brakes=self._release_brakes,
            configuration=settings.model_dump(mode="json"),
        )

    def configure_metrics(self) -> None:
        """Makes the metrics of tenants follow the webhooks that are in use.

        Each webhook's servers are found once for each revision: finding those of thousands would block the event loop.
        """
        known, self._servers = self._servers, {}
        is_same = True
        for webhook in self._source.all():
            servers = old = known.get(webhook.tenant)
            if servers is None or servers.config is not webhook.config:
                servers = _Servers(webhook.config, _places(webhook.config))
            is_same = is_same and old is not None and old.places == servers.places
            self._servers[webhook.tenant] = servers
        if is_same and len(known) == len(self._servers):
            return
        self._tenants.configure(self._servers)
        self._tenants.worst.configure((place, tenant) for tenant, one in self._servers.items() for place in one.places)

    def _alive(self) -> Sequence[HealthCheck]:
        now = asyncio.get_running_loop().time()
        checks = [HealthCheck("event loop", True, f"worst lag {self.loop_lag.worst_s:.3f} s")]
        for session in self.sessions:
            silent = now - session.last_poll if session.last_poll else 0.0
            checks.append(HealthCheck(f"consumer {session.group_id}", silent < STUCK_S, f"polled {silent:.0f} s ago"))
        return checks

    def _ready(self) -> Sequence[HealthCheck]:
        problems, draining = self._source.problems, self._stop.is_set()
        checks = [
            HealthCheck("webhooks", not problems, _listed(problems), required=False),
            HealthCheck("running", not draining, "draining" if draining else ""),
            *kafka_checks(self.sessions, self._kafka_problems.current),
        ]
        if self._topic_watch.notices:
            notices = "; ".join(self._topic_watch.notices)
            checks.append(HealthCheck("topics of an earlier version", False, notices, required=False))
        engaged = [key for key, brake in (self.flow.pipeline.brakes.items() if self.flow else ()) if brake.engaged]
        if engaged:
            names = ", ".join(f"{topic}/{partition}" for topic, partition in engaged)
            checks.append(HealthCheck("dead-letter brake", False, f"engaged on {names}", required=False))
        return checks

    def _observe(self) -> None:
        kafka = kafka_checks(self.sessions, self._kafka_problems.current)
        metrics.KAFKA_AVAILABLE.set(float(all(check.ok for check in kafka if check.required)))
        observe_lanes(self._lanes)
        oldest: list[float] = []
        if self.flow is not None:
            self.flow.pipeline.observe()
            oldest = [seen for consumer in self.flow.consumers if (seen := consumer.observe()) is not None]
            self.flow.held.observe()
        metrics.OLDEST_PENDING.set(min(oldest, default=0))
        self._tenants.worst.observe(certificate_expiries())
        metrics.TASKS.set(len(asyncio.all_tasks()))
        metrics.UNFINISHED.set(sum(limit.records + limit.repeated for limit in self._read_ahead))
        metrics.UNFINISHED_BYTES.set(sum(limit.bytes for limit in self._read_ahead))

    def _release_brakes(self) -> int:
        brakes = self.flow.pipeline.brakes.values() if self.flow is not None else ()
        engaged = [brake for brake in brakes if brake.engaged]
        for brake in engaged:
            brake.release()
        return len(engaged)


def _listed(problems: Sequence[Problem]) -> str:
    rest = len(problems) - MAX_PROBLEMS
    more = [f"{rest:,} more problems"] if rest > 0 else []
    return "; ".join([*map(str, problems[:MAX_PROBLEMS]), *more])


def _places(config: WebhookConfig) -> tuple[Place, ...]:
    urls = [config.url]
    if isinstance(config.auth, JwtAuth) and config.auth.fetch is not None:
        urls.append(config.auth.fetch.token_url)
    endpoints = [Endpoint.at(url) for url in urls]
    return tuple((endpoint.host, endpoint.port) for endpoint in endpoints)
