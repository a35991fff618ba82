"""The guide's figures and its worked example: made from what was measured, and arithmetic that holds for any load."""

import json
import math
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from deploy import capacity
from deploy.capacity import (
    GUIDE,
    HEADROOM,
    HIGHEST_IN_FLIGHT,
    LIMIT_MIB,
    MOST_IN_FLIGHT,
    RESULTS,
    UNFINISHED,
    UNFINISHED_BYTES,
    Load,
    Measured,
    Plan,
    describe,
    figures,
    written,
)
from dispatcher.config.kafka_settings import KafkaSettings
from dispatcher.config.settings import DeliverySettings
from tests.deploy.tools import CHART

LOADS = st.builds(
    Load,
    events_a_day=st.floats(1e3, 1e10),
    peak=st.floats(1, 20),
    latency=st.floats(0.001, 30),
    eligible=st.floats(0.01, 1),
    tenants=st.floats(1, 1e6),
    max_in_flight=st.floats(1, 10_000),
    history=st.booleans(),
    traced=st.booleans(),
)
MEASURED = Measured(
    per_second={1: 4400, 200: 4000, 10_000: 3000},
    history_share=0.8,
    traced_share=0.5,
    first_mb=90,
    base_mb=150,
    kb_in_flight=15,
    kb_a_tenant=8,
    kb_a_connection=64,
)
BILLION_A_DAY = 1e9 / 86_400


def test_the_guide_says_what_the_last_benchmark_measured() -> None:
    assert GUIDE.read_text() == written(), "run python -m deploy.capacity --write"


