"""Checks the kubelet's probes: liveness shows our own progress only, readiness all that keeps events from flowing."""

import asyncio
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest

from dispatcher.cli.ops_client import check_ready
from dispatcher.config.settings import OpsSettings, Settings
from dispatcher.errors import DispatcherError
from dispatcher.health import STUCK_S, HealthServer
from dispatcher.service import Service


@dataclass
class Reader:
    """As much of a consumer as the probes look at."""

    group_id: str = "feedback-dispatcher"
    polled_s_ago: float | None = 0.0
    joined: bool = True
    broker_answers: bool = True

    @property
    def session(self) -> "Reader":
        return self

    @property
    def last_poll(self) -> float:
        return 0.0 if self.polled_s_ago is None else asyncio.get_running_loop().time() - self.polled_s_ago


class WrongFile:
    """A source of webhooks with a mistake in it."""

    problems = ("luma.yaml:3: url: must be https",)


@pytest.fixture
def service() -> Service:
    kafka = {"bootstrap_servers": "127.0.0.1:1"}
    return Service(Settings.model_validate({"apiVersion": "dispatcher/v1", "kafka": kafka, "webhooks": {"path": "/x"}}))


async def probed(service: Service, *readers: Reader) -> dict[str, tuple[int, Any]]:
    """Returns status and answer of both probes."""
    service._consumers = readers  # type: ignore[assignment]
    async with (
        HealthServer(OpsSettings(host="127.0.0.1", port=0), service._watched()) as server,
        aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as session,
    ):
        found = {}
        for path in ("/livez", "/readyz"):
            async with session.get(path) as answer:
                found[path] = (answer.status, (await answer.json())["checks"])
        return found


async def statuses(service: Service, *readers: Reader) -> tuple[int, int]:
    """Of liveness and readiness."""
    found = await probed(service, *readers)
    return found["/livez"][0], found["/readyz"][0]


async def test_reading_is_alive_and_ready(service: Service) -> None:
    assert await statuses(service, Reader(), Reader("retries")) == (200, 200)


@pytest.mark.parametrize(
    "reader", [Reader(broker_answers=False), Reader(joined=False), Reader(joined=False, polled_s_ago=None)]
)
async def test_without_kafka_it_is_not_ready_and_never_restarted(service: Service, reader: Reader) -> None:
    assert await statuses(service, reader) == (200, 503)


async def test_before_there_is_a_reader_it_is_alive(service: Service) -> None:
    assert await statuses(service) == (200, 503)


async def test_one_poll_loop_that_stands_still_is_reason_for_a_restart(service: Service) -> None:
    found = await probed(service, Reader(), Reader("retries", polled_s_ago=STUCK_S + 1))
    status, checks = found["/livez"]
    assert status == 503
    assert checks["consumer retries"]["reason"].startswith("polled 121 s ago")
    assert checks["consumer feedback-dispatcher"]["ok"]
    assert (await statuses(service, Reader(polled_s_ago=STUCK_S - 5)))[0] == 200


async def test_who_drains_is_alive_and_no_longer_ready(service: Service) -> None:
    service._stop.set()
    found = await probed(service, Reader())
    assert (found["/livez"][0], found["/readyz"][0]) == (200, 503)
    assert found["/readyz"][1]["running"]["reason"] == "draining"


async def test_a_wrong_webhook_file_is_told_and_keeps_no_pod_from_being_ready(service: Service) -> None:
    service._source = WrongFile()  # type: ignore[assignment]
    status, checks = (await probed(service, Reader()))["/readyz"]
    assert status == 200
    assert checks["webhooks"] == {"ok": False, "required": False, "reason": "luma.yaml:3: url: must be https"}


async def test_who_asks_an_instance_is_told_only_what_keeps_it_from_being_ready(service: Service) -> None:
    service._source = WrongFile()  # type: ignore[assignment]
    service._stop.set()
    async with HealthServer(OpsSettings(host="127.0.0.1", port=0), service._watched()) as server:
        with pytest.raises(DispatcherError) as caught:
            await check_ready(f"http://127.0.0.1:{server.port}")
    assert "running: draining" in str(caught.value)
    assert "luma.yaml" not in str(caught.value)
