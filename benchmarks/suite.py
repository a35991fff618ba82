"""The scenarios, in one run and by turns, so that each ratio is of figures taken minutes apart at most."""

import asyncio
import base64
import os
import shlex
import statistics
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import psutil
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from benchmarks import footprint, held, history, isolation, pages, programs, throughput
from benchmarks.events import tenants
from benchmarks.forms import Form, forms
from benchmarks.rig import Rig, Subject, rig
from benchmarks.throughput import Rate, median, spread

Measure = Callable[[Rig], Awaitable[Rate]]

MOST_BY_NEIGHBOURS: Final = 0.05
"""A run in which other processes took more of the subject's core is discarded."""
_ATTEMPTS: Final = 4


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    full: bool = False
    peers: Mapping[str, str] = field(default_factory=dict)
    pythons: Sequence[str] = ()
    """Interpreters to compare; the compiled form on the last one is the dispatcher of all other figures."""

    @property
    def runs(self) -> int:
        return 5 if self.full else 3


_EVENTS: Final = 150_000
"""Of one run: six seconds, so that what happens once (imports for the first span, the first connections) has no part in
a steady rate."""
_HISTORY: Final = {"store": "none"}
"""Dispatchers write the topic; what reads it runs elsewhere."""
_MAIN: Final[Mapping[str, Measure]] = {
    "bare client": lambda on: throughput.client(on, "bare", _EVENTS),
    "dispatcher": lambda on: throughput.dispatcher(on, _EVENTS),
    "dispatcher, 10 tenants": lambda on: throughput.dispatcher(on, _EVENTS, 10),
    "dispatcher, 200 tenants": lambda on: throughput.dispatcher(on, _EVENTS, 200),
    "dispatcher, 10,000 tenants": lambda on: throughput.dispatcher(on, _EVENTS, 10_000),
    "dispatcher, history": lambda on: throughput.dispatcher(on, _EVENTS, history=_HISTORY),
    "dispatcher, history, 10,000 tenants": lambda on: throughput.dispatcher(on, _EVENTS, 10_000, history=_HISTORY),
    "dispatcher, one event in 100 traced": lambda on: throughput.traced(on, _EVENTS, 0.01),
    "plain pipeline": lambda on: throughput.plain(on, 24_000),
}
"""By turns, `runs` times."""
_ONCE: Final[Mapping[str, Measure]] = {
    "aiohttp client": lambda on: throughput.client(on, "aiohttp", 15_000),
    "wrk": lambda on: throughput.wrk(on, 3),
    "dispatcher on aiohttp": lambda on: throughput.dispatcher(on, 15_000, delivery={"transport": "aiohttp"}),
}


async def measure(plan: Plan) -> dict[str, Any]:
    """Everything that was planned; ratios and what they were made from."""
    async with rig() as on:
        taken: dict[str, list[Rate]] = {}
        discarded: Counter[str] = Counter()
        references = await asyncio.to_thread(_references, on.directory)
        _say("compiling")
        *others, on.form = await asyncio.to_thread(forms, plan.pythons, on.directory)
        main = dict(_MAIN) | references | _others(others)
        for processing in range(plan.runs):
            for name, one in main.items():
                _say(f"{name} ({processing + 1} of {plan.runs})")
                taken.setdefault(name, []).append(await _undisturbed(on, name, one, discarded))
        figures = await _half_load(on, plan, median(taken["dispatcher"]))
        further = (
            dict(_ONCE)
            | (_variants(on) if plan.full else {})
            | {f"peer {name}": _peer(name, command) for name, command in plan.peers.items()}
        )
        for name, one in further.items():
            _say(name)
            runs = range(plan.runs if plan.full else 1)
            taken[name] = [await _undisturbed(on, name, one, discarded) for _ in runs]
        members = await _two_members(on) if plan.full and (os.cpu_count() or 1) > 1 else {}
        if plan.full:
            _say("20 % bad tenants at saturation")
        crowded = await throughput.beside_bad_tenants(on) if plan.full else None
        if plan.full:
            _say("a million held events")
        beside_held = await held.measure(on) if plan.full else None
        figures |= await _footprint(on, plan)
    stores: dict[str, Any] = {}
    if plan.full:
        _say("five million history entries")
        stores["history"] = await history.measure()
        _say("10,000 webhooks and a million entries in the console")
        stores["pages"] = await pages.measure()
    _say("isolation")
    isolated = await isolation.measure(isolation.SECONDS if plan.full else isolation.SECONDS / 2)
    if crowded is not None:
        isolated["ratios"]["healthy_throughput_with_bad_tenants_at_saturation"] = crowded
    if beside_held is not None:
        isolated["ratios"] |= beside_held.pop("ratios")
        isolated["held"] = beside_held
    result = _result(taken, figures, isolated, members) | stores
    shipped = on.form
    result["form"] = {"name": shipped.name, "interpreter": shipped.build}
    result["interpreters"] = {form.name: form.build for form in others}
    for name, rate in result["rates"].items():
        rate["discarded"] = discarded[name]
    return result


