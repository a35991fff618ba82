"""A million held events cost the other tenants nothing: throughput of healthy tenants with and without them, in one run.

Events of twenty tenants whose webhooks can't be used lie in the topic of held events. The process has just been started,
which is the worst moment: it reads all of them once, at a limited rate. Beside the rate the time is measured until a
tenant that can be used, whose only event is the last of the million, gets it.
"""

import asyncio
import os
import time
from typing import Any, Final

from benchmarks.events import event, tenants
from benchmarks.rig import BATCH, PARTITIONS, Rig, Subject, rig, until
from benchmarks.throughput import AHEAD
from dispatcher.contract.records import Origin, RetryState
from dispatcher.contract.tenant import TenantKey
from dispatcher.kafka.held_topic import tenant_headers
from dispatcher.kafka.topics import held_topic

HELD: Final = int(os.environ.get("HELD_EVENTS", "1000000"))
"""Smaller numbers help while the benchmark itself is changed."""
HEALTHY: Final = 10
BROKEN: Final = 20
EVENTS: Final = 60_000
RUNS: Final = int(os.environ.get("HELD_RUNS", "3"))
MOST_S: Final = 600
LOOK_S: Final = 0.02


async def measure(on: Rig, held: int = HELD, runs: int = RUNS) -> dict[str, Any]:
    """The median ratio of the healthy tenants' throughput, and how long the last event waited."""
    ratios, waits, rates = [], [], []
    for _ in range(runs):
        alone, _ = await _rate(on, 0)
        beside, waited_s = await _rate(on, held)
        ratios.append(beside / alone)
        rates.append((round(alone), round(beside)))
        waits.append(waited_s)
    return {
        "ratios": {"healthy_throughput_beside_held_events": round(sorted(ratios)[len(ratios) // 2], 3)},
        "held_events": held,
        "per_second_alone_and_beside": rates,
        "last_held_event_s": [round(one, 1) for one in waits],
    }


async def _rate(on: Rig, held: int) -> tuple[float, float]:
    """Events a second of the healthy tenants, and seconds from the start until the released tenant's event arrived."""
    everyone = tenants(HEALTHY + BROKEN + 1)
    healthy, broken, released = everyone[:HEALTHY], everyone[HEALTHY:-1], everyone[-1]
    topic = await on.topic()
    await on.preload(topic, healthy, EVENTS)
    await _preload_held(on, topic, broken, held, released)
    usable = [on.webhook(tenant) for tenant in (*healthy, released)]
    unusable = [on.webhook(tenant) | {"url": "not a URL"} for tenant in broken]
    webhooks = on.mount([*usable, *unusable])
    subject = on.dispatcher(topic, webhooks, kafka={"max_unfinished": AHEAD})
    rate, waited_s = await _drained(on, subject, f"/{released.org}" if held else None)
    await on.delete_topics()
    return rate, waited_s


async def _drained(on: Rig, subject: Subject, last_path: str | None) -> tuple[float, float]:
    """Events a second of the backlog's middle, and seconds from the start until a request came to `last_path`."""
    on.receiver.forget()
    before = on.receiver.requests()
    marks: list[tuple[float, int]] = []

    def came() -> int:
        marks.append((time.monotonic(), on.receiver.requests() - before))
        return marks[-1][1]

    async with subject:
        subject.start()
        await until(lambda: came() >= EVENTS, f"{EVENTS} requests", subject, MOST_S, LOOK_S)
        if last_path is not None:
            has_come = lambda: any(one.path == last_path for one in on.receiver.came())  # noqa: E731
            await until(has_come, "the released tenant's event", subject, MOST_S, 1.0)
        waited_s = time.monotonic() - marks[0][0]
        await subject.stop()
    first = next(mark for mark in marks if mark[1] >= EVENTS * 0.2)
    last = next(mark for mark in marks if mark[1] >= EVENTS - AHEAD)
    return (last[1] - first[1]) / (last[0] - first[0]), waited_s


async def _preload_held(on: Rig, topic: str, of: list[TenantKey], count: int, last: TenantKey) -> None:
    producer, now = await on.producer(), time.time()
    for number, start in enumerate(range(0, count, BATCH)):
        batch = producer.create_batch()
        for one in range(start, min(start + BATCH, count)):
            tenant = last if one == count - 1 else of[one % len(of)]
            state = RetryState(Origin(topic, number % PARTITIONS, one), now, parks=1, reason="unusable")
            headers = [*state.headers(), *tenant_headers(tenant)]
            added = batch.append(key=None, value=event(tenant, one), timestamp=None, headers=headers)
            assert added is not None, "a batch holds fewer events than planned"
        await producer.send_batch(batch, held_topic(topic), partition=number % PARTITIONS)
    await producer.flush()


async def _main() -> None:
    async with rig() as on:
        print(await measure(on))


if __name__ == "__main__":
    asyncio.run(_main())
