"""No contact is silenced for good or flooded, over weeks of trouble; the planner restarts all the time.

The planner keeps nothing but what the store holds (`Fleet` encodes it at each step), so each step is a restart.
"""

from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dispatcher.contract.fleet_state import TROUBLE, FleetState
from dispatcher.contract.tenant import TenantKey
from dispatcher.notifications.news import NewsKind, Subject
from dispatcher.notifications.planning import DAY_S
from tests.unit.notifications.fleet import ACTIVE, DISABLED, FAILING, NOW, UNSTABLE, Fleet

HOUR_S = 3600.0
StateAt = Callable[[float], FleetState]
"""The state of a webhook, by seconds after the start."""


class Weeks:
    """Webhooks whose states follow functions of time; `since` is when the present state began, as the judge says."""

    def __init__(self, total: int, states: dict[int, StateAt], *, contacts: bool = True) -> None:
        self.fleet = Fleet(others=0)
        self.total, self.states, self.has_contacts = total, states, contacts
        self._seen: dict[int, tuple[FleetState, float]] = {}

    def run(
        self,
        days: float,
        *,
        every_s: float = 120,
        reaches_operator: bool = True,
        gaps: tuple[tuple[float, float], ...] = (),
    ) -> "Weeks":
        """Plans every two minutes, except in the gaps (of days, from and to)."""
        for _ in range(int(days * DAY_S / every_s)):
            day = (self.fleet.now + every_s - NOW) / DAY_S
            if any(first <= day < last for first, last in gaps):
                self.subjects(self.fleet.now + every_s)
                self.fleet.now += every_s
                continue
            subjects = self.subjects(self.fleet.now + every_s)
            self.fleet.step(*subjects, after_s=every_s, reaches_operator=reaches_operator)
        return self

    def subjects(self, now: float) -> list[Subject]:
        """What the judge says at this time."""
        made = []
        for number in range(self.total):
            state = self.states.get(number, lambda _: ACTIVE)(now - NOW)
            before, since = self._seen.get(number, (None, NOW - 30 * DAY_S))
            if state is not before and before is not None:
                since = now
            self._seen[number] = state, since
            made.append(Subject(tenant_of(number), state, since, has_contacts=self.has_contacts))
        return made

    def reported(self, number: int) -> list[tuple[float, NewsKind]]:
        """What was reported to the contacts of a webhook, and on which day."""
        return [
            ((at - NOW) / DAY_S, news.kind)
            for at, tenant, all_news in self.fleet.sent
            if tenant == tenant_of(number)
            for news in all_news
        ]

    @property
    def mass(self) -> list[float]:
        """Days on which the operator was notified of a mass change."""
        return [(at - NOW) / DAY_S for at, news in self.fleet.to_operator if news.kind is NewsKind.MASS]


def tenant_of(number: int) -> TenantKey:
    return TenantKey(f"t{number:05}", "prod")


def from_day(day: float, state: FleetState, until: float = 1e9) -> StateAt:
    return lambda at: state if day * DAY_S <= at < until * DAY_S else ACTIVE


def long_dead(state: FleetState = FAILING) -> StateAt:
    return lambda _: state


def together(count: int, day: float, state: FleetState = FAILING, until: float = 1e9) -> dict[int, StateAt]:
    """Webhooks that change within four minutes."""
    return {number: from_day(day + number % 5 * 60 / DAY_S, state, until) for number in range(count)}


@pytest.mark.parametrize("has_contacts", [True, False])
def test_a_later_change_is_reported_at_once_though_others_are_dead_for_weeks(*, has_contacts: bool) -> None:
    """Three of twenty are dead when notifications are switched on; a fourth is disabled on the third day."""
    states: dict[int, StateAt] = {number: long_dead() for number in range(3)} | {3: from_day(3, DISABLED)}
    weeks = Weeks(20, states, contacts=has_contacts).run(10)
    assert [kind for _, kind in weeks.reported(3)] == [NewsKind.DISABLED]
    assert weeks.reported(3)[0][0] == pytest.approx(3, abs=0.01)
    assert len(weeks.mass) <= 1, "no reminders of what has not changed"
    assert all(weeks.reported(number) for number in range(3)), "and those three are reported themselves"


def test_without_an_operator_the_contacts_are_notified() -> None:
    weeks = Weeks(20, together(6, 1.0)).run(3, reaches_operator=False)
    assert all([kind for _, kind in weeks.reported(number)] == [NewsKind.FAILING] for number in range(6))
    assert weeks.reported(0)[0][0] == pytest.approx(1, abs=0.02)


