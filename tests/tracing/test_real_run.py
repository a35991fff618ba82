"""A real broker, the real process, a collector that reads OTLP, and a Prometheus that keeps exemplars."""

import asyncio
import json
import subprocess
import time
import urllib.parse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import orjson
import pytest
import yaml
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from dispatcher.demo.child_process import free_ports
from tests.conftest import Broker
from tests.deploy.tools import tool
from tests.integration.harness import Dispatcher, Stage, at_first, event, stage, status, tenants, until
from tests.tracing.collector import Collector, attributes

pytestmark = pytest.mark.timeout(300)

PRODUCERS = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
HISTOGRAM = "dispatcher_delivery_attempt_duration_seconds"


@pytest.fixture
async def scene(kafka: Broker, tmp_path: Path) -> AsyncIterator[Stage]:
    async with stage(kafka.bootstrap_servers, tmp_path, partitions=1) as made:
        yield made


def traced(scene: Stage, collector: Collector, **changes: object) -> Dispatcher:
    tracing = {"enabled": True, "endpoint": collector.url, "sample_ratio": 1.0, "timeout": "2s"} | changes
    return scene.dispatcher(tracing=tracing, retry={"soon_attempts": 0})


async def test_one_trace_from_the_producer_to_the_endpoint_through_a_retry_topic(scene: Stage) -> None:
    (tenant,) = tenants(1)
    scene.mount([scene.webhook(tenant)])
    scene.receiver.behave(f"/{tenant.org}", at_first(status(503)))
    async with Collector() as collector, traced(scene, collector) as dispatcher:
        dispatcher.start()
        producer = await scene.producer()
        written = await producer.send_and_wait(
            scene.topic, event(tenant, "e-1"), headers=[("traceparent", PRODUCERS.encode())]
        )
        await until(lambda: len(scene.receiver.requests) == 2, "a second attempt", 60, dispatcher)
        dispatcher.sigterm()
        assert await dispatcher.wait() == 0

    events = [span for span in collector.spans if span.name.startswith("process ")]
    first, second = sorted(events, key=lambda span: span.start_time_unix_nano)
    posts = sorted(collector.named("POST"), key=lambda span: span.start_time_unix_nano)
    assert {span.trace_id.hex() for span in collector.spans} == {PRODUCERS.split("-")[1]}
    assert {span.parent_span_id.hex() for span in events} == {PRODUCERS.split("-")[2]}
    assert [post.parent_span_id for post in posts] == [first.span_id, second.span_id]
    values = attributes(first)
    assert values["messaging.destination.name"] == scene.topic
    assert values["messaging.kafka.offset"] == written.offset
    assert (values["dispatcher.org"], values["dispatcher.outcome"]) == (tenant.org, "parked")
    assert attributes(second)["dispatcher.outcome"] == "delivered"
    assert [attributes(post)["dispatcher.attempt"] for post in posts] == [1, 2]
    assert [attributes(post)["http.response.status_code"] for post in posts] == [503, 200]
    seen = [arrived.headers["traceparent"] for arrived in scene.receiver.requests]
    assert seen == [f"00-{post.trace_id.hex()}-{post.span_id.hex()}-01" for post in posts]
    assert collector.resources[0]["service.name"] == "feedback-dispatcher"
    everything = "".join(map(str, collector.spans))
    for personal in ("john.doe", "luma", f"/{tenant.org}\n"):
        assert personal not in everything


async def test_switched_off_the_records_own_traceparent_goes_on_as_it_came(scene: Stage) -> None:
    (tenant,) = tenants(1)
    scene.mount([scene.webhook(tenant)])
    async with scene.dispatcher() as dispatcher:
        dispatcher.start()
        producer = await scene.producer()
        await producer.send(scene.topic, event(tenant, "e-1"), headers=[("traceparent", PRODUCERS.encode())])
        await until(lambda: scene.receiver.requests, "the event", 60, dispatcher)
    assert scene.receiver.requests[0].headers["traceparent"] == PRODUCERS


def _scraping(target: str, directory: Path) -> Path:
    config = {
        "global": {"scrape_interval": "1s"},
        "scrape_configs": [{"job_name": "dispatcher", "static_configs": [{"targets": [target]}]}],
    }
    directory.mkdir()
    path = directory / "prometheus.yml"
    path.write_text(yaml.safe_dump(config))
    return path


