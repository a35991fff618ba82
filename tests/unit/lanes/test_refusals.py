"""Reasons for which an event gets no permit and is parked, and what ends each reason."""

import asyncio
from dataclasses import dataclass

import pytest

from dispatcher.config.settings import DeliverySettings
from dispatcher.contract.outcomes import ParkReason
from dispatcher.delivery.breaker import BreakerState
from dispatcher.delivery.endpoint_health import EndpointHealth, TenantState
from dispatcher.delivery.lane_scheduler import Lane, LaneScheduler
from dispatcher.delivery.permits import PERMITS_A_TURN, LaneRefusal, Permit, Priority
from tests.unit.lanes.builders import BAD, GOOD, NOT_REACHED, OVERLOADED, Event, lanes, send, tenant
from tests.unit.virtual_time import VirtualTimeLoop, seconds_taken, settle, virtual_time


def now() -> float:
    return asyncio.get_running_loop().time()


async def refusal(lane: Lane) -> LaneRefusal:
    entry = await lane.acquire(Priority.NEW)
    assert isinstance(entry, LaneRefusal)
    return entry


async def permit(lane: Lane) -> Permit:
    entry = await lane.acquire(Priority.NEW)
    assert isinstance(entry, Permit)
    return entry


@virtual_time
async def test_an_opening_breaker_refuses_all_waiting_events() -> None:
    shared = lanes(max_in_flight=100, lane_start=5)
    lane = shared.lane(tenant(0))
    events = [Event(lane, Priority.RETRY if number % 5 == 4 else Priority.NEW) for number in range(30)]
    await settle()
    running = [event for event in events if event.has_permit]
    assert len(running) == 5
    for event in running:
        event.end(NOT_REACHED)
    await settle()

    assert lane.endpoint.breaker.state is BreakerState.OPEN
    refused = [event for event in events if not event.has_permit]
    assert len(refused) == 30 - 5, "the permits that came back were given to no other event in the meantime"
    assert {event.refused for event in refused} == {"breaker_open"}
    assert all(isinstance(event.entry, LaneRefusal) and event.entry.for_s == pytest.approx(30) for event in refused)
    assert lane.waiting == 0


@virtual_time
async def test_while_it_is_open_events_are_refused_at_once_with_the_time_that_is_left() -> None:
    lane = lanes().lane(tenant(0))
    await send(lane, NOT_REACHED, times=5)
    await asyncio.sleep(10)
    refused = await refusal(lane)

    assert refused.reason is ParkReason.BREAKER_OPEN
    assert refused.for_s == pytest.approx(20, abs=0.01)


@virtual_time
async def test_half_open_one_probe_goes_and_the_rest_are_refused() -> None:
    lane = lanes().lane(tenant(0))
    await send(lane, NOT_REACHED, times=5)
    await asyncio.sleep(31)
    probe = await permit(lane)
    assert [(await refusal(lane)).reason for _ in range(3)] == [ParkReason.BREAKER_OPEN] * 3

    lane.release(probe, GOOD)
    second = await permit(lane)
    assert (await refusal(lane)).reason is ParkReason.BREAKER_OPEN
    lane.release(second, GOOD)
    assert lane.endpoint.breaker.state is BreakerState.CLOSED
    assert lane.endpoint.limit.now == 1, "a ramp follows"


@virtual_time
async def test_a_cancelled_probe_makes_way_for_the_next() -> None:
    lane = lanes().lane(tenant(0))
    await send(lane, NOT_REACHED, times=5)
    await asyncio.sleep(31)
    lane.cancel(await permit(lane))

    lane.cancel(await permit(lane))


@virtual_time
async def test_an_attempt_of_before_the_opening_does_not_make_way_for_a_second_probe() -> None:
    lane = lanes().lane(tenant(0))
    old = await permit(lane)
    await send(lane, NOT_REACHED, times=5)
    await asyncio.sleep(31)
    await permit(lane)
    lane.cancel(old)

    assert (await refusal(lane)).reason is ParkReason.BREAKER_OPEN


