"""What is reported when: at once, combined, held back; under every sequence of states never too often."""

from collections import defaultdict
from dataclasses import replace

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from dispatcher.contract.fleet_state import FleetState
from dispatcher.notifications.memory import FleetMemory, Memory, decode_fleet_memory, decode_memory, encode_memory
from dispatcher.notifications.news import Expiry, NewsKind, Subject
from dispatcher.notifications.planning import DAY_S, Pace
from tests.unit.notifications.fleet import ACTIVE, DISABLED, FAILING, LUMA, NOW, UNSTABLE, Fleet


def luma(state: FleetState, since: float, **more: object) -> Subject:
    return Subject(LUMA, state, since, **more)  # type: ignore[arg-type]


def test_disabled_is_reported_at_once_and_once() -> None:
    fleet = Fleet()
    assert fleet.step(luma(DISABLED, NOW)) == [NewsKind.DISABLED]
    assert fleet.step(luma(DISABLED, NOW)) == []
    assert fleet.step(luma(DISABLED, NOW), after_s=DAY_S) == []
    assert fleet.step(luma(ACTIVE, fleet.now), after_s=400) == [NewsKind.RECOVERED]


def test_a_webhook_that_is_disabled_again_is_reported_again() -> None:
    """After an edit, and after it was enabled by hand: whatever the state was meanwhile, and if none was seen."""
    for between in (FleetState.UNKNOWN, FleetState.PAUSED, FAILING, ACTIVE, None):
        fleet = Fleet()
        assert fleet.step(luma(DISABLED, NOW)) == [NewsKind.DISABLED]
        if between is not None:
            assert fleet.step(luma(between, fleet.now), after_s=60) == []
        again = luma(DISABLED, fleet.now + 60)
        assert fleet.step(again, after_s=120) == [], "within the hour"
        assert fleet.step(again, after_s=7200) == [NewsKind.DISABLED]
        assert fleet.step(again, after_s=7200) == []


def test_a_webhook_that_is_disabled_again_after_an_edit_is_reported_at_once_each_time() -> None:
    """The tenant tried to repair it, and has to know that it didn't help."""
    for has_contacts in (True, False):
        fleet = Fleet()
        for revision in "abcdef":
            ill = luma(DISABLED, fleet.now + 60, revision=revision, has_contacts=has_contacts)
            assert fleet.step(ill, after_s=61) == [NewsKind.DISABLED], revision
            assert fleet.step(ill) == []
            edited = luma(FleetState.UNKNOWN, fleet.now, revision=chr(ord(revision) + 1), has_contacts=has_contacts)
            assert fleet.step(edited, after_s=60) == []
        again = luma(DISABLED, fleet.now + 60, revision="g", has_contacts=has_contacts)
        assert fleet.step(again, after_s=61) == [NewsKind.DISABLED]
        resumed = luma(DISABLED, fleet.now + 60, revision="g", has_contacts=has_contacts)
        assert fleet.step(resumed, after_s=120) == [], "without an edit, within the hour"


def test_trouble_that_goes_on_after_an_edit_is_reported_again() -> None:
    """The tenant changed something to end it. Without a change the same trouble isn't news, however often it begins."""
    for state, kind in ((FAILING, NewsKind.FAILING), (UNSTABLE, NewsKind.UNSTABLE)):
        fleet = Fleet()
        assert fleet.step(luma(state, NOW - 400, revision="a")) == [kind]
        assert fleet.step(luma(ACTIVE, fleet.now, revision="a")) == []
        assert fleet.step(luma(state, fleet.now, revision="a"), after_s=7200) == []
        edited_at = fleet.now
        assert fleet.step(luma(FleetState.PAUSED, edited_at, revision="b")) == []
        assert fleet.step(luma(FleetState.UNKNOWN, edited_at, revision="a")) == []
        again = luma(state, edited_at + 200, revision="a")
        assert fleet.step(again, after_s=300) == [], "it has to last"
        assert fleet.step(again, after_s=300) == [kind]
        assert fleet.step(again, after_s=7200) == []
        assert fleet.step(luma(ACTIVE, fleet.now, revision="a"), after_s=7200) == [NewsKind.RECOVERED]


