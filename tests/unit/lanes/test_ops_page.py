"""What an operator sees of the lanes at the ops endpoint, and may do there."""

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from dispatcher import health
from dispatcher.config.settings import OpsSettings
from dispatcher.delivery.lane_scheduler import Lane, LaneScheduler
from dispatcher.health import HealthServer, OpsCallbacks, describe_lane
from tests.unit.lanes.builders import GOOD, NOT_REACHED, lanes, send, tenant


@pytest.fixture
def ours() -> LaneScheduler:
    return lanes()


@pytest.fixture
async def ops(ours: LaneScheduler) -> AsyncIterator[str]:
    """An ops endpoint over lanes of every kind."""
    callbacks = OpsCallbacks(
        alive=tuple, ready=tuple, observe=lambda: None, lanes=ours, release_brakes=lambda: 2, configuration={}
    )
    async with HealthServer(OpsSettings(host="127.0.0.1", port=0), callbacks) as server:
        yield f"http://127.0.0.1:{server.port}"


async def asked(url: str, method: str = "GET") -> tuple[int, Any]:
    async with aiohttp.ClientSession() as session, session.request(method, url) as answer:
        return answer.status, await (answer.json() if answer.content_type == "application/json" else answer.text())


async def organisations(url: str) -> list[str]:
    _, page = await asked(url)
    assert page["total"] == len(page["lanes"])
    return [lane["org"] for lane in page["lanes"]]


async def test_failing_tenants_are_listed_first_and_can_be_filtered(ours: LaneScheduler, ops: str) -> None:
    for number in range(3):
        await send(ours.lane(tenant(number)), GOOD)
    ours.lane(tenant(1)).suspend()
    await send(ours.lane(tenant(2)), NOT_REACHED, times=5)
    assert await organisations(f"{ops}/lanes") == ["org-1", "org-2", "org-0"]
    assert await organisations(f"{ops}/lanes?state=suspended") == ["org-1"]
    assert await organisations(f"{ops}/lanes?state=unstable") == ["org-1"]  # nothing arrives while it is suspended
    assert await organisations(f"{ops}/lanes?state=closed") == ["org-1", "org-0"]
    assert await organisations(f"{ops}/lanes?state=open") == ["org-2"]
    assert await organisations(f"{ops}/lanes?state=half_open") == []


async def test_only_the_lanes_that_are_listed_are_described(
    ours: LaneScheduler, ops: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    described = 0

    def describe(lane: Lane, now: float) -> dict[str, object]:
        nonlocal described
        described += 1
        return describe_lane(lane, now)

    monkeypatch.setattr(health, "describe_lane", describe)
    for number in range(1500):
        ours.lane(tenant(number))
    ours.lane(tenant(1499)).suspend()
    _, page = await asked(f"{ops}/lanes")
    assert (page["total"], len(page["lanes"]), described) == (1500, 1000, 1000)
    assert page["lanes"][0]["org"] == "org-1499"
    assert await organisations(f"{ops}/lanes?state=suspended") == ["org-1499"]
    assert described == 1001


async def test_a_state_that_there_is_not_is_a_mistake_and_no_empty_list(ops: str) -> None:
    status, text = await asked(f"{ops}/lanes?state=broken")
    assert status == 400
    assert "suspended" in text
    assert "half_open" in text


async def test_a_suspended_tenant_is_enabled_by_hand(ours: LaneScheduler, ops: str) -> None:
    ours.lane(tenant(0)).suspend()
    status, page = await asked(f"{ops}/lanes/org-0/prod/enable", "POST")
    assert (status, page["suspended"]) == (200, False)
    assert (await asked(f"{ops}/lanes/org-9/prod/enable", "POST"))[0] == 404


async def test_brakes_are_released_by_hand(ops: str) -> None:
    assert await asked(f"{ops}/brakes/release", "POST") == (200, {"released": 2})
