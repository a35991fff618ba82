"""A process without a network and without a broker: everything from the pipeline down is real, the two ends are fakes."""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from dispatcher.auth.token_answers import TokenAnswer
from dispatcher.config.settings import DeliverySettings, MetricsSettings, RetrySettings
from dispatcher.config.webhook_revision import Webhook
from dispatcher.contract.outcomes import Attempt, FailureReason
from dispatcher.contract.records import AssignmentEpoch, ProcessingAttempt, Record, RetryState
from dispatcher.contract.tenant import TenantKey
from dispatcher.delivery.deliverer import Deliverer
from dispatcher.delivery.history_recorder import HistoryRecorder
from dispatcher.delivery.lane_scheduler import LaneScheduler
from dispatcher.delivery.retry_policy import RetryPolicy
from dispatcher.errors import NotWritten, RecordTooLarge, StoreUnavailable, WebhookUnusable
from dispatcher.flow.fast_path import FastPath
from dispatcher.flow.pipeline import Pipeline
from dispatcher.kafka.dead_letters import DeadLetters
from dispatcher.kafka.retry_topics import RetryTopics
from dispatcher.stores.cache import NOT_CACHED, NotCached
from dispatcher.telemetry.tenant_metrics import TenantMetrics
from dispatcher.transport.request import Request
from tests.unit.examples import ORIGIN, TENANT, a_record, webhook

WALL = 1_753_171_200.0
"""Unix time when a test begins; it passes as the loop's does."""

Answer = int | FailureReason | Attempt


def attempt(answer: Answer, **fields: Any) -> Attempt:
    if isinstance(answer, Attempt):
        return answer
    if isinstance(answer, FailureReason):
        return Attempt(0.05, failure=answer, detail=f"failed: {answer}", **fields)
    return Attempt(0.05, status=answer, **fields)


class ScriptedTransport:
    """Answers from a script, the last answer for ever; keeps every request and its time."""

    def __init__(self, *answers: Answer, takes_s: float = 0.05) -> None:
        self.answers = list(answers) or [200]
        self.takes_s = takes_s
        self.rests = True
        """A connection rests, so that a request can begin without a task."""
        self.requests: list[Request] = []
        self.times: list[float] = []
        self.under_way = 0

    def start_post(self, request: Request, on_result: Callable[[Attempt], None]) -> "Posting | None":
        if not self.rests:
            return None
        return Posting(self, request, on_result)

    async def post(self, request: Request) -> Attempt:
        self.requests.append(request)
        self.times.append(asyncio.get_running_loop().time())
        self.under_way += 1
        try:
            await asyncio.sleep(self.takes_s)
        finally:
            self.under_way -= 1
        return attempt(self.answers.pop(0) if len(self.answers) > 1 else self.answers[0])

    def sent(self, header: str) -> list[str | None]:
        """A header of each request."""
        return [dict(request.headers).get(header) for request in self.requests]


class Posting:
    """Exchange that `start_post` returns, made of `post`."""

    def __init__(self, transport: Any, request: Request, ended: Callable[[Attempt], None]) -> None:
        self._task = asyncio.create_task(self._run(transport, request, ended))

    async def _run(self, transport: Any, request: Request, ended: Callable[[Attempt], None]) -> None:
        ended(await transport.post(request))

    def abort(self) -> None:
        self._task.cancel()


@dataclass
class FakeTokens:
    """A token endpoint that issues a new token each time; or none."""

    status: int = 200
    asked: int = 0

    async def post_form(self, url: str, headers: object, body: bytes, timeout_s: float) -> TokenAnswer:
        self.asked += 1
        await asyncio.sleep(0.01)
        if self.status != 200:
            return TokenAnswer(self.status)
        token = f'{{"access_token":"token-{self.asked}","token_type":"Bearer","expires_in":3600}}'
        return TokenAnswer(200, token.encode())


@dataclass
class FakeProducer:
    """Keeps what is written, topic by topic; refuses while the test says so."""

    topics: dict[str, list[Record]] = field(default_factory=dict)
    refuses: set[str] = field(default_factory=set)
    refused: int = 0
    too_large: dict[str, int] = field(default_factory=dict)
    """Most bytes of a record, key, value and headers, by topic."""

    async def write(
        self, topic: str, key: bytes | None, value: bytes | None, headers: Iterable[Any], priority: str
    ) -> None:
        await asyncio.sleep(0.001)
        if topic in self.refuses or "*" in self.refuses:
            self.refused += 1
            raise NotWritten(topic)
        size = len(key or b"") + len(value or b"") + sum(len(name) + len(text or b"") for name, text in headers)
        if size > self.too_large.get(topic, size):
            raise RecordTooLarge(f"{topic} accepts no record of {size} bytes")
        there = self.topics.setdefault(topic, [])
        now = int(wall() * 1000)
        there.append(a_record(value, key, tuple(headers), topic, 0, len(there), now))


