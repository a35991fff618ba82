"""How much one needs for how many events a day, from what the benchmarks measured.

python -m deploy.capacity --events-a-day 50e6 --latency 0.3      for your load, as text
python -m deploy.capacity --write                                writes the guide's figures and its worked example
"""

import argparse
import json
import math
import re
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
GUIDE = ROOT / "docs" / "operating.md"
TEMPLATE = Path(__file__).with_suffix(".md")
RESULTS = ROOT / "benchmarks" / "results" / "latest.json"

MOST_IN_FLIGHT = 500
"""Default of delivery.max_in_flight."""
LIMIT_MIB = 768
"""Default of the chart's memory limit."""
HEADROOM = 0.6
"""Share of a pod's rate that is planned with: a zone may fail, and a backlog must be caught up with."""
UNFINISHED, UNFINISHED_BYTES = 20_000, 128 * 2**20
"""The defaults of kafka.max_unfinished and kafka.max_unfinished_bytes."""
CPU_BOUND = "dispatcher, 200 tenants"
"""The rate that a core allows. Rates with slow endpoints are bound by `max_in_flight`, which `Plan` computes itself."""
PARTITIONS = (3, 6, 12, 24, 36, 48, 60, 72, 96, 120, 144, 180, 240, 360, 480, 720)
DAY_S = 86_400


@dataclass(frozen=True, slots=True)
class Load:
    """The load to carry."""

    events_a_day: float = 1e9
    peak: float = 3.0
    """Busiest hour over the mean."""
    record_kb: float = 1.5
    """A record in Kafka."""
    request_kb: float = 1.8
    """A request with its headers."""
    eligible: float = 0.8
    """Share of the events that are for a webhook."""
    latency: float = 0.12
    """Seconds that an endpoint takes to answer, on average."""
    parked: float = 0.02
    times_parked: float = 3.0
    dead: float = 0.001
    retention_days: float = 3.0
    replicas: float = 3.0


@dataclass(frozen=True, slots=True)
class Measured:
    """The capacity of one pod, by benchmarks/results/latest.json."""

    per_second: float
    base_mb: float
    kb_in_flight: float

    @classmethod
    def read(cls) -> "Measured":
        """The last run of `make bench`."""
        found = json.loads(RESULTS.read_text())
        kb = found["kb_an_event_in_flight"]
        base = found["rss_mb_at_20000_in_flight"] - found["in_flight"] * kb / 1000
        return cls(found["rates"][CPU_BOUND]["per_second"], base, kb)

    @property
    def most_mb(self) -> float:
        """Resident memory when as much is in flight as may be, in number and in bytes."""
        return self.base_mb + UNFINISHED * self.kb_in_flight / 1000 + 2 * UNFINISHED_BYTES / 1e6


@dataclass(frozen=True, slots=True)
class Plan:
    """The pods and settings that carry a load."""

    load: Load
    measured: Measured

    @property
    def mean(self) -> float:
        return self.load.events_a_day / DAY_S

    @property
    def posts(self) -> float:
        """A second, on average."""
        return self.mean * (self.load.eligible + self.load.parked * self.load.times_parked)

    @property
    def in_flight(self) -> float:
        """Requests under way at the peak."""
        return self.posts * self.load.peak * self.load.latency

    @property
    def by_cpu(self) -> float:
        """Pods whose cores carry the peak."""
        return self.mean * self.load.peak / (self.measured.per_second * HEADROOM)

    @property
    def by_permits(self) -> float:
        """Pods that may have the peak's requests under way."""
        return self.in_flight / (MOST_IN_FLIGHT * HEADROOM)

    @property
    def needed(self) -> int:
        """Pods, by what asks for most; at least two."""
        return max(2, math.ceil(self.by_cpu), math.ceil(self.by_permits))

    @property
    def sized(self) -> tuple[int, int]:
        """Pods and partitions: room to grow threefold, and as many partitions for each pod."""
        for partitions in PARTITIONS:
            pods = next((n for n in range(self.needed, partitions + 1) if partitions % n == 0), None)
            if pods is not None and partitions >= 3 * pods:
                return pods, partitions
        return self.needed, 3 * self.needed

    @property
    def spare(self) -> float:
        """Events a second above the mean that all pods together can do."""
        return self.sized[0] * self.measured.per_second - self.mean


def _count(number: float) -> str:
    """1234567 as 1.23 million, 43210 as 43,200."""
    for size, name in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if number >= size:
            return f"{number / size:.3g} {name}"
    digits = max(0, 3 - len(str(int(number))))
    return f"{float(f'{number:.3g}'):,.{0 if number >= 100 else digits}f}"


