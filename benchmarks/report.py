"""The figures for people: a table in the terminal, and the one in the README, both made from the same result."""

from collections.abc import Mapping
from typing import Any, Final

_BEGIN, _END = "<!-- benchmarks: made by make bench -->", "<!-- /benchmarks -->"
_MARKS: Final = {True: "yes", False: "**no**", None: "–"}
_NOT_MEASURED: Final = "not measured"


Goal = tuple[str, str, str, bool | None]
"""A figure, what was measured, its goal, and whether that is reached: None if it was not measured."""


def goals(result: Mapping[str, Any]) -> list[Goal]:
    """Returns what is promised, with what was measured."""
    ratios = result["ratios"]

    def at_least(name: str, key: str, goal: float) -> Goal:
        if key not in ratios:
            return name, _NOT_MEASURED, f"≥ {goal:g}", None
        return name, f"{ratios[key]:.2f}", f"≥ {goal:g}", ratios[key] >= goal

    def at_most(name: str, value: float, goal: float, unit: str) -> Goal:
        return name, f"{value:g}{unit}", f"≤ {goal:g}{unit}", value <= goal

    shares = (
        ("events a second, as a share of a bare TLS client's requests", "end_to_end_vs_bare_client", 0.4),
        ("events a second, against a plain aiokafka + aiohttp consumer", "end_to_end_vs_plain_pipeline", 2.2),
        ("events a second, against a Go program of nearly the same job", "end_to_end_vs_go_program", 1.15),
        ("the same with 200 tenants", "end_to_end_vs_go_program_200_tenants", 1.0),
        ("events a second, against Bento with the same mapping", "end_to_end_vs_bento", 2.0),
        ("the same with 200 tenants", "end_to_end_vs_bento_200_tenants", 1.8),
        ("200 tenants against one", "tenants_200_vs_1", 0.97),
        ("10,000 tenants against one", "tenants_10000_vs_1", 0.93),
        ("with history, against without", "history_vs_none", 0.95),
        ("with history, 10,000 tenants, against without", "history_vs_none_10000_tenants", 0.95),
        ("one event in 100 traced, against none", "traced_vs_untraced", 0.95),
        ("healthy tenants' throughput beside 20 % bad ones", "healthy_throughput_with_bad_tenants", 0.97),
    )
    sizes = (
        ("p99 from append to answer at half load", "half_load_p99_ms", 10, " ms"),
        ("resident memory before the first event", "rss_mb_before_first_event", 90, " MB"),
        ("resident memory with 20,000 events in flight", "rss_mb_at_20000_in_flight", 150, " MB"),
        ("cold start to the first POST", "cold_start_s", 0.6, " s"),
    )
    searched = result.get("history", {}).get("postgresql", {})
    slowest = []
    if "slowest_search_ms" in searched:
        name = f"slowest search in {searched['searched_entries']:,} history entries of PostgreSQL"
        slowest = [at_most(name, searched["slowest_search_ms"], 200, " ms")]
    # Not measured are Bento, the Go program if Go is not installed, and what an older result did not have.
    return [
        *(at_least(*one) for one in shares),
        at_most("healthy tenants' p99 beside 20 % bad ones", ratios["healthy_p99_with_bad_tenants"], 1.3, ""),
        *(at_most(name, result[key], goal, unit) for name, key, goal, unit in sizes if key in result),
        *slowest,
    ]


def table(result: Mapping[str, Any]) -> str:
    """For a terminal."""
    marks = {True: "yes", False: "NO", None: "-"}
    lines = [f"{name:<66} {value:>12} {goal:>10}  {marks[ok]}" for name, value, goal, ok in goals(result)]
    lines += [
        "",
        f"{'events or requests a second':<56} {'a second':>10} {'× ours':>8} {'spread':>8} {'core':>6} {'discarded':>9}",
    ]
    for name, rate in result["rates"].items():
        share, spread, core = rate["vs_dispatcher"], rate["spread"], rate["core_used"]
        discarded = rate.get("discarded", 0)
        lines.append(f"{name:<56} {rate['per_second']:>10,} {share:>8.2f} {spread:>8.0%} {core:>6.0%} {discarded:>9}")
    return "\n".join(lines)


def markdown(result: Mapping[str, Any]) -> str:
    """For the README."""
    machine = result["machine"]
    rows = [f"| {name} | {value} | {goal} | {_MARKS[ok]} |" for name, value, goal, ok in goals(result)]
    form = result.get("form")
    how = f"Python {machine['python']}" if form is None else f"the dispatcher {form['name']} ({form['interpreter']})"
    setup = (
        f"{machine['processor']}, {machine['cores']} cores, {how}, Apache Kafka {machine['kafka']}, "
        f"{machine['receiver']}; the dispatcher on one core, broker and receiver on the other, one event a POST over "
        "verified TLS."
    )
    return "\n".join(["| | measured | goal | reached |", "|---|---|---|---|", *rows, "", setup, "", forms(result)])


def forms(result: Mapping[str, Any]) -> str:
    """Returns the rates of each form of the dispatcher and of the programs that it is compared with, for the README."""
    rates = result["rates"]

    def row(name: str, key: str) -> str:
        found = [rates.get(one) for one in (key, f"{key}, 200 tenants")]
        cells = (_NOT_MEASURED if one is None else f"{one['per_second']:,}, {one['core_used']:.0%}" for one in found)
        return f"| {name} | {' | '.join(cells)} |"

    shipped = f"dispatcher, {result['form']['name']}" if "form" in result else "dispatcher"
    others = [f"dispatcher, {name}" for name in result.get("interpreters", ())]
    discarded = sum(rate.get("discarded", 0) for rate in rates.values())
    return "\n".join(
        [
            "| events a second, and the share of the core that the program used | one tenant | 200 tenants |",
            "|---|---|---|",
            row(shipped, "dispatcher"),
            *(row(name, name) for name in others),
            row("plain aiokafka + aiohttp consumer", "plain pipeline"),
            row("Go program", "Go program"),
            row("Benthos with the same mapping", "Benthos"),
            "",
            f"Discarded and measured again, because other processes took a part of the core: {discarded} runs.",
        ]
    )


def put_into(readme: str, result: Mapping[str, Any]) -> str:
    """The README with this result in the place of the last one."""
    before, _, rest = readme.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return f"{before}{_BEGIN}\n\n{markdown(result)}\n\n{_END}{after}"