@virtual_time
async def test_events_that_wait_for_a_global_permit_are_a_half_open_breakers_probes_one_by_one() -> None:
    shared = lanes(max_in_flight=1)
    lane = shared.lane(tenant(0))
    await send(lane, NOT_REACHED, times=5)
    await asyncio.sleep(31)
    other = Event(shared.lane(tenant(1)))
    await settle()
    events = [Event(lane) for _ in range(3)]
    await settle()
    assert not any(event.entry for event in events)
    other.end()
    await settle()

    assert [event.has_permit for event in events] == [True, False, False]
    events[0].end()
    await settle()
    assert [event.has_permit for event in events] == [True, True, False]
    events[1].end()
    await settle()
    assert lane.endpoint.breaker.state is BreakerState.CLOSED
    events[2].end()


@virtual_time
async def test_a_short_hold_is_waited_for_and_ends_by_itself() -> None:
    lane = lanes().lane(tenant(0))
    lane.release(await permit(lane), OVERLOADED, hold_s=3.0)

    assert await seconds_taken(permit(lane)) == pytest.approx(3.0, abs=0.001)


@virtual_time
async def test_a_long_hold_refuses_with_the_time_that_is_left() -> None:
    lane = lanes().lane(tenant(0))
    lane.release(await permit(lane), OVERLOADED, hold_s=100.0)
    refused = await refusal(lane)
    assert (refused.reason, round(refused.for_s)) == (ParkReason.RETRY_AFTER, 100)

    await asyncio.sleep(96)
    assert await seconds_taken(permit(lane)) == pytest.approx(4.0, abs=0.001)


@virtual_time
async def test_a_hold_that_comes_while_events_wait_refuses_them() -> None:
    lane = lanes(lane_start=1).lane(tenant(0))
    running, waiting = Event(lane), Event(lane)
    await settle()
    running.end(OVERLOADED, hold_s=60)
    await settle()

    assert waiting.refused == "held"


@virtual_time
async def test_the_longer_of_two_holds_counts() -> None:
    lane = lanes().lane(tenant(0))
    one, other = await permit(lane), await permit(lane)
    lane.release(one, OVERLOADED, hold_s=60)
    lane.release(other, OVERLOADED, hold_s=2)

    assert (await refusal(lane)).reason is ParkReason.RETRY_AFTER


@virtual_time
async def test_a_rate_limit_is_kept_by_waiting() -> None:
    lane = lanes().lane(tenant(0))
    lane.apply_webhook("r", per_second=10)

    async def one() -> float:
        lane.release(await permit(lane), GOOD)
        return now()

    began = now()
    times = sorted(await asyncio.gather(*(one() for _ in range(21))))
    assert times[0] == pytest.approx(began, abs=0.001)
    assert times[-1] - began == pytest.approx(1.9, abs=0.01), "two at once, then ten a second"
    assert all(later - earlier >= 0.0999 for earlier, later in zip(times[1:], times[2:], strict=False))


@virtual_time
async def test_an_event_that_waits_too_long_behind_a_rate_limit_is_parked() -> None:
    lane = lanes(lane_max_wait="5s").lane(tenant(0))
    lane.apply_webhook("r", per_second=2)
    events = []
    for _ in range(20):
        events.append(Event(lane))
        await settle(2)

    assert not any(event.refused for event in events)
    await asyncio.sleep(6.2)
    assert sum(event.has_permit for event in events) == 12, (
        "one at once, then two a second until they have waited too long"
    )
    assert [event.refused for event in events if event.refused] == ["lane_full"] * 8
    assert lane.waiting == 0