async def _undisturbed(on: Rig, name: str, one: Measure, discarded: Counter[str]) -> Rate:
    """Measures again, a few times, if other processes took a part of the subject's core; counts what was discarded.

    Raises:
        RuntimeError: the machine is too busy for figures that mean something.
    """
    for _ in range(_ATTEMPTS):
        rate = await one(on)
        if rate.neighbours <= MOST_BY_NEIGHBOURS:
            return rate
        discarded[name] += 1
        _say(f"discarded: other processes took {rate.neighbours:.0%} of the core")
    raise RuntimeError(f"{name}: other processes took the subject's core in each of {_ATTEMPTS} runs")


def _others(others: Sequence[Form]) -> dict[str, Measure]:
    """The forms beside the shipped one, with one tenant and with 200."""
    return {
        f"dispatcher, {form.name}{suffix}": partial(_of_form, form=form, of=of)
        for form in others
        for suffix, of in (("", 1), (", 200 tenants", 200))
    }


async def _of_form(on: Rig, form: Form, of: int) -> Rate:
    return await throughput.dispatcher(on, _EVENTS, of, form=form)


_PROGRAMS: Final = {"Go program": "go", "Benthos": "benthos"}
"""By their names in the report."""


def _references(folder: Path) -> dict[str, Measure]:
    """The programs in Go that can be built here, with one tenant and with 200. Says which are missing, and why."""
    found: dict[str, Measure] = {}
    for title, name in _PROGRAMS.items():
        _say(f"building {title}")
        try:
            program = programs.build(name, folder)
        except programs.CannotBuildError as missing:
            _say(f"{title}: missing, because {missing}")
            continue
        count = programs.EVENTS[name]
        for suffix, of in (("", 1), (", 200 tenants", 200)):
            found[f"{title}{suffix}"] = partial(programs.measure, program=program, count=count, of=of)
    return found


def against_programs(taken: Mapping[str, list[Rate]]) -> dict[str, float]:
    """The dispatcher's rate as a multiple of each program's that was measured, with one tenant and with 200."""
    return {
        f"end_to_end_vs_{title.lower().replace(' ', '_')}{key}": median(taken[f"dispatcher{suffix}"])
        / median(taken[f"{title}{suffix}"])
        for title in _PROGRAMS
        for suffix, key in (("", ""), (", 200 tenants", "_200_tenants"))
        if f"{title}{suffix}" in taken
    }