def test_the_rate_of_a_pod_is_what_its_core_allows_not_its_permits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slow endpoints are part of `Plan`: a rate measured with them would count them twice."""
    found = json.loads(RESULTS.read_text())
    found["rates"] |= {
        "dispatcher, 200 tenants": {"per_second": 14_000},
        "dispatcher, 10,000 tenants": {"per_second": 13_000},
        "endpoints of 500 ms, 200 tenants": {"per_second": 3_940},
        "backlog of 100,000, 200 tenants": {"per_second": 9_000},
    }
    results = tmp_path / "latest.json"
    results.write_text(json.dumps(found))
    monkeypatch.setattr(capacity, "RESULTS", results)
    assert Measured.read().by_cpu(Load(tenants=200)) == 14_000
    assert Measured.read().by_cpu(Load(tenants=10_000)) == 13_000


@given(LOADS)
def test_the_pods_carry_the_peak_with_headroom(load: Load) -> None:
    plan = Plan(load, MEASURED)
    pods, partitions = plan.sized
    assert pods >= plan.needed >= 2
    assert pods * MEASURED.by_cpu(load) * HEADROOM >= load.events_a_day / 86_400 * load.peak
    assert pods * load.max_in_flight * HEADROOM >= plan.in_flight * 0.999_999
    assert partitions % pods == 0, "every pod has as many"
    assert partitions >= 3 * pods, "room to grow"
    assert 0 < plan.spare <= pods * min(MEASURED.by_cpu(load), load.max_in_flight / load.latency / load.eligible)


def test_what_binds_is_the_core_with_quick_endpoints_and_the_permits_with_slow_ones() -> None:
    needed = [Plan(Load(latency=latency), MEASURED).needed for latency in (0.06, 0.12, 1.2, 2.4)]
    assert needed[0] == needed[1]
    assert needed[2] > needed[1]
    assert needed[3] in (2 * needed[2] - 1, 2 * needed[2])


@pytest.mark.parametrize(
    ("latency", "max_in_flight", "rate"),
    [(0.01, 500, 4000), (0.5, 500, 1000), (5, 500, 100), (0.5, 1000, 2000), (0.5, 10_000, 4000)],
)
def test_catching_up_is_bound_by_permits_as_well_as_by_cpu(latency: float, max_in_flight: float, rate: float) -> None:
    load = Load(latency=latency, max_in_flight=max_in_flight, eligible=1, parked=0)
    plan = Plan(load, MEASURED)
    pods = plan.sized[0]
    assert plan.spare == pytest.approx(pods * rate - BILLION_A_DAY)
    minutes = math.ceil(BILLION_A_DAY * 60 / plan.spare)
    assert f"within {minutes} minutes, unless" in describe(plan)


def test_requests_of_retries_take_permits_too() -> None:
    load = Load(latency=1, eligible=0.5, parked=0.1, times_parked=5)
    assert Plan(load, MEASURED).rate == 500


@pytest.mark.parametrize(
    ("load", "rate"),
    [
        (Load(tenants=1), 4400),
        (Load(tenants=10), 4000),
        (Load(tenants=200), 4000),
        (Load(tenants=201), 3000),
        (Load(tenants=100_000), 3000),
        (Load(history=True), 3200),
        (Load(traced=True), 2000),
        (Load(tenants=10_000, history=True, traced=True), 1200),
    ],
)
def test_the_cores_rate_is_that_with_as_many_tenants_history_and_traces(load: Load, rate: float) -> None:
    plan = Plan(replace(load, latency=0.001), MEASURED)
    assert plan.rate_by_cpu == pytest.approx(rate)
    assert plan.spare == pytest.approx(plan.sized[0] * rate - BILLION_A_DAY)
    assert f"{'with' if load.history else 'without'} history" in describe(plan)


def test_what_history_and_many_tenants_cost_is_in_the_guides_figures() -> None:
    text = figures(MEASURED)
    assert "| what remains of that rate with history | 80% |" in text
    assert "| what remains of that rate with one event in 100 traced | 50% |" in text
    assert "| the same with 10,000 tenants | 3,000 |" in text
    assert "permits bind before the core does | 125 ms |" in text


def test_the_parts_of_the_memory_are_in_the_guides_figures() -> None:
    text = figures(MEASURED)
    assert "| resident memory before the first event | 90 MB |" in text
    assert "| 150 MB: 32 MB connections, 28 MB buffers on top |" in text
    assert "| 450 MB: 300 MB events on top |" in text


def test_more_permits_are_offered_if_they_save_pods() -> None:
    plan = Plan(Load(latency=1), MEASURED)
    other = plan.with_more_permits
    assert other is not None
    assert (plan.needed, other.needed) == (100, 15)
    assert other.load.max_in_flight == 3400
    assert other.limit_mib == LIMIT_MIB + math.ceil(2900 * 64_000 / 2**20)
    assert "with\n  `delivery.max_in_flight: 3400` 15 pods suffice" in describe(plan)
    slowest = Plan(Load(latency=30), MEASURED).with_more_permits
    assert slowest is not None
    assert slowest.load.max_in_flight == HIGHEST_IN_FLIGHT
    quick = Plan(Load(latency=0.01), MEASURED)
    assert quick.with_more_permits is None
    assert "More permits would save no pod." in describe(quick)


def test_memory_grows_with_tenants_and_permits() -> None:
    assert Plan(Load(), MEASURED).limit_mib == LIMIT_MIB
    assert Plan(Load(tenants=10_200), MEASURED).limit_mib == LIMIT_MIB + math.ceil(80e6 / 2**20)


@pytest.mark.parametrize("option", [one.name for one in fields(Load) if one.type == "float" or one.type is float])
@pytest.mark.parametrize("text", ["nan", "inf", "-1", "x", "", "1e300"])
def test_a_number_that_can_not_be_is_refused_with_its_option(
    option: str, text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "--" + option.replace("_", "-")
    monkeypatch.setattr(sys, "argv", ["capacity", f"{name}={text}"])
    with pytest.raises(SystemExit, match="2"):
        capacity.main()
    assert f"error: argument {name}: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "option", ["events-a-day", "peak", "latency", "eligible", "replicas", "max-in-flight", "tenants"]
)
def test_zero_is_refused_if_nothing_can_be_planned_with_it(
    option: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["capacity", f"--{option}", "0"])
    with pytest.raises(SystemExit, match="2"):
        capacity.main()
    assert f"error: argument --{option}: 0 is not between " in capsys.readouterr().err


@given(LOADS)
def test_any_load_can_be_described(load: Load) -> None:
    assert "pods" in describe(Plan(load, MEASURED))


@pytest.mark.parametrize("bound", [0, 1])
def test_a_load_of_smallest_and_largest_numbers_can_be_described(bound: int, monkeypatch: pytest.MonkeyPatch) -> None:
    bounds = {one.name: one.metadata["bounds"][bound] for one in fields(Load) if "bounds" in one.metadata}
    assert "pods" in describe(Plan(Load(**bounds), MEASURED))


def test_it_reckons_with_the_defaults_of_the_program_and_the_chart() -> None:
    kafka = KafkaSettings(bootstrap_servers="x:1")
    assert (UNFINISHED, UNFINISHED_BYTES) == (kafka.max_unfinished, kafka.max_unfinished_bytes)
    assert DeliverySettings().max_in_flight == MOST_IN_FLIGHT
    assert DeliverySettings(max_in_flight=HIGHEST_IN_FLIGHT).max_in_flight == HIGHEST_IN_FLIGHT
    with pytest.raises(ValueError, match="max_in_flight"):
        DeliverySettings(max_in_flight=HIGHEST_IN_FLIGHT + 1)
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert values["resources"]["limits"]["memory"] == f"{LIMIT_MIB}Mi"


def test_the_charts_memory_limit_has_room_for_all_that_may_be_in_flight() -> None:
    assert Measured.read().most_mb * 1e6 < LIMIT_MIB * 2**20