@virtual_time
async def test_an_event_that_waits_behind_a_silent_endpoint_is_parked() -> None:
    lane = lanes(lane_start=2).lane(tenant(0))
    events = [Event(lane) for _ in range(8)]
    await settle()
    assert lane.waiting == 6
    await asyncio.sleep(4)
    late = Event(lane)
    await asyncio.sleep(2.5)

    assert [event.refused for event in events if event.refused] == ["lane_full"] * 6
    assert late.refused is None, "it has not waited long enough"
    await late.cancel()


@virtual_time
async def test_no_event_is_parked_for_waiting_while_all_permits_are_taken() -> None:
    """Every permit is taken by others: parking would only move the queue."""
    shared = lanes(max_in_flight=2)
    holders = [Event(shared.lane(tenant(0))), Event(shared.lane(tenant(1)))]
    await settle()
    patient = Event(shared.lane(tenant(2)))
    await asyncio.sleep(30)

    assert patient.refused is None
    holders[0].end()
    await settle()
    assert patient.has_permit


@virtual_time
async def test_no_event_is_parked_for_waiting_while_the_core_is_busy() -> None:
    """Permits are free, and no turn of the event loop ends soon enough to give them to all waiting events."""
    shared = lanes(max_in_flight=500, lane_max_wait="5s")
    events = [Event(shared.lane(tenant(number))) for number in range(10 * PERMITS_A_TURN)]
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    for processing in range(1, 6):
        await asyncio.sleep(0)
        assert sum(event.has_permit for event in events) <= processing * PERMITS_A_TURN
        loop.pass_time(6)
    await settle()

    assert all(event.has_permit for event in events)


@virtual_time
async def test_an_event_that_waits_behind_a_silent_endpoint_is_parked_on_a_busy_core_too() -> None:
    shared = lanes(lane_start=1, lane_max=1, lane_max_wait="5s")
    silent = [Event(shared.lane(tenant(0))) for _ in range(2)]
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    others = [Event(shared.lane(tenant(1 + number))) for number in range(10 * PERMITS_A_TURN)]
    for _ in range(6):
        await asyncio.sleep(0)
        loop.pass_time(1.5)
    await settle()

    assert [event.refused for event in silent] == [None, "lane_full"]
    assert silent[0].has_permit
    assert all(event.has_permit for event in others)


@dataclass
class _Ahead:
    records: int
    limit: int = 100


@virtual_time
async def test_a_lane_with_far_more_than_its_share_is_full_once_there_is_no_room_to_read_on() -> None:
    ahead = _Ahead(records=10)
    shared = LaneScheduler(DeliverySettings.model_validate({"lane_start": 1, "lane_max": 1}), ahead)
    flood, other = shared.lane(tenant(0)), shared.lane(tenant(1))
    events = [Event(flood) for _ in range(90)]
    await settle()
    assert not any(event.refused for event in events), "there is room"

    ahead.records = 90
    assert isinstance(flood.try_acquire(Priority.NEW), LaneRefusal)
    assert not isinstance(other.try_acquire(Priority.NEW), LaneRefusal), "it costs its own tenant only"
    for event in events:
        await event.cancel()


@virtual_time
async def test_a_tenant_alone_is_never_parked_for_lack_of_room() -> None:
    shared = LaneScheduler(DeliverySettings.model_validate({"lane_start": 1, "lane_max": 1}), _Ahead(records=100))
    lane = shared.lane(tenant(0))
    events = [Event(lane) for _ in range(100)]
    await settle()

    assert not any(event.refused for event in events)
    for event in events:
        await event.cancel()


@virtual_time
async def test_slow_tenants_leave_permits_to_lanes_below_their_share() -> None:
    """Three lanes could use every permit; the last quarter is kept for lanes below their share."""
    shared = lanes(max_in_flight=40, lane_start=16)
    others = [shared.lane(tenant(number)) for number in range(10)]
    slow = [Event(lane) for lane in others[:3] for _ in range(20)]
    await settle()

    assert sum(event.has_permit for event in slow) == 30, (
        "by turns until permits are scarce, and then each has its share"
    )
    assert all(isinstance(lane.try_acquire(Priority.NEW), Permit) for lane in others[3:9])
    for event in slow:
        await event.cancel()


