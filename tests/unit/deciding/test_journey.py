"""What travels in `feedback-*` headers, and the turn that a record is given."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.errors import Draining
from dispatcher.records import PREFIX, Claim, Journey, Origin, Turn, without_journey
from tests.unit.examples import ARecord

WHOLE = st.integers(0, 10**18 - 1)
SECONDS = st.integers(-(10**12), 10**12).map(lambda number: number / 1000)
JOURNEYS = st.builds(
    Journey,
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
def test_a_journey_comes_back_from_its_headers(journey: Journey) -> None:
    parked = ARecord(b"", headers=[("other", b"x"), *journey.headers()], topic="t.retry.30s", partition=0, offset=1)

    assert Journey.of(parked) == journey


def test_a_fresh_record_begins_its_journey_at_its_own_place_and_time() -> None:
    record = ARecord(b"", topic="t", partition=3, offset=14, timestamp=1_753_171_200_123)

    assert Journey.of(record) == Journey(Origin("t", 3, 14), 1_753_171_200.123)


@given(st.dictionaries(st.sampled_from([name for name, _ in Journey(Origin("", 0, 0), 0).headers()]), GARBAGE))
def test_headers_that_cannot_be_read_count_as_absent(headers: dict[str, Any]) -> None:
    """Any producer may write headers of these names: whatever they hold, the event goes on. A value may be null."""
    record = ARecord(b"", headers=list(headers.items()))
    journey = Journey.of(record)

    assert journey.attempts >= 0
    assert journey.parks >= 0
    assert math.isfinite(journey.not_before)
    assert math.isfinite(journey.first_seen)
    again = ARecord(b"", headers=journey.headers())
    assert Journey.of(again).origin == journey.origin


@pytest.mark.parametrize(
    ("name", "value"),
    [("origin-offset", b"-3"), ("origin-offset", b"9" * 19), ("origin-partition", b"x"), ("attempts", b"\xb2"),
     ("parks", b"1.5"), ("first-seen", b"inf"), ("not-before", b"nan"), ("last-status", b"-1"), ("attempts", None)],
)  # fmt: skip
def test_one_bad_header_spoils_no_other(name: str, value: bytes | None) -> None:
    journey = Journey(Origin("t", 1, 2), 5.0, 3, 2, 9.0, 503, "attempt_failed")
    headers = {**dict(journey.headers()), PREFIX + name: value}
    record = ARecord(b"", headers=tuple(headers.items()), partition=7, offset=8, timestamp=6000)  # type: ignore[arg-type]
    field, expected = {
        "origin-offset": ("origin", Origin("t", 1, 8)),
        "origin-partition": ("origin", Origin("t", 7, 2)),
        "first-seen": ("first_seen", 6.0),
        "not-before": ("not_before", 0.0),
        "last-status": ("last_status", None),
        "attempts": ("attempts", 0),
        "parks": ("parks", 0),
    }[name]
    found = Journey.of(record)

    for one in Journey.__slots__:
        assert getattr(found, one) == (expected if one == field else getattr(journey, one))


def test_the_producers_headers_are_kept_and_ours_are_not_doubled() -> None:
    own = [("imsOrgId", b"o"), ("x", b"1"), ("x", b"2")]
    journey = Journey(Origin("t", 0, 0), 1.0)

    assert without_journey([*own, *journey.headers()]) == own


def test_a_turn_starts_while_its_claim_holds_and_not_after() -> None:
    claim = Claim()
    turn, late = Turn(claim), Turn(claim)
    turn.start()
    claim.active = False

    with pytest.raises(Draining):
        late.start()
    assert (turn.started, late.started) == (True, False)
