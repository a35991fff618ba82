"""How much one needs for how many events a day, from what the benchmarks measured.

python -m deploy.capacity --events-a-day 50e6 --latency 0.3      for your load, as text
python -m deploy.capacity --write                                writes the guide's figures and its worked example
"""

import argparse
import json
import math
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

ROOT = Path(__file__).parents[1]
GUIDE = ROOT / "docs" / "operating.md"
TEMPLATE = Path(__file__).with_suffix(".md")
RESULTS = ROOT / "benchmarks" / "results" / "latest.json"

MOST_IN_FLIGHT = 500
"""Default of delivery.max_in_flight."""
HIGHEST_IN_FLIGHT = 10_000
"""The highest value that delivery.max_in_flight can have."""
LIMIT_MIB = 768
"""Default of the chart's memory limit."""
HEADROOM = 0.6
"""Share of a pod's rate that is planned with: a zone may fail, and a backlog must be caught up with."""
UNFINISHED, UNFINISHED_BYTES = 20_000, 128 * 2**20
"""The defaults of kafka.max_unfinished and kafka.max_unfinished_bytes."""
TENANTS = 200
"""The number of tenants with which memory was measured."""
CPU_BOUND = re.compile(r"dispatcher(?:, ([\d,]+) tenants)?")
"""The rates that a core allows. Rates with slow endpoints are bound by permits, which `Plan` computes itself."""
PARTITIONS = (3, 6, 12, 24, 36, 48, 60, 72, 96, 120, 144, 180, 240, 360, 480, 720)
DAY_S = 86_400


def _number(default: float, least: float, most: float, meaning: str) -> float:
    """Declares a number of the load, which is an option of the command line, too."""
    return field(default=default, metadata={"bounds": (least, most), "help": meaning})


def _switch(meaning: str) -> bool:
    return field(default=False, metadata={"help": meaning})


def _between(least: float, most: float) -> Callable[[str], float]:
    def number(text: str) -> float:
        value = float(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text} is not between {least:g} and {most:g}")
        return value

    return number


@dataclass(frozen=True, slots=True)
class Load:
    """The load to carry."""

    events_a_day: float = _number(1e9, 1, 1e13, "events read a day")
    peak: float = _number(3.0, 1, 1000, "busiest hour over the mean")
    record_kb: float = _number(1.5, 0.01, 1e5, "kilobytes of a record in Kafka")
    request_kb: float = _number(1.8, 0.01, 1e5, "kilobytes of a request with its headers")
    eligible: float = _number(0.8, 0.0001, 1, "share of the events that are for a webhook")
    latency: float = _number(0.12, 0.0001, 60, "seconds that an endpoint takes to answer, on average")
    parked: float = _number(0.02, 0, 1, "share of the events that are parked")
    times_parked: float = _number(3.0, 0, 1000, "times that a parked event is parked")
    dead: float = _number(0.001, 0, 1, "share of the events that become dead letters")
    retention_days: float = _number(3.0, 0, 36_500, "days that Kafka keeps an event")
    replicas: float = _number(3.0, 1, 100, "copies of a record in Kafka")
    tenants: float = _number(TENANTS, 1, 1e6, "tenants with a webhook")
    max_in_flight: float = _number(MOST_IN_FLIGHT, 1, HIGHEST_IN_FLIGHT, "delivery.max_in_flight of each pod")
    history: bool = _switch("with history: history.url is set, or history.store is none")
    traced: bool = _switch("with traces of one event in 100")

    @property
    def posts_an_event(self) -> float:
        return self.eligible + self.parked * self.times_parked