@virtual_time
async def test_a_suspended_lane_refuses_everybody_until_the_webhook_is_edited() -> None:
    lane = lanes(lane_start=1).lane(tenant(0))
    lane.apply_webhook("first", None)
    running, waiting = Event(lane), Event(lane)
    await settle()
    lane.suspend()
    running.end(GOOD)
    await settle()
    assert waiting.refused == "suspended"
    for _ in range(3):
        lane.apply_webhook("first", None)
        await asyncio.sleep(10_000)
        assert (await refusal(lane)).reason is ParkReason.SUSPENDED

    lane.apply_webhook("second", None)
    lane.release(await permit(lane), GOOD)


async def disabled_lane() -> Lane:
    lane, unstable = lanes().lane(tenant(0)), False
    for _ in range(25 * 60):  # an event a minute: most of them find the breaker open
        lane.apply_webhook("first", None)
        entry = await lane.acquire(Priority.NEW)
        if isinstance(entry, Permit):
            lane.release(entry, BAD)
        await asyncio.sleep(60)
        unstable = unstable or lane.endpoint.health.state is TenantState.UNSTABLE
        assert not unstable or lane.endpoint.health.state is not TenantState.ACTIVE, (
            "one probe in 15 minutes doesn't prove a recovery"
        )
    assert lane.endpoint.health.state is TenantState.DISABLED
    lane.apply_webhook("first", None)
    return lane


@virtual_time
async def test_a_tenant_that_failed_for_a_day_is_refused_until_its_webhook_is_edited() -> None:
    lane = await disabled_lane()
    await asyncio.sleep(100 * 3600)
    lane.apply_webhook("first", None)
    assert (await refusal(lane)).reason is ParkReason.TENANT_DISABLED

    lane.apply_webhook("second", None)
    lane.release(await permit(lane), GOOD)
    assert lane.endpoint.health.state is TenantState.ACTIVE


@virtual_time
async def test_a_disabled_tenant_can_be_enabled_by_hand() -> None:
    lane = await disabled_lane()
    lane.enable()

    lane.release(await permit(lane), GOOD)


@virtual_time
@pytest.mark.parametrize("what", ["hold", "breaker", "suspended"])
async def test_an_edit_lifts_what_held_the_webhook_before_it(what: str) -> None:
    """The tenant has corrected its URL: the new one does not inherit the old one's pause."""
    lane = lanes().lane(tenant(0))
    lane.apply_webhook("first", None)
    if what == "hold":
        lane.release(await permit(lane), OVERLOADED, hold_s=86_400)
    elif what == "breaker":
        await send(lane, NOT_REACHED, times=5)
    else:
        lane.suspend()
    lane.apply_webhook("first", None)
    await refusal(lane)

    lane.apply_webhook("second", None)
    lane.release(await permit(lane), GOOD)


@virtual_time
async def test_enabling_a_tenant_by_hand_wakes_waiting_events() -> None:
    lane = lanes().lane(tenant(0))
    lane.release(await permit(lane), OVERLOADED, hold_s=4.9)
    waiting = Event(lane)
    await settle()
    lane.enable()
    await settle()

    assert waiting.has_permit


@virtual_time
async def test_a_webhook_without_a_rate_limit_lifts_the_old_one() -> None:
    lane = lanes().lane(tenant(0))
    lane.apply_webhook("first", 0.5)
    lane.release(await permit(lane), GOOD)
    waiting = Event(lane)
    await settle()
    assert not waiting.has_permit
    lane.apply_webhook("second", None)

    assert await seconds_taken(permit(lane)) < 2.1


