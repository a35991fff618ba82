"""How many events a second one core turns into POSTs: a topic full of events, drained; and the same bytes by others.

The dispatcher and every program that it is compared with run on the same core by turns, so that a machine that becomes
slower becomes so for all of them. A rate is that of the middle of the backlog. The first fifth is warm-up: connections are
opened, of 10,000 tenants each is met for the first time. The end is left out as far as a subject may have read ahead, so
that as much is read as is sent in what is measured.
"""

import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from benchmarks.events import tenants
from benchmarks.forms import Form
from benchmarks.rig import Rig, Subject, until
from dispatcher.demo.child_process import free_ports

CONCURRENCY: Final = 64
"""Requests at once to one endpoint: `delivery.lane_max`, and what the clients without a dispatcher keep open."""
_FROM: Final = 0.2
AHEAD: Final = 5_000
"""Events that the dispatcher may read ahead here (`kafka.max_unfinished`, else 20,000): a quarter of that makes no
difference to its rate, and a shorter backlog is enough."""
_TO: Final = 0.95
_LOOK_S: Final = 0.02
LOG_S: Final = 0.3
"""The receiver writes its log every 50 ms."""


@dataclass(frozen=True, slots=True)
class Rate:
    """One run."""

    per_second: float
    cpu: float
    """Share of the subject's core that it used."""
    rss_mb: float
    neighbours: float = 0.0
    """Share of the subject's core that other processes took meanwhile."""


async def drained(rig: Rig, subject: Subject, count: int, timeout_s: float = 180, *, told_apart: bool = False) -> Rate:
    """Start the subject, and measure how fast this number of events arrives.

    `told_apart`: it sends webhook-ids, so that one event lost and another sent twice don't look like two.
    """
    rig.receiver.forget()
    before = rig.receiver.requests()
    marks: list[tuple[float, int, float, float]] = []

    def looked() -> int:
        came = rig.receiver.requests() - before
        marks.append((time.monotonic(), came, subject.cpu_s(), rig.cores.busy_s()))
        return came

    async with subject:
        subject.start()
        await until(lambda: looked() >= count, f"{count} requests", subject, timeout_s, _LOOK_S)
        rss_mb = subject.rss_mb()
        if told_apart:
            await _all_arrived(rig, subject, count)
        await subject.stop()
    first = next(mark for mark in marks if mark[1] >= count * _FROM)
    last = next(mark for mark in marks if mark[1] >= count - AHEAD)
    if last is first:
        raise RuntimeError(f"{subject.name}: {count} events are too few to measure it")
    seconds = last[0] - first[0]
    cpu, busy = ((last[index] - first[index]) / seconds for index in (2, 3))
    return Rate((last[1] - first[1]) / seconds, cpu, rss_mb, max(0.0, busy - cpu))


async def _all_arrived(rig: Rig, subject: Subject, count: int) -> None:
    for _ in range(20):  # what was repeated was counted, too: the last ones may still be on their way
        await asyncio.sleep(LOG_S)
        arrived = len({one.webhook_id for one in rig.receiver.came() if one.status == 204})
        if arrived == count:
            return
    raise RuntimeError(f"{subject.name}: of {count} events {arrived} arrived")


async def dispatcher(
    rig: Rig,
    count: int,
    of: int = 1,
    *,
    path: str = "",
    each: Mapping[str, Any] | None = None,
    form: Form | None = None,
    **changes: Any,
) -> Rate:
    """The dispatcher over a backlog of `count` events of `of` tenants.

    Args:
        path: what the endpoints' paths begin with; see `nginx`.
        each: further fields of every webhook.
        form: interpreted or compiled, and by which Python; the rig's if there is none.
        changes: to the settings, by group.
    """
    everyone = tenants(of)
    topic = await rig.topic()
    await rig.preload(topic, everyone, count)
    webhooks = rig.mount([rig.webhook(tenant, f"{path}/{tenant.org}", **(each or {})) for tenant in everyone])
    subject = rig.dispatcher(topic, webhooks, form=form, **({"kafka": {"max_unfinished": AHEAD}} | changes))
    rate = await drained(rig, subject, count, told_apart=True)
    await rig.delete_topics()
    return rate


class _Collector(BaseHTTPRequestHandler):
    """Takes spans (OTLP over HTTP)."""

    def do_POST(self) -> None:
        """Reads them and answers 200."""
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


async def traced(rig: Rig, count: int, ratio: float) -> Rate:
    """The dispatcher with tracing on: spans of this number of events go to a collector that takes them all."""
    collector = ThreadingHTTPServer(("127.0.0.1", 0), _Collector)
    with collector:
        serving = asyncio.get_running_loop().run_in_executor(None, collector.serve_forever)
        try:
            tracing = {
                "enabled": True,
                "endpoint": f"http://127.0.0.1:{collector.server_port}",
                "sample_ratio": ratio,
            }
            return await dispatcher(rig, count, tracing=tracing)
        finally:
            await asyncio.to_thread(collector.shutdown)
            await serving


