"""Decides what is reported to whom, and when. Pure; times are Unix seconds.

A disabled webhook is reported at once; everything else is combined, and reported at most once per tenant and hour. A
state has to last before it is reported, so that a flapping endpoint is not reported each time. If many tenants change
together, or if our own way out is broken, only the operator is notified.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

import msgspec

from dispatcher.contract.fleet_state import TROUBLE, FleetState
from dispatcher.contract.tenant import TenantKey

DAY_S: Final = 86_400.0
MASS_SHARE: Final = 0.1
MASS_LEAST: Final = 3
"""So many tenants at least are many, however few there are."""
MASS_AGAIN_S: Final = 6 * 3600.0
"""The operator is reminded of one mass change after so long."""
MASS_QUIET_S: Final = 3600.0
BROKEN_FOR_S: Final = 600.0
"""Our own way out counts as broken for so long after the last attempt that failed on our side."""
OFTEN: Final = 4
OFTEN_EVERY_S: Final = 6 * 3600.0
"""A tenant that was notified 4 times within a day is notified this rarely, except that it was disabled or recovered."""
OPERATOR_EVERY_S: Final = 300.0
"""Shortest time between two messages to the operator that report nothing urgent."""
EXPIRY_STEPS_S: Final = (3 * DAY_S, 0.0)
"""An expiry is reported at `notifications.expires_within` before it, and at these times before it."""
EXPIRY_SHARE: Final = 1 / 3
"""A step is left out if a certificate has more than this share of its life left then: renewal is not late yet."""
MAX_EXPIRIES: Final = 40


class NewsKind(StrEnum):
    """What is reported."""

    DISABLED = "disabled"
    FAILING = "failing"
    UNSTABLE = "unstable"
    RECOVERED = "recovered"
    FIRST_DEAD = "first_dead"
    EXPIRING = "expiring"
    MASS = "mass"
    """Many tenants changed together. For the operator."""
    BROKEN = "broken"
    """Our own way out is broken. For the operator."""
    TEST = "test"


_BY_STATE: Final = {
    FleetState.DISABLED: NewsKind.DISABLED,
    FleetState.FAILING: NewsKind.FAILING,
    FleetState.UNSTABLE: NewsKind.UNSTABLE,
}


@dataclass(frozen=True, slots=True)
class Expiry:
    """A certificate or secret that expires."""

    name: str
    """`the client certificate (CN=dispatcher)`"""
    key: str
    """Identifies this very certificate, so that a new one is reported anew."""
    at: float
    is_rotation: bool = False
    """True for a signing secret or key that another one replaces: nothing is to be reported once it has ended."""
    life_s: float = math.inf
    """From its start to its end; infinite if the start is not known."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What is known of one tenant's webhook now."""

    tenant: TenantKey
    state: FleetState
    since: float
    dead_at: float | None = None
    own_failure_at: float | None = None
    expiries: tuple[Expiry, ...] = ()
    revision: str = ""
    """Changes with the webhook's configuration."""
    has_contacts: bool = True
    """False: the operator is notified instead, of all such tenants in one message."""


class Memory(msgspec.Struct, array_like=True):
    """What was reported about one tenant; kept in the store."""

    reported: FleetState = FleetState.ACTIVE
    """State that was reported last."""
    sent: list[float] = []
    """Times of the notifications of the last day."""
    disabled_at: float = 0.0
    """When "disabled" was reported last."""
    dead_at: float = 0.0
    """Time of the latest dead event that is known."""
    dead_waits: bool = False
    """The first dead event is not reported yet."""
    expiries: list[str] = []
    """Steps of expiries that were reported."""
    reported_at: float = 0.0
    """When `reported` was reported."""
    revision: str = ""
    """Of the webhook, the latest that is known since `reported` was reported."""
    is_edited: bool = False
    """The webhook was edited or replaced since then."""

    def __post_init__(self) -> None:
        """Fills in what an older version did not store."""
        if not self.reported_at:
            self.reported_at = max(self.sent, default=0.0)


class FleetMemory(msgspec.Struct, array_like=True):
    """What was reported to the operator about all tenants."""

    mass_at: float = 0.0
    broken_at: float = 0.0
    sent_at: float = 0.0
    expiries: list[str] = []
    """Steps of the operator's own expiries that were reported."""


@dataclass(frozen=True, slots=True)
class News:
    """One thing that is reported."""

    kind: NewsKind
    since: float
    expiry: Expiry | None = None
    count: int = 0
    """Tenants that it concerns, of `total`, if it concerns many."""
    total: int = 0


@dataclass(frozen=True, slots=True)
class Notice:
    """What one message to a tenant's contacts reports."""

    tenant: TenantKey
    news: tuple[News, ...]


