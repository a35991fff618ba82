"""What it takes beside time: latency at half load, memory with much in flight, cold start."""

import asyncio
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from typing import Any, Final

from benchmarks.events import event, tenants
from benchmarks.rig import PARTITIONS, Rig, until
from dispatcher.contract.events import webhook_id
from dispatcher.contract.records import Origin
from dispatcher.contract.tenant import TenantKey
from dispatcher.demo.child_process import free_ports

IN_FLIGHT: Final = 20_000
_TICK_S: Final = 0.01
_SETTLED_S: Final = 2.0
"""After readiness: the first polls and the first commit have run."""
_WARM_UP_S: Final = 5.0
"""The broker's first fetches and commits run before its code is compiled; they are sent, and not counted."""


async def half_load_ms(rig: Rig, per_second: float, seconds: float = 12, of: int = 200) -> Mapping[str, float]:
    """From append in Kafka to the answer of the endpoint, at half of a rate, events of many tenants: p50 and p99.

    `seconds` are counted, after a warm-up.
    """
    everyone = tenants(of)
    topic = await rig.topic(append_time=True)
    webhooks = rig.mount([rig.webhook(tenant) for tenant in everyone])
    rig.receiver.forget()
    before = rig.receiver.requests()
    async with rig.dispatcher(topic, webhooks) as subject:
        await rig.preload(topic, everyone, of)  # every lane and connection is there
        subject.start()
        await until(lambda: rig.receiver.requests() - before >= of, "the first events", subject, 60)
        sent = await _paced(rig, topic, everyone, per_second / 2, _WARM_UP_S + seconds, first=of)
        await until(lambda: rig.receiver.requests() - before >= of + len(sent), "the paced events", subject, 60)
        await asyncio.sleep(0.3)  # nginx writes its log each 50 ms
        await subject.stop()
    came = {one.webhook_id: one.at for one in rig.receiver.came()}
    await rig.delete_topics()
    missing = sent.keys() - came.keys()
    if missing:
        raise RuntimeError(f"{len(missing)} events did not arrive")
    begin = min(sent.values()) + _WARM_UP_S
    waits = sorted((came[name] - at) * 1000 for name, at in sent.items() if at >= begin)
    return {"p50": waits[len(waits) // 2], "p99": waits[int(len(waits) * 0.99)], "per_second": len(waits) / seconds}


async def _paced(
    rig: Rig, topic: str, everyone: list[TenantKey], per_second: float, seconds: float, first: int
) -> dict[str, float]:
    """Append events at an even pace, a batch each tick; unix time at which the broker appended each, by webhook-id.

    The batches are made before, because the writer has the broker and the receiver beside it on one core.
    """
    producer = await rig.producer()
    ticks = []
    number = first
    for tick in range(int(seconds / _TICK_S)):
        until_now = first + int((tick + 1) * _TICK_S * per_second)
        batch, names = producer.create_batch(), []
        for one in range(number, until_now):
            tenant = everyone[one % len(everyone)]
            names.append(_webhook_id(tenant, one))
            batch.append(key=None, value=event(tenant, one), timestamp=None)
        batch.close()
        ticks.append((batch, names))
        number = until_now
    began, pending = time.monotonic(), []
    for tick, (batch, _) in enumerate(ticks):
        await asyncio.sleep(max(0.0, began + tick * _TICK_S - time.monotonic()))
        pending.append(await producer.send_batch(batch, topic, partition=tick % PARTITIONS))
    appended = [answer.timestamp / 1000 for answer in await asyncio.gather(*pending)]
    return {name: at for (_, names), at in zip(ticks, appended, strict=True) for name in names}


def _webhook_id(tenant: TenantKey, number: int) -> str:
    return webhook_id(tenant, f"event-{number:030d}", Origin("", 0, 0))


async def resident_before_first_event_mb(rig: Rig) -> float:
    """Resident memory of a process that is ready and has read nothing yet, with one webhook."""
    topic = await rig.topic()
    webhooks = rig.mount([rig.webhook(tenants(1)[0])])
    port = free_ports(1)[0]
    async with rig.dispatcher(topic, webhooks, ops={"host": "127.0.0.1", "port": port}) as subject:
        subject.start()
        await until(lambda: _is_ready(port), "readiness", subject, 60)
        await asyncio.sleep(_SETTLED_S)
        resident = subject.rss_mb()
        await subject.stop()
    await rig.delete_topics()
    return resident


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5):
            return True
    except OSError:
        return False  # it is still starting, or not ready


async def memory(rig: Rig, count: int = IN_FLIGHT) -> Mapping[str, float]:
    """Resident memory with this number of events read and not finished: endpoints that answer after 2 s, and as many requests at
    once as is the default."""
    everyone = tenants(200)
    topic = await rig.topic()
    await rig.preload(topic, everyone, count + 10_000)
    webhooks = rig.mount([rig.webhook(tenant, f"/after-2000/{tenant.org}") for tenant in everyone])
    port = free_ports(1)[0]
    most: Mapping[str, Any] = {
        "kafka": {"max_unfinished": count, "partition_window": count},
        "delivery": {"lane_max_wait": "60s"},
        "ops": {"host": "127.0.0.1", "port": port},
    }
    # It reads ahead two seconds of its own work; here it is made to read as far as it ever could.
    prelude = f"from dispatcher.kafka import read_ahead; read_ahead.LEAST_AHEAD = {count}"
    async with rig.dispatcher(topic, webhooks, prelude=prelude, **most) as subject:
        subject.start()
        highest, unfinished = 0.0, 0.0
        end = time.monotonic() + 60
        while time.monotonic() < end and subject.running and unfinished < count * 0.99:
            await asyncio.sleep(0.25)
            highest, unfinished = subject.rss_mb(), max(unfinished, await asyncio.to_thread(_unfinished, port))
        highest = max(highest, subject.rss_mb())
        await subject.stop()
    await rig.delete_topics()
    return {"rss_mb": highest, "unfinished": unfinished}


def _unfinished(port: int) -> float:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            found = re.search(rb"^dispatcher_unfinished_records ([0-9.e+]+)$", answer.read(), re.MULTILINE)
    except OSError:
        return 0.0  # it is still starting
    return 0.0 if found is None else float(found[1])


def idle_connection_kb(rig: Rig, count: int = 500) -> float:
    """Resident memory of one connection of the lean transport that rests, TLS included."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.idle",
        rig.receiver.url("/after-500/idle"),
        str(rig.receiver.ca),
        str(count),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        raise RuntimeError(f"connections could not be measured:\n{done.stderr[-2000:]}")
    return float(done.stdout)


async def cold_start_s(rig: Rig) -> float:
    """From the start of the process to its first POST, one event waiting."""
    everyone = tenants(1)
    topic = await rig.topic()
    await rig.preload(topic, everyone, 1)
    webhooks = rig.mount([rig.webhook(everyone[0])])
    before = rig.receiver.requests()
    async with rig.dispatcher(topic, webhooks) as subject:
        began = time.monotonic()
        subject.start()
        await until(lambda: rig.receiver.requests() > before, "the first POST", subject, 60, 0.005)
        took = time.monotonic() - began
        await subject.stop()
    await rig.delete_topics()
    return took
