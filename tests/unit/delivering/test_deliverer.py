"""One event to its endpoint: quick tries, tokens, edits, draining, what is counted.

The lanes are real (tests/unit/lanes has their rules), the endpoint is a script.
"""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from dispatcher.config.secrets import Secret
from dispatcher.config.webhook_revision import Webhook
from dispatcher.contract.events import DeliveryEvent
from dispatcher.contract.outcomes import Attempt, DeadReason, Delivered, FailureReason, ParkReason
from dispatcher.delivery.pending_delivery import Deferred, Delivery, PendingDelivery, Undeliverable, WebhookChanged
from dispatcher.delivery.permits import Priority
from dispatcher.errors import Draining
from tests.unit.delivering.builders import WALL, Bench
from tests.unit.examples import EMAIL_EVENT, TENANT, email_event, read, webhook
from tests.unit.virtual_time import settle, virtual_time

RESET_REUSED = Attempt(0.01, failure=FailureReason.RESET, reused=True)
RESET_FRESH = Attempt(0.01, failure=FailureReason.RESET, reused=False)
FETCHED = {
    "auth": {
        "type": "jwt",
        "fetch": {
            "grant": "client-credentials", "token_url": "https://id.example/token", "client_id": "c",
            "client_secret": Secret(b"x"),
        },
    }
}  # fmt: skip


def pending(
    bench: Bench, event: DeliveryEvent | None = None, *, attempts: int = 0, priority: Priority = Priority.NEW
) -> PendingDelivery:
    return PendingDelivery.of(
        event or read(EMAIL_EVENT), bench.store.webhooks[TENANT], b"{}", attempts, priority, bench.processing()
    )


async def deliver(bench: Bench, **fields: Any) -> Delivery:
    try:
        return await bench.deliverer.deliver(pending(bench, **fields))
    finally:
        await bench.deliverer.close()


def waits(bench: Bench) -> list[float]:
    """Seconds from the end of each attempt to the begin of the next."""
    times = bench.transport.times
    return [
        round(later - earlier - bench.transport.takes_s, 3) for earlier, later in zip(times, times[1:], strict=False)
    ]


@virtual_time
async def test_an_answer_of_2xx_is_a_delivery() -> None:
    bench = Bench(204)

    assert await deliver(bench) == Delivered(1)
    assert len(bench.transport.requests) == 1


@virtual_time
async def test_a_passing_failure_is_tried_again_three_times_with_growing_waits() -> None:
    bench = Bench(503, chance=lambda: 1.0)
    delivery = await deliver(bench)

    assert delivery == Deferred(ParkReason.ATTEMPT_FAILED, 4, 0.0, 503, "answered 503")
    assert waits(bench) == [0.5, 1.0, 2.0]
    assert bench.transport.sent("webhook-attempt") == ["1", "2", "3", "4"]


@virtual_time
async def test_the_first_quick_try_that_goes_well_ends_it() -> None:
    bench = Bench(503, FailureReason.TIMEOUT, 200)

    assert await deliver(bench) == Delivered(3)


@virtual_time
async def test_quick_tries_end_with_a_final_answer() -> None:
    bench = Bench(503, 501)

    assert await deliver(bench) == Undeliverable(DeadReason.REJECTED, 2, 501, "answered 501")


@virtual_time
async def test_quick_tries_end_with_their_time() -> None:
    """Each attempt takes long: what began within the time is finished, nothing begins after it."""
    bench = Bench(503, takes_s=6, retry={"soon_attempts": 10, "soon_within": "15s"})
    delivery = await deliver(bench)

    assert isinstance(delivery, Deferred)
    assert delivery.attempts == 4
    first_failure = bench.transport.times[0] + 6
    assert all(time - first_failure <= 15 for time in bench.transport.times)


@virtual_time
async def test_quick_tries_can_be_turned_off() -> None:
    bench = Bench(503, retry={"soon_attempts": 0})

    assert (await deliver(bench)) == Deferred(ParkReason.ATTEMPT_FAILED, 1, 0.0, 503, "answered 503")


