"""Series with tenant labels are few, whatever the number of tenants, and sums over them stay right."""

import time
from collections import Counter
from collections.abc import Iterator

import pytest
from prometheus_client import REGISTRY

from dispatcher.config.settings import MetricsSettings
from dispatcher.contract.tenant import TenantKey
from dispatcher.telemetry.tenant_metrics import TenantMetrics, WorstTenants

EVENTS = "dispatcher_tenant_events_total"
OLDEST = "dispatcher_tenant_oldest_pending_event_timestamp_seconds"
CERTIFICATE = "dispatcher_tenant_certificate_expiry_timestamp_seconds"
TENANTS = [TenantKey(f"org{number:03}", "prod") for number in range(10)]


def series(name: str) -> dict[tuple[str, str], float]:
    """Value by organisation and sandbox, summed over the other labels."""
    found: Counter[tuple[str, str]] = Counter()
    for family in REGISTRY.collect():
        for sample in family.samples:
            if sample.name == name:
                found[sample.labels["org"], sample.labels["sandbox"]] += sample.value  # type: ignore[assignment]
    return dict(found)


def collapsed() -> float | None:
    return REGISTRY.get_sample_value("dispatcher_metrics_tenants_collapsed")


@pytest.fixture(autouse=True)
def _nothing_before_and_after() -> Iterator[None]:
    def clear() -> None:
        for org, sandbox in series(EVENTS):
            TenantMetrics.EVENTS.remove(org, sandbox)
        WorstTenants.OLDEST_PENDING.clear()
        WorstTenants.CERTIFICATE.clear()
        TenantMetrics.COLLAPSED.set(0)

    clear()
    yield
    clear()


def metrics(**settings: object) -> TenantMetrics:
    return TenantMetrics(MetricsSettings.model_validate(settings))


def test_past_the_cap_tenants_share_one_series_and_no_event_is_missing() -> None:
    made = metrics(max_tenant_series=3)
    made.configure(TENANTS)
    for number, tenant in enumerate(TENANTS, start=1):
        for _ in range(number):
            made.count(tenant, "delivered")
    found = series(EVENTS)
    assert found.keys() == {("org000", ""), ("org001", ""), ("org002", ""), ("_other", "_other")}
    assert sum(found.values()) == sum(range(1, 11))
    assert collapsed() == 7


def test_the_outcome_survives_the_collapse() -> None:
    made = metrics(max_tenant_series=0)
    made.configure(TENANTS)
    made.count(TENANTS[0], "delivered")
    made.count(TENANTS[1], "dead_lettered")
    labels = {"org": "_other", "sandbox": "_other"}
    assert REGISTRY.get_sample_value(EVENTS, labels | {"outcome": "dead_lettered"}) == 1
    assert REGISTRY.get_sample_value(EVENTS, labels | {"outcome": "delivered"}) == 1


def test_events_cannot_make_series_only_configuration_can() -> None:
    made = metrics()
    made.configure(TENANTS[:1])
    for number in range(1000):
        made.count(TenantKey(f"made-up-{number}", "prod"), "skipped")
    assert series(EVENTS) == {("_other", "_other"): 1000}


def test_a_tenant_that_is_gone_takes_its_series_with_it() -> None:
    made = metrics(max_tenant_series=2)
    made.configure(TENANTS[:2])
    for tenant in TENANTS[:2]:
        made.count(tenant, "delivered")
    made.configure(TENANTS[1:2])
    assert series(EVENTS) == {("org001", ""): 1}


def test_a_tenant_that_has_series_keeps_them_when_others_come_before_it_in_the_alphabet() -> None:
    made = metrics(max_tenant_series=2)
    made.configure(TENANTS[5:7])
    made.configure(TENANTS)
    for tenant in TENANTS:
        made.count(tenant, "delivered")
    assert series(EVENTS) == {("org005", ""): 1, ("org006", ""): 1, ("_other", "_other"): 8}


def test_sandboxes_have_series_of_their_own_only_if_configured() -> None:
    sandboxes = [TenantKey("org", "prod"), TenantKey("org", "stage")]
    for mode, expected in (("org", {("org", "")}), ("org_sandbox", {("org", "prod"), ("org", "stage")})):
        made = metrics(tenant_labels=mode)
        made.configure(sandboxes)
        for tenant in sandboxes:
            made.count(tenant, "delivered")
        assert series(EVENTS).keys() == expected
        made.configure([])


def test_there_are_no_tenant_series_if_they_are_switched_off() -> None:
    made = metrics(tenant_labels="off")
    made.configure(TENANTS)
    made.count(TENANTS[0], "delivered")
    made.worst.configure([(("a.example", 443), TENANTS[0])])
    made.worst.parked(TENANTS[0], time.time(), time.time())
    made.worst.observe({("a.example", 443): time.time(), ("a.example", 8443): 5.0})
    assert series(EVENTS) == series(OLDEST) == series(CERTIFICATE) == {}


def test_the_worst_waits_are_named_and_the_rest_are_one_series() -> None:
    made, now = metrics(worst_tenants=3), time.time()
    for number, tenant in enumerate(TENANTS):
        made.worst.parked(tenant, now - number, now)
    made.worst.observe({})
    assert {org for org, _ in series(OLDEST)} == {"org009", "org008", "org007", "_other"}
    assert series(OLDEST)["_other", "_other"] == now - 6, "the oldest of those that are not named"


def test_a_tenant_without_waiting_events_is_no_longer_among_the_worst() -> None:
    made, now = metrics(worst_tenants=2), time.time()
    for number, tenant in enumerate(TENANTS[:3]):
        made.worst.parked(tenant, now - number, now)
    made.worst.observe({})
    made.worst.ended(TENANTS[2], now - 2)
    made.worst.observe({})
    assert {org for org, _ in series(OLDEST)} == {"org000", "org001"}


def test_the_first_certificates_to_expire_are_named() -> None:
    made = metrics(worst_tenants=2)
    made.worst.configure([((f"{tenant.org}.example", 443), tenant) for tenant in TENANTS])
    made.worst.observe({(f"{tenant.org}.example", 443): 1000.0 + number for number, tenant in enumerate(TENANTS)})
    assert series(CERTIFICATE) == {("org000", ""): 1000, ("org001", ""): 1001}


def test_the_place_of_a_tenant_that_left_is_taken_at_the_same_reload() -> None:
    made = metrics(max_tenant_series=2)
    made.configure(TENANTS[:3])
    assert collapsed() == 1
    made.configure(TENANTS[1:3])
    made.count(TENANTS[2], "delivered")

    assert collapsed() == 0
    assert series(EVENTS)["org002", ""] == 1