async def _half_load(on: Rig, plan: Plan, per_second: float) -> dict[str, float]:
    """Next to the rate that it is half of: later the broker, beside us on its core, sweeps up the topics of everything else."""
    _say("latency at half load")
    latencies = [await footprint.half_load_ms(on, per_second) for _ in range(plan.runs)]
    latency = sorted(latencies, key=lambda one: one["p99"])[len(latencies) // 2]
    return {
        "half_load_p50_ms": round(latency["p50"], 1),
        "half_load_p99_ms": round(latency["p99"], 1),
        "half_load_per_second": round(latency["per_second"]),
    }


async def _footprint(on: Rig, plan: Plan) -> dict[str, float]:
    _say("memory")
    before = await footprint.resident_before_first_event_mb(on)
    memory = await footprint.memory(on)
    _say("cold start")
    starts = [await footprint.cold_start_s(on) for _ in range(plan.runs)]
    return {
        "rss_mb_before_first_event": round(before),
        "rss_mb_at_20000_in_flight": round(memory["rss_mb"]),
        "in_flight": round(memory["unfinished"]),
        "idle_connection_kb": round(await asyncio.to_thread(footprint.idle_connection_kb, on), 1),
        "cold_start_s": round(statistics.median(starts), 2),
    }


def _result(
    taken: Mapping[str, list[Rate]],
    figures: Mapping[str, float],
    isolated: dict[str, Any],
    members: Mapping[str, float],
) -> dict[str, Any]:
    ours, bare = median(taken["dispatcher"]), median(taken["bare client"])
    ratios = {
        "end_to_end_vs_bare_client": ours / bare,
        "end_to_end_vs_plain_pipeline": ours / median(taken["plain pipeline"]),
        "tenants_10000_vs_1": median(taken["dispatcher, 10,000 tenants"]) / ours,
        "tenants_10000_vs_10": median(taken["dispatcher, 10,000 tenants"]) / median(taken["dispatcher, 10 tenants"]),
        "tenants_200_vs_1": median(taken["dispatcher, 200 tenants"]) / ours,
        "history_vs_none": median(taken["dispatcher, history"]) / ours,
        "history_vs_none_10000_tenants": median(taken["dispatcher, history, 10,000 tenants"])
        / median(taken["dispatcher, 10,000 tenants"]),
        "traced_vs_untraced": median(taken["dispatcher, one event in 100 traced"]) / ours,
        "aiohttp_transport_vs_lean": median(taken["dispatcher on aiohttp"]) / ours,
        **against_programs(taken),
        **isolated.pop("ratios"),
    }
    if "peer Bento" in taken:
        ratios["end_to_end_vs_bento"] = ours / median(taken["peer Bento"])
    if members:
        ratios["two_members_vs_one"] = members["per_second"] / ours
    return {
        "ratios": {name: round(ratio, 3) for name, ratio in ratios.items()},
        **figures,
        **_memory_each(taken, figures),
        **({"two_members": members} if members else {}),
        "rates": {
            name: {
                "per_second": round(median(rates)),
                "vs_dispatcher": round(median(rates) / ours, 3),
                "spread": round(spread(rates), 3),
                "runs": len(rates),
                "core_used": round(median(rates, lambda rate: rate.cpu), 2),
            }
            for name, rates in taken.items()
        },
        "isolation": isolated,
    }


def _memory_each(taken: Mapping[str, list[Rate]], figures: Mapping[str, float]) -> dict[str, float]:
    """Kilobytes a tenant (configured, with its lane), and an event in flight (its record, task, and share of connections)."""

    def rss_mb(name: str) -> float:
        return median(taken[name], lambda rate: rate.rss_mb)

    one = rss_mb("dispatcher")
    in_flight = (figures["rss_mb_at_20000_in_flight"] - rss_mb("dispatcher, 200 tenants")) / max(
        1, figures["in_flight"]
    )
    return {
        "kb_a_tenant": round((rss_mb("dispatcher, 10,000 tenants") - one) / 9_999 * 1000, 1),
        "kb_an_event_in_flight": round(in_flight * 1000, 1),
    }


def _variants(on: Rig) -> dict[str, Measure]:
    """What an event costs with more to do for it, and endpoints that take their time."""

    def secret(name: str, value: bytes) -> dict[str, str]:
        path = on.directory / "webhook-secrets" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(value)
        return {"file": str(path)}

    pem = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    es256 = secret("es256.pem", ec.generate_private_key(ec.SECP256R1()).private_bytes(*pem))
    hs256 = secret("hs256", b"k" * 64)
    v1 = secret("whsec", b"whsec_" + base64.b64encode(b"s" * 32))
    seed = ed25519.Ed25519PrivateKey.generate().private_bytes_raw()
    v1a = secret("whsk", b"whsk_" + base64.b64encode(seed))

    def token(algorithm: str, key: dict[str, str], *, body_hash: bool) -> dict[str, Any]:
        return {
            "auth": {"type": "jwt", "sign": {"algorithm": algorithm, "key": key, "issuer": "b", "body_hash": body_hash}}
        }

    def variant(count: int = 30_000, of: int = 1, **each: Any) -> Measure:
        return lambda rig_: throughput.dispatcher(rig_, count, of, each=each)

    def late(ms: int, count: int, of: int) -> Measure:
        return lambda rig_: throughput.dispatcher(
            rig_, count, of, path=f"/after-{ms}", delivery={"max_in_flight": 2000}
        )

    return {
        "JWT cached (HS256)": variant(**token("HS256", hs256, body_hash=False)),
        "JWT a request (HS256)": variant(**token("HS256", hs256, body_hash=True)),
        "JWT a request (ES256)": variant(**token("ES256", es256, body_hash=True)),
        "signature v1": variant(signing={"secrets": [v1]}),
        "signature v1a": variant(signing={"secrets": [v1a]}),
        "payload 2": variant(payload=2),
        "endpoints of 50 ms, 200 tenants": late(50, 20_000, 200),
        "endpoints of 500 ms, 200 tenants": late(500, 15_000, 200),
        "backlog of 100,000, 200 tenants": variant(100_000, 200),
    }


def _peer(name: str, command: str) -> Measure:
    async def run(on: Rig) -> Rate:
        topic = await on.topic()
        await on.preload(topic, tenants(1), 20_000)
        env = {
            "KAFKA_BOOTSTRAP_SERVERS": on.bootstrap_servers, "KAFKA_TOPIC": topic,
            "TARGET_URL": on.receiver.url("/org00000"), "TARGET_CA": str(on.receiver.ca),
        }  # fmt: skip
        rate = await throughput.drained(on, Subject(name, shlex.split(command), on, env), 20_000)
        await on.delete_topics()
        return rate

    return run


async def _two_members(on: Rig) -> dict[str, float]:
    """Two processes of one group on a core each, broker and receiver beside the second: events a second, and who used that core.

    Broker and receiver take their part of the second core in any case; the second member has the rest.
    """
    _say("two members of one group")
    everyone, count = tenants(200), 40_000
    topic = await on.topic()
    await on.preload(topic, everyone, count)
    webhooks = on.mount([on.webhook(tenant) for tenant in everyone])
    async with on.dispatcher(topic, webhooks, name="second", group=f"two-{topic}") as second:
        second.start(on.cores.others)
        beside = {"second_member": second.process, "broker": on.broker, "receiver": psutil.Process(on.receiver.pid)}
        used = {name: _cpu_s(process) for name, process in beside.items()}
        first = on.dispatcher(topic, webhooks, name="first", group=f"two-{topic}")
        rate = await throughput.drained(on, first, count, told_apart=True)
        used = {name: _cpu_s(process) - used[name] for name, process in beside.items()}
        await second.stop()
    await on.delete_topics()
    shares = {f"{name}_share_of_second_core": round(one / sum(used.values()), 2) for name, one in used.items()}
    return {"per_second": rate.per_second, "first_core_used": round(rate.cpu, 2), **shares}


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _say(what: str) -> None:
    print(f"… {what}", flush=True)


if __name__ == "__main__":
    print(asyncio.run(measure(Plan())))