@virtual_time
async def test_after_a_reset_on_a_reused_connection_it_is_tried_at_once() -> None:
    """The endpoint closed its keep-alive just as the request went out: that isn't a failure of the endpoint."""
    bench = Bench(RESET_REUSED, 200, chance=lambda: 1.0)

    assert await deliver(bench) == Delivered(2)
    assert waits(bench) == [0]


@virtual_time
async def test_a_reset_on_a_fresh_connection_waits_like_any_failure() -> None:
    bench = Bench(RESET_FRESH, RESET_REUSED, 200, chance=lambda: 1.0)

    assert await deliver(bench) == Delivered(3)
    assert waits(bench) == [0.5, 1.0]


@virtual_time
@pytest.mark.parametrize("status", [401, 403, 404, 402, 405, 407, 416, 418, 421, 426, 451, 499])
async def test_a_mistake_in_set_up_is_for_the_tiers_only(status: int) -> None:
    bench = Bench(status)

    assert await deliver(bench) == Deferred(ParkReason.ATTEMPT_FAILED, 1, 0.0, status, f"answered {status}")
    assert len(bench.transport.requests) == 1


@virtual_time
async def test_retry_after_holds_the_lane_and_ends_the_quick_tries() -> None:
    bench = Bench(Attempt(0.05, status=429, retry_after="100"))
    delivery = await deliver(bench)
    assert delivery == Deferred(ParkReason.ATTEMPT_FAILED, 1, 100.0, 429, "answered 429")

    refused = await deliver(bench)
    assert isinstance(refused, Deferred)
    assert (refused.reason, refused.attempts, round(refused.for_s)) == (ParkReason.RETRY_AFTER, 0, 100)
    assert len(bench.transport.requests) == 1, "it was left alone"


@virtual_time
async def test_retry_after_of_an_endpoint_is_capped_at_the_age_limit() -> None:
    bench = Bench(Attempt(0.05, status=503, retry_after="9999999999"))
    delivery = await deliver(bench)

    assert isinstance(delivery, Deferred)
    assert delivery.for_s == 86_400


@virtual_time
async def test_retry_after_on_a_final_answer_holds_nothing() -> None:
    bench = Bench(Attempt(0.05, status=501, retry_after="100"), 200)

    assert isinstance(await deliver(bench), Undeliverable)
    assert await deliver(bench) == Delivered(1)


@virtual_time
@pytest.mark.parametrize(
    ("status", "retry_after", "holds_s"),
    [
        (404, "100", 100), (400, "1.5", 1.5), (403, "999999999999999999999999", 3600), (429, "7200", 7200),
        (408, "7200", 3600), (503, "7200", 7200), (500, "0.01", 1),
    ],
)  # fmt: skip
async def test_retry_after_on_any_answer_that_is_retried_holds_the_lane(
    status: int, retry_after: str, holds_s: float
) -> None:
    bench = Bench(Attempt(0.05, status=status, retry_after=retry_after), 200)
    first = await deliver(bench)
    assert isinstance(first, Deferred)
    assert (first.reason, first.for_s, first.attempts) == (ParkReason.ATTEMPT_FAILED, holds_s, 1)
    if holds_s > 5:
        refused = await deliver(bench)
        assert isinstance(refused, Deferred)
        assert refused.reason is ParkReason.RETRY_AFTER
    await asyncio.sleep(holds_s + 0.1)

    assert await deliver(bench) == Delivered(1)


@virtual_time
async def test_retry_after_holds_for_no_longer_than_the_event_has_left() -> None:
    """An event of nearly a day would otherwise stop its tenant's others for a day."""
    bench = Bench(Attempt(0.05, status=503, retry_after="86400"))
    old = replace(pending(bench), first_seen=WALL - 86_400 + 600)
    delivery = await bench.deliverer.deliver(old)
    await bench.deliverer.close()

    assert isinstance(delivery, Deferred)
    assert delivery.for_s == pytest.approx(600, abs=1)


