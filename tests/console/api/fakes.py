"""Fakes of the sources (Kafka, dispatchers, endpoints): two tenants, each with data of every kind."""

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from pydantic import JsonValue

from dispatcher.config.webhooks import Channel, WebhookConfig
from dispatcher.console.model import (
    AttemptModel,
    AttemptPage,
    AttemptQuery,
    BucketModel,
    DeadEventModel,
    DeadPage,
    DeadQuery,
    DeadRecord,
    LaneModel,
    Outcomes,
    StepModel,
    TestResultModel,
    TierModel,
    Window,
)
from dispatcher.console.resend_model import DeadCount, RedriveModel, ResendCheck, ResendQuery, SkippedCount
from dispatcher.console.sources.attempt_counts import Failing
from dispatcher.console.sources.skip_forecast import count_skipped
from dispatcher.contract.outcomes import SkipReason
from dispatcher.contract.records import Origin
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import AlreadyRunning, BrokerUnavailable, DispatcherError, NotFound, TooSoon
from dispatcher.notifications.desk import ContactStatus
from dispatcher.stores.sql.notification_store import Message
from dispatcher.stores.sql.records import Orgs

LUMA = TenantKey("luma@AdobeOrg", "prod")
RIVAL = TenantKey("rival@AdobeOrg", "prod")
LUMAS_CUSTOMER, RIVALS_CUSTOMER = "jane@luma-customer.example", "secret-customer@rival.example"
AT = 1_790_000_000.0


def attempt_of(tenant: TenantKey) -> AttemptModel:
    return AttemptModel(
        AT, tenant, f"event-of-{tenant.org}", "bounce", "email", 1, 503, "http_5xx", "answered 503", "retry_soon", 12.5,
        False, Origin("delivery-events", 0, 7), "<b>busy</b>",
    )  # fmt: skip


class FakeAttempts:
    problem: str | None = None
    known_since: float | None = None

    def outcomes(self, tenant: TenantKey, window: Window) -> Outcomes:
        return Outcomes(window, 60.0, (BucketModel(AT, 3, 2, 1), BucketModel(AT + 60)), 10.0, 20.0)

    def search(self, tenant: TenantKey, query: AttemptQuery) -> AttemptPage:
        facts = (attempt_of(tenant),) * 3
        if query.before is not None and query.before not in "0123":
            raise NotFound("there is no such page: begin at the first one")
        begin = int(query.before or "0")
        page = facts[begin : begin + query.limit]
        end = begin + len(page)
        return AttemptPage(page, str(end) if end < len(facts) else None)

    def last_delivery(self, tenant: TenantKey) -> float | None:
        return AT

    def failing(self, tenant: TenantKey, since: float) -> Failing | None:
        return None


class FakeLanes:
    def __init__(self) -> None:
        self.enabled: list[TenantKey] = []
        self.is_away = False

    @property
    def is_answering(self) -> bool:
        return not self.is_away

    async def of(self, tenant: TenantKey) -> LaneModel | None:
        return None if self.is_away else LaneModel("active", "closed", 0, False, 0, 1, 2, 16, 0.01, 1)

    async def enable(self, tenant: TenantKey) -> None:
        if self.is_away:
            raise BrokerUnavailable("no dispatcher answers")
        self.enabled.append(tenant)


class FakeWaiting:
    is_away = False

    async def of(self, tenant: TenantKey) -> Sequence[TierModel]:
        if self.is_away:
            raise BrokerUnavailable("kafka does not answer")
        return [TierModel("30s", 3, AT, True)]


def dead_of(tenant: TenantKey, number: int, recipient: str) -> DeadEventModel:
    return DeadEventModel(
        f"0-{number}", *tenant, f"event-of-{tenant.org}", AT, AT - 60, "rejected", "answered 400", 3, 400, "bounce", "email",
        recipient, False, Origin("delivery-events", 0, number),
    )  # fmt: skip


