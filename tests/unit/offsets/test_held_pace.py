"""Held events that only wait are read slowly while the process is busy."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.contract.records import Origin, RetryState
from dispatcher.contract.tenant import TenantKey
from dispatcher.kafka.held_pace import MEASURED_S, PASSED_A_SECOND, PASSED_WHEN_BUSY, ReadingPace
from dispatcher.kafka.held_topic import tenant_headers, waiting_event
from tests.unit.examples import a_record


class Clocks:
    """Wall and CPU time."""

    def __init__(self) -> None:
        self.now = self.used = 50.0

    def passes(self, wall_s: float, cpu_s: float) -> None:
        self.now, self.used = self.now + wall_s, self.used + cpu_s


def test_the_pace_follows_the_process() -> None:
    clocks = Clocks()
    pace = ReadingPace(lambda: clocks.now, lambda: clocks.used)
    slow, fast = 200 / PASSED_WHEN_BUSY, 200 / PASSED_A_SECOND
    assert pace.rest_s(200) == slow, "it has just started, and is busy"
    clocks.passes(MEASURED_S / 2, 0.0)
    assert pace.rest_s(200) == slow, "too short to say"
    clocks.passes(MEASURED_S / 2, 0.1)
    assert pace.rest_s(200) == fast
    clocks.passes(2 * MEASURED_S, 1.3 * MEASURED_S)
    assert pace.rest_s(200) == slow
    clocks.passes(2 * MEASURED_S, 1.1 * MEASURED_S)
    assert pace.rest_s(200) == fast
    assert pace.rest_s(0) == 0.0


@given(st.sampled_from([b"1753171200.250", b"", b"x", b"nan", b"inf", b"-1", None]), st.sampled_from(["a", "", "ä"]))
def test_tenant_and_age_of_a_held_record_are_those_of_its_headers(first_seen: bytes | None, org: str) -> None:
    headers = dict(RetryState(Origin("t", 0, 1), 5.0).headers()) | dict(tenant_headers(TenantKey(org, "prod")))
    record = a_record(b"", b"", tuple((headers | {"feedback-first-seen": first_seen}).items()), "t.held", 0, 7, 9_000)

    assert waiting_event(record) == (TenantKey(org, "prod"), RetryState.of(record).first_seen)


@pytest.mark.parametrize("headers", [(), (("feedback-org", None),), (("other", b"x"),)])
def test_a_held_record_without_its_headers_has_a_tenant_that_no_webhook_has(headers: tuple[tuple[str, None]]) -> None:
    assert waiting_event(a_record(b"", b"", headers, "t.held", 0, 7, 9_000)) == (TenantKey("", ""), 9.0)