@dataclass
class FakeStore:
    """The webhooks; away while the test says so."""

    webhooks: dict[TenantKey, Webhook] = field(default_factory=dict)
    away: bool = False
    unusable: bool = False

    async def get(self, tenant: TenantKey) -> Webhook | None:
        await asyncio.sleep(0)
        if self.away:
            raise StoreUnavailable("away")
        if self.unusable:
            raise WebhookUnusable("no key decrypts it")
        return self.webhooks.get(tenant)

    def get_cached(self, tenant: TenantKey) -> Webhook | NotCached | None:
        return NOT_CACHED if self.away or self.unusable else self.webhooks.get(tenant)

    def is_current(self, one: Webhook) -> bool:
        return self.webhooks.get(one.tenant) is one

    def put(self, one: Webhook) -> None:
        self.webhooks[one.tenant] = one


def wall() -> float:
    """Unix time, passing as the loop's."""
    return WALL + asyncio.get_running_loop().time() - 1000.0


class Bench:
    """One process's pipeline with everything below it."""

    def __init__(
        self,
        *answers: Answer,
        takes_s: float = 0.05,
        delivery: dict[str, object] | None = None,
        retry: dict[str, object] | None = None,
        brake: int = 500,
        chance: Callable[[], float] = lambda: 0.5,
        transport: Any = None,
        producer: Any = None,
        store: FakeStore | None = None,
        max_body: int = 256_000,
        history: HistoryRecorder | None = None,
    ) -> None:
        settings = DeliverySettings.model_validate(delivery or {})
        self.policy = RetryPolicy.of(RetrySettings.model_validate(retry or {}))
        self.transport = transport or ScriptedTransport(*answers, takes_s=takes_s)
        self.tokens = FakeTokens()
        self.producer = producer or FakeProducer()
        self.store = store or FakeStore({TENANT: webhook()})
        self.lanes = LaneScheduler(settings)
        self.deliverer = Deliverer(
            settings,
            self.policy,
            self.lanes,
            self.transport,
            self.tokens,
            self.store.is_current,
            clock=wall,
            chance=chance,
            history=history,
        )
        self.retry_topics = RetryTopics(self.producer, ORIGIN.topic, self.policy)
        self.dead_letters = DeadLetters(self.producer, ORIGIN.topic)
        self.pipeline = Pipeline(
            webhooks=self.store,
            deliverer=self.deliverer,
            retry_topics=self.retry_topics,
            dead_letters=self.dead_letters,
            policy=self.policy,
            max_body=max_body,
            max_record_bytes=1_000_000,
            brake=brake,
            tenants=TenantMetrics(MetricsSettings()),
            clock=wall,
            chance=chance,
            history=history,
        )
        self.fast_path = FastPath(self.pipeline, self.store, self.deliverer, 1_000_000, max_body, history=history)
        self.epoch = AssignmentEpoch()

    def processing(self) -> ProcessingAttempt:
        return ProcessingAttempt(self.epoch)

    async def process(self, record: Record) -> Any:
        return await self.pipeline.process(record, self.processing())

    def written(self, suffix: str) -> list[Record]:
        """What is in `<topic>.<suffix>`."""
        found: list[Record] = self.producer.topics.get(f"{ORIGIN.topic}.{suffix}", [])
        return found

    def parked(self) -> list[tuple[str, RetryState]]:
        """Tier and journey of every parked record."""
        tiers = [topic.rpartition(".")[2] for topic in self.retry_topics.topics]
        return [(tier, RetryState.of(one)) for tier in tiers for one in self.written(f"retry.{tier}")]

    def dead(self) -> list[dict[str, str]]:
        """The `feedback-*` headers of each dead letter."""
        return [
            {
                name.removeprefix("feedback-"): value.decode()
                for name, value in one.headers
                if name.startswith("feedback-")
            }
            for one in self.written("dead")
        ]
