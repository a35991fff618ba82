"""What travels in `feedback-*` headers, and the turn that a record is given."""

import dataclasses
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.contract.records import (
    PREFIX,
    AssignmentEpoch,
    Origin,
    ProcessingAttempt,
    RetryState,
    without_retry_state,
)
from dispatcher.errors import Draining
from tests.unit.examples import a_record

WHOLE = st.integers(0, 10**18 - 1)
SECONDS = st.integers(-(10**12), 10**12).map(lambda number: number / 1000)
JOURNEYS = st.builds(
    RetryState,
    origin=st.builds(Origin, st.text(), WHOLE, WHOLE),
    first_seen=SECONDS,
    attempts=WHOLE,
    parks=WHOLE,
    not_before=SECONDS,
    last_status=st.none() | st.integers(0, 999),
    reason=st.text(),
)
GARBAGE = (
    st.none() | st.binary(max_size=30) | st.sampled_from([b"nan", b"inf", b"-inf", b"1e400", b"-1", b"1_0", b"\xb2"])
)


@given(JOURNEYS)
def test_a_retry_state_is_read_back_from_its_headers(retry_state: RetryState) -> None:
    parked = a_record(
        b"", headers=[("other", b"x"), *retry_state.headers()], topic="t.retry.30s", partition=0, offset=1
    )

    assert RetryState.of(parked) == retry_state


def test_the_retry_state_of_a_fresh_record_has_its_own_place_and_time() -> None:
    record = a_record(b"", topic="t", partition=3, offset=14, timestamp=1_753_171_200_123)

    assert RetryState.of(record) == RetryState(
        Origin("t", 3, 14), 1_753_171_200.123, origin_timestamp=1_753_171_200_123
    )


@given(st.dictionaries(st.sampled_from([name for name, _ in RetryState(Origin("", 0, 0), 0).headers()]), GARBAGE))
def test_headers_that_cannot_be_read_count_as_absent(headers: dict[str, Any]) -> None:
    """Any producer may write headers of these names: whatever they hold, the event goes on. A value may be null."""
    record = a_record(b"", headers=list(headers.items()))
    retry_state = RetryState.of(record)

    assert retry_state.attempts >= 0
    assert retry_state.parks >= 0
    assert math.isfinite(retry_state.not_before)
    assert math.isfinite(retry_state.first_seen)
    again = a_record(b"", headers=retry_state.headers())
    assert RetryState.of(again).origin == retry_state.origin


@pytest.mark.parametrize(
    ("name", "value"),
    [("origin-offset", b"-3"), ("origin-offset", b"9" * 19), ("origin-partition", b"x"), ("attempts", b"\xb2"),
     ("parks", b"1.5"), ("first-seen", b"inf"), ("not-before", b"nan"), ("last-status", b"-1"), ("attempts", None)],
)  # fmt: skip
def test_one_bad_header_spoils_no_other(name: str, value: bytes | None) -> None:
    retry_state = RetryState(Origin("t", 1, 2), 5.0, 3, 2, 9.0, 503, "attempt_failed")
    headers = {**dict(retry_state.headers()), PREFIX + name: value}
    record = a_record(b"", headers=tuple(headers.items()), partition=7, offset=8, timestamp=6000)  # type: ignore[arg-type]
    field, expected = {
        "origin-offset": ("origin", Origin("t", 1, 8)),
        "origin-partition": ("origin", Origin("t", 7, 2)),
        "first-seen": ("first_seen", 6.0),
        "not-before": ("not_before", 0.0),
        "last-status": ("last_status", None),
        "attempts": ("attempts", 0),
        "parks": ("parks", 0),
    }[name]
    found = RetryState.of(record)

    for one in [each.name for each in dataclasses.fields(RetryState)]:
        assert getattr(found, one) == (expected if one == field else getattr(retry_state, one))


def test_the_producers_headers_are_kept_and_ours_are_not_doubled() -> None:
    own = [("imsOrgId", b"o"), ("x", b"1"), ("x", b"2")]
    retry_state = RetryState(Origin("t", 0, 0), 1.0)

    assert without_retry_state([*own, *retry_state.headers()]) == own


def test_a_turn_starts_while_its_claim_holds_and_not_after() -> None:
    epoch = AssignmentEpoch()
    processing, late = ProcessingAttempt(epoch), ProcessingAttempt(epoch)
    processing.start()
    epoch.active = False

    with pytest.raises(Draining):
        late.start()
    assert (processing.started, late.started) == (True, False)