class FakeJobs:
    """Jobs of dead events are done at the first look."""

    def __init__(self) -> None:
        self.made: dict[str, RedriveModel] = {}

    async def get(self, job_id: str, *, orgs: Orgs) -> RedriveModel:
        job = self.made.get(job_id)
        if job is None or (orgs is not None and job.tenant.org not in orgs):
            raise NotFound("there is no such redrive")
        return job if job.is_over or job.kind == "delivered" else replace(job, sent=job.total, state="done")

    async def add_failed(
        self, tenant: TenantKey, by: str, kind: Literal["delivered", "dead"], problem: str
    ) -> RedriveModel:
        job = RedriveModel("failed", *tenant, by, time.time(), 0, state="failed", problem=problem, kind=kind)
        self.made[job.id] = job
        return job

    async def search(
        self, *, orgs: Orgs, tenant: TenantKey | None = None, ids: Collection[str] | None = None
    ) -> list[RedriveModel]:
        return [
            job
            for job in self.made.values()
            if (orgs is None or job.tenant.org in orgs)
            and tenant in (None, job.tenant)
            and (ids is None or job.id in ids)
        ]

    async def stop(self, job_id: str, *, orgs: Orgs) -> RedriveModel:
        await self.get(job_id, orgs=orgs)
        self.made[job_id] = replace(self.made[job_id], state="stopped")
        return self.made[job_id]


class FakeDeadEvents:
    problem: str | None = None

    def __init__(self) -> None:
        self.events = [dead_of(LUMA, 1, LUMAS_CUSTOMER), dead_of(RIVAL, 2, RIVALS_CUSTOMER)]
        self.is_at_least = False
        self.is_busy = False
        """Whether a redrive is running already."""
        self.jobs = FakeJobs()
        self.asked: list[tuple[TenantKey, frozenset[str] | None, DeadQuery]] = []

    def search(self, query: DeadQuery, *, orgs: Orgs) -> DeadPage:
        found = tuple(one for one in self.events if self._is_seen(one, orgs) and query.tenant in (None, one.tenant))
        return DeadPage(found, len(found), None)

    def known_campaign(self, text: str, *, tenant: TenantKey | None, orgs: Orgs) -> str | None:
        return text

    def with_known_campaign(self, query: DeadQuery, *, orgs: Orgs) -> DeadQuery:
        return query

    async def count_matching(self, tenant: TenantKey, query: DeadQuery) -> DeadCount:
        return DeadCount(len(self._matching(tenant, query)), self.is_at_least)

    def _matching(self, tenant: TenantKey, query: DeadQuery) -> list[str]:
        return [
            one.id
            for one in self.events
            if one.tenant == tenant
            and not one.redriven
            and (not query.event_ids or one.event_id in query.event_ids)
            and (not query.reasons or one.reason in query.reasons)
            and (not query.message_statuses or one.message_status in query.message_statuses)
            and (not query.channels or one.channel in query.channels)
            and query.campaign_id in (None, one.campaign_id)
            and (query.since is None or one.died_at >= query.since)
        ]

    def would_be_skipped(
        self, tenant: TenantKey, config: WebhookConfig, *, ids: frozenset[str] | None, query: DeadQuery
    ) -> tuple[SkippedCount, ...]:
        chosen = self._matching(tenant, query) if ids is None else ids
        return count_skipped(config, (one for one in self.events if one.id in chosen))

    def get(self, dead_id: str, *, orgs: Orgs) -> DeadEventModel:
        for one in self.events:
            if one.id == dead_id and self._is_seen(one, orgs):
                return one
        raise NotFound("there is no such dead event")

    async def record(self, dead_id: str) -> DeadRecord:
        return DeadRecord(b"key", b"\xff\x00 no JSON", (("imsOrgId", b"luma"), ("empty", None)))

    def count(self, tenant: TenantKey, since: float) -> int:
        return 1

    async def redrive(
        self, tenant: TenantKey, *, ids: frozenset[str] | None, query: DeadQuery, by: str, orgs: Orgs
    ) -> RedriveModel:
        known = {one.id for one in self.events if one.tenant == tenant}
        if (orgs is not None and tenant.org not in orgs) or not (ids or frozenset()) <= known:
            raise NotFound("there is no such dead event")
        if self.is_busy:
            raise AlreadyRunning("they are being sent again already", "job-9")
        self.asked.append((tenant, ids, query))
        total = len(self._matching(tenant, query) if ids is None else ids)
        job = RedriveModel(f"job-{len(self.jobs.made)}", *tenant, by, time.time(), total)
        self.jobs.made[job.id] = job
        return job

    @staticmethod
    def _is_seen(fact: DeadEventModel, orgs: Orgs) -> bool:
        return orgs is None or (fact.tenant is not None and fact.tenant.org in orgs)