@dataclass(slots=True)
class Plan:
    """What is to be sent now, and what is remembered from then on."""

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
    is_withheld = _report_fleet(subjects, memories, made, now, reaches_operator=reaches_operator)
    for subject in subjects:
        memory = memories.get(subject.tenant) or Memory()
        changed = _copied(memory)
        _note_dead(subject, changed, now)
        _note_edit(subject, changed)
        news = _news_of(subject, changed, now, pace, is_withheld=is_withheld)
        is_too_soon = not subject.has_contacts and now - fleet_memory.sent_at < OPERATOR_EVERY_S
        is_reachable = subject.has_contacts or reaches_operator
        if news and is_reachable and _is_due(news, changed, now, pace, only_urgent=is_too_soon):
            _remember(news, subject, changed, now, pace)
            if not subject.has_contacts:
                made.fleet_memory.sent_at = now
            made.notices.append(Notice(subject.tenant, tuple(news)))
        if changed != memory:
            made.memories[subject.tenant] = changed
    return made


def _report_own_expiries(own: Sequence[Expiry], made: Plan, now: float, pace: Pace) -> None:
    memory = made.fleet_memory
    for expiry in own:
        if (step := _step_of(expiry, now, pace)) is not None and step not in memory.expiries:
            memory.expiries = _with_step(memory.expiries, expiry, step, own)
            memory.sent_at = now
            made.fleet.append(News(NewsKind.EXPIRING, now, expiry))


def _report_fleet(
    subjects: Sequence[Subject], memories: Mapping[TenantKey, Memory], made: Plan, now: float, *, reaches_operator: bool
) -> bool:
    """Reports changes of many tenants to the operator. Returns True if tenants are not notified of trouble."""
    total, memory = len(subjects), made.fleet_memory
    changed = [one for one in subjects if one.state in TROUBLE and _is_unreported(one, memories.get(one.tenant))]
    broken = [one for one in subjects if one.own_failure_at is not None and now - one.own_failure_at < BROKEN_FOR_S]
    is_mass, is_broken = _are_many(changed, total), _are_many(broken, total) or (0 < total == len(broken))
    if not reaches_operator:
        return is_mass or is_broken
    if is_mass and now - memory.mass_at >= MASS_AGAIN_S:
        memory.mass_at = now
        made.fleet.append(News(NewsKind.MASS, min(one.since for one in changed), count=len(changed), total=total))
    if is_broken and now - memory.broken_at >= MASS_AGAIN_S:
        memory.broken_at = now
        made.fleet.append(News(NewsKind.BROKEN, now, count=len(broken), total=total))
    if not is_mass and now - memory.mass_at >= MASS_QUIET_S:
        memory.mass_at = 0.0  # the next one is another one
    return is_mass or is_broken


def _are_many(some: Sequence[Subject], total: int) -> bool:
    return len(some) >= MASS_LEAST and len(some) > MASS_SHARE * total


def _is_unreported(trouble: Subject, memory: Memory | None) -> bool:
    return memory is None or memory.reported not in TROUBLE or _began_anew(trouble, memory)


def _began_anew(subject: Subject, memory: Memory) -> bool:
    """Returns True if the state that was reported last has ended, and begun again.

    Whatever flaps does so all the time. It is news only if the webhook is disabled, or if it was edited meanwhile.
    """
    is_again = subject.state is memory.reported and subject.since > memory.reported_at
    return is_again and (subject.state is FleetState.DISABLED or memory.is_edited)


def _copied(memory: Memory) -> Memory:
    return msgspec.structs.replace(memory, sent=list(memory.sent), expiries=list(memory.expiries))


def _note_dead(subject: Subject, memory: Memory, now: float) -> None:
    """Records the latest dead event, which is to be reported if none died in the day before it."""
    if subject.dead_at is None or subject.dead_at <= memory.dead_at:
        return
    is_first = subject.dead_at - memory.dead_at > DAY_S
    memory.dead_waits = memory.dead_waits or (is_first and now - subject.dead_at < DAY_S)
    memory.dead_at = subject.dead_at


def _note_edit(subject: Subject, memory: Memory) -> None:
    """Records that a webhook was edited or replaced after its trouble was reported."""
    if memory.reported in TROUBLE and memory.revision != subject.revision:
        memory.is_edited = memory.is_edited or bool(memory.revision)
        memory.revision = subject.revision


def _news_of(subject: Subject, memory: Memory, now: float, pace: Pace, *, is_withheld: bool) -> list[News]:
    """Returns everything about the tenant that has not been reported and may be reported now."""
    found = []
    state, has_settled = subject.state, now - subject.since >= pace.settle_s
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
    if NewsKind.DISABLED in kinds and now - memory.disabled_at >= pace.every_s:
        return True
    if only_urgent:
        return False
    lately = [at for at in memory.sent if now - at < DAY_S]
    is_often = len(lately) >= OFTEN and NewsKind.RECOVERED not in kinds
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


def encode_memory(memory: Memory | FleetMemory) -> bytes:
    """Returns the bytes that the store keeps."""
    return msgspec.msgpack.encode(memory)


def decode_memory(data: bytes) -> Memory:
    """Returns the memory in the store's bytes; empty if another version of this program wrote them."""
    try:
        return msgspec.msgpack.decode(data, type=Memory)
    except msgspec.DecodeError:
        return Memory()


def decode_fleet_memory(data: bytes) -> FleetMemory:
    """Returns the operator's memory in the store's bytes; empty if another version of this program wrote them."""
    try:
        return msgspec.msgpack.decode(data, type=FleetMemory)
    except msgspec.DecodeError:
        return FleetMemory()
