"""How lanes share the process's permits: round by round, new events before retries, retries at most a quarter.

Not here: why an event is refused (test_refusals), what cancelling does (test_cancelling).
"""

import asyncio
from collections import Counter

import pytest

from dispatcher.delivery.permits import PERMITS_A_TURN, Priority
from tests.unit.lanes.builders import BAD, GOOD, Event, lanes, send, tenant
from tests.unit.virtual_time import settle, virtual_time


@virtual_time
async def test_every_lane_gets_one_permit_before_any_gets_a_second() -> None:
    """A hundred tenants wait, one of them with a hundred events: it gets its turn like the others."""
    shared = lanes(max_in_flight=3, lane_start=64, lane_max_wait="60s")
    holders = [Event(shared.lane(tenant(999))) for _ in range(3)]
    await settle()
    order: list[int] = []

    async def waits(number: int) -> None:
        entry = await shared.lane(tenant(number)).acquire(Priority.NEW)
        order.append(number)
        await asyncio.sleep(0.1)
        shared.lane(tenant(number)).release(entry, GOOD)  # type: ignore[arg-type]

    tasks = [asyncio.create_task(waits(0)) for _ in range(100)]
    await settle()
    tasks += [asyncio.create_task(waits(number)) for number in range(1, 100) for _ in range(3)]
    await settle()
    for holder in holders:
        holder.end()
    await asyncio.gather(*tasks)

    for round_number in range(3):
        this_round = order[round_number * 100 : (round_number + 1) * 100]
        assert sorted(this_round) == list(range(100)), f"round {round_number}"
    assert order[300:] == [0] * 97


@virtual_time
async def test_a_turn_of_the_event_loop_begins_few_requests_and_the_next_one_goes_on() -> None:
    """What has come is read before more is sent: on a busy core requests would only wait for each other."""
    shared = lanes(max_in_flight=500, lane_start=64)
    events = [Event(shared.lane(tenant(number % 3))) for number in range(5 * PERMITS_A_TURN)]
    first_result = []
    for _ in range(6):
        await asyncio.sleep(0)
        first_result.append(sum(event.has_permit for event in events))

    assert all(
        later - earlier <= PERMITS_A_TURN for earlier, later in zip([0, *first_result], first_result, strict=False)
    ), first_result
    assert first_result[-1] == len(events), "no event that can be sent waits for anything else"


@virtual_time
async def test_a_lane_never_has_more_in_flight_than_its_limit_nor_all_lanes_more_than_theirs() -> None:
    shared = lanes(max_in_flight=10, lane_start=3, lane_max=3)
    events = [Event(shared.lane(tenant(number))) for number in range(5) for _ in range(20)]
    await settle()

    assert sum(event.has_permit for event in events) == 10
    for number in range(5):
        assert shared.lane(tenant(number)).in_flight <= 3
    while any(event.has_permit for event in events):
        running = [event for event in events if event.has_permit]
        assert len(running) <= 10
        assert max(Counter(event.lane.tenant for event in running).values()) <= 3
        running[len(running) // 2].end()
        events.remove(running[len(running) // 2])
        await settle(4)
    assert not events
    assert repr(shared) == "<LaneScheduler 5 tenants, 0/10 in flight>"


@virtual_time
async def test_new_events_go_before_retries_but_one_turn_in_four_is_a_retrys() -> None:
    shared = lanes(max_in_flight=8, lane_start=1, lane_max=1)
    lane = shared.lane(tenant(0))
    running = Event(lane)
    await settle()
    events = [Event(lane, Priority.RETRY) for _ in range(6)]
    await settle()
    events += [Event(lane) for _ in range(12)]
    await settle()
    order = ""
    for _ in range(18):
        running.end()
        await settle()
        (running,) = (event for event in events if event.has_permit)
        events.remove(running)
        order += "n" if running.priority is Priority.NEW else "r"

    assert order == "nnnrnnnrnnnrnnnrrr"


@virtual_time
async def test_retries_never_hold_more_than_a_quarter_of_the_permits() -> None:
    """Also if no other event wants them: a new event finds room at once."""
    shared = lanes(max_in_flight=16, lane_start=64)
    retries = [Event(shared.lane(tenant(number % 3)), Priority.RETRY) for number in range(40)]
    await settle()
    assert sum(event.has_permit for event in retries) == 4

    new = [Event(shared.lane(tenant(100 + number))) for number in range(12)]
    await settle()
    assert sum(event.has_permit for event in new) == 12
    for event in new:
        event.end()
    await settle()
    for _ in range(40):
        running = [event for event in retries if event.has_permit]
        assert len(running) <= 4
        running[0].end()
        retries.remove(running[0])
        await settle()
        if retries:
            assert sum(event.has_permit for event in retries) == min(4, len(retries))
    assert not retries


@virtual_time
async def test_a_lane_with_only_retries_does_not_hold_up_its_own_new_events() -> None:
    shared = lanes(max_in_flight=4, lane_start=64)
    lane = shared.lane(tenant(0))
    retries = [Event(lane, Priority.RETRY) for _ in range(3)]
    await settle()
    new = Event(lane)
    await settle()

    assert [event.has_permit for event in retries] == [True, False, False]
    assert new.has_permit
    new.end()
    retries[0].end()
    await settle()
    assert [event.has_permit for event in retries] == [True, True, False]
    retries[1].end()
    await settle()
    retries[2].end()


@virtual_time
async def test_a_dead_slow_tenant_costs_only_its_own_lane() -> None:
    """A thousand events of a tenant that never answers; another tenant's hundred go through as if alone."""
    shared = lanes(max_in_flight=100, lane_start=16)
    hanging = [Event(shared.lane(tenant(0))) for _ in range(1000)]
    await settle()
    began = asyncio.get_running_loop().time()
    await send(shared.lane(tenant(1)), GOOD, times=100, takes_s=0.01)

    assert asyncio.get_running_loop().time() - began == pytest.approx(1.0, abs=0.01)
    assert sum(event.has_permit for event in hanging) == 16
    for event in hanging:
        await event.cancel()


@virtual_time
async def test_idle_lanes_are_freed() -> None:
    """100,000 tenants seen does not mean 100,000 lanes kept; what has a bad memory is kept."""
    shared = lanes()
    most = 0
    for number in range(100_000):  # within 200 s
        lane = shared.lane(tenant(number))
        entry = await lane.acquire(Priority.NEW)
        lane.release(entry, GOOD)  # type: ignore[arg-type]
        if number % 500 == 0:
            await asyncio.sleep(1)
        most = max(most, len(shared))
    assert most <= 40_000

    await asyncio.sleep(80)
    shared.lane(tenant(-1))
    assert len(shared) == 1


@virtual_time
async def test_a_lane_that_waits_or_remembers_something_bad_is_not_freed() -> None:
    shared = lanes(max_in_flight=1)
    await send(shared.lane(tenant(1)), BAD)
    shared.lane(tenant(2)).suspend()
    running = Event(shared.lane(tenant(3)))
    await settle()
    waiting = Event(shared.lane(tenant(4)))
    shared.lane(tenant(5)).endpoint.paused_until = asyncio.get_running_loop().time() + 900
    await asyncio.sleep(100)
    shared.lane(tenant(0))

    assert {lane.tenant for lane in shared} == {tenant(number) for number in range(6)}
    running.end()
    await settle()
    waiting.end()
    await asyncio.sleep(3600)
    shared.lane(tenant(9))
    assert {lane.tenant for lane in shared} == {tenant(2), tenant(9)}