class FakeResends:
    """Three delivered events match, of which the topic of events has lost one."""

    def __init__(self, jobs: FakeJobs) -> None:
        self.asked: list[tuple[TenantKey, ResendQuery]] = []
        self.error: DispatcherError | None = None
        self._jobs = jobs

    async def check(self, tenant: TenantKey, query: ResendQuery, config: WebhookConfig | None = None) -> ResendCheck:
        assert config is not None
        skipped = () if Channel.EMAIL in config.channels else (SkippedCount(SkipReason.CHANNEL, 2),)
        return ResendCheck(2, 1, skipped=skipped)

    async def start(self, tenant: TenantKey, query: ResendQuery, by: str) -> RedriveModel:
        if self.error is not None:
            raise self.error
        self.asked.append((tenant, query))
        job_id = f"sent-{len(self.asked)}"
        job = self._jobs.made[job_id] = RedriveModel(job_id, *tenant, by, time.time(), 2, kind="delivered")
        return job


class FakeTestEvents:
    def __init__(self) -> None:
        self.sent: list[WebhookConfig] = []

    async def send(self, config: WebhookConfig, channel: Channel, message_status: str) -> TestResultModel:
        self.sent.append(config)
        return replace(
            self.preview(config, channel, message_status),
            verdict="delivered", reason="http_2xx", status=200, elapsed_ms=12.0, verdict_in_words="It would be delivered.",
            steps=(StepModel("address", True, 1.0, "203.0.113.7"), StepModel("token", None)), answer="<b>ok</b>",
        )  # fmt: skip

    def preview(self, config: WebhookConfig, channel: Channel, message_status: str) -> TestResultModel:
        return TestResultModel((), "event", "", "", None, 0.0, "", "", "", (("x-environment", "prod"),), '{"a":1}')


class FakeKeys:
    async def document(self, tenant: TenantKey) -> Mapping[str, JsonValue]:
        return {"keys": [{"kid": str(tenant)}]}


class FakeDesk:
    """Notifications: one contact, one message of Luma's."""

    problem = None

    def __init__(self) -> None:
        self.sent: list[TenantKey | None] = []
        self.asked: list[str] = []
        self.is_too_soon = False

    async def contacts(self, config: WebhookConfig) -> list[ContactStatus]:
        return [ContactStatus(LUMAS_CUSTOMER, "asked", 1_790_000_000.0)]

    async def ask_again(self, config: WebhookConfig, address: str) -> None:
        if address != LUMAS_CUSTOMER:
            raise NotFound("there is no such contact that has to confirm")
        self.asked.append(address)

    async def send_test(self, config: WebhookConfig | None, by: str) -> int:
        if self.is_too_soon:
            raise TooSoon("a test was sent within the last minute: wait a moment")
        self.sent.append(None if config is None else config.tenant)
        return 1

    async def recent(
        self, *, orgs: Orgs, tenant: TenantKey | None = None, before: str | None = None, limit: int = 50
    ) -> list[Message]:
        message = Message(LUMA, "notice", ("failing",), "email", "j•••@luma-customer.example", "", "Luma fails", "m1")
        is_seen = (orgs is None or LUMA.org in orgs) and tenant in (None, LUMA) and before is None
        return [message] if is_seen else []