def test_tenants_without_a_way_to_notify_them_silence_no_other() -> None:
    fleet = Fleet(others=0)
    for _ in range(1000):
        unreachable = [Subject(tenant_of(number), FAILING, NOW, has_contacts=False) for number in range(5)]
        well = [Subject(tenant_of(number), ACTIVE, NOW) for number in range(6, 20)]
        state, since = (DISABLED, NOW + DAY_S) if fleet.now > NOW + DAY_S else (ACTIVE, NOW)
        fleet.step(*unreachable, *well, Subject(tenant_of(5), state, since), after_s=120, reaches_operator=False)
    assert [(tenant, news[0].kind) for _, tenant, news in fleet.sent] == [(tenant_of(5), NewsKind.DISABLED)]


def test_many_at_once_are_the_operators_and_what_stays_broken_becomes_the_tenants() -> None:
    """An outage of two hours: only the operator is notified, except of the two that stay broken."""
    states = together(150, 1.0, until=1 + 2 / 24) | {149: from_day(1.0, FAILING), 148: from_day(1.0, UNSTABLE)}
    weeks = Weeks(150, states).run(2, every_s=300)
    assert Counter(kind for number in range(148) for _, kind in weeks.reported(number)) == {}
    assert [kind for _, kind in weeks.reported(149)] == [NewsKind.FAILING]
    assert [kind for _, kind in weeks.reported(148)] == [NewsKind.UNSTABLE]
    assert weeks.reported(149)[0][0] == pytest.approx(1 + 2 / 24, abs=0.03)
    assert 1 <= len(weeks.mass) <= 2


def test_three_of_twenty_that_stay_broken_are_reported_a_day_later() -> None:
    weeks = Weeks(20, together(3, 1.0)).run(21, every_s=300)
    for number in range(3):
        assert [(round(day), kind) for day, kind in weeks.reported(number)] == [(2, NewsKind.FAILING)]
    assert len(weeks.mass) == 1


def test_an_outage_that_trickles_in_is_a_mass_change_though_the_first_were_reported() -> None:
    """Disabled is reported at once, so the first tenth gets it; the others do not, and the operator gets the number."""
    states = {number: from_day(1 + number * 6 / DAY_S, DISABLED) for number in range(100)}
    weeks = Weeks(100, states).run(1.5, every_s=60)
    assert sum(bool(weeks.reported(number)) for number in range(100)) <= 12
    counts = [news.count for _, news in weeks.fleet.to_operator if news.kind is NewsKind.MASS]
    assert counts[-1] >= 88
    assert len(counts) == 2, "a first number, and the whole one an hour later"


def test_a_second_mass_change_is_reported_too() -> None:
    states = together(5, 1.0, until=1.02) | {number: from_day(1.01 + 1 / 24, FAILING, 1.1) for number in range(5, 10)}
    states |= {number: from_day(9.0, UNSTABLE, 9.01) for number in range(10, 15)}
    weeks = Weeks(20, states).run(14, every_s=240)
    assert len(weeks.mass) == 3
    assert weeks.fleet.sent == []


def test_an_outage_of_a_day_that_disables_everyone_stays_the_operators() -> None:
    def outage(at: float) -> FleetState:
        return ACTIVE if at < DAY_S or at >= 2.9 * DAY_S else FAILING if at < 1.95 * DAY_S else DISABLED

    weeks = Weeks(100, dict.fromkeys(range(100), outage)).run(5, every_s=300)
    assert weeks.fleet.sent == []
    assert len(weeks.mass) == 2


def test_a_network_that_comes_and_goes_does_not_reach_the_tenants() -> None:
    def flaps(at: float) -> FleetState:
        return FAILING if DAY_S < at < 1.5 * DAY_S and at // 1800 % 2 else ACTIVE

    weeks = Weeks(100, dict.fromkeys(range(100), flaps)).run(3, every_s=240)
    assert weeks.fleet.sent == []
    assert len(weeks.mass) <= 3


