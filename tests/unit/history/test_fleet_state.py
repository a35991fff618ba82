"""The state of a webhook by evidence: which evidence makes which state, whatever order it arrives in."""

from collections.abc import Iterable
from itertools import permutations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.contract.fleet_state import (
    HOUR_MS,
    MINUTE_MS,
    Configured,
    Failure,
    FleetState,
    Judged,
    StateEvidence,
    decode_evidence,
    encode_evidence,
    judge,
)
from dispatcher.contract.history import HistoryEntry, HistoryOutcome

NOW = 1_790_000_000_000 // HOUR_MS * HOUR_MS
DELIVERED, ATTEMPT, HELD, DEAD = (
    HistoryOutcome.DELIVERED, HistoryOutcome.ATTEMPT, HistoryOutcome.HELD, HistoryOutcome.DEAD,
)  # fmt: skip


def entry(outcome: HistoryOutcome, at: int, reason: str = "http_5xx", **more: object) -> HistoryEntry:
    return HistoryEntry(at, outcome, "org", "prod", reason, **more)  # type: ignore[arg-type]


def attempts(failed: int, *, start: int = NOW, every_s: float = 30) -> list[HistoryEntry]:
    return [entry(ATTEMPT, int(start + number * every_s * 1000), status=503) for number in range(failed)]


def evidence_of(entries: Iterable[HistoryEntry]) -> StateEvidence:
    found = StateEvidence()
    for one in entries:
        found.add(one)
    return found


def state_of(
    entries: list[HistoryEntry],
    previous: FleetState = FleetState.UNKNOWN,
    configured: Configured | None = None,
) -> FleetState:
    return judge(evidence_of(entries), configured or Configured(), previous, NOW + 2 * HOUR_MS).state


entries = st.lists(
    st.builds(
        entry,
        st.sampled_from(list(HistoryOutcome)),
        st.integers(NOW - 40 * HOUR_MS, NOW),
        st.sampled_from(["http_5xx", "proxy", "suspended", "tenant_disabled", "paused"]),
        verdict=st.sampled_from([None, "disable_endpoint", "retry_soon"]),
    ),
    max_size=60,
)


@given(entries, st.randoms(use_true_random=False), st.integers(0, 60))
def test_order_and_batches_change_nothing(found: list[HistoryEntry], chance, cut: int) -> None:
    whole = evidence_of(found)
    shuffled = list(found)
    chance.shuffle(shuffled)
    parts = evidence_of(shuffled[:cut])
    parts.merge(decode_evidence(encode_evidence(evidence_of(shuffled[cut:]))))
    assert decode_evidence(encode_evidence(parts)) == whole
    assert len(encode_evidence(whole)) < 2048


@given(entries, st.sampled_from(list(FleetState)), st.integers(0, NOW))
def test_every_evidence_has_a_state_and_judging_again_changes_nothing(
    found: list[HistoryEntry], previous: FleetState, changed_at: int
) -> None:
    evidence, configured = evidence_of(found), Configured(changed_at=changed_at)
    once = judge(evidence, configured, previous, NOW)
    again = judge(evidence, configured, once.state, NOW)
    assert again.state is once.state
    assert judge(evidence, Configured(is_paused=True), previous, NOW).state is FleetState.PAUSED


@given(entries, st.sampled_from(list(FleetState)))
def test_a_webhook_whose_last_entries_are_deliveries_is_never_failing_or_disabled(
    found: list[HistoryEntry], previous: FleetState
) -> None:
    last = max((one.at for one in found), default=NOW)
    found = [*found, *(entry(DELIVERED, last + number) for number in range(1, 30))]
    assert state_of(found, previous) in {FleetState.ACTIVE, FleetState.UNSTABLE}


def test_nothing_known_is_unknown_and_a_delivery_makes_active() -> None:
    assert state_of([]) is FleetState.UNKNOWN
    assert state_of([entry(DELIVERED, NOW)]) is FleetState.ACTIVE
    assert state_of([entry(HistoryOutcome.SKIPPED, NOW, "channel")]) is FleetState.UNKNOWN


