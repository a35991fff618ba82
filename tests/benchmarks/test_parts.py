"""The parts of the suite that a wrong figure could come from, without a broker."""

import asyncio
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import aiohttp
import pytest
from aiokafka.record.memory_records import MemoryRecords

from benchmarks import nginx, plots
from benchmarks.callgrind import Callgrind
from benchmarks.events import event, events, record_batch, tenants
from benchmarks.hot_path import OneWebhook, Services, consume
from benchmarks.throughput import Rate, median, spread
from dispatcher.contract.events import DeliveryEvent, read_event
from dispatcher.contract.tenant import TenantKey
from tests.unit.examples import ORIGIN, record


def test_events_differ_by_tenant_and_number_and_are_as_long() -> None:
    of = tenants(2)
    read = [read_event(record(value), ORIGIN) for value in events(of, 4)]
    assert [one.tenant for one in read if isinstance(one, DeliveryEvent)] == [*of, *of]
    assert len({one.webhook_id for one in read if isinstance(one, DeliveryEvent)}) == 4
    assert len({len(value) for value in events(of, 4)}) == 1


def test_a_record_batch_reads_back() -> None:
    values = [event(TenantKey("org00000", "prod"), number) for number in range(3)]
    batches = MemoryRecords(record_batch(values, 1_753_171_200_000))
    assert [one.value for one in batches.next_batch()] == values


def test_a_rate_is_the_median_and_its_spread() -> None:
    rates = [Rate(per_second, 1.0, 100.0) for per_second in (90.0, 100.0, 130.0)]
    assert median(rates) == 100.0
    assert spread(rates) == 0.4


def test_without_callgrind_the_orders_do_nothing() -> None:
    orders = Callgrind()
    assert not orders.listens
    orders.start()
    orders.zero()
    orders.dump("nothing")
    orders.stop()


async def test_a_stage_sees_every_event_through(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("")
    parts = Services("https://localhost:1/hook", {"transport": "lean"}, tmp_path)
    assert await OneWebhook(parts.webhook).get(parts.webhook.tenant) is parts.webhook
    async with consume(parts) as step:
        await asyncio.wait_for(step(200), 10)
    assert parts.fresh.records == 0


async def test_the_receiver_answers_by_path_and_keeps_a_log(tmp_path: Path) -> None:
    if missing := nginx.missing():
        pytest.skip(f"not installed: {missing}")
    async with nginx.Nginx(tmp_path) as receiver:
        before = receiver.requests()
        connector = aiohttp.TCPConnector(ssl=receiver.client_context())
        async with aiohttp.ClientSession(connector=connector) as session:
            statuses = []
            for path in ("/one", "/after-50/two", "/throttled/three"):
                headers = {"webhook-id": f"msg_{path[-1]}"}
                async with session.post(receiver.url(path), data=b"body", headers=headers) as answer:
                    statuses.append(answer.status)
        assert statuses == [204, 204, 429]
        assert receiver.requests() - before == 3
        await asyncio.sleep(0.3)
        came = list(receiver.came())
        assert [(one.webhook_id, one.path, one.status) for one in came] == [
            ("msg_e", "/one", 204), ("msg_o", "/after-50/two", 204), ("msg_e", "/throttled/three", 429),
        ]  # fmt: skip
        assert came[1].at - came[0].at >= 0.045
        receiver.forget()
        assert not list(receiver.came())


def test_the_picture_has_a_bar_for_each_rate() -> None:
    rate = {"per_second": 5000, "spread": 0.1, "vs_dispatcher": 1.0}
    picture = ElementTree.fromstring(plots.svg({"rates": {"dispatcher": rate, "wrk <c>": rate | {"per_second": 9000}}}))
    texts = [one.text for one in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert "wrk <c>" in texts
    assert "9,000 (× 1.00)" in texts
