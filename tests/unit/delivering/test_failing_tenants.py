"""What operators see of a tenant to which nothing arrives: `/lanes` and the gauge that counts tenants by last failure."""

import pytest
from prometheus_client import REGISTRY

from dispatcher.contract.outcomes import Attempt, FailureReason
from dispatcher.delivery.endpoint_health import TenantState
from dispatcher.delivery.endpoint_state import FAILING_AFTER, FAILING_KEPT_S
from dispatcher.delivery.lane_metrics import observe_lanes
from dispatcher.health import describe_lane
from tests.unit.delivering.builders import Bench
from tests.unit.delivering.test_deliverer import deliver
from tests.unit.examples import TENANT
from tests.unit.virtual_time import virtual_time

NOTHING_ARRIVES = {
    "its payload is refused": (Attempt(0.1, status=400), "http_4xx"),
    "its URL moved": (Attempt(0.1, status=302), "http_3xx"),
    "its method is not implemented": (Attempt(0.1, status=501), "http_5xx"),
    "it gives up each event": (Attempt(0.1, status=500, webhook_delivery="abort-message"), "http_5xx"),
    "its certificate has expired": (Attempt(0.1, failure=FailureReason.TLS, detail="certificate has expired"), "tls"),
    "its name resolves to a denied address": (Attempt(0.1, failure=FailureReason.EGRESS_DENIED), "egress_denied"),
    "the proxy refuses": (Attempt(0.1, failure=FailureReason.PROXY), "proxy"),
    "our network is gone": (Attempt(0.1, failure=FailureReason.LOCAL), "local"),
}


def failing(reason: str) -> float | None:
    return REGISTRY.get_sample_value("dispatcher_tenants_failing", {"reason": reason})


@pytest.mark.parametrize("what", NOTHING_ARRIVES)
@virtual_time
async def test_a_tenant_to_which_nothing_arrives_is_not_active_and_is_counted(what: str) -> None:
    answer, reason = NOTHING_ARRIVES[what]
    bench = Bench(answer, retry={"soon_attempts": 0})
    for _ in range(FAILING_AFTER):
        await deliver(bench)
    lane = bench.lanes.lane(TENANT)
    described = describe_lane(lane, bench.lanes.now())
    assert described["state"] != TenantState.ACTIVE
    assert (described["last_failure"], described["last_status"]) == (reason, answer.status)
    assert described["last_failure_detail"] == answer.detail
    assert described["last_failure_at"] is not None
    assert described["last_success_at"] is None
    observe_lanes(bench.lanes)
    assert failing(reason) == 1
    assert not lane.is_idle(lane.last_active + FAILING_KEPT_S - 1), "an alert must not end between two retries"


@virtual_time
async def test_a_suspended_tenant_is_not_active_until_it_is_enabled() -> None:
    bench = Bench(Attempt(0.1, status=410))
    await deliver(bench)
    lane = bench.lanes.lane(TENANT)
    described = describe_lane(lane, bench.lanes.now())
    assert (described["state"], described["suspended"]) == (TenantState.UNSTABLE, True)
    lane.enable()
    described = describe_lane(lane, bench.lanes.now())
    assert (described["state"], described["suspended"]) == (TenantState.ACTIVE, False)


@virtual_time
async def test_one_delivery_ends_it_and_the_last_failure_stays_known() -> None:
    bench = Bench(*[Attempt(0.1, status=302)] * FAILING_AFTER, 200)
    for _ in range(FAILING_AFTER + 1):
        await deliver(bench)
    described = describe_lane(bench.lanes.lane(TENANT), bench.lanes.now())
    assert described["state"] == TenantState.ACTIVE
    assert described["last_success_at"] is not None
    assert (described["last_failure"], described["last_status"], described["failures_in_a_row"]) == ("http_3xx", 302, 0)
    observe_lanes(bench.lanes)
    assert failing("http_3xx") == 0


@virtual_time
async def test_fewer_failures_than_one_refused_payload_gets_change_nothing() -> None:
    bench = Bench(*[Attempt(0.1, status=302)] * (FAILING_AFTER - 1), 200)
    for _ in range(FAILING_AFTER - 1):
        await deliver(bench)
    assert describe_lane(bench.lanes.lane(TENANT), bench.lanes.now())["state"] == TenantState.ACTIVE


@virtual_time
async def test_an_edit_of_the_webhook_resets_the_failures() -> None:
    bench = Bench(Attempt(0.1, status=302))
    for _ in range(FAILING_AFTER):
        await deliver(bench)
    bench.lanes.lane(TENANT).enable()
    observe_lanes(bench.lanes)
    assert failing("http_3xx") == 0
