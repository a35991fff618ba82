"""A made-up world behind the console: seven webhooks of four organisations, each in a state of its own.

The database is real; what Kafka and the network would report is made up, the same each time but for the clock. Feeds
the tests of single pages, and the screenshots.
"""

import hashlib
import random
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from pydantic import JsonValue

from dispatcher.config.kafka_settings import KafkaSettings
from dispatcher.config.settings import Settings
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
from dispatcher.console.resend_model import DeadCount, RedriveModel, ResendCheck, ResendQuery, ResumePoint, SkippedCount
from dispatcher.console.sources.attempt_counts import Failing
from dispatcher.console.sources.skip_forecast import count_skipped
from dispatcher.console.sources.test_sender import SampleSender as Tester
from dispatcher.contract.events import DeliveryEvent, read_event
from dispatcher.contract.records import Origin, Record
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import AlreadyRunning, BrokerUnavailable, NotFound
from dispatcher.stores.sql.records import Orgs
from tests.unit.examples import record, sms_event

LUMA_ORG = "9E1005A551ED61CA0A490D45@AdobeOrg"
LUMA = TenantKey(LUMA_ORG, "prod")
LUMA_STAGE = TenantKey(LUMA_ORG, "stage")
CONTOSO = TenantKey("7F3A1C9B5D2E@AdobeOrg", "prod")
FABRIKAM = TenantKey("fabrikam@AdobeOrg", "prod")
NORTHWIND = TenantKey("northwind@AdobeOrg", "prod")
TAILSPIN = TenantKey("northwind@AdobeOrg", "holiday-campaigns")
ADATUM = TenantKey("fabrikam@AdobeOrg", "development")

EC_KEY = """-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgevZzL1gdAFr88hb2
OF/2NxApJCzGCEDdfSp6VQO30hyhRANCAAQRWz+jn65BtOMvdyHKcvjBeBSDZH2r
1RTwjmYSi9R/zpBnuQ4EiMnCqfMPWiZqB4QdbAd0E7oH50VpuZ1P087G
-----END PRIVATE KEY-----
"""

