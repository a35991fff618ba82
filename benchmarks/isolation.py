"""No tenant slows another: healthy tenants' throughput and p99 with and without 20 % bad tenants, in one run.

Both halves send the same stream to the same healthy tenants at the same rate; the second one adds tenants that are
dead, slow (2 s) or throttle (429 with Retry-After), a fifth of all, at their share of the rate. Latency is from the
append in Kafka to the arrival of the POST.
"""

import asyncio
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dispatcher.contract.tenant import TenantKey
from dispatcher.demo.child_process import free_ports
from tests.integration.harness import Stage, slowly, status, tenants, webhook_id_of
from tests.integration.harness import stage as stage_of
from tests.kafka.apache_kafka import ApacheKafka

TENANTS = 50
BAD = 10
RATE = 200
"""Events a second for the healthy tenants together: well below what the machine can do, since latency is measured."""
SECONDS = 20
REPEATS = 3
_TICK_S = 0.05
_BAD_A_TICK = max(1, int(RATE * _TICK_S * BAD / (TENANTS - BAD)))


@dataclass(frozen=True, slots=True)
class Half:
    """One stretch of the stream, as the healthy tenants saw it."""

    per_second: float
    p50_ms: float
    p99_ms: float


async def measure(seconds: float = SECONDS) -> dict[str, Any]:
    """Run both halves by turns, each for this time; the medians and their ratios."""
    everyone = tenants(TENANTS)
    healthy, bad = everyone[BAD:], everyone[:BAD]
    alone: list[Half] = []
    beside: list[Half] = []
    with tempfile.TemporaryDirectory() as name:
        async with ApacheKafka() as kafka, stage_of(kafka.bootstrap_servers, Path(name)) as stage:
            stage.mount([*map(stage.webhook, healthy), *_bad_webhooks(stage, bad)])
            async with stage.dispatcher() as dispatcher:
                dispatcher.start()
                await dispatcher.ready()
                await _half(stage, healthy, (), "warm", seconds=5)
                for processing in range(REPEATS):
                    alone.append(await _half(stage, healthy, (), f"alone{processing}", seconds))
                    beside.append(await _half(stage, healthy, bad, f"beside{processing}", seconds))
    a, b = _median(alone), _median(beside)
    return {
        "ratios": {
            "healthy_throughput_with_bad_tenants": round(b.per_second / a.per_second, 3),
            "healthy_p99_with_bad_tenants": round(b.p99_ms / a.p99_ms, 3),
        },
        "alone": [_row(half) for half in alone],
        "beside": [_row(half) for half in beside],
    }


def _bad_webhooks(stage: Stage, bad: Sequence[TenantKey]) -> list[dict[str, object]]:
    webhooks: list[dict[str, object]] = []
    for number, tenant in enumerate(bad):
        if number % 3 == 0:
            webhooks.append(stage.webhook(tenant) | {"url": f"https://localhost:{free_ports(1)[0]}/dead"})
            continue
        stage.receiver.behave(f"/{tenant.org}", slowly(2) if number % 3 == 1 else status(429, retry_after="2"))
        webhooks.append(stage.webhook(tenant))
    return webhooks


async def _half(
    stage: Stage, healthy: Sequence[TenantKey], bad: Sequence[TenantKey], prefix: str,
    seconds: float = SECONDS,
) -> Half:  # fmt: skip
    sent: dict[str, float] = {}
    began = time.monotonic()
    ticks = int(seconds / _TICK_S)
    for tick in range(ticks):
        await asyncio.sleep(max(0.0, began + tick * _TICK_S - time.monotonic()))
        await _produce(stage, _from(healthy, tick), int(RATE * _TICK_S), f"{prefix}-{tick}", sent)
        if bad:
            await _produce(
                stage,
                _from(bad, tick),
                _BAD_A_TICK,
                f"{prefix}-bad-{tick}",
                None,
            )
    accepted_at = stage.receiver.accepted_at
    for _ in range(200):
        if all(name in accepted_at for name in sent):
            break
        await asyncio.sleep(0.1)
    last = max(accepted_at[name] for name in sent)  # a missing one is a lost event: let it fail
    latencies = sorted((accepted_at[name] - at) * 1000 for name, at in sent.items())
    return Half(len(sent) / (last - began), statistics.median(latencies), latencies[int(len(latencies) * 0.99)])


def _from(of: Sequence[TenantKey], tick: int) -> list[TenantKey]:
    """The tenants, beginning with another one each time."""
    at = tick * 7 % len(of)
    return [*of[at:], *of[:at]]


async def _produce(
    stage: Stage, of: Sequence[TenantKey], count: int, prefix: str, sent: dict[str, float] | None
) -> None:
    if sent is not None:
        now = time.monotonic()
        for number in range(count):
            tenant = of[number % len(of)]
            sent[webhook_id_of(tenant, f"{prefix}-{number}")] = now
    await stage.produce(of, count, prefix)


def _row(half: Half) -> dict[str, float]:
    return {"per_second": round(half.per_second, 1), "p50_ms": round(half.p50_ms, 1), "p99_ms": round(half.p99_ms, 1)}


def _median(halves: Sequence[Half]) -> Half:
    return Half(
        statistics.median(half.per_second for half in halves),
        statistics.median(half.p50_ms for half in halves),
        statistics.median(half.p99_ms for half in halves),
    )