@dataclass(frozen=True, slots=True)
class Measured:
    """The capacity of one pod, by benchmarks/results/latest.json."""

    per_second: Mapping[int, float]
    """Events that a core can send, by the number of tenants."""
    history_share: float
    """What remains of that rate with history."""
    traced_share: float
    """What remains of that rate with one event in 100 traced."""
    first_mb: float
    """Resident memory before the first event."""
    base_mb: float
    """Resident memory with all connections open, without events."""
    kb_in_flight: float
    kb_a_tenant: float
    kb_a_connection: float

    @classmethod
    def read(cls) -> "Measured":
        """Returns what the last run of `make bench` measured."""
        found = json.loads(RESULTS.read_text())
        kb = found["kb_an_event_in_flight"]
        base = found["rss_mb_at_20000_in_flight"] - found["in_flight"] * kb / 1000
        rates = ((CPU_BOUND.fullmatch(name), rate["per_second"]) for name, rate in found["rates"].items())
        ratios = found["ratios"]
        return cls(
            {int((name[1] or "1").replace(",", "")): rate for name, rate in rates if name is not None},
            ratios["history_vs_none"],
            ratios["traced_vs_untraced"],
            found["rss_mb_before_first_event"],
            base,
            kb,
            found["kb_a_tenant"],
            found["idle_connection_kb"],
        )

    def tenants(self, wanted: float) -> int:
        """Returns the number of tenants of the measurement that counts: the next larger one, or the largest."""
        return min((number for number in self.per_second if number >= wanted), default=max(self.per_second))

    def by_cpu(self, load: Load) -> float:
        """Returns the events a second that one core can send."""
        rate = self.per_second[self.tenants(load.tenants)]
        return rate * (self.history_share if load.history else 1) * (self.traced_share if load.traced else 1)

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
        return self.mean * self.load.posts_an_event

    @property
    def in_flight(self) -> float:
        """Requests under way at the peak."""
        return self.posts * self.load.peak * self.load.latency

    @property
    def rate_by_cpu(self) -> float:
        """Events a second that the core of a pod can send."""
        return self.measured.by_cpu(self.load)

    @property
    def rate_by_permits(self) -> float:
        """Events a second that a pod may send, by the requests that it may have under way."""
        return self.load.max_in_flight / self.load.latency / self.load.posts_an_event

    @property
    def rate(self) -> float:
        """Events a second of one pod: the smaller bound counts."""
        return min(self.rate_by_cpu, self.rate_by_permits)

    @property
    def by_cpu(self) -> float:
        """Pods whose cores carry the peak."""
        return self.mean * self.load.peak / (self.rate_by_cpu * HEADROOM)

    @property
    def by_permits(self) -> float:
        """Pods that may have the peak's requests under way."""
        return self.mean * self.load.peak / (self.rate_by_permits * HEADROOM)

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
        return self.sized[0] * self.rate - self.mean

    @property
    def limit_mib(self) -> int:
        """Memory limit of a pod: the chart's, and what more connections and tenants than measured take."""
        connections = max(0, self.load.max_in_flight - MOST_IN_FLIGHT) * self.measured.kb_a_connection
        tenants = max(0, self.load.tenants - TENANTS) * self.measured.kb_a_tenant
        return LIMIT_MIB + math.ceil((connections + tenants) * 1000 / 2**20)

    @property
    def with_more_permits(self) -> "Plan | None":
        """The plan with as many permits as the cores can use; None if it doesn't need fewer pods."""
        each = self.in_flight / HEADROOM / max(2, math.ceil(self.by_cpu))
        permits = min(HIGHEST_IN_FLIGHT, math.ceil(each / 100) * 100)
        other = Plan(replace(self.load, max_in_flight=permits), self.measured)
        return other if other.needed < self.needed else None


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


def _minutes(number: float) -> str:
    """0.2 as 1 minute, 14.9 as 15 minutes."""
    whole = math.ceil(number)
    return "1 minute" if whole == 1 else f"{whole} minutes"


def _measured_with(plan: Plan) -> str:
    load = plan.load
    return (
        f"measured with {plan.measured.tenants(load.tenants):,} tenants, with{'' if load.history else 'out'} history"
        f"{', one event in 100 traced' if load.traced else ''}"
    )


