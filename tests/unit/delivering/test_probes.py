"""Checks the kubelet's probes: liveness shows our own progress only, readiness all that keeps events from flowing."""

import asyncio
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest

from dispatcher.cli.ops_client import check_ready
from dispatcher.config.settings import OpsSettings, Settings
from dispatcher.delivery.lane_scheduler import LaneScheduler
from dispatcher.errors import DispatcherError
from dispatcher.health import STUCK_S, HealthServer
from dispatcher.kafka.problems import KafkaProblems
from dispatcher.kafka.topic_watch import TopicWatch
from dispatcher.status import EventFlow, ServiceStatus
from dispatcher.telemetry.tenant_metrics import TenantMetrics


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


class RightFile:
    """A source of webhooks without a mistake."""

    problems = ()


KAFKA = {"bootstrap_servers": "127.0.0.1:1"}
SETTINGS = Settings.model_validate({"apiVersion": "dispatcher/v1", "kafka": KAFKA, "webhooks": {"path": "/x"}})


class Process:
    """The status of a process, and what it depends on."""

    def __init__(self, source: Any) -> None:
        self.stop = asyncio.Event()
        problems = KafkaProblems()
        self.status = ServiceStatus(
            source, LaneScheduler(SETTINGS.delivery), TenantMetrics(SETTINGS.metrics), (), problems,
            TopicWatch(SETTINGS, problems), self.stop,
        )  # fmt: skip


@pytest.fixture
def process() -> Process:
    return Process(RightFile())


async def probed(process: Process, *readers: Reader) -> dict[str, tuple[int, Any]]:
    """Returns status and answer of both probes."""
    if readers:
        *consumers, held = readers
        pipeline: Any = SimpleNamespace(brakes={})
        process.status.flow = EventFlow(pipeline, consumers, held)  # type: ignore[arg-type]
    async with (
        HealthServer(OpsSettings(host="127.0.0.1", port=0), process.status.ops_callbacks(SETTINGS)) as server,
        aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as session,
    ):
        found = {}
        for path in ("/livez", "/readyz"):
            async with session.get(path) as answer:
                found[path] = (answer.status, (await answer.json())["checks"])
        return found


async def statuses(process: Process, *readers: Reader) -> tuple[int, int]:
    """Of liveness and readiness."""
    found = await probed(process, *readers)
    return found["/livez"][0], found["/readyz"][0]


async def test_reading_is_alive_and_ready(process: Process) -> None:
    assert await statuses(process, Reader(), Reader("retries")) == (200, 200)


@pytest.mark.parametrize(
    "reader", [Reader(broker_answers=False), Reader(joined=False), Reader(joined=False, polled_s_ago=None)]
)
async def test_without_kafka_it_is_not_ready_and_never_restarted(process: Process, reader: Reader) -> None:
    assert await statuses(process, reader) == (200, 503)


async def test_before_there_is_a_reader_it_is_alive(process: Process) -> None:
    assert await statuses(process) == (200, 503)


async def test_one_stuck_poll_loop_fails_liveness(process: Process) -> None:
    found = await probed(process, Reader(), Reader("retries", polled_s_ago=STUCK_S + 1))
    status, checks = found["/livez"]
    assert status == 503
    assert checks["consumer retries"]["reason"].startswith("polled 121 s ago")
    assert checks["consumer feedback-dispatcher"]["ok"]
    assert (await statuses(process, Reader(polled_s_ago=STUCK_S - 5)))[0] == 200


async def test_a_draining_process_is_alive_and_not_ready(process: Process) -> None:
    process.stop.set()
    found = await probed(process, Reader())
    assert (found["/livez"][0], found["/readyz"][0]) == (200, 503)
    assert found["/readyz"][1]["running"]["reason"] == "draining"


async def test_a_wrong_webhook_file_is_reported_and_does_not_affect_readiness() -> None:
    process = Process(WrongFile())
    status, checks = (await probed(process, Reader()))["/readyz"]
    assert status == 200
    assert checks["webhooks"] == {"ok": False, "required": False, "reason": "luma.yaml:3: url: must be https"}


async def test_readiness_lists_only_what_prevents_it() -> None:
    process = Process(WrongFile())
    process.stop.set()
    async with HealthServer(OpsSettings(host="127.0.0.1", port=0), process.status.ops_callbacks(SETTINGS)) as server:
        with pytest.raises(DispatcherError) as caught:
            await check_ready(f"http://127.0.0.1:{server.port}")
    assert "running: draining" in str(caught.value)
    assert "luma.yaml" not in str(caught.value)