@virtual_time
async def test_a_refused_payload_is_retried_later_and_then_rejected() -> None:
    bench = Bench(422)
    assert await deliver(bench) == Deferred(
        ParkReason.ATTEMPT_FAILED, 1, 0.0, 422, "answered 422", payload_refused=True
    )
    assert len(bench.transport.requests) == 1, "no quick tries"
    last = replace(pending(bench, attempts=9), refusals=3)

    assert await bench.deliverer.deliver(last) == Undeliverable(DeadReason.REJECTED, 10, 422, "answered 422")
    await bench.deliverer.close()


@virtual_time
async def test_a_payload_that_is_refused_is_evidence_for_the_breaker() -> None:
    bench = Bench(400)
    for _ in range(10):
        await deliver(bench)
    refused = await deliver(bench)

    assert isinstance(refused, Deferred)
    assert refused.reason is ParkReason.BREAKER_OPEN


@virtual_time
async def test_a_410_suspends_the_lane_until_the_webhook_is_edited() -> None:
    bench = Bench(410, 200)
    assert await deliver(bench) == Deferred(ParkReason.SUSPENDED, 1, 0, 410, "answered 410")
    refused = await deliver(bench)
    assert isinstance(refused, Deferred)
    assert (refused.reason, refused.attempts) == (ParkReason.SUSPENDED, 0)

    bench.store.put(webhook(url="https://new.example/"))
    assert await deliver(bench) == Delivered(1)


@virtual_time
async def test_a_410_for_the_webhook_of_before_an_edit_does_not_suspend_the_new_one() -> None:
    bench = Bench(410, 200, takes_s=1)
    old = asyncio.create_task(deliver(bench))
    await settle()
    bench.store.put(webhook(url="https://new.example/"))
    new = asyncio.create_task(deliver(bench))
    await old

    assert await new == Delivered(1)
    assert await deliver(bench) == Delivered(1)


@virtual_time
async def test_a_refused_event_has_used_up_no_attempt() -> None:
    bench = Bench(FailureReason.CONNECT_REFUSED)
    for _ in range(2):
        await deliver(bench)
    before = len(bench.transport.requests)
    refused = await deliver(bench, attempts=7)

    assert isinstance(refused, Deferred)
    assert (refused.reason, refused.attempts) == (ParkReason.BREAKER_OPEN, 7)
    assert len(bench.transport.requests) == before


@virtual_time
async def test_quick_tries_end_when_the_breaker_opens_and_the_failure_stays_the_reason() -> None:
    bench = Bench(FailureReason.CONNECT_REFUSED, retry={"soon_attempts": 10})
    delivery = await deliver(bench)

    assert isinstance(delivery, Deferred)
    assert (delivery.reason, delivery.attempts) == (ParkReason.ATTEMPT_FAILED, 5)
    assert delivery.for_s == pytest.approx(30, abs=5), "no use in coming back before the breaker's time"


@virtual_time
async def test_quick_retries_go_on_only_while_the_lane_has_a_free_permit() -> None:
    bench = Bench(503, 200, takes_s=0.3, delivery={"lane_start": 1, "lane_max": 1})
    first = asyncio.create_task(deliver(bench))
    others = [asyncio.create_task(deliver(bench)) for _ in range(20)]
    delivery = await first

    assert isinstance(delivery, Deferred)
    assert delivery.attempts == 1
    await asyncio.gather(*others)


@virtual_time
async def test_attempts_count_on_over_hops() -> None:
    bench = Bench(503, 200)

    assert await deliver(bench, attempts=9, priority=Priority.RETRY) == Delivered(11)
    assert bench.transport.sent("webhook-attempt") == ["10", "11"]


@virtual_time
async def test_a_401_to_a_fetched_token_gets_one_fresh_token_at_once() -> None:
    bench = Bench(401, 200)
    bench.store.put(webhook(**FETCHED))

    assert await deliver(bench) == Delivered(1)
    assert bench.transport.sent("authorization") == ["Bearer token-1", "Bearer token-2"]
    assert bench.transport.sent("webhook-attempt") == ["1", "1"]


