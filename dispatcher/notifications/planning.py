"""Decides what is reported to whom, and when. Pure; times are Unix seconds.

A disabled webhook is reported at once; everything else is combined, and reported at most once per tenant and hour. A
state has to last before it is reported, so that a flapping endpoint is not reported each time. If many tenants change
together, or if our own way out is broken, only the operator is notified (see `mass_changes`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from dispatcher.contract.fleet_state import TROUBLE, FleetState
from dispatcher.contract.tenant import TenantKey
from dispatcher.notifications.mass_changes import BROKEN_AGAIN_S, DAY_S, note_broken, note_spells, withhold
from dispatcher.notifications.memory import CALM_S, FleetMemory, Memory, copied
from dispatcher.notifications.news import Expiry, News, NewsKind, Notice, Subject

OFTEN: Final = 4
OFTEN_EVERY_S: Final = 6 * 3600.0
"""A tenant that was notified 4 times within a day is notified this rarely, except that it was disabled, or has been
well for an hour."""
OPERATOR_EVERY_S: Final = 300.0
"""Shortest time between two messages to the operator that report nothing urgent."""
EXPIRY_STEPS_S: Final = (3 * DAY_S, 0.0)
"""An expiry is reported at `notifications.expires_within` before it, and at these times before it."""
EXPIRY_SHARE: Final = 1 / 3
"""A step is left out if a certificate has more than this share of its life left then: renewal is not late yet."""
MAX_EXPIRIES: Final = 40
NOTED_EVERY_S: Final = 300.0
AWAY_S: Final = 900.0
"""Time without planning after which new troubles may have begun earlier."""

_BY_STATE: Final = {
    FleetState.DISABLED: NewsKind.DISABLED,
    FleetState.FAILING: NewsKind.FAILING,
    FleetState.UNSTABLE: NewsKind.UNSTABLE,
}


@dataclass(slots=True)
class Plan:
    """Messages to send now, and the reports to remember once they are sent."""

    notices: list[Notice] = field(default_factory=list)
    """For tenants' contacts."""
    fleet: list[News] = field(default_factory=list)
    """For the operator only."""
    memories: dict[TenantKey, Memory] = field(default_factory=dict)
    """Those that changed."""
    fleet_memory: FleetMemory = field(default_factory=FleetMemory)

    @property
    def has_expiries(self) -> bool:
        """True if a certificate, secret or key is reported."""
        news = (*self.fleet, *(one for notice in self.notices for one in notice.news))
        return any(one.kind is NewsKind.EXPIRING for one in news)


@dataclass(frozen=True, slots=True)
class Pace:
    """Settings of the pace, in seconds; see `notifications` in the settings."""

    every_s: float = 3600.0
    settle_s: float = 300.0
    expires_within_s: float = 14 * DAY_S


def plan(
    subjects: Sequence[Subject],
    memories: Mapping[TenantKey, Memory],
    fleet_memory: FleetMemory,
    now: float,
    pace: Pace = Pace(),
    own: Sequence[Expiry] = (),
    *,
    reaches_operator: bool = True,
) -> Plan:
    """Decides what is sent now. The caller stores the memories in the transaction that stores what is sent.

    Args:
        own: expiries of the operator's certificates.
        reaches_operator: False if the operator can't be notified: then nothing counts as reported to the operator.
    """
    made = Plan(fleet_memory=msgspec.structs.replace(fleet_memory, expiries=list(fleet_memory.expiries)))
    if reaches_operator and now - fleet_memory.sent_at >= OPERATOR_EVERY_S:
        _report_own_expiries(own[:MAX_EXPIRIES], made, now, pace)
    was_away = now - fleet_memory.planned_at > AWAY_S
    if now - fleet_memory.planned_at >= NOTED_EVERY_S:
        made.fleet_memory.planned_at = now
    noted = {one.tenant: _noted(one, memories.get(one.tenant), now, was_away=was_away) for one in subjects}
    withheld = _report_fleet(subjects, noted, made, now, reaches_operator=reaches_operator)
    for subject in subjects:
        changed = noted[subject.tenant]
        news = _news_of(subject, changed, now, pace, is_withheld=subject.tenant in withheld)
        is_too_soon = not subject.has_contacts and now - fleet_memory.sent_at < OPERATOR_EVERY_S
        is_reachable = subject.has_contacts or reaches_operator
        if news and is_reachable and _is_due(news, changed, now, pace, only_urgent=is_too_soon):
            _remember(news, subject, changed, now, pace)
            if not subject.has_contacts:
                made.fleet_memory.sent_at = now
            made.notices.append(Notice(subject.tenant, tuple(news)))
        if changed != (memories.get(subject.tenant) or Memory()):
            made.memories[subject.tenant] = changed
    return made


def _noted(subject: Subject, memory: Memory | None, now: float, *, was_away: bool) -> Memory:
    """Returns a copy of the memory in which everything is recorded that is not a report."""
    changed = copied(memory or Memory())
    _note_dead(subject, changed, now, was_away=was_away)
    _note_edit(subject, changed)
    note_spells(subject, changed, now, was_away=was_away)
    return changed


def _report_own_expiries(own: Sequence[Expiry], made: Plan, now: float, pace: Pace) -> None:
    memory = made.fleet_memory
    for expiry in own:
        if (step := _step_of(expiry, now, pace)) is not None and step not in memory.expiries:
            memory.expiries = _with_step(memory.expiries, expiry, step, own)
            memory.sent_at = now
            made.fleet.append(News(NewsKind.EXPIRING, now, expiry))