def test_nothing_arrives_whatever_the_status_code() -> None:
    """A short burst is not enough: an endpoint that restarts fails hundreds of requests within seconds."""
    assert state_of(attempts(300, every_s=0.01)) is FleetState.UNSTABLE
    assert state_of(attempts(4, every_s=60), FleetState.ACTIVE) is FleetState.ACTIVE
    assert state_of(attempts(4, every_s=60)) is FleetState.UNKNOWN
    assert state_of(attempts(5, every_s=60)) is FleetState.FAILING
    for status in (400, 401, 404, 429, 503, None):
        refused = [entry(ATTEMPT, NOW + number * MINUTE_MS, status=status) for number in range(6)]
        assert state_of([entry(DELIVERED, NOW - 1), *refused]) is FleetState.FAILING
    assert state_of(attempts(5, every_s=3 * 3600)) is FleetState.FAILING  # few events a day
    judged = judge(evidence_of(attempts(20)), Configured(), FleetState.ACTIVE, NOW + HOUR_MS)
    assert judged.since == NOW


def test_most_fail_and_some_arrive() -> None:
    found = attempts(27, every_s=60)
    assert state_of([*found, entry(DELIVERED, NOW + 27 * MINUTE_MS)]) is FleetState.UNSTABLE
    arriving = [entry(DELIVERED, NOW + number * MINUTE_MS) for number in range(20, 28)]
    assert state_of([*found, *arriving]) is FleetState.ACTIVE


def test_a_failed_probe_does_not_end_unstable_but_a_success_in_a_good_window_does() -> None:
    bad = attempts(20)
    probe = [entry(ATTEMPT, NOW + HOUR_MS)]
    assert state_of([*bad, *probe], FleetState.FAILING) is FleetState.FAILING
    assert state_of([*bad, entry(DELIVERED, NOW + 10 * MINUTE_MS)], FleetState.FAILING) is FleetState.UNSTABLE
    assert state_of([*bad, entry(DELIVERED, NOW + HOUR_MS)], FleetState.FAILING) is FleetState.ACTIVE


def test_sending_that_stopped_is_disabled_until_it_is_resumed() -> None:
    for reason in ("suspended", "tenant_disabled"):
        found = [*attempts(20), entry(HELD, NOW + 20 * MINUTE_MS, reason)]
        assert state_of(found) is FleetState.DISABLED
        late = [*found, entry(ATTEMPT, NOW + 21 * MINUTE_MS)]  # of another dispatcher
        assert state_of(late, FleetState.DISABLED) is FleetState.DISABLED
        resumed = [*found, *attempts(3, start=NOW + 30 * MINUTE_MS)]
        assert state_of(resumed, FleetState.DISABLED) is FleetState.FAILING
        assert (
            state_of([*found, entry(DELIVERED, NOW + 21 * MINUTE_MS)], FleetState.DISABLED) is not FleetState.DISABLED
        )
        edited = Configured(changed_at=NOW + 25 * MINUTE_MS)
        assert state_of(found, FleetState.DISABLED, edited) is FleetState.UNKNOWN
    assert state_of([entry(ATTEMPT, NOW, status=410, verdict="disable_endpoint")]) is FleetState.DISABLED
    assert state_of([*attempts(20), entry(HELD, NOW + HOUR_MS, "paused")]) is FleetState.FAILING


def test_failures_of_our_own_side_are_not_evidence() -> None:
    for reason in ("local", "proxy"):
        own = [entry(ATTEMPT, NOW + number * MINUTE_MS, reason) for number in range(20)]
        assert state_of(own, FleetState.ACTIVE) is FleetState.ACTIVE
        assert evidence_of(own).own_failure_at == NOW + 19 * MINUTE_MS


def test_a_change_of_the_webhook_ends_the_evidence_of_failures() -> None:
    found, edited = attempts(20), Configured(changed_at=NOW + 15 * MINUTE_MS)
    assert state_of(found, FleetState.FAILING, edited) is FleetState.UNKNOWN
    assert state_of(found, FleetState.ACTIVE, edited) is FleetState.ACTIVE
    again = [*found, *attempts(20, start=NOW + 20 * MINUTE_MS)]
    assert state_of(again, FleetState.UNKNOWN, edited) is FleetState.FAILING
    repaired = [*found, entry(DELIVERED, NOW + 20 * MINUTE_MS)]
    assert state_of(repaired, FleetState.UNKNOWN, edited) is FleetState.ACTIVE


PROBES_S = (30.5, 90.5, 210.5, 450.5, 930.5, 1830.5)
"""When a breaker that opened at once sends its probes."""


