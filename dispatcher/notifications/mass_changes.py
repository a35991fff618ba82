"""Finds webhooks that changed together, which only the operator is notified of. Pure; times are Unix seconds.

One cause shows within minutes. So changes count as one only if they lie that close together, and each webhook remembers
that the operator was notified of its change: what changes later is reported to its contacts as ever. A report is
withheld for a day at most, and no longer than an hour if nearly all of the others have recovered.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from dispatcher.contract.fleet_state import TROUBLE, FleetState
from dispatcher.contract.tenant import TenantKey
from dispatcher.notifications.memory import CALM_S, FleetMemory, Memory, Spell
from dispatcher.notifications.news import News, NewsKind, Subject

DAY_S: Final = 86_400.0
MASS_SHARE: Final = 0.1
MASS_LEAST: Final = 3
"""Smallest number of tenants that counts as a mass change, however few tenants there are."""
TOGETHER_S: Final = 900.0
"""Changes within this time may have one cause. Longer than a state has to last before it is reported."""
MASS_EVERY_S: Final = 3600.0
"""Shortest time between two messages to the operator about many changes."""
WITHHELD_S: Final = DAY_S
WITHHELD_LEAST_S: Final = 3600.0
BROKEN_FOR_S: Final = 600.0
"""Time since the last attempt that failed on our side for which our own network counts as broken."""
BROKEN_MOST_S: Final = 6 * 3600.0
"""Time after which reports are no longer delayed: an egress proxy may refuse some endpoints for good."""
BROKEN_AGAIN_S: Final = DAY_S


def note_spells(subject: Subject, memory: Memory, now: float, *, was_away: bool) -> None:
    """Records when trouble began.

    Args:
        was_away: no one looked lately, so that what is new now began when the history says.
    """
    is_ill, is_disabled = subject.state in TROUBLE, subject.state is FleetState.DISABLED
    began_at = min(now, subject.since) if was_away else now
    if is_disabled and subject.since > memory.disabled.began_at and now - memory.disabled.began_at >= CALM_S:
        memory.disabled = Spell()  # it was enabled meanwhile
    memory.trouble = memory.trouble.noted(now, began_at, is_so=is_ill)
    memory.disabled = memory.disabled.noted(now, began_at, is_so=is_disabled)
    memory.ill_since = (memory.ill_since or min(now, subject.since)) if is_ill else 0.0


def withhold(
    subjects: Sequence[Subject], memories: Mapping[TenantKey, Memory], fleet: FleetMemory, now: float
) -> tuple[set[TenantKey], list[News]]:
    """Returns the tenants that are not notified of trouble now, and what the operator is notified of instead."""
    changes = {one.tenant: at for one in subjects if (at := _change_of(one.state, memories[one.tenant]))}
    total = len(subjects)
    together = _together(changes, total)
    for tenant in together:
        memory = memories[tenant]
        is_told = memory.reported in TROUBLE and memory.reported_at >= changes[tenant]
        if memory.withheld_change != changes[tenant] and not is_told:
            memory.withheld_change, memory.withheld_at = changes[tenant], now
            fleet.has_more = True
    withheld = {
        tenant: now - memories[tenant].withheld_at
        for tenant, at in changes.items()
        if memories[tenant].withheld_change == at and now - memories[tenant].withheld_at < WITHHELD_S
    }
    are_most_well = not are_many(len(withheld), total)
    kept = {tenant for tenant, age in withheld.items() if not are_most_well or age < WITHHELD_LEAST_S}
    if not fleet.has_more or now - fleet.mass_at < MASS_EVERY_S:
        return kept, []
    fleet.mass_at, fleet.has_more = now, False
    concerned = kept | {tenant for tenant in together if now - changes[tenant] < DAY_S}
    since = min((one.since for one in subjects if one.tenant in concerned), default=now)
    return kept, [News(NewsKind.MASS, since, count=len(concerned), total=total)] if concerned else []


def note_broken(subjects: Sequence[Subject], fleet: FleetMemory, now: float) -> tuple[bool, int]:
    """Returns whether our own way out is broken and reports are put off, and how many webhooks show it."""
    count = sum(one.own_failure_at is not None and now - one.own_failure_at < BROKEN_FOR_S for one in subjects)
    is_broken = are_many(count, len(subjects)) or 0 < len(subjects) == count
    fleet.broken = fleet.broken.noted(now, now, is_so=is_broken)
    return is_broken and now - fleet.broken.began_at < BROKEN_MOST_S, count if is_broken else 0


def are_many(count: int, total: int) -> bool:
    """Returns True if too many of all webhooks have changed for it to be chance."""
    return count >= MASS_LEAST and count > MASS_SHARE * total


def _change_of(state: FleetState, memory: Memory) -> float:
    """Returns when the trouble began of which the tenant is to be notified; 0 if there is none."""
    if state in TROUBLE:
        disabled_at = memory.disabled.began_at if state is FleetState.DISABLED else 0.0
        return max(memory.trouble.began_at, disabled_at)
    return memory.dead_since if memory.dead_waits else 0.0


def _together(changes: Mapping[TenantKey, float], total: int) -> set[TenantKey]:
    """Returns the tenants that changed at about the same time as many others."""
    ordered = sorted((at, tenant) for tenant, at in changes.items())
    found: set[TenantKey] = set()
    start = taken = 0
    for end, (at, _) in enumerate(ordered, 1):
        while at - ordered[start][0] > TOGETHER_S:
            start += 1
        if are_many(end - start, total):
            found.update(tenant for _, tenant in ordered[max(start, taken) : end])
            taken = end
    return found
