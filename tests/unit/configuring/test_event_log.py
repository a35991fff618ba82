"""What is logged of events: samples and sums, not a line for each."""

from typing import Any

import pytest
from structlog.testing import capture_logs

from dispatcher.contract.tenant import TenantKey
from dispatcher.telemetry import event_log, metrics
from dispatcher.telemetry.event_log import EVERY_S, EventLog

pytestmark = pytest.mark.usefixtures("_with_logs")

LUMA, RIVAL = TenantKey("luma", "prod"), TenantKey("rival", "prod")


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_of_each_tenant_and_reason_the_first_line_of_a_minute_is_written_and_the_others_are_counted() -> None:
    clock = Clock()
    log = EventLog(clock)
    with capture_logs() as lines:
        written = [log.sampled("event parked", LUMA, "http_5xx") for _ in range(500)]
        others = [
            log.sampled("event parked", LUMA, "timeout"),
            log.sampled("event parked", RIVAL, "http_5xx"),
            log.sampled("event dead-lettered", LUMA, "http_5xx"),
            log.sampled("event dead-lettered", None, "unreadable"),
        ]
        clock.now = EVERY_S
        again = log.sampled("event parked", LUMA, "http_5xx")
    assert (written.count(True), written[0], others, again) == (1, True, [True] * 4, True)
    assert lines == [
        {
            "event": "event parked: more of the same", "log_level": "info",
            "tenant": "luma/prod", "reason": "http_5xx", "count": 499,
        }
    ]  # fmt: skip


def test_a_flood_of_tenants_is_counted_in_bounded_memory() -> None:
    log = EventLog(Clock())
    with capture_logs() as lines:
        written = [log.sampled("event parked", TenantKey(f"org{n}", "prod"), "timeout") for n in range(5000)]
        log.flush()
    assert written.count(True) == event_log.MAX_SERIES
    assert [line["count"] for line in lines] == [5000 - event_log.MAX_SERIES]


def test_a_tenant_without_a_webhook_is_logged_once() -> None:
    log = EventLog(Clock())
    with capture_logs() as lines:
        for _ in range(3):
            log.no_webhook(LUMA)
            log.no_webhook(RIVAL)
    assert [line["tenant"] for line in lines] == ["luma/prod", "rival/prod"]


def test_a_summary_has_what_happened_since_the_last_one() -> None:
    log = EventLog(Clock())
    log.summarise()
    metrics.EVENTS_CONSUMED.labels("delivery-events").inc(7)
    metrics.EVENTS_FINISHED.labels("delivered").inc(4)
    metrics.EVENTS_SKIPPED.labels("no_webhook").inc(2)
    metrics.EVENTS_PARKED.labels("timeout").inc()
    with capture_logs() as lines:
        log.summarise()
        log.summarise()
    (line,) = lines
    told: dict[str, Any] = {name: line[name] for name in ("read", "delivered", "skipped", "parked", "dead")}
    assert told == {"read": 7, "delivered": 4, "skipped": {"no_webhook": 2}, "parked": 1, "dead": 0}