@virtual_time
async def test_a_second_401_is_for_the_tiers() -> None:
    bench = Bench(401)
    bench.store.put(webhook(**FETCHED))

    assert await deliver(bench) == Deferred(ParkReason.ATTEMPT_FAILED, 1, 0.0, 401, "answered 401")
    assert len(bench.transport.requests) == 2


@virtual_time
async def test_a_401_to_a_token_of_our_own_is_not_tried_again() -> None:
    bench = Bench(401)
    auth = {"type": "jwt", "sign": {"algorithm": "HS256", "key": Secret(b"k" * 32)}}
    bench.store.put(webhook(auth=auth))
    await deliver(bench)

    assert len(bench.transport.requests) == 1


@virtual_time
async def test_without_a_token_nothing_is_sent_and_the_event_is_kept() -> None:
    bench = Bench(200)
    bench.tokens.status = 503
    bench.store.put(webhook(**FETCHED))
    delivery = await deliver(bench)

    assert isinstance(delivery, Deferred)
    assert delivery.reason is ParkReason.ATTEMPT_FAILED
    assert bench.transport.requests == []
    assert bench.lanes.lane(TENANT).in_flight == 0


@virtual_time
async def test_an_event_whose_webhook_changed_while_it_waited_is_decided_about_again() -> None:
    bench = Bench(200, takes_s=1, delivery={"lane_start": 1, "lane_max": 1})
    first = asyncio.create_task(deliver(bench))
    waiting = asyncio.create_task(deliver(bench, attempts=3))
    await settle()
    bench.store.put(webhook(url="https://new.example/"))

    assert await first == Delivered(1)
    assert await waiting == WebhookChanged(3)
    assert len(bench.transport.requests) == 1
    assert bench.lanes.lane(TENANT).in_flight == 0


@virtual_time
async def test_quick_tries_do_not_go_to_the_webhook_of_before_an_edit() -> None:
    bench = Bench(503, 503, 200)
    task = asyncio.create_task(deliver(bench))
    await asyncio.sleep(0.06)
    bench.store.put(webhook(url="https://new.example/"))

    assert await task == WebhookChanged(1)
    assert len(bench.transport.requests) == 1


@virtual_time
async def test_nothing_is_sent_for_a_partition_that_is_ours_no_more() -> None:
    bench = Bench(200, takes_s=1, delivery={"lane_start": 1, "lane_max": 1})
    first = asyncio.create_task(deliver(bench))
    waiting = asyncio.create_task(deliver(bench))
    await settle()
    bench.epoch.active = False

    assert await first == Delivered(1)
    with pytest.raises(Draining):
        await waiting
    assert len(bench.transport.requests) == 1
    assert bench.lanes.lane(TENANT).in_flight == 0


@virtual_time
async def test_cancelling_a_delivery_releases_its_permit() -> None:
    bench = Bench(200, takes_s=5)
    tasks = [asyncio.create_task(deliver(bench)) for _ in range(30)]
    await settle()
    assert bench.transport.under_way == 16
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)

    assert bench.transport.under_way == 0
    assert repr(bench.lanes) == "<LaneScheduler 1 tenants, 0/500 in flight>"


@virtual_time
@pytest.mark.parametrize(
    "reason", [FailureReason.PROXY, FailureReason.EGRESS_DENIED, FailureReason.URL_DENIED, FailureReason.LOCAL]
)
async def test_failures_of_our_own_side_do_not_count_against_the_tenant(reason: FailureReason) -> None:
    bench = Bench(reason)
    for _ in range(30):
        await deliver(bench)
    lane = bench.lanes.lane(TENANT)

    assert repr(lane).startswith("<Lane myImsOrg/prod closed 0/16")
    assert lane.endpoint.health.is_quiet(bench.lanes.now())