def test_a_webhook_in_place_of_a_deleted_one_is_reported_itself() -> None:
    fleet = Fleet()
    assert fleet.step(luma(FAILING, NOW - 400, revision="a")) == [NewsKind.FAILING]
    assert fleet.step(after_s=DAY_S) == []
    created_at = fleet.now
    assert fleet.step(luma(FleetState.UNKNOWN, created_at, revision="b")) == []
    assert fleet.step(luma(FAILING, created_at + 60, revision="b"), after_s=600) == [NewsKind.FAILING]


def test_many_that_are_disabled_again_are_reported_to_the_operator_only() -> None:
    fleet = Fleet(others=40)
    ill = [one.tenant for one in fleet.others[:8]]
    for number in range(1, 9):
        fleet.step(*(Subject(tenant, DISABLED, NOW) for tenant in ill[:number]), after_s=600)
    assert len(fleet.sent) == 8
    assert fleet.to_operator == []
    fleet.step(*(Subject(tenant, DISABLED, fleet.now) for tenant in ill), after_s=7200)
    assert len(fleet.sent) == 8
    assert [news.kind for _, news in fleet.to_operator] == [NewsKind.MASS]


def test_news_reported_by_an_older_version_is_not_reported_again() -> None:
    fleet = Fleet()
    fleet.step(luma(DISABLED, NOW))
    values = msgspec.msgpack.decode(encode_memory(fleet.memories[LUMA]))
    fleet.memories[LUMA] = decode_memory(msgspec.msgpack.encode(values[:6]))
    assert fleet.step(luma(DISABLED, NOW, revision="a"), after_s=7200) == []
    assert fleet.step(luma(DISABLED, fleet.now, revision="a"), after_s=7200) == [NewsKind.DISABLED]


def test_a_state_has_to_last() -> None:
    fleet = Fleet()
    for _ in range(9):
        assert fleet.step(luma(FAILING, NOW)) == []
    assert fleet.step(luma(FAILING, NOW)) == [NewsKind.FAILING]
    assert fleet.step(luma(UNSTABLE, NOW + 290)) == []
    assert fleet.step(luma(FleetState.UNKNOWN, fleet.now)) == []
    assert fleet.step(luma(FleetState.PAUSED, fleet.now), after_s=7200) == []


def test_news_are_combined_and_not_sent_within_the_hour() -> None:
    fleet = Fleet()
    assert fleet.step(luma(FAILING, NOW - 400)) == [NewsKind.FAILING]
    assert fleet.step(luma(FAILING, NOW - 400, dead_at=NOW + 60), after_s=600) == []
    recovered = luma(ACTIVE, NOW + 700, dead_at=NOW + 60)
    assert fleet.step(recovered, after_s=2000) == []
    assert fleet.step(recovered, after_s=1000) == [NewsKind.RECOVERED, NewsKind.FIRST_DEAD]
    assert fleet.step(recovered, after_s=4000) == []


def test_only_the_first_dead_event_of_a_day_is_reported() -> None:
    fleet = Fleet()
    assert fleet.step(luma(ACTIVE, NOW, dead_at=NOW)) == [NewsKind.FIRST_DEAD]
    for hour in range(1, 40):
        assert fleet.step(luma(ACTIVE, NOW, dead_at=NOW + hour * 3600), after_s=3600) == []
    assert fleet.step(luma(ACTIVE, NOW, dead_at=fleet.now + 2 * DAY_S), after_s=2 * DAY_S) == [NewsKind.FIRST_DEAD]
    assert Fleet().step(luma(ACTIVE, NOW, dead_at=NOW - 3 * DAY_S)) == [], "long ago, at the first start"