@virtual_time
async def test_an_overloaded_endpoint_gets_half_as_many_at_once() -> None:
    lane = lanes(max_in_flight=100, lane_start=16).lane(tenant(0))
    events = [Event(lane) for _ in range(40)]
    await settle()
    running = [event for event in events if event.has_permit]
    for event in running:
        event.end(OVERLOADED)
        events.remove(event)
        if lane.endpoint.breaker.state is BreakerState.OPEN:
            break

    assert lane.endpoint.limit.now == 8
    for event in events:
        await event.cancel()


@virtual_time
async def test_the_repr_of_a_lane_shows_its_state() -> None:
    lane = lanes(lane_start=1).lane(tenant(0))
    events = [Event(lane) for _ in range(3)]
    await settle()

    assert repr(lane) == "<Lane org-0/prod closed 1/1 in flight, 2 waiting>"
    for event in events:
        await event.cancel()


@virtual_time
async def test_a_suspension_refuses_waiting_events_at_once() -> None:
    lane = lanes(lane_start=1).lane(tenant(0))
    lane.apply_webhook("first", None)
    running = Event(lane)
    waiting = [Event(lane, priority) for priority in (Priority.NEW, Priority.RETRY)]
    await settle()
    lane.suspend()
    await settle()

    assert [event.refused for event in waiting] == ["suspended", "suspended"]
    assert all(isinstance(event.entry, LaneRefusal) and event.entry.for_s == 5 for event in waiting)
    assert lane.waiting == 0
    running.end(GOOD)


@virtual_time
async def test_a_full_process_parks_only_those_whose_own_lane_holds_its_share() -> None:
    """Six permits, two lanes: a lane with three or more lets its events wait too long itself."""
    shared = lanes(max_in_flight=6, lane_start=5, lane_max=5, lane_max_wait="5s")
    big = [Event(shared.lane(tenant(0))) for _ in range(5)]
    await settle()
    small = [Event(shared.lane(tenant(1))) for _ in range(3)]
    await settle()
    late = Event(shared.lane(tenant(0)))
    held = [sum(event.has_permit for event in events) for events in (big, small)]
    assert sum(held) == 6
    assert shared.permits.is_full
    assert held[0] >= shared.permits.fair_share > held[1]
    await asyncio.sleep(7)

    assert late.refused == "lane_full", "its lane has its share"
    assert {event.refused for event in small} == {None}, "the process is busy with others"
    for event in [*big, *small]:
        await event.cancel()


@virtual_time
async def test_a_lane_with_exactly_its_share_parks_what_waits_too_long() -> None:
    shared = lanes(max_in_flight=2, lane_start=1, lane_max=1, lane_max_wait="5s")
    holders = [Event(shared.lane(tenant(number))) for number in range(2)]
    await settle()
    waiting = Event(shared.lane(tenant(0)))
    await settle()
    assert shared.permits.fair_share == 1
    await asyncio.sleep(7)

    assert waiting.refused == "lane_full"
    for event in holders:
        event.end()


@virtual_time
async def test_an_event_within_its_waiting_time_is_not_parked() -> None:
    lane = lanes(lane_start=1, lane_max_wait="5s").lane(tenant(0))
    running, waiting = Event(lane), Event(lane)
    await settle()
    since = now()
    lane.refuse_stale(since + 5.0)
    assert waiting.refused is None
    lane.refuse_stale(since + 5.001)
    await settle()

    assert waiting.refused == "lane_full"
    running.end()


@virtual_time
async def test_successes_count_as_evidence_once_there_was_a_failure() -> None:
    lane = lanes().lane(tenant(0))
    lane.apply_webhook("first", None)
    for judgement in (*[BAD] * 9, *[GOOD] * 3, BAD):  # 10 failures in 13 attempts
        await send(lane, judgement)

    assert lane.endpoint.health.state is TenantState.ACTIVE
    lane.enable()
    assert lane.endpoint.health == EndpointHealth(), "cleared by hand"