DRAFTS: tuple[dict[str, JsonValue], ...] = (
    {
        "name": "Luma order status", "org": LUMA.org, "sandbox": "prod", "url": "https://hooks.luma.example/feedback",
        "auth": {"type": "jwt", "sign": {"algorithm": "ES256", "key": {"value": EC_KEY}, "kid": "luma-2026-01",
                                         "claims": {"tenant": "luma"}}},
        "headers": {"X-Environment": "prod", "X-Api-Key": "canary-header-value"},
        "signing": {"secrets": [{"value": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"}]},
        "rate_limit": "200/s", "payload": 2,
    },
    {"name": "Luma staging", "org": LUMA.org, "sandbox": "stage", "url": "https://hooks-stage.luma.example/feedback"},
    {"name": "Contoso delivery receipts", "org": CONTOSO.org, "sandbox": "prod",
     "url": "https://api.contoso.example/v2/receipts", "channels": ["email"],
     "auth": {"type": "jwt", "sign": {"algorithm": "HS256", "key": {"value": "contoso-shared-secret-of-32-bytes!!"},
                                      "audience": "https://api.contoso.example"}}},
    {"name": "Fabrikam events", "org": FABRIKAM.org, "sandbox": "prod", "url": "https://in.fabrikam.example/ajo",
     "auth": {"type": "jwt", "fetch": {"grant": "client-credentials", "client_id": "ajo-feedback",
              "token_url": "https://login.fabrikam.example/oauth2/token", "scope": "feedback.write",
              "client_secret": {"value": "canary-client-secret"}}}},
    {"name": "Northwind SMS", "org": NORTHWIND.org, "sandbox": "prod", "url": "https://sms.northwind.example/status",
     "channels": ["sms"]},
    {"name": "Tailspin holiday mail", "org": TAILSPIN.org, "sandbox": TAILSPIN.sandbox,
     "url": "https://mail.tailspin.example:8443/hooks", "channels": ["email"], "events": ["bounce", "error"]},
    {"name": "Adatum sandbox", "org": ADATUM.org, "sandbox": "development", "url": "https://dev.adatum.example/f",
     "enabled": False},
)  # fmt: skip

BUCKETS: Mapping[Window, tuple[int, float]] = {"1h": (60, 60.0), "24h": (96, 900.0), "7d": (84, 7200.0)}
# Events a bucket of 24 h, share that fails, share that dies, from when on (share of the window)
TRAFFIC: Mapping[TenantKey, tuple[float, float, float, float]] = {
    LUMA: (520, 0.004, 0.0, 0.0),
    LUMA_STAGE: (14, 0.0, 0.0, 0.0),
    CONTOSO: (160, 0.93, 0.015, 0.8),
    FABRIKAM: (75, 0.04, 0.004, 0.3),
    NORTHWIND: (240, 1.0, 0.06, 0.45),
}


def event_id(number: int) -> str:
    """The `webhook-id` of an event of this world."""
    return "msg_" + hashlib.sha256(str(number).encode()).hexdigest()[:24]


EXPLAINED = record(
    sms_event(imsOrgId=LUMA.org, _id="order-1047-shipped", campaignID="order-updates"), offset=40_002, partition=2
)
"""The one event that can be read again."""


def _id_of(found: Record) -> str:
    event = read_event(found, Origin(found.topic, found.partition, found.offset))
    assert isinstance(event, DeliveryEvent)
    return event.webhook_id


EXPLAINED_ID = _id_of(EXPLAINED)


async def record_of_the_sample_world(settings: KafkaSettings, origin: Origin) -> Record:
    """Stands in for `decisions.record_at`."""
    if (origin.partition, origin.offset) != (EXPLAINED.partition, EXPLAINED.offset):
        raise NotFound(f"{origin.topic}/{origin.partition} has no offset {origin.offset}: it has 91204 to 130772")
    return EXPLAINED


class SampleAttempts:
    """The attempt log of this world."""

    problem: str | None = None
    known_since: float | None = None

    def outcomes(self, tenant: TenantKey, window: Window) -> Outcomes:
        number, each = BUCKETS[window]
        begin = time.time() // each * each - (number - 1) * each
        dice = random.Random(f"{tenant} {window}")
        rate, failing, dying, since = TRAFFIC.get(tenant, (0.0, 0.0, 0.0, 0.0))
        buckets = []
        for index in range(number):
            daily = 0.55 + 0.45 * (1 - abs(((index * 24 / number + 9) % 24) - 14) / 14)
            sent = int(rate * each / 900 * daily * dice.uniform(0.75, 1.2))
            if index / number >= since:
                failed, dead = int(sent * failing * dice.uniform(0.7, 1.0)), int(sent * dying)
            else:
                failed = dead = 0
            buckets.append(BucketModel(begin + index * each, max(0, sent - failed - dead), failed, dead))
        known = any(bucket.delivered + bucket.failed for bucket in buckets)
        return Outcomes(window, each, tuple(buckets), 84.0 if known else None, 312.0 if known else None)

    def search(self, tenant: TenantKey, query: AttemptQuery) -> AttemptPage:
        found = [fact for fact in self._facts(tenant) if self._is_wanted(fact, query)]
        begin = int(query.before or 0)
        following = str(begin + query.limit) if len(found) > begin + query.limit else None
        return AttemptPage(tuple(found[begin : begin + query.limit]), following)

    def last_delivery(self, tenant: TenantKey) -> float | None:
        ages = {LUMA: 3.0, LUMA_STAGE: 340.0, CONTOSO: 5400.0, FABRIKAM: 48.0, NORTHWIND: 47_000.0}
        return time.time() - ages[tenant] if tenant in ages else None

    def failing(self, tenant: TenantKey, since: float) -> Failing | None:
        """Returns trouble of today, although this world's webhooks are younger than their attempts."""
        failed = {CONTOSO: 38, NORTHWIND: 40}.get(tenant)
        return None if failed is None else Failing(replace(self._facts(tenant)[0], at=since + 60), failed, failed, 40)

    @staticmethod
    def _is_wanted(fact: AttemptModel, query: AttemptQuery) -> bool:
        kinds = {
            "delivered": ("delivered",),
            "dead": ("dead",),
            "failed": ("retry_soon", "retry_later", "disable_endpoint"),
        }
        return (query.event_id is None or fact.event_id == query.event_id) and (
            query.outcome is None or fact.verdict in kinds[query.outcome]
        )

    @staticmethod
    def _facts(tenant: TenantKey) -> list[AttemptModel]:
        if tenant not in TRAFFIC:
            return []
        dice = random.Random(str(tenant))
        at, facts = time.time() - 4, []
        for number in range(130):
            at -= dice.uniform(2, 40)
            channel = "sms" if tenant == NORTHWIND or (tenant == LUMA and dice.random() < 0.3) else "email"
            fact = AttemptModel(
                at, tenant, event_id(number), dice.choice(("delivered", "delivered", "sent", "bounce")), channel, 1,
                200, "http_2xx", "", "delivered", round(dice.lognormvariate(4.4, 0.5), 1), dice.random() < 0.9,
                Origin("delivery-events", number % 6, 40_000 + number),
            )  # fmt: skip
            if tenant == CONTOSO and number != 7:
                fact = replace(fact, status=401, reason="http_4xx", verdict="retry_later", attempt=1 + number % 4)
            if tenant == NORTHWIND:
                fact = replace(
                    fact, status=None, reason="connect_refused", detail="Connection refused", verdict="retry_soon",
                    attempt=3, elapsed_ms=2.4,
                )  # fmt: skip
            if tenant == LUMA and number == 2:
                fact = replace(fact, attempt=3, event_id=EXPLAINED_ID, channel="sms", message_status="delivered")
                facts.append(fact)
                for attempt, age in ((2, 31.0), (1, 33.5)):
                    facts.append(
                        replace(
                            fact,
                            at=fact.at - age,
                            attempt=attempt,
                            status=503,
                            reason="http_5xx",
                            reused=False,
                            verdict="retry_later" if attempt == 2 else "retry_soon",
                            detail="Retry-After: 30",
                            answer='{"error": "<b>we are moving</b>, come back later"}',
                        )
                    )
                continue
            facts.append(fact)
        return sorted(facts, key=lambda fact: -fact.at)


class SampleLanes:
    """The running dispatchers of this world."""

    enabled: list[TenantKey]

    def __init__(self) -> None:
        self.enabled = []
        self.is_answering = True

    async def of(self, tenant: TenantKey) -> LaneModel | None:
        quiet = LaneModel("active", "closed", 0.0, False, 0.0, 3, 0, 24, 0.084, 3)
        lanes = {
            LUMA: replace(quiet, in_flight=11, concurrency_limit=48),
            LUMA_STAGE: replace(quiet, in_flight=0, instances=1),
            CONTOSO: replace(quiet, state="unstable", breaker="open", breaker_retry_in_s=22.0, in_flight=0),
            FABRIKAM: quiet,
            NORTHWIND: replace(quiet, state="disabled", breaker="open", breaker_retry_in_s=0.0, in_flight=0),
        }
        return lanes.get(tenant)

    async def enable(self, tenant: TenantKey) -> None:
        self.enabled.append(tenant)


class SampleWaiting:
    """The retry topics of this world."""

    def __init__(self) -> None:
        self.is_away = False
        self.held: dict[TenantKey, int] = {}
        """Events that wait until their webhook is resumed."""

    async def of(self, tenant: TenantKey) -> Sequence[TierModel]:
        if self.is_away:
            raise BrokerUnavailable("kafka at kafka:9092: no answer")
        now = time.time()
        if (number := self.held.get(tenant)) is not None:
            return (TierModel("held", number, None, reason="paused", expires_at=now + 80_000),)
        return {
            CONTOSO: (TierModel("30s", 12, now + 4), TierModel("2m", 96, now + 41), TierModel("5m", 214, now + 187),
                      TierModel("15m", 1480, now + 512, is_at_least=True)),
            FABRIKAM: (TierModel("30s", 3, now + 11),),
            NORTHWIND: (TierModel("15m", 5212, now + 733),),
        }.get(tenant, ())  # fmt: skip


def dead_facts() -> list[DeadEventModel]:
    now = time.time()
    causes = (
        ("rejected", "422: unknown campaign", 422, 1), ("expired", "Connection refused", None, 31),
        ("redirected", "301", 301, 1), ("expired", "401", 401, 28), ("too_large", "261,402 bytes", None, 0),
    )  # fmt: skip
    mail = ("jana.novak@luma.example", "m.okafor@contoso.example", "sofia@fabrikam.example")
    sms = ("+15555550147", "+442079460958")
    facts = []
    for number in range(64):
        reason, detail, status, attempts = causes[number % 5]
        tenant = (CONTOSO, NORTHWIND, FABRIKAM)[number % 3]
        is_sms = tenant == NORTHWIND or (tenant == FABRIKAM and number % 4 == 0)
        facts.append(
            DeadEventModel(
                f"{number % 3}-{900 - number}",
                *tenant,
                event_id(1000 + number),
                now - 90 - number * 811,
                now - 90_000,
                reason,
                detail,
                attempts,
                status,
                ("bounce", "delivered", "error")[number % 3],
                "sms" if is_sms else "email",
                sms[number % 2] if is_sms else mail[number % len(mail)],
                False,
                Origin("delivery-events", number % 6, number),
            )
        )
    facts.append(
        DeadEventModel("1-12", None, None, None, now - 4000, None, "unreadable", "body.xdmEntity._experience.customerJourneyManagement.messageDeliveryfeedback: missing", 0, None, None, None,
                 None, False, Origin("delivery-events", 1, 99), can_be_sent=False)
    )  # fmt: skip
    return sorted(facts, key=lambda fact: -fact.died_at)


UNREADABLE = b"\x00\x00\x00\x01\x2a" + b"Obj\x01 avro.schema \xc3\x28 <script>alert(1)</script>" * 9


class SampleJobs:
    """The jobs of this world. One is done at the third look."""

    def __init__(self) -> None:
        self.made: dict[str, RedriveModel] = {}

    async def add_failed(
        self, tenant: TenantKey, by: str, kind: Literal["delivered", "dead"], problem: str
    ) -> RedriveModel:
        job_id = f"job{len(self.made) + 1}"
        job = RedriveModel(job_id, *tenant, by, time.time(), 0, state="failed", problem=problem, kind=kind)
        self.made[job_id] = job
        return job

    async def search(
        self, *, orgs: Orgs, tenant: TenantKey | None = None, ids: Collection[str] | None = None
    ) -> list[RedriveModel]:
        found = [
            job
            for job in reversed(self.made.values())
            if (orgs is None or job.tenant.org in orgs) and tenant in (None, job.tenant)
        ]
        return found if ids is None else [await self.get(job.id, orgs=orgs) for job in found if job.id in ids]

    async def stop(self, job_id: str, *, orgs: Orgs) -> RedriveModel:
        await self.get(job_id, orgs=orgs)
        self.made[job_id] = replace(self.made[job_id], state="stopped")
        return self.made[job_id]

    async def get(self, job_id: str, *, orgs: Orgs) -> RedriveModel:
        job = self.made.get(job_id)
        if job is None or (orgs is not None and job.tenant.org not in orgs):
            raise NotFound("there is no such job")
        if job.is_over:
            return job
        sent = min(job.total, job.sent + max(1, job.total // 3))
        self.made[job_id] = replace(job, sent=sent, state="done" if sent == job.total else "running")
        return job


class SampleDeadEvents:
    """The dead-letter topic of this world."""

    problem: str | None = None

    def __init__(self, facts: Sequence[DeadEventModel] | None = None) -> None:
        self.facts = list(dead_facts() if facts is None else facts)
        self.jobs = SampleJobs()
        self.is_at_least = False
        self.busy: set[TenantKey] = set()
        """Whose events are being sent again already."""

    def search(self, query: DeadQuery, *, orgs: Orgs) -> DeadPage:
        found = [
            fact for fact in self.facts
            if (query.tenant is None or fact.tenant == query.tenant)
            and (orgs is None or (fact.tenant is not None and fact.tenant.org in orgs))
            and (not query.event_ids or fact.event_id in query.event_ids)
            and (not query.reasons or fact.reason in query.reasons)
            and (not query.message_statuses or fact.message_status in query.message_statuses)
            and (not query.channels or fact.channel in query.channels)
            and query.campaign_id in (None, fact.campaign_id)
            and (query.until is None or fact.died_at < query.until)
            and (query.since is None or fact.died_at >= query.since)
            and (query.redriven is None or fact.redriven == query.redriven)
            and (not query.sendable or fact.can_be_sent)
        ]  # fmt: skip
        begin = int(query.before or 0)
        following = str(begin + query.limit) if len(found) > begin + query.limit else None
        by_tenant = Counter(fact.tenant for fact in found if fact.tenant is not None)
        sendable = Counter(fact.tenant for fact in found if fact.tenant is not None and fact.can_be_sent)
        shown = tuple(found[begin : begin + query.limit])
        return DeadPage(shown, len(found), following, by_tenant, sendable, is_complete=not self.is_at_least)

    def known_campaign(self, text: str, *, tenant: TenantKey | None, orgs: Orgs) -> str | None:
        return text

    def with_known_campaign(self, query: DeadQuery, *, orgs: Orgs) -> DeadQuery:
        return query

    async def count_matching(self, tenant: TenantKey, query: DeadQuery) -> DeadCount:
        whole = replace(query, tenant=tenant, redriven=False, sendable=True, before=None)
        return DeadCount(self.search(whole, orgs=None).total, self.is_at_least)

    def would_be_skipped(
        self, tenant: TenantKey, config: WebhookConfig, *, ids: frozenset[str] | None, query: DeadQuery
    ) -> tuple[SkippedCount, ...]:
        whole = replace(query, tenant=tenant, sendable=True, limit=10_000, before=None)
        return count_skipped(
            config, (fact for fact in self.search(whole, orgs=None).items if ids is None or fact.id in ids)
        )

    def get(self, dead_id: str, *, orgs: Orgs) -> DeadEventModel:
        for fact in self.facts:
            if fact.id == dead_id and (orgs is None or (fact.tenant is not None and fact.tenant.org in orgs)):
                return fact
        raise NotFound("there is no such dead event")

    async def record(self, dead_id: str) -> DeadRecord:
        self.get(dead_id, orgs=None)
        return DeadRecord(b"order-1047", UNREADABLE, (("source", b"importer"), ("feedback-reason", b"unreadable")))

    def count(self, tenant: TenantKey, since: float) -> int:
        return sum(fact.tenant == tenant and not fact.redriven and fact.died_at >= since for fact in self.facts)

    async def redrive(
        self, tenant: TenantKey, *, ids: frozenset[str] | None, query: DeadQuery, by: str, orgs: Orgs
    ) -> RedriveModel:
        if tenant in self.busy:
            raise AlreadyRunning(f"events of {tenant} are being sent again already: wait until that is done", "job0")
        whole = replace(query, tenant=tenant, sendable=True, limit=10_000, before=None)
        chosen = {fact.id for fact in self.search(whole, orgs=orgs).items} if ids is None else ids
        total = sum(fact.id in chosen for fact in self.facts)
        self.facts = [replace(fact, redriven=fact.redriven or fact.id in chosen) for fact in self.facts]
        job = RedriveModel(f"job{len(self.jobs.made) + 1}", *tenant, by, time.time(), total)
        self.jobs.made[job.id] = job
        return job


class SampleResends:
    """Delivered events of this world: 60 match, of which the topic of events has lost 4."""

    def __init__(self, jobs: SampleJobs) -> None:
        self._jobs = jobs

    async def check(self, tenant: TenantKey, query: ResendQuery, config: WebhookConfig | None = None) -> ResendCheck:
        return ResendCheck(len(query.event_ids), 0) if query.event_ids else ResendCheck(56, 4)

    async def start(self, tenant: TenantKey, query: ResendQuery, by: str) -> RedriveModel:
        job_id = f"job{len(self._jobs.made) + 1}"
        total = len(query.event_ids) or 56
        now = time.time()
        job = RedriveModel(
            job_id, *tenant, by, now, total, gone=0 if query.event_ids else 4, kind="delivered",
            resume=ResumePoint(now, now), query=query,
        )  # fmt: skip
        self._jobs.made[job_id] = job
        return job


class SampleTestEvents:
    """Endpoints of this world: Contoso's refuses us. The preview is the real one."""

    def __init__(self, settings: Settings) -> None:
        self._real = Tester(settings)

    def preview(self, config: WebhookConfig, channel: Channel, message_status: str) -> TestResultModel:
        return self._real.preview(config, channel, message_status)

    async def send(self, config: WebhookConfig, channel: Channel, message_status: str) -> TestResultModel:
        shown = self.preview(config, channel, message_status)
        is_fine = "contoso" not in config.url
        steps = (
            StepModel("address", True, 4.1, "203.0.113.7"), StepModel("connect", True, 11.8, "port 443"),
            StepModel("tls", True, 19.6, "TLSv1.3, certificate until 31 Jan 2027"), StepModel("token", True, 0.4, "signed by us"),
            StepModel("request", True, 0.2, "1,204 bytes"), StepModel("first_byte", True, 46.9, ""),
            StepModel("answer", is_fine, 0.3, "200" if is_fine else "401"),
        )  # fmt: skip
        if is_fine:
            return replace(shown, steps=steps, verdict="delivered", reason="http_2xx", status=200, elapsed_ms=83.3,
                           verdict_in_words="Delivered: your server took the event.", answer='{"ok": true}')  # fmt: skip
        return replace(
            shown, steps=steps, verdict="retry_later", reason="http_4xx", status=401, elapsed_ms=83.3,
            verdict_in_words="Not delivered. A real event is tried again after 30s and at growing intervals, for 24h.",
            remedy="The server refused us access (401). Its token in authorization was signed with HS256; its issuer is "
            "feedback-dispatcher, its audience https://api.contoso.example. Configure the server to "
            "expect exactly these values and give it the key.",
            answer='{"error": "invalid_token", "detail": "<b>aud</b> does not match"}',
        )  # fmt: skip


class SampleKeys:
    async def document(self, tenant: TenantKey) -> Mapping[str, JsonValue]:
        return {"keys": []}