def _report_fleet(
    subjects: Sequence[Subject], noted: Mapping[TenantKey, Memory], made: Plan, now: float, *, reaches_operator: bool
) -> set[TenantKey]:
    """Reports to the operator what concerns many. Returns the tenants that are not notified of trouble now."""
    memory = made.fleet_memory
    is_put_off, broken = note_broken(subjects, memory, now)
    withheld = {one.tenant for one in subjects} if is_put_off else set()
    if not reaches_operator:
        return withheld
    of_many, news = withhold(subjects, noted, memory, now)
    made.fleet += news
    if broken and (memory.broken.began_at > memory.broken_at or now - memory.broken_at >= BROKEN_AGAIN_S):
        memory.broken_at = now
        made.fleet.append(News(NewsKind.BROKEN, memory.broken.began_at, count=broken, total=len(subjects)))
    return withheld | of_many


def _began_anew(subject: Subject, memory: Memory) -> bool:
    """Returns True if the state that was reported last has ended, and begun again.

    A flapping webhook does so all the time. It is news only if the webhook is disabled, or if it was edited meanwhile.
    """
    is_again = subject.state is memory.reported and subject.since > memory.reported_at
    return is_again and (subject.state is FleetState.DISABLED or memory.is_edited)


def _note_dead(subject: Subject, memory: Memory, now: float, *, was_away: bool) -> None:
    """Records the latest dead event, which is to be reported if none died in the day before it."""
    if subject.dead_at is None or subject.dead_at <= memory.dead_at:
        return
    is_first = subject.dead_at - memory.dead_at > DAY_S
    if is_first and not memory.dead_waits and now - subject.dead_at < DAY_S:
        memory.dead_waits, memory.dead_since = True, min(now, subject.dead_at) if was_away else now
    memory.dead_at = subject.dead_at


def _note_edit(subject: Subject, memory: Memory) -> None:
    """Records that a webhook was edited or replaced after its trouble was reported."""
    if memory.reported in TROUBLE and memory.revision != subject.revision:
        memory.is_edited = memory.is_edited or bool(memory.revision)
        memory.revision = subject.revision


def _news_of(subject: Subject, memory: Memory, now: float, pace: Pace, *, is_withheld: bool) -> list[News]:
    """Returns everything about the tenant that has not been reported and may be reported now."""
    found = []
    state, has_settled = subject.state, now - (memory.ill_since or subject.since) >= pace.settle_s
    if state is not memory.reported or _began_anew(subject, memory):
        if state in TROUBLE and not is_withheld and (has_settled or state is FleetState.DISABLED):
            found.append(News(_BY_STATE[state], subject.since))
        elif state is FleetState.ACTIVE and memory.reported in TROUBLE and has_settled:
            found.append(News(NewsKind.RECOVERED, subject.since))
    if memory.dead_waits and not is_withheld:
        found.append(News(NewsKind.FIRST_DEAD, memory.dead_at))
    found += [
        News(NewsKind.EXPIRING, now, expiry)
        for expiry in subject.expiries[:MAX_EXPIRIES]
        if _step_of(expiry, now, pace) not in (None, *memory.expiries)
    ]
    return found


def _step_of(expiry: Expiry, now: float, pace: Pace) -> str | None:
    """Returns the last step that an expiry has reached."""
    left = expiry.at - now
    if expiry.is_rotation and left <= 0:
        return None
    steps = (pace.expires_within_s, *EXPIRY_STEPS_S)
    reached = [number for number, step in enumerate(steps) if left <= step <= expiry.life_s * EXPIRY_SHARE]
    return f"{expiry.key} {max(reached)}" if reached else None


def _with_step(steps: Sequence[str], expiry: Expiry, step: str, expiries: Sequence[Expiry]) -> list[str]:
    """Returns the reported steps with one more, without those of the same expiry and of expiries that are gone."""
    others = {one.key for one in expiries} - {expiry.key}
    return [*(kept for kept in steps if kept.rpartition(" ")[0] in others), step]


def _is_due(news: Iterable[News], memory: Memory, now: float, pace: Pace, *, only_urgent: bool) -> bool:
    kinds = {one.kind for one in news}
    is_well = any(one.kind is NewsKind.RECOVERED and now - one.since >= CALM_S for one in news)
    is_new = memory.is_edited or now - memory.disabled_at >= pace.every_s
    if NewsKind.DISABLED in kinds and is_new:
        return True
    if only_urgent:
        return False
    lately = [at for at in memory.sent if now - at < DAY_S]
    is_often = len(lately) >= OFTEN and not is_well
    every_s = max(pace.every_s, OFTEN_EVERY_S) if is_often else pace.every_s
    return not lately or now - max(lately) >= every_s


def _remember(news: Iterable[News], subject: Subject, memory: Memory, now: float, pace: Pace) -> None:
    memory.sent = [*(at for at in memory.sent if now - at < DAY_S), now]
    for one in news:
        if one.kind is NewsKind.FIRST_DEAD:
            memory.dead_waits = False
        elif one.kind is NewsKind.EXPIRING and one.expiry is not None:
            step = _step_of(one.expiry, now, pace) or ""
            memory.expiries = _with_step(memory.expiries, one.expiry, step, subject.expiries)
        else:
            memory.reported, memory.reported_at = subject.state, now
            memory.revision, memory.is_edited = subject.revision, False
            if one.kind is NewsKind.DISABLED:
                memory.disabled_at = now