def _more_permits(plan: Plan) -> str:
    """Returns what to do if permits ask for more pods than CPU does."""
    other = plan.with_more_permits
    if other is None:
        return "More permits would save no pod."
    return (
        f"Permits bind, not CPU: with\n  `delivery.max_in_flight: {other.load.max_in_flight:g}` "
        f"{other.needed} pods suffice, with a memory limit of {other.limit_mib} MiB each, for the connections."
    )


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
        measured_with=_measured_with(plan),
        by_cpu_of_one=_count(plan.rate_by_cpu),
        by_permits_of_one=_count(plan.rate_by_permits),
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
        by_cpu=f"{plan.by_cpu:.1f}",
        by_permits=f"{plan.by_permits:.1f}",
        needed=plan.needed,
        pods=pods,
        partitions=partitions,
        partitions_of_one=partitions // pods,
        read_of_a_partition=_count(peak / partitions),
        cores=f"{plan.by_cpu * HEADROOM:.1f}",
        more_permits=_more_permits(plan),
        memory=f"{pods * plan.limit_mib / 1024:.3g}",
        limit=plan.limit_mib,
        disk=_bytes(load.events_a_day * load.record_kb * load.retention_days * load.replicas),
        disk_retry=_bytes(parked_kb * again * 4),
        disk_dead=_bytes(parked_kb * load.dead * 14),
        connections=f"{pods * 64:,}",
        hour=_count(plan.mean * 3600),
        spare=_count(plan.spare),
        minutes=_minutes(plan.mean * 60 / plan.spare),
        away=_count(away),
        away_each_quarter=_count(away / 900),
        away_each_hour=_count(away / 3600),
        away_share=f"{away / 900 / peak:.0%}",
    )


def figures(measured: Measured) -> str:
    """Returns the guide's text about the capacity of one pod."""
    few, many = Load(), Load(tenants=max(measured.per_second))
    rate, most = measured.by_cpu(few), f"{UNFINISHED:,} in flight and their {UNFINISHED_BYTES // 2**20} MiB twice"
    connections_mb = MOST_IN_FLIGHT * measured.kb_a_connection / 1000
    buffers_mb = measured.base_mb - measured.first_mb - connections_mb
    events_mb = UNFINISHED * measured.kb_in_flight / 1000
    rows = {
        "measured by `make bench` on the machine named in [latest.json](../benchmarks/results/latest.json)": "",
        "---": "---",
        f"events a second of one pod, one core, TLS, {measured.tenants(few.tenants):,} tenants": _count(rate),
        f"the same with {many.tenants:,} tenants": _count(measured.by_cpu(many)),
        "what remains of that rate with history": f"{measured.history_share:.0%}",
        "what remains of that rate with one event in 100 traced": f"{measured.traced_share:.0%}",
        f"mean latency of endpoints from which {MOST_IN_FLIGHT} permits bind before the core does": (
            f"{MOST_IN_FLIGHT / rate * 1000:.0f} ms"
        ),
        "resident memory before the first event": f"{measured.first_mb:.0f} MB",
        "with all connections open and a backlog, without its events": (
            f"{measured.base_mb:.0f} MB: {connections_mb:.0f} MB connections, {buffers_mb:.0f} MB buffers on top"
        ),
        f"with {UNFINISHED:,} events in flight": (
            f"{measured.base_mb + events_mb:.0f} MB: {events_mb:.0f} MB events on top"
        ),
        "memory of one event in flight, 1 kB each": f"{measured.kb_in_flight:.1f} kB",
        "memory of one connection, and of one tenant": (
            f"{measured.kb_a_connection:.0f} kB, {measured.kb_a_tenant:.1f} kB"
        ),
        f"at most, with {most}": f"{measured.most_mb:.0f} MB",
    }
    return "".join(f"| {name} | {value} |\n" for name, value in rows.items())


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
        option, default, meaning = f"--{one.name.replace('_', '-')}", one.default, one.metadata["help"]
        if isinstance(default, bool):
            parser.add_argument(option, action="store_true", help=meaning)
        else:
            number = _between(*one.metadata["bounds"])
            parser.add_argument(option, type=number, default=default, metavar=f"{default:g}", help=meaning)
    options = vars(parser.parse_args())
    if options.pop("write"):
        GUIDE.write_text(written())
    else:
        sys.stdout.write(describe(Plan(Load(**options), Measured.read())))


if __name__ == "__main__":
    main()
