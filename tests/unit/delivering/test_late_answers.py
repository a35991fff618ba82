"""Answers to requests that began before the webhook was edited: they prove nothing about the edited webhook."""

import asyncio
from dataclasses import replace

import pytest

from dispatcher.contract.outcomes import Attempt, Delivered, FailureReason
from dispatcher.delivery.breaker import BreakerState
from dispatcher.delivery.endpoint_health import EndpointHealth
from dispatcher.delivery.lane_scheduler import Lane
from dispatcher.delivery.pending_delivery import Deferred, Delivery, WebhookChanged
from dispatcher.delivery.permits import Permit
from tests.unit.delivering.builders import Answer, Bench
from tests.unit.delivering.test_deliverer import pending
from tests.unit.examples import EMAIL_EVENT, TENANT, record, webhook
from tests.unit.virtual_time import settle, virtual_time

LATE_ANSWERS: dict[str, Answer] = {
    "a day's hold": Attempt(0.05, status=503, retry_after="86400"),
    "a hold of a refused access": Attempt(0.05, status=403, retry_after="3600"),
    "410": 410,
    "a delivery with webhook-delivery: disable": Attempt(0.05, status=200, webhook_delivery="disable"),
    "a failure with webhook-delivery: disable": Attempt(0.05, status=500, webhook_delivery="disable"),
    "a refused connection": FailureReason.CONNECT_REFUSED,
    "a timeout": FailureReason.TIMEOUT,
    "a refused payload": 422,
    "a moved URL": 302,
    "no token": FailureReason.TOKEN,
    "a failure of our own": FailureReason.LOCAL,
}


def edit(bench: Bench) -> None:
    """Edits the webhook, as `WebhookEdits.apply` does."""
    bench.store.put(replace(webhook(url="https://new.example/"), revision="edited"))
    bench.lanes.lane(TENANT).enable()


async def begin(bench: Bench, count: int = 1) -> "list[asyncio.Task[Delivery]]":
    """Begins deliveries, whose requests are in flight when this returns."""
    tasks = [asyncio.create_task(bench.deliverer.deliver(pending(bench))) for _ in range(count)]
    await settle()
    return tasks


def evidence(lane: Lane) -> tuple[object, ...]:
    endpoint = lane.endpoint
    return (
        endpoint.is_stopped, endpoint.paused_until, endpoint.breaker.state, endpoint.health, endpoint.limit.now,
        endpoint.failures_in_a_row, endpoint.last_failure,
    )  # fmt: skip


def breaker_of(bench: Bench) -> BreakerState:
    return bench.lanes.lane(TENANT).endpoint.breaker.state


UNTOUCHED = (False, 0.0, BreakerState.CLOSED, EndpointHealth(), 16, 0, None)


@pytest.mark.parametrize("is_used", [False, True], ids=["before the edited webhook was used", "after it was used"])
@pytest.mark.parametrize("name", LATE_ANSWERS)
@virtual_time
async def test_a_late_answer_does_not_count_against_the_edited_webhook(name: str, is_used: bool) -> None:
    bench = Bench(200, takes_s=5, retry={"soon_attempts": 0})
    old = await begin(bench, 10)
    edit(bench)
    if is_used:
        await asyncio.sleep(1)
        new = await begin(bench)
    bench.transport.answers = [*[LATE_ANSWERS[name]] * 10, 200]
    await asyncio.wait(old)
    lane = bench.lanes.lane(TENANT)
    assert evidence(lane) == UNTOUCHED
    if is_used:
        assert await new[0] == Delivered(1)
    assert await bench.deliverer.deliver(pending(bench)) == Delivered(1)
    assert lane.in_flight == 0
    await bench.deliverer.close()


@virtual_time
async def test_a_late_probe_does_not_make_way_for_a_second_probe() -> None:
    bench = Bench(FailureReason.CONNECT_REFUSED, retry={"soon_attempts": 0}, takes_s=1)
    await asyncio.wait(await begin(bench, 5))
    await asyncio.sleep(31)
    bench.transport.takes_s = 40
    late_probe = await begin(bench)
    edit(bench)
    bench.transport.takes_s = 1
    await asyncio.wait(await begin(bench, 5))
    assert breaker_of(bench) is BreakerState.OPEN
    await asyncio.sleep(31)
    bench.transport.takes_s = 40
    probe = await begin(bench)
    await asyncio.wait(late_probe)
    assert breaker_of(bench) is BreakerState.HALF_OPEN
    assert isinstance(await bench.deliverer.deliver(pending(bench)), Deferred), "one probe is in flight"
    await asyncio.wait(probe)
    assert breaker_of(bench) is BreakerState.OPEN
    await bench.deliverer.close()


@virtual_time
async def test_a_late_delivery_does_not_end_the_failures_of_the_edited_webhook() -> None:
    bench = Bench(200, takes_s=20)
    old = await begin(bench)
    edit(bench)
    bench.transport.answers, bench.transport.takes_s = [302], 1
    for _ in range(4):
        await asyncio.wait(await begin(bench))
    bench.transport.answers = [200]

    assert await old[0] == Delivered(1)
    assert bench.lanes.lane(TENANT).endpoint.is_failing
    assert bench.lanes.lane(TENANT).endpoint.last_success is None
    await bench.deliverer.close()


@pytest.mark.parametrize(
    "name", ["a day's hold", "a hold of a refused access", "410", "a refused connection", "no token"]
)
@virtual_time
async def test_an_event_whose_answer_came_late_goes_to_the_edited_webhook(name: str) -> None:
    bench = Bench(LATE_ANSWERS[name], 200, takes_s=5)
    old = await begin(bench)
    edit(bench)

    assert await old[0] == WebhookChanged(1)
    await bench.deliverer.close()


@virtual_time
async def test_the_pipeline_sends_such_an_event_to_the_edited_webhook_at_once() -> None:
    bench = Bench(410, 200, takes_s=5)
    task = asyncio.create_task(bench.process(record(EMAIL_EVENT)))
    await settle()
    edit(bench)

    assert await task == Delivered(2)
    assert bench.transport.requests[-1].endpoint.host == "new.example"
    await bench.deliverer.close()


@virtual_time
async def test_so_does_the_pipeline_after_a_direct_attempt() -> None:
    bench = Bench(200)
    lane, permit = bench.deliverer.acquire(pending(bench))
    assert isinstance(permit, Permit)
    edit(bench)
    first = bench.deliverer.conclude(lane, pending(bench), permit, 1, Attempt(5, status=410))

    assert await bench.pipeline.process(record(EMAIL_EVENT), bench.processing(), first) == Delivered(2)
    await bench.deliverer.close()


@virtual_time
async def test_a_late_answer_that_is_final_stays_so() -> None:
    bench = Bench(302, takes_s=5)
    old = await begin(bench)
    edit(bench)

    assert not isinstance(await old[0], WebhookChanged)
    await bench.deliverer.close()