@virtual_time
async def test_a_probe_that_fails_on_our_side_neither_opens_nor_closes_the_breaker() -> None:
    bench = Bench(*[FailureReason.CONNECT_REFUSED] * 5, FailureReason.LOCAL, retry={"soon_attempts": 0})
    for _ in range(5):
        await deliver(bench)
    lane = bench.lanes.lane(TENANT)
    await asyncio.sleep(31)
    for _ in range(3):
        await deliver(bench)
    assert lane.endpoint.breaker.state.value == "half_open"
    assert len(bench.transport.requests) == 8, "each of them was a probe, and none of them counts"


@virtual_time
async def test_a_tenant_sets_its_own_time_to_connect_within_its_attempts() -> None:
    bench = Bench(200)
    for given in ({"connect_timeout": "8s"}, {"connect_timeout": "8s", "timeout": "5s"}, {"timeout": "2s"}, {}):
        bench.store.put(webhook(**given))
        await deliver(bench)

    assert [request.connect_timeout_s for request in bench.transport.requests] == [8, 5, 2, 3]


@virtual_time
async def test_the_headers_of_a_request() -> None:
    """In the order of docs/receiving.md; the tenant's own follow in the transport."""
    bench = Bench(200)
    auth = {"type": "jwt", "sign": {"algorithm": "HS256", "key": Secret(b"k" * 32)}}
    signing = {"secrets": [Secret(b"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")]}
    bench.store.put(webhook(auth=auth, signing=signing))
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    event = read(EMAIL_EVENT, {"traceparent": trace.encode()})
    await deliver(bench, event=event)
    (request,) = bench.transport.requests
    names = [name for name, _ in request.headers]
    values = dict(request.headers)

    assert names == ["webhook-id", "webhook-timestamp", "webhook-signature", "webhook-attempt", "webhook-event-time",
                     "traceparent", "authorization"]  # fmt: skip
    assert values["webhook-id"] == event.webhook_id
    assert values["webhook-timestamp"] == str(int(WALL))
    assert values["webhook-event-time"] == "2025-07-22T08:00:00.000Z"
    assert values["traceparent"] == trace
    assert (request.timeout_s, request.connect_timeout_s) == (10, 3)
    assert request.body == b"{}"


@virtual_time
async def test_the_timestamp_is_that_of_the_attempt() -> None:
    bench = Bench(503, 503, 200, takes_s=2)
    await deliver(bench)

    first, second, third = (int(value or 0) for value in bench.transport.sent("webhook-timestamp"))
    assert first + 2 <= second
    assert second + 2 <= third
    assert len(set(bench.transport.sent("webhook-id"))) == 1


@virtual_time
@pytest.mark.parametrize("text", ["x\r\nevil: 1", "x\ny", "ä", "\x00", "x" * 9000, "", " x"])
async def test_values_of_an_event_can_neither_inject_a_header_nor_make_one_too_long(text: str) -> None:
    bench = Bench(200)
    event = read(email_event(timestamp=text), {"traceparent": text.encode()})
    await deliver(bench, event=event)

    assert bench.transport.sent("webhook-event-time") == [None]
    assert bench.transport.sent("traceparent") == [None]


@virtual_time
async def test_a_webhooks_own_timeout_goes_before_the_operators() -> None:
    bench = Bench(200)
    bench.store.put(webhook(timeout="2s"))
    await deliver(bench)

    assert (bench.transport.requests[0].timeout_s, bench.transport.requests[0].connect_timeout_s) == (2, 2)


@virtual_time
async def test_a_prepared_webhook_is_kept_until_an_edit_and_freed_with_its_lane() -> None:
    bench = Bench(200)
    same = bench.store.webhooks[TENANT]
    assert bench.deliverer.prepared(same) is bench.deliverer.prepared(same)
    moved = bench.deliverer.prepared(replace(same, source="another line"))
    assert moved is bench.deliverer.prepared(same)
    made = bench.deliverer.prepared(webhook())
    assert made is not bench.deliverer.prepared(same)

    def of_tenant(number: int) -> Webhook:
        return webhook(TENANT._replace(org=f"org-{number}"))

    for number in range(300):
        bench.deliverer.prepared(of_tenant(number))
    assert len(bench.deliverer._prepared) <= 101
    await bench.deliverer.close()