def _bytes(kilobytes: float) -> str:
    for size, name in ((1e9, "TB"), (1e6, "GB"), (1e3, "MB")):
        if kilobytes >= size:
            return f"{kilobytes / size:.3g} {name}"
    return f"{kilobytes:.3g} kB"


def describe(plan: Plan) -> str:
    """The plan as text: what is assumed, the rates, and what they need."""
    load, pods, partitions = plan.load, *plan.sized
    peak, out = plan.mean * load.peak, plan.posts * load.request_kb
    parked_kb = (load.record_kb + 0.5) * load.replicas * load.events_a_day  # 0.5: its headers
    away = 0.1 * plan.mean * 6 * 3600
    again = load.parked * load.times_parked
    return TEMPLATE.read_text().format(
        load=load,
        latency_ms=f"{load.latency * 1000:.0f}",
        one=_count(plan.measured.per_second),
        headroom=f"{HEADROOM:.0%}",
        events=_count(load.events_a_day),
        read=_count(plan.mean),
        read_at_peak=_count(peak),
        again=f"{again:.0%}",
        posts=_count(plan.posts),
        posts_at_peak=_count(plan.posts * load.peak),
        kafka=_bytes(plan.mean * load.record_kb),
        kafka_at_peak=_bytes(peak * load.record_kb),
        egress=_bytes(out),
        egress_at_peak=_bytes(out * load.peak),
        megabits=_count(out * load.peak * 8 / 1000),
        in_flight=_count(plan.in_flight / load.peak),
        in_flight_at_peak=_count(plan.in_flight),
        in_flight_of_one=_count(plan.in_flight / pods),
        most_in_flight=MOST_IN_FLIGHT,
        by_cpu=f"{plan.by_cpu:.1f}",
        by_permits=f"{plan.by_permits:.1f}",
        needed=plan.needed,
        pods=pods,
        partitions=partitions,
        partitions_of_one=partitions // pods,
        read_of_a_partition=_count(peak / partitions),
        memory=f"{pods * LIMIT_MIB / 1024:g}",
        limit=LIMIT_MIB,
        disk=_bytes(load.events_a_day * load.record_kb * load.retention_days * load.replicas),
        disk_retry=_bytes(parked_kb * again * 4),
        disk_dead=_bytes(parked_kb * load.dead * 14),
        connections=f"{pods * 64:,}",
        hour=_count(plan.mean * 3600),
        spare=_count(plan.spare),
        minutes=math.ceil(plan.mean * 60 / plan.spare),
        away=_count(away),
        away_each_quarter=_count(away / 900),
        away_each_hour=_count(away / 3600),
        away_share=f"{away / 900 / peak:.0%}",
    )


def figures(measured: Measured) -> str:
    """Returns the guide's text about the capacity of one pod."""
    return f"""\
| measured by `make bench` on the machine named in [latest.json](../benchmarks/results/latest.json) | |
|---|---|
| events a second of one pod, one core, TLS, many tenants | {_count(measured.per_second)} |
| resident memory with all connections open, without events | {measured.base_mb:.0f} MB |
| memory of one event in flight, 1 kB each | {measured.kb_in_flight:.1f} kB |
| at most, with {UNFINISHED:,} in flight and their {UNFINISHED_BYTES // 2**20} MiB twice | {measured.most_mb:.0f} MB |
"""


def written() -> str:
    """Returns the guide with current figures and a current example."""
    measured, text = Measured.read(), GUIDE.read_text()
    for name, block in (("figures", figures(measured)), ("example", describe(Plan(Load(), measured)))):
        pattern = rf"(?<=<!-- {name}: made by deploy.capacity -->\n).*?(?=<!-- /{name} -->)"
        text, found = re.subn(pattern, lambda _, block=block: f"\n{block}\n", text, flags=re.DOTALL)  # type: ignore[misc]
        if found != 1:
            raise ValueError(f"{GUIDE.name} has no place for the {name}")
    return text


def main() -> None:
    """Plan for a load, or write the guide."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="write the guide's current figures")
    for one in fields(Load):
        default: Any = one.default
        parser.add_argument(f"--{one.name.replace('_', '-')}", type=float, default=default, metavar=f"{default:g}")
    options = vars(parser.parse_args())
    if options.pop("write"):
        GUIDE.write_text(written())
    else:
        sys.stdout.write(describe(Plan(Load(**options), Measured.read())))


if __name__ == "__main__":
    main()
