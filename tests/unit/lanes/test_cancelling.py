"""Checks that a waiter cancelled at any moment leaks no permit and leaves no other waiter waiting for ever."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dispatcher.delivery.lane_scheduler import LaneScheduler
from dispatcher.delivery.permits import Permit, Priority
from tests.unit import virtual_time as virtual
from tests.unit.lanes.builders import BAD, GOOD, NOT_REACHED, OVERLOADED, Event, lanes, tenant
from tests.unit.virtual_time import settle, virtual_time


@virtual_time
async def test_a_waiter_cancelled_in_the_turn_in_which_it_gets_a_permit_passes_it_on() -> None:
    lane = lanes(lane_start=1).lane(tenant(0))
    running, first, second = Event(lane), Event(lane), Event(lane)
    await settle()
    running.end()  # passes the permit to the first
    first.task.cancel()  # which never gets to see it
    await settle()

    assert first.task.cancelled()
    assert second.has_permit
    assert lane.in_flight == 1


@virtual_time
async def test_a_cancelled_waiter_in_the_middle_of_the_queue_is_passed_over() -> None:
    lane = lanes(lane_start=1).lane(tenant(0))
    running, *waiting = (Event(lane) for _ in range(4))
    await settle()
    await waiting[1].cancel()
    await waiting[0].cancel()
    running.end()
    await settle()

    assert waiting[2].has_permit
    waiting[2].end()
    assert (lane.in_flight, lane.waiting) == (0, 0)


@virtual_time
async def test_a_lane_whose_waiters_were_all_cancelled_is_freed() -> None:
    shared = lanes(max_in_flight=1)
    running = Event(shared.lane(tenant(1)))
    await settle()
    waiting = [Event(shared.lane(tenant(0))) for _ in range(3)]
    await settle()
    for event in waiting:
        await event.cancel()
    running.end()
    await asyncio.sleep(100)
    shared.lane(tenant(2))

    assert [lane.tenant for lane in shared] == [tenant(2)]


@virtual_time
async def test_a_waiter_that_is_cancelled_with_its_refusal_gives_nothing_back() -> None:
    lane = lanes(lane_start=1).lane(tenant(0))
    running, waiting = Event(lane), Event(lane)
    await settle()
    lane.suspend()
    waiting.task.cancel()
    await settle()
    running.end()

    assert lane.in_flight == 0


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["new", "new", "retry", "end", "end", "abandon", "cancel", "cancel at once", "turn", "time"]),
        st.integers(0, 30),
    ),
    min_size=5,
    max_size=120,
)
ENDINGS = [
    (GOOD, None),
    (GOOD, None),
    (GOOD, None),
    (BAD, None),
    (OVERLOADED, 2.0),
    (OVERLOADED, 90.0),
    (NOT_REACHED, None),
]


@settings(max_examples=250)
@given(STEPS, st.integers(1, 6), st.integers(1, 4), st.booleans())
def test_no_interleaving_leaks_a_permit_or_forgets_a_waiter(
    steps: list[tuple[str, int]], in_flight: int, start: int, limited: bool
) -> None:
    """Events arrive, end well and badly, are cancelled before and with their permit; time passes or does not."""
    virtual.run(_interleave(steps, lanes(max_in_flight=in_flight, lane_start=start, lane_max=8), limited))


async def _interleave(steps: list[tuple[str, int]], shared: LaneScheduler, limited: bool) -> None:
    events: list[Event] = []
    for number in range(3):
        shared.lane(tenant(number)).apply_webhook("r", 5.0 if limited and number == 1 else None)
    for what, number in steps:
        waiting = [event for event in events if not event.task.done()]
        running = [event for event in events if event.task.done() and not event.task.cancelled() and event.has_permit]
        if what in ("new", "retry"):
            events.append(Event(shared.lane(tenant(number % 3)), Priority.NEW if what == "new" else Priority.RETRY))
        elif what in ("end", "abandon") and running:
            event = running[number % len(running)]
            events.remove(event)
            if what == "end":
                event.end(*ENDINGS[number % len(ENDINGS)])
            else:
                assert isinstance(event.entry, Permit)
                event.lane.cancel(event.entry)
        elif what == "cancel" and waiting:
            await waiting[number % len(waiting)].cancel()
        elif what == "cancel at once" and waiting:
            waiting[number % len(waiting)].task.cancel()
        elif what == "turn":
            await settle(1 + number % 3)
        elif what == "time":
            await asyncio.sleep(number * 1.5)
        events = [event for event in events if not event.task.done() or event.has_permit]
        _check(shared, events)
    await _all_end(events)

    assert repr(shared) == f"<LaneScheduler 3 tenants, 0/{shared.settings.max_in_flight} in flight>"
    assert [lane.in_flight for lane in shared] == [0] * 3
    await asyncio.sleep(3000)  # breakers and holds pass: each lane grants permits again
    assert [lane.waiting for lane in shared] == [0] * 3
    for number in range(3):
        for priority in Priority:
            entry = await shared.lane(tenant(number)).acquire(priority)
            assert isinstance(entry, Permit)
            shared.lane(tenant(number)).release(entry, GOOD)


def _check(shared: LaneScheduler, events: list[Event]) -> None:
    """Never more than the limits."""
    most = shared.settings.max_in_flight
    given_out = sum(lane.in_flight for lane in shared)
    seen = [event for event in events if event.task.done() and event.has_permit]
    assert len(seen) <= given_out <= most
    assert sum(event.priority is Priority.RETRY for event in seen) <= max(1, most // 4)


async def _all_end(events: list[Event]) -> None:
    """Checks that every waiting event gets a permit or a refusal, although no new one comes."""
    for _ in range(10_000):
        if not events:
            return
        for event in list(events):
            if event.task.done():
                events.remove(event)
                if event.has_permit:
                    event.end()
        await asyncio.sleep(0.1)
    pytest.fail(f"an event waits for ever: {events}")