def test_an_expiry_is_reported_three_times_and_a_new_certificates_again() -> None:
    fleet, at = Fleet(), NOW + 20 * DAY_S
    reported = []
    for day in range(25):
        expiries = (Expiry("the client certificate", "k1", at),)
        reported += [day + 1 for _ in fleet.step(luma(ACTIVE, NOW, expiries=expiries), after_s=DAY_S)]
    assert reported == [6, 17, 20]
    renewed = (Expiry("the client certificate", "k2", fleet.now + 10 * DAY_S),)
    assert fleet.step(luma(ACTIVE, NOW, expiries=renewed)) == [NewsKind.EXPIRING]
    assert fleet.memories[LUMA].expiries == ["k2 0"]
    assert fleet.step(luma(ACTIVE, NOW), own=renewed) == []
    assert [news.kind for _, news in fleet.to_operator] == [NewsKind.EXPIRING]
    fleet.step(luma(ACTIVE, NOW), own=renewed)
    assert len(fleet.to_operator) == 1


def test_certificates_that_live_shortly_are_reported_only_once_they_have_ended() -> None:
    fleet = Fleet()
    for number in range(30):
        renewed = (Expiry("the client certificate", f"k{number}", fleet.now + 0.6 * DAY_S, life_s=DAY_S),)
        assert fleet.step(luma(ACTIVE, NOW, expiries=renewed), own=renewed, after_s=DAY_S / 3) == []
    assert fleet.to_operator == []
    assert fleet.step(luma(ACTIVE, NOW, expiries=renewed), own=renewed, after_s=DAY_S) == [NewsKind.EXPIRING]
    assert len(fleet.to_operator) == 1


def test_an_advance_step_counts_if_renewal_is_late_by_then() -> None:
    """A certificate is usually renewed with a third of its life left: it is not reported before."""
    for life, expected in ((365, [14, 3, 0]), (90, [14, 3, 0]), (30, [3, 0]), (6, [0])):
        fleet, at = Fleet(), NOW + life * DAY_S
        expiries = (Expiry("the client certificate", "k", at, life_s=life * DAY_S),)
        reported = []
        for _ in range(life + 2):
            if fleet.step(luma(ACTIVE, NOW, expiries=expiries), after_s=DAY_S):
                reported.append(max(0, round((at - fleet.now) / DAY_S)))
        assert reported == expected, life


def test_the_operators_expiries_are_forgotten_with_the_certificates_and_reported_together() -> None:
    fleet = Fleet()
    for number in range(30):
        own = tuple(Expiry(f"certificate {one}", f"{one}-{number}", fleet.now + DAY_S) for one in range(3))
        fleet.step(luma(ACTIVE, NOW), own=own)
        assert len(fleet.fleet.expiries) <= 3
    times = sorted({at for at, _ in fleet.to_operator})
    assert all(second - first >= 300 for first, second in zip(times, times[1:], strict=False))
    assert len(fleet.to_operator) == 3 * len(times) == 3 * 3


def test_nothing_counts_as_reported_while_no_one_can_be_notified() -> None:
    fleet = Fleet()
    expiries = (Expiry("the client certificate", "k", NOW + DAY_S),)
    for state in (DISABLED, FAILING):
        ill = luma(state, NOW - 400, dead_at=NOW, expiries=expiries, has_contacts=False)
        assert fleet.step(ill, own=expiries, reaches_operator=False) == []
    assert fleet.to_operator == []
    assert set(fleet.step(replace(ill, has_contacts=True), own=expiries, after_s=60)) == {
        NewsKind.FAILING, NewsKind.FIRST_DEAD, NewsKind.EXPIRING,
    }  # fmt: skip
    assert [news.kind for _, news in fleet.to_operator] == [NewsKind.EXPIRING]


def test_if_many_change_together_only_the_operator_is_reported() -> None:
    fleet = Fleet(others=40)
    ill = [Subject(one.tenant, FAILING, NOW) for one in fleet.others[:4]]
    assert fleet.step(luma(DISABLED, NOW), *ill) == []
    assert fleet.sent == []
    assert [(news.kind, news.count, news.total) for _, news in fleet.to_operator] == [(NewsKind.MASS, 5, 41)]
    for _ in range(20):
        fleet.step(luma(DISABLED, NOW), *ill, after_s=600)
    assert len(fleet.to_operator) == 1
    assert fleet.sent == []
    fleet.step(luma(ACTIVE, fleet.now), after_s=600)
    assert fleet.sent == [], "nothing was reported, so nothing has recovered"
    assert fleet.step(luma(FAILING, fleet.now - 300)) == [NewsKind.FAILING], "one alone is reported"


