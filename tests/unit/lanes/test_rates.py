"""Rate limits over time: none is forgotten while it holds, and none outlives an edit."""

import asyncio
from collections.abc import Callable

import pytest

from dispatcher.delivery.lane_scheduler import IDLE_S, Lane
from dispatcher.delivery.permits import Permit, Priority
from tests.unit.lanes.builders import GOOD, lanes, tenant
from tests.unit.virtual_time import settle, virtual_time

A_HOUR = 1 / 3600


@virtual_time
async def test_a_rate_is_kept_although_other_tenants_lanes_come_and_go() -> None:
    ours, sent = lanes(), 0
    for number in range(118):  # two hours
        lane = ours.lane(tenant(0))
        lane.apply_webhook("first", A_HOUR)
        entry = lane.try_acquire(Priority.NEW)
        if isinstance(entry, Permit):
            sent += 1
            lane.release(entry, GOOD)
        await asyncio.sleep(IDLE_S + 1)
        ours.lane(tenant(1 + number))
    assert sent == 2


@virtual_time
async def test_a_lane_whose_rate_allows_the_next_request_is_freed() -> None:
    ours = lanes()
    lane = ours.lane(tenant(0))
    lane.apply_webhook("first", 1.0)
    entry = lane.try_acquire(Priority.NEW)
    assert isinstance(entry, Permit)
    lane.release(entry, GOOD)
    await asyncio.sleep(IDLE_S + 1)
    ours.lane(tenant(1))
    assert ours.get(tenant(0)) is None


async def sent_within(lane: Lane, seconds: float, edit: Callable[[], None], count: int = 300) -> int:
    """Returns how many of `count` waiting events are sent within `seconds` after an edit."""
    sent = 0

    async def send() -> None:
        nonlocal sent
        entry = await lane.acquire(Priority.NEW)
        assert isinstance(entry, Permit)
        await asyncio.sleep(0.002)
        sent += 1
        lane.release(entry, GOOD)

    tasks = [asyncio.create_task(send()) for _ in range(count)]
    await settle()
    await asyncio.sleep(0.1)
    before = sent
    edit()
    await asyncio.sleep(seconds)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    return sent - before


@pytest.mark.parametrize("is_first_enabled", [False, True])
@virtual_time
async def test_a_rate_of_before_an_edit_delays_nothing_after_it(is_first_enabled: bool) -> None:
    lane = lanes(lane_max_wait=600).lane(tenant(0))
    lane.apply_webhook("first", A_HOUR)

    def edit() -> None:
        if is_first_enabled:
            lane.enable()
        lane.apply_webhook("second", 100.0)

    assert await sent_within(lane, 2.0, edit) == pytest.approx(200, abs=25)


@virtual_time
async def test_a_hold_of_before_an_edit_delays_nothing_after_it() -> None:
    lane = lanes(lane_max_wait=600).lane(tenant(0))
    lane.apply_webhook("first", 100.0)
    lane.endpoint.paused_until = lane.last_active + 500
    assert await sent_within(lane, 2.0, lane.enable) == pytest.approx(200, abs=25)
