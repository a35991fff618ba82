"""Sets the gauges of all lanes, for a scrape."""

from collections import Counter

from dispatcher.delivery.breaker import BreakerState
from dispatcher.delivery.endpoint_health import TenantState
from dispatcher.delivery.lane_scheduler import LaneScheduler
from dispatcher.telemetry import metrics


def observe_lanes(lanes: LaneScheduler) -> None:
    """Sets the gauges that count lanes, permits, open breakers and failing tenants."""
    endpoints = [lane.endpoint for lane in lanes]
    states = [endpoint.health.state for endpoint in endpoints]
    metrics.IN_FLIGHT.set(lanes.permits.taken)
    metrics.LANES.set(len(lanes))
    metrics.WAITING.set(sum(lane.waiting for lane in lanes))
    metrics.BREAKERS_OPEN.set(sum(one.breaker.state is not BreakerState.CLOSED for one in endpoints))
    failing = Counter(one.last_failure.reason for one in endpoints if one.is_failing and one.last_failure is not None)
    for reason in metrics.FAILED_ATTEMPT_REASONS:
        metrics.TENANTS_FAILING.labels(reason).set(failing[reason])
    metrics.TENANT_STATES.labels("unstable").set(states.count(TenantState.UNSTABLE))
    metrics.TENANT_STATES.labels("disabled").set(states.count(TenantState.DISABLED))
    metrics.TENANT_STATES.labels("suspended").set(sum(one.suspended for one in endpoints))