def flapping(period_s: float, states: tuple[FleetState, ...], shift: float = 0.0) -> StateAt:
    return lambda at: states[int((at + shift) // period_s) % len(states)]


@pytest.mark.parametrize("period_s", [180.0, 600.0, 1200.0, 2400.0])
@pytest.mark.parametrize("flapping_states", [(FAILING, ACTIVE), (DISABLED, ACTIVE), (FAILING, UNSTABLE)])
def test_flapping_webhooks_silence_no_other_and_do_not_flood(
    period_s: float, flapping_states: tuple[FleetState, ...]
) -> None:
    states: dict[int, StateAt] = {number: flapping(period_s, flapping_states, number * 250) for number in range(4)}
    states |= {4: from_day(2, DISABLED), 5: from_day(3, FAILING), 6: from_day(4, UNSTABLE, 4.5)}
    weeks = Weeks(20, states).run(7, every_s=150)
    assert [(round(day), kind) for day, kind in weeks.reported(4)] == [(2, NewsKind.DISABLED)]
    assert [(round(day), kind) for day, kind in weeks.reported(5)] == [(3, NewsKind.FAILING)]
    assert [kind for _, kind in weeks.reported(6)] == [NewsKind.UNSTABLE, NewsKind.RECOVERED]
    for number in range(4):
        by_day = Counter(int(day) for day, _ in weeks.reported(number))
        assert max(by_day.values(), default=0) <= (26 if DISABLED in flapping_states else 12)


def test_trouble_of_changing_kind_lasts() -> None:
    """Failing and unstable by turns: each state is too short to be reported, the trouble is not."""
    weeks = Weeks(20, {0: flapping(150, (FAILING, UNSTABLE))}).run(2, every_s=30)
    assert weeks.reported(0), "never reported"
    assert weeks.reported(0)[0][0] < 0.02


def test_after_days_without_a_planner_the_changes_of_those_days_are_not_one() -> None:
    states = {number: from_day(2 + number / 2, FAILING) for number in range(4)} | {
        number: from_day(4.5, FAILING, 5.2) for number in range(10, 16)
    }
    weeks = Weeks(20, states).run(14, gaps=((1.9, 5.0),))
    for number in range(4):
        assert [round(day) for day, _ in weeks.reported(number)] == [5], number
    assert [weeks.reported(number) for number in range(10, 16)] == [[]] * 6, "these changed together"
    assert len(weeks.mass) == 1


def test_a_proxy_that_refuses_some_endpoints_for_weeks_silences_the_others_for_hours_only() -> None:
    fleet = Fleet(others=0)
    state, since = ACTIVE, NOW
    for _ in range(int(14 * DAY_S / 300)):
        if state is ACTIVE and fleet.now > NOW + 5 * DAY_S:
            state, since = DISABLED, fleet.now
        refused = [Subject(tenant_of(number), ACTIVE, NOW, own_failure_at=fleet.now) for number in range(5)]
        well = [Subject(tenant_of(number), ACTIVE, NOW) for number in range(6, 20)]
        fleet.step(*refused, *well, Subject(tenant_of(5), state, since), after_s=300)
    assert [(round((at - NOW) / DAY_S), tenant) for at, tenant, _ in fleet.sent] == [(5, tenant_of(5))]
    assert 13 <= len(fleet.to_operator) <= 15, "the operator is reminded each day"


def stretches() -> st.SearchStrategy[list[tuple[int, FleetState, float]]]:
    who = st.integers(0, 19)
    state = st.sampled_from([ACTIVE, ACTIVE, FAILING, UNSTABLE, DISABLED, FleetState.UNKNOWN])
    return st.lists(st.tuples(who, state, st.floats(60, 2 * HOUR_S)), min_size=1, max_size=60)


@settings(max_examples=25, deadline=None)
@given(stretches(), st.booleans())
def test_trouble_of_more_than_a_day_is_always_reported(
    changes: list[tuple[int, FleetState, float]], reaches_operator: bool
) -> None:
    """Whatever happened before, and whatever happens to others: the store's memory is never a trap."""

    def intervals() -> Iterator[tuple[float, dict[int, FleetState]]]:
        at, states = 0.0, dict.fromkeys(range(20), ACTIVE)
        for number, state, after_s in changes:
            yield at, dict(states)
            at, states[number] = at + after_s, state
        yield at, dict(states)

    timeline = list(intervals())
    last_at, last = timeline[-1]

    def state_of(number: int) -> StateAt:
        return lambda at: next(states[number] for start, states in reversed(timeline) if start <= max(at, 0.0))

    weeks = Weeks(20, {number: state_of(number) for number in range(20)})
    weeks.run(last_at / DAY_S + 1.5, every_s=300, reaches_operator=reaches_operator)
    for number, state in last.items():
        if state in TROUBLE:
            assert weeks.reported(number), (number, state)
            kinds = [kind.value for _, kind in weeks.reported(number) if kind is not NewsKind.RECOVERED]
            assert kinds[-1] == state.value, (number, state)