def test_failures_count_by_their_own_time_after_a_change_or_a_delivery() -> None:
    """Five refused connections open the breaker within two seconds; the few probes that follow take half an hour."""
    for at in (NOW, NOW + 100, NOW + 31_000, NOW + 57_000):
        before = attempts(300, start=at - 299 * 1000, every_s=1)
        burst = attempts(6, start=at + 100, every_s=0.3)
        probes = [entry(ATTEMPT, int(at + after * 1000)) for after in PROBES_S]
        edited = Configured(changed_at=at)
        assert state_of([*before, *burst], FleetState.UNKNOWN, edited) is FleetState.UNKNOWN
        assert state_of([*before, *burst, probes[0]], FleetState.UNKNOWN, edited) is FleetState.UNKNOWN
        failing = [*before, *burst, *probes[:2]]
        assert state_of(failing, FleetState.UNKNOWN, edited) is FleetState.FAILING
        judged = judge(evidence_of(failing), edited, FleetState.UNKNOWN, NOW + HOUR_MS)
        assert at < judged.since < at + 2000
        delivered = [entry(DELIVERED, at), *burst, *probes[:2]]
        assert state_of(delivered, FleetState.ACTIVE) is FleetState.FAILING


def test_failing_takes_a_minute_by_the_first_and_last_attempt() -> None:
    for start in (NOW, NOW + 59_999):
        assert state_of(attempts(600, start=start, every_s=0.1)) is FleetState.UNSTABLE
        assert state_of(attempts(601, start=start, every_s=0.1)) is FleetState.FAILING


def test_unstable_begins_no_earlier_than_the_last_change() -> None:
    edited = Configured(changed_at=NOW + 10 * MINUTE_MS)
    found = [*attempts(40), entry(DELIVERED, NOW + 20 * MINUTE_MS)]
    judged = judge(evidence_of(found), edited, FleetState.ACTIVE, NOW + HOUR_MS)
    assert judged == Judged(FleetState.UNSTABLE, NOW + 10 * MINUTE_MS)


def test_evidence_of_an_older_version_counts_on() -> None:
    """It lacks the times of attempts within their minute."""
    evidence = evidence_of(attempts(10, every_s=60))
    shorter = msgspec.msgpack.decode(encode_evidence(evidence), strict=False)[:11]
    for periods in shorter[:2]:
        for counts in periods.values():
            del counts[3:]
    older = decode_evidence(msgspec.msgpack.encode(shorter))
    assert older != evidence
    assert judge(older, Configured(), FleetState.ACTIVE, NOW + HOUR_MS) == judge(
        evidence, Configured(), FleetState.ACTIVE, NOW + HOUR_MS
    )


def test_dead_events_are_counted_since_a_time_that_is_named() -> None:
    """A day ago, at the full hour; not by the newest entry, which may be of last week."""
    evidence = evidence_of([entry(DEAD, NOW - hour * HOUR_MS, "rejected") for hour in range(40)])
    assert evidence.dead_at == NOW
    for later in (0, 3 * HOUR_MS, 7 * 24 * HOUR_MS):
        count, since = evidence.dead_lately(NOW + later)
        assert since % HOUR_MS == 0
        assert 24 * HOUR_MS <= NOW + later - since < 25 * HOUR_MS
        assert count == sum(NOW - hour * HOUR_MS >= since for hour in range(40))


def test_evidence_of_another_version_is_ignored() -> None:
    assert decode_evidence(b"\xc1") == decode_evidence(b'"x"') == StateEvidence()


def test_the_latest_dead_event_says_why_it_died_in_any_order() -> None:
    """Also beside evidence of an older version, which has no reason."""
    entries = [
        HistoryEntry(at * 1000, HistoryOutcome.DEAD, "org", "prod", reason=reason, status=status, detail=reason)
        for at, reason, status in ((1, "rejected", 404), (3, "too_large", None), (2, "expired", None))
    ]
    for ordered in permutations(entries):
        merged = StateEvidence()
        for one in ordered:
            evidence = StateEvidence()
            evidence.add(one)
            merged.merge(decode_evidence(encode_evidence(evidence)))
        assert (merged.dead_at, merged.death.reason, merged.death.detail) == (3000, "too_large", "too_large")
    older = msgspec.msgpack.encode(msgspec.msgpack.decode(encode_evidence(merged))[:9])
    read = decode_evidence(older)
    assert (read.dead_at, read.death) == (3000, Failure())
