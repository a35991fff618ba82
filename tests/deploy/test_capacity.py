"""The guide's figures and its worked example: made from what was measured, and arithmetic that holds for any load."""

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from deploy import capacity
from deploy.capacity import (
    GUIDE,
    HEADROOM,
    LIMIT_MIB,
    MOST_IN_FLIGHT,
    RESULTS,
    UNFINISHED,
    UNFINISHED_BYTES,
    Load,
    Measured,
    Plan,
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
)
MEASURED = Measured(per_second=4000, base_mb=150, kb_in_flight=15)


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
    assert Measured.read().per_second == 14_000


@given(LOADS)
def test_the_pods_carry_the_peak_with_headroom(load: Load) -> None:
    plan = Plan(load, MEASURED)
    pods, partitions = plan.sized
    assert pods >= plan.needed >= 2
    assert pods * MEASURED.per_second * HEADROOM >= load.events_a_day / 86_400 * load.peak
    assert pods * MOST_IN_FLIGHT * HEADROOM >= plan.in_flight
    assert partitions % pods == 0, "every pod has as many"
    assert partitions >= 3 * pods, "room to grow"
    assert plan.spare > 0


def test_what_binds_is_the_core_with_quick_endpoints_and_the_permits_with_slow_ones() -> None:
    needed = [Plan(Load(latency=latency), MEASURED).needed for latency in (0.06, 0.12, 1.2, 2.4)]
    assert needed[0] == needed[1]
    assert needed[2] > needed[1]
    assert needed[3] in (2 * needed[2] - 1, 2 * needed[2])


def test_it_reckons_with_the_defaults_of_the_program_and_the_chart() -> None:
    kafka = KafkaSettings(bootstrap_servers="x:1")
    assert (UNFINISHED, UNFINISHED_BYTES) == (kafka.max_unfinished, kafka.max_unfinished_bytes)
    assert DeliverySettings().max_in_flight == MOST_IN_FLIGHT
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert values["resources"]["limits"]["memory"] == f"{LIMIT_MIB}Mi"


def test_the_charts_memory_limit_has_room_for_all_that_may_be_in_flight() -> None:
    assert Measured.read().most_mb * 1e6 < LIMIT_MIB * 2**20