@asynccontextmanager
async def prometheus(target: str, directory: Path) -> AsyncIterator[str]:
    """Yields a real Prometheus that keeps exemplars."""
    (port,) = free_ports(1)
    process = subprocess.Popen(  # noqa: ASYNC220
        [
            tool("prometheus"),
            f"--config.file={_scraping(target, directory)}",
            f"--storage.tsdb.path={directory}/data",
            f"--web.listen-address=127.0.0.1:{port}",
            "--enable-feature=exemplar-storage",
            "--log.level=error",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait)


async def fetched(url: str, **headers: str) -> tuple[str, str]:
    """Returns content type and text, both empty while nothing answers."""
    try:
        async with aiohttp.ClientSession() as session, session.get(url, headers=headers) as answer:
            return answer.headers["Content-Type"], await answer.text()
    except aiohttp.ClientError:
        return "", ""


async def test_a_latency_leads_to_the_trace_behind_it(scene: Stage, tmp_path: Path) -> None:
    (tenant,) = tenants(1)
    scene.mount([scene.webhook(tenant)])
    async with Collector() as collector, traced(scene, collector) as dispatcher:
        dispatcher.start()
        await scene.produce([tenant], 5)
        await scene.all_accepted(dispatcher)
        ops = f"http://127.0.0.1:{dispatcher.ops_port}/metrics"

        plain, text = await fetched(ops)
        assert plain.startswith("text/plain")
        assert "trace_id" not in text
        kind, text = await fetched(ops, Accept="application/openmetrics-text;version=1.0.0,text/plain;q=0.5")
        assert kind.startswith("application/openmetrics-text")
        (family,) = [one for one in text_string_to_metric_families(text) if one.name == HISTOGRAM]
        traces = {sample.exemplar.labels["trace_id"] for sample in family.samples if sample.exemplar}
        await until(lambda: len(collector.named("POST")) == 5, "the spans", 60, dispatcher)
        assert traces
        assert traces <= {span.trace_id.hex() for span in collector.spans}

        async with prometheus(f"127.0.0.1:{dispatcher.ops_port}", tmp_path / "prometheus") as url:
            query = {"query": f"{HISTOGRAM}_bucket", "start": time.time() - 300, "end": time.time() + 60}

            async def kept() -> set[str]:
                _, answer = await fetched(f"{url}/api/v1/query_exemplars?{urllib.parse.urlencode(query)}")
                series = json.loads(answer)["data"] if answer.startswith("{") else []
                return {one["labels"]["trace_id"] for of_one in series for one in of_one["exemplars"]}

            await until(kept, "exemplars in Prometheus", 60)
            assert await kept() == traces


async def test_a_collector_that_hangs_neither_slows_a_delivery_nor_holds_up_the_end(scene: Stage) -> None:
    (tenant,) = tenants(1)
    scene.mount([scene.webhook(tenant)])
    async with Collector() as collector, traced(scene, collector, queue=50) as dispatcher:
        collector.hangs = True
        dispatcher.start()
        await scene.produce([tenant], 300)
        await scene.all_accepted(dispatcher)
        await until(lambda: collector.headers, "a request to the collector", 60, dispatcher)
        _, text = await fetched(f"http://127.0.0.1:{dispatcher.ops_port}/metrics")
        lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("dispatcher_tracing"))
        assert float(lines['dispatcher_tracing_spans_dropped_total{reason="queue_full"}']) > 0
        dispatcher.sigterm()
        assert await dispatcher.wait(timeout_s=60) == 0, "the collector would take an hour"


async def test_a_collector_that_is_not_there_changes_nothing(scene: Stage) -> None:
    (tenant,) = tenants(1)
    scene.mount([scene.webhook(tenant)])
    (port,) = free_ports(1)
    tracing = {"enabled": True, "endpoint": f"http://127.0.0.1:{port}", "sample_ratio": 1.0, "timeout": "1s"}
    async with scene.dispatcher(tracing=tracing) as dispatcher:
        dispatcher.start()
        await scene.produce([tenant], 50)
        await scene.all_accepted(dispatcher)
        await until(lambda: "the collector takes no spans" in dispatcher.log, "a word about it", 60, dispatcher)
        dispatcher.sigterm()
        assert await dispatcher.wait() == 0
    lines = [orjson.loads(line) for line in dispatcher.log.splitlines() if "the collector" in line]
    assert len(lines) == 1, "said once, not at every try"