def test_two_of_five_are_not_many() -> None:
    fleet = Fleet(others=4)
    fleet.step(luma(DISABLED, NOW), Subject(fleet.others[0].tenant, DISABLED, NOW))
    assert len(fleet.sent) == 2
    assert fleet.to_operator == []


def test_if_our_own_way_out_is_broken_only_the_operator_is_reported() -> None:
    fleet = Fleet(others=40)
    ill = [Subject(one.tenant, ACTIVE, NOW, own_failure_at=NOW) for one in fleet.others[:5]]
    assert fleet.step(luma(FAILING, NOW - 900), *ill) == []
    assert [news.kind for _, news in fleet.to_operator] == [NewsKind.BROKEN]
    assert fleet.step(luma(FAILING, NOW - 900), *ill, after_s=900) == [NewsKind.FAILING]


def test_many_webhooks_without_contacts_make_few_messages_to_the_operator() -> None:
    fleet = Fleet(others=100)
    for turn in range(40):
        subjects = [
            Subject(one.tenant, FAILING if number <= turn // 5 else ACTIVE, NOW, has_contacts=False)
            for number, one in enumerate(fleet.others)
        ]
        fleet.step(*subjects)
    times = {at for at, _, _ in fleet.sent}
    assert len(fleet.sent) == 8
    assert all(second - first >= 300 for first, second in zip(sorted(times), sorted(times)[1:], strict=False))


def test_a_webhook_that_is_reported_often_is_reported_less() -> None:
    fleet = Fleet()
    for turn in range(96):
        state = FAILING if turn % 2 == 0 else UNSTABLE
        fleet.step(luma(state, fleet.now - 400), after_s=900)
    assert len(fleet.sent) <= 4 + 4


states = st.sampled_from([*FleetState, FAILING, ACTIVE, DISABLED])


@settings(max_examples=60)
@given(st.lists(st.tuples(states, st.floats(10, 4000), st.booleans()), min_size=1, max_size=120))
def test_under_every_sequence_nothing_is_sent_too_often(steps: list[tuple[FleetState, float, bool]]) -> None:
    """At most one message an hour, except that disabled is reported at once; and what recovered was in trouble."""
    fleet, state, since, dead_at = Fleet(), ACTIVE, NOW, 0.0
    for next_state, after_s, dies in steps:
        if next_state is not state:
            state, since = next_state, fleet.now + after_s
        dead_at = fleet.now if dies else dead_at
        fleet.step(luma(state, since, dead_at=dead_at or None), after_s=after_s)
    by_kind: defaultdict[bool, list[float]] = defaultdict(list)
    reported, reported_since = ACTIVE, 0.0
    for at, _, news in fleet.sent:
        kinds = {one.kind for one in news}
        by_kind[NewsKind.DISABLED in kinds].append(at)
        assert len(kinds) == len(news), "nothing twice in a message"
        if NewsKind.RECOVERED in kinds:
            assert reported is not ACTIVE
            reported = ACTIVE
        for kind, meant in ((NewsKind.FAILING, FAILING), (NewsKind.UNSTABLE, UNSTABLE), (NewsKind.DISABLED, DISABLED)):
            if kind in kinds:
                since = next(one.since for one in news if one.kind is kind)
                assert reported is not meant or (meant is DISABLED and since > reported_since), "the same trouble twice"
                reported, reported_since = meant, since
    for times in by_kind.values():
        assert all(second - first >= Pace().every_s for first, second in zip(times, times[1:], strict=False))


def test_bytes_of_another_version_are_an_empty_memory() -> None:
    assert decode_memory(b"\xc1") == Memory()
    assert decode_fleet_memory(b"x") == FleetMemory()
