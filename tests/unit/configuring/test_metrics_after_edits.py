"""The metrics of tenants follow edits, and an edit of one webhook doesn't look at all others again."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import REGISTRY

from dispatcher.config.settings import DeliverySettings, MetricsSettings
from dispatcher.config.webhook_revision import Webhook
from dispatcher.contract.tenant import TenantKey
from dispatcher.delivery.lane_scheduler import LaneScheduler
from dispatcher.kafka.problems import KafkaProblems
from dispatcher.status import ServiceStatus
from dispatcher.telemetry.tenant_metrics import TenantMetrics
from dispatcher.transport.endpoint import Endpoint
from tests.unit.examples import webhook

SAMPLE = "dispatcher_tenant_certificate_expiry_timestamp_seconds"


class Source:
    """A store whose webhooks the test sets."""

    def __init__(self, count: int) -> None:
        self.webhooks = [self.of(number) for number in range(count)]

    def of(self, number: int, url: str = "") -> Webhook:
        return webhook(TenantKey(f"edited-{number:03}", "prod"), url=url or f"https://hooks{number}.example/")

    def all(self) -> list[Webhook]:
        return list(self.webhooks)


def status_of(source: Any, tenants: TenantMetrics) -> ServiceStatus:
    lanes = LaneScheduler(DeliverySettings())
    return ServiceStatus(source, lanes, tenants, (), KafkaProblems(), None, asyncio.Event())  # type: ignore[arg-type]


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """URLs whose host and port were found."""
    found: list[str] = []
    original = Endpoint.at

    def at(url: str) -> Endpoint:
        found.append(url)
        return original(url)

    monkeypatch.setattr(Endpoint, "at", at)
    return found


def test_an_edit_of_one_webhook_looks_at_no_other(looked_at: list[str]) -> None:
    source = Source(100)
    status = status_of(source, TenantMetrics(MetricsSettings()))
    status.configure_metrics()
    assert len(looked_at) == 100
    looked_at.clear()
    source.webhooks[5] = source.of(5, "https://new.example/")
    status.configure_metrics()
    assert looked_at == ["https://new.example/"]
    source.webhooks[5] = replace(source.webhooks[5], source="another line")
    status.configure_metrics()
    assert len(looked_at) == 1


def test_the_certificates_follow_edits_and_tenants_come_and_go() -> None:
    source = Source(3)
    tenants = TenantMetrics(MetricsSettings(worst_tenants=5))
    status = status_of(source, tenants)

    def shown() -> list[float | None]:
        tenants.worst.observe({(f"hooks{number}.example", 443): 1e10 + number for number in range(9)})
        labels = [{"org": f"edited-{number:03}", "sandbox": ""} for number in range(4)]
        both = [REGISTRY.get_sample_value(SAMPLE, label | {"sandbox": "prod"}) for label in labels]
        return [REGISTRY.get_sample_value(SAMPLE, label) or one for label, one in zip(labels, both, strict=True)]

    status.configure_metrics()
    assert shown() == [1e10, 1e10 + 1, 1e10 + 2, None]
    source.webhooks[1] = source.of(1, "https://hooks7.example/")
    status.configure_metrics()
    assert shown() == [1e10, 1e10 + 7, 1e10 + 2, None]
    source.webhooks.append(source.of(3))
    status.configure_metrics()
    assert shown() == [1e10, 1e10 + 7, 1e10 + 2, 1e10 + 3]
    source.webhooks[3] = source.of(2, "https://hooks3.example/")
    del source.webhooks[2]
    status.configure_metrics()
    assert shown() == [1e10, 1e10 + 7, 1e10 + 3, None]