async def plain(rig: Rig, count: int) -> Rate:
    """The 60 lines of `plain.py` over the same backlog."""
    topic = await rig.topic()
    await rig.preload(topic, tenants(1), count)
    url = rig.receiver.url("")
    command = [sys.executable, "-m", "benchmarks.plain", rig.bootstrap_servers, topic, url, str(rig.receiver.ca)]
    rate = await drained(rig, Subject("plain", command, rig), count)
    await rig.delete_topics()
    return rate


async def client(rig: Rig, kind: str, count: int) -> Rate:
    """`bare` or `aiohttp`: a client alone, without Kafka, posting the same bytes."""
    command = [
        sys.executable, "-m", "benchmarks.references", kind, rig.receiver.url("/org00000"), str(rig.receiver.ca),
        str(count), str(CONCURRENCY),
    ]  # fmt: skip
    pinned = [] if rig.cores.subject is None else ["taskset", "-c", str(rig.cores.subject)]
    done = await asyncio.to_thread(subprocess.run, [*pinned, *command], capture_output=True, text=True, timeout=180)
    if done.returncode:
        raise RuntimeError(f"the {kind} client failed:\n{done.stderr[-2000:]}")
    return Rate(count / float(done.stdout), 1.0, 0.0)


async def wrk(rig: Rig, seconds: int) -> Rate:
    """wrk with the same body: what a client in C does on this core."""
    from benchmarks.references import request_parts

    _, headers, body = request_parts(rig.receiver.url("/org00000"))
    script = rig.directory / "post.lua"
    lines = ['wrk.method = "POST"', f"wrk.body = {json.dumps(body.decode())}"]
    lines += [f'wrk.headers["{name}"] = "{value}"' for name, value in (*headers, ("content-type", "application/json"))]
    script.write_text("\n".join(lines))
    pinned = [] if rig.cores.subject is None else ["taskset", "-c", str(rig.cores.subject)]
    command = ["wrk", "-t1", f"-c{CONCURRENCY}", f"-d{seconds}s", "-s", str(script), rig.receiver.url("/org00000")]
    done = await asyncio.to_thread(subprocess.run, [*pinned, *command], capture_output=True, text=True, timeout=60)
    line = next(line for line in done.stdout.splitlines() if line.startswith("Requests/sec"))
    return Rate(float(line.split()[1]), 1.0, 0.0)


async def beside_bad_tenants(rig: Rig, count: int = 20_000) -> float:
    """The healthy tenants' rate at saturation with a fifth bad tenants beside them, as a share of their rate alone.

    What the bad tenants' events cost of the core (attempts, parking) comes out of the healthy ones' rate: at
    saturation nothing is free. Endpoints: a closed port, an answer after 2 s, 429.
    """
    everyone = tenants(50)
    healthy, bad = everyone[10:], everyone[:10]
    ways = ["/after-2000", "/throttled", ""]
    webhooks = [rig.webhook(tenant, f"/healthy/{tenant.org}") for tenant in healthy]
    for number, tenant in enumerate(bad):
        webhook = rig.webhook(tenant, f"{ways[number % 3]}/{tenant.org}")
        webhooks.append(
            webhook if ways[number % 3] else webhook | {"url": f"https://localhost:{free_ports(1)[0]}/dead"}
        )
    mounted = rig.mount(webhooks)
    found = []
    for of, in_all in ((healthy, count), (everyone, count * len(everyone) // len(healthy))):
        topic = await rig.topic()
        await rig.preload(topic, of, in_all)
        rig.receiver.forget()
        async with rig.dispatcher(topic, mounted) as subject:
            subject.start()
            at: list[float] = []
            give_up_at = time.monotonic() + 120
            while len(at) < count:
                if time.monotonic() > give_up_at or not subject.running:
                    raise RuntimeError(f"of {count} healthy events {len(at)} arrived:\n{subject.log}")
                await asyncio.sleep(1)
                at = sorted(
                    {one.webhook_id: one.at for one in rig.receiver.came() if one.path.startswith("/healthy")}.values()
                )
            await subject.stop()
        await rig.delete_topics()
        found.append(int(count * _TO) / (at[int(count * _TO)] - at[0]))
    return found[1] / found[0]


def median(rates: list[Rate], of: Callable[[Rate], float] = lambda rate: rate.per_second) -> float:
    """The median of the runs."""
    return statistics.median(map(of, rates))


def spread(rates: list[Rate]) -> float:
    """Largest less smallest, as a share of the median."""
    rates_ = [rate.per_second for rate in rates]
    return (max(rates_) - min(rates_)) / statistics.median(rates_)
