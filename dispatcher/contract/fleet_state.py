"""The state of a tenant's webhook, from the attempts of all dispatchers together. Pure; times are Unix milliseconds.

Evidence is counts and latest times only, so that entries may arrive in any order and in any batches.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import msgspec

from dispatcher.contract.history import HistoryEntry, HistoryOutcome
from dispatcher.contract.outcomes import FailureReason, ParkReason
from dispatcher.contract.tenant import TenantKey

MINUTE_MS: Final = 60_000
HOUR_MS: Final = 3_600_000
MINUTES: Final = 30
"""Length of the window in which a webhook is judged unstable."""
HOURS: Final = 25
"""Hours whose counts are kept: a day, and the hour that is not over."""
MIN_ATTEMPTS: Final = 10
UNSTABLE_SHARE: Final = 0.8
FAILING_ATTEMPTS: Final = 5
FAILING_MS: Final = MINUTE_MS
"""Least time between the first and the last of these attempts: an endpoint that restarts fails hundreds in seconds."""
RESUMED_MS: Final = 2 * MINUTE_MS
"""Time after the last held event at which attempts show that sending was resumed by hand."""

COUNTED: Final = frozenset({HistoryOutcome.ATTEMPT, HistoryOutcome.DELIVERED, HistoryOutcome.DEAD, HistoryOutcome.HELD})
"""Outcomes of entries that are evidence."""
_OWN_FAILURES: Final = frozenset({FailureReason.LOCAL.value, FailureReason.PROXY.value})
_STOPPED: Final = frozenset({ParkReason.SUSPENDED.value, ParkReason.TENANT_DISABLED.value})


class FleetState(StrEnum):
    """The state of a webhook for display and notifications. Lanes decide by themselves what they send."""

    ACTIVE = "active"
    UNSTABLE = "unstable"
    """Over 80 % of at least 10 attempts failed in the last 30 minutes with attempts; some events arrive."""
    FAILING = "failing"
    """Nothing arrives: at least 5 attempts failed, for a minute or longer, since the last delivery."""
    DISABLED = "disabled"
    """Sending stopped until the webhook is edited or enabled: the endpoint asked for it, or all failed for a day."""
    PAUSED = "paused"
    """The configuration says `paused: true` or `enabled: false`."""
    UNKNOWN = "unknown"
    """No attempt is known, or none since the webhook was changed after trouble, or the history isn't up to date."""


TROUBLE: Final = frozenset({FleetState.UNSTABLE, FleetState.FAILING, FleetState.DISABLED})


class Failure(msgspec.Struct, array_like=True, frozen=True, order=True):
    """The latest failed attempt, or the latest dead event."""

    at: int = 0
    reason: str = ""
    """As in the history: `http_5xx`, `timeout`, …; of a dead event `rejected`, `expired`, …"""
    status: int = 0
    """HTTP status; 0 if there was no answer."""
    detail: str = ""

    @classmethod
    def of(cls, entry: HistoryEntry) -> "Failure":
        """Returns what is kept of an entry."""
        return cls(entry.at, entry.reason[:64], entry.status or 0, entry.detail[:256])


class PeriodCounts(msgspec.Struct, array_like=True):
    """Counts of one minute or hour."""

    delivered: int = 0
    failed: int = 0
    dead: int = 0
    first_failed_at: int = 0
    """Earliest failed attempt; 0 if there is none, or an older version counted it."""


class StateEvidence(msgspec.Struct, array_like=True):
    """Counts of one tenant's attempts and outcomes, from which its state is judged.

    `merge` is commutative and associative.
    """

    minutes: dict[int, PeriodCounts] = {}
    """By minute since 1970: the newest 30."""
    hours: dict[int, PeriodCounts] = {}
    """By hour since 1970: the newest 25."""
    delivered_at: int = 0
    """Latest delivery; 0: none is known. The same for the times below."""
    attempted_at: int = 0
    stopped_at: int = 0
    """Latest sign that sending stopped: an event that is held for it, or the answer that asked for it."""
    stopped_by: str = ""
    """`suspended` or `tenant_disabled`."""
    dead_at: int = 0
    own_failure_at: int = 0
    """Latest attempt that failed on our side: no file descriptor, no network, the egress proxy. It counts for nothing
    else."""
    failure: Failure = Failure()
    death: Failure = Failure()
    """The latest dead event: why it died. Older versions didn't store it."""
    failures: list[int] = []
    """Times of the newest failed attempts, at most `FAILING_ATTEMPTS`: the counts don't say which of a minute's
    attempts were after a change of the webhook in that minute. Older versions didn't store it."""

    def add(self, entry: HistoryEntry) -> None:
        """Counts one entry. Entries of other outcomes than attempts, deliveries, dead and held events don't count."""
        outcome, at = entry.outcome, entry.at
        if outcome is HistoryOutcome.DELIVERED:
            self._count(at, PeriodCounts(delivered=1))
            self.delivered_at = max(self.delivered_at, at)
            self.attempted_at = max(self.attempted_at, at)
        elif outcome is HistoryOutcome.ATTEMPT and entry.reason in _OWN_FAILURES:
            self.own_failure_at = max(self.own_failure_at, at)
        elif outcome is HistoryOutcome.ATTEMPT:
            self._count(at, PeriodCounts(failed=1, first_failed_at=at))
            self._keep_failures([at])
            self.attempted_at = max(self.attempted_at, at)
            self.failure = max(self.failure, Failure.of(entry))
            if entry.verdict == "disable_endpoint":
                self._stop(at, ParkReason.SUSPENDED.value)
        elif outcome is HistoryOutcome.DEAD:
            self._count(at, PeriodCounts(dead=1))
            self.dead_at = max(self.dead_at, at)
            self.death = max(self.death, Failure.of(entry))
        elif outcome is HistoryOutcome.HELD and entry.reason in _STOPPED:
            self._stop(at, entry.reason)

    def merge(self, other: "StateEvidence") -> None:
        """Adds the evidence of other entries."""
        for mine, theirs in ((self.minutes, other.minutes), (self.hours, other.hours)):
            for number, slot in theirs.items():
                _add_slot(mine, number, slot)
        self._trim()
        self.delivered_at = max(self.delivered_at, other.delivered_at)
        self.attempted_at = max(self.attempted_at, other.attempted_at)
        if other.stopped_at:
            self._stop(other.stopped_at, other.stopped_by)
        self.dead_at = max(self.dead_at, other.dead_at)
        self.own_failure_at = max(self.own_failure_at, other.own_failure_at)
        self.failure = max(self.failure, other.failure)
        self.death = max(self.death, other.death)
        self._keep_failures(other.failures)

    def failures_since(self, floor: int) -> tuple[int, int]:
        """Returns how many attempts failed after `floor`, at least, and when the first of them failed.

        The newest ones count by their own time, older ones by whole minutes after that of `floor`, and those that are
        older than the kept minutes by whole hours.
        """
        newest = [at for at in self.failures if at > floor]
        oldest_minute = max(self.minutes, default=0) - MINUTES + 1
        periods = [
            (slot.first_failed_at or hour * HOUR_MS, slot.failed)
            for hour, slot in self.hours.items()
            if slot.failed and hour > floor // HOUR_MS and (hour + 1) * 60 <= oldest_minute
        ] + [
            (slot.first_failed_at or minute * MINUTE_MS, slot.failed)
            for minute, slot in self.minutes.items()
            if slot.failed and minute > floor // MINUTE_MS
        ]
        count = max(len(newest), sum(failed for _, failed in periods))
        return count, min([*newest, *(first for first, _ in periods)], default=0)

    def lately(self, floor: int = 0) -> PeriodCounts:
        """Returns the total of the kept minutes, at most 30, that follow the minute of `floor`."""
        total = PeriodCounts()
        for minute, slot in self.minutes.items():
            if minute > floor // MINUTE_MS:
                _add(total, slot)
        return total

    def dead_lately(self, now: int) -> tuple[int, int]:
        """Returns how many events died since the full hour before a day ago, and this time.

        Those that were sent again since are among them.
        """
        first = now // HOUR_MS - HOURS + 1
        return sum(slot.dead for hour, slot in self.hours.items() if hour >= first), first * HOUR_MS

    def _count(self, at: int, slot: PeriodCounts) -> None:
        _add_slot(self.minutes, at // MINUTE_MS, slot)
        _add_slot(self.hours, at // HOUR_MS, slot)
        self._trim()

    def _keep_failures(self, times: list[int]) -> None:
        self.failures = sorted([*self.failures, *times])[-FAILING_ATTEMPTS:]

    def _stop(self, at: int, by: str) -> None:
        self.stopped_at, self.stopped_by = max((self.stopped_at, self.stopped_by), (at, by))

    def _trim(self) -> None:
        for slots, kept in ((self.minutes, MINUTES), (self.hours, HOURS)):
            if len(slots) > 1:
                oldest = max(slots) - kept
                for number in [number for number in slots if number <= oldest]:
                    del slots[number]


@dataclass(frozen=True, slots=True)
class Configured:
    """The part of a webhook's configuration that its state depends on."""

    is_paused: bool = False
    """`paused: true` or `enabled: false`."""
    changed_at: int = 0
    """When this revision replaced another; 0 if it replaced none."""


@dataclass(frozen=True, slots=True)
class Judged:
    """A state, and when it began."""

    state: FleetState
    since: int


def judge(evidence: StateEvidence, configured: Configured, previous: FleetState, now: int) -> Judged:
    """Returns the state that follows from the evidence.

    Failures from before the last change of the configuration don't count.

    Args:
        previous: the present state, since a webhook in trouble is active again only after deliveries.
    """
    if configured.is_paused:
        return Judged(FleetState.PAUSED, configured.changed_at or now)
    changed_at = configured.changed_at
    if _is_stopped(evidence, changed_at):
        return Judged(FleetState.DISABLED, evidence.stopped_at)
    failures, first = evidence.failures_since(max(evidence.delivered_at, changed_at))
    if failures >= FAILING_ATTEMPTS and evidence.failure.at - first >= FAILING_MS:
        return Judged(FleetState.FAILING, first)
    lately = evidence.lately(changed_at)
    attempts = lately.delivered + lately.failed
    if attempts >= MIN_ATTEMPTS and lately.failed > UNSTABLE_SHARE * attempts:
        return Judged(FleetState.UNSTABLE, max(changed_at, min(evidence.minutes) * MINUTE_MS))
    if previous is FleetState.ACTIVE:
        return Judged(FleetState.ACTIVE, now)
    if previous in TROUBLE and evidence.attempted_at > changed_at:
        if evidence.delivered_at > max(changed_at, evidence.failure.at):
            return Judged(FleetState.ACTIVE, evidence.delivered_at)
        if previous is FleetState.DISABLED:
            is_arriving = evidence.delivered_at > evidence.stopped_at
            return Judged(FleetState.UNSTABLE if is_arriving else FleetState.FAILING, now)
        return Judged(previous, now)  # a few failed probes don't prove a recovery
    if evidence.delivered_at > changed_at:
        return Judged(FleetState.ACTIVE, evidence.delivered_at)
    return Judged(FleetState.UNKNOWN, changed_at or now)


def _is_stopped(evidence: StateEvidence, changed_at: int) -> bool:
    stopped_at = evidence.stopped_at
    return stopped_at > max(changed_at, evidence.delivered_at, evidence.attempted_at - RESUMED_MS)


def _add_slot(slots: dict[int, PeriodCounts], number: int, slot: PeriodCounts) -> None:
    mine = slots.get(number)
    if mine is None:
        mine = slots[number] = PeriodCounts()
    _add(mine, slot)


def _add(mine: PeriodCounts, other: PeriodCounts) -> None:
    mine.delivered += other.delivered
    mine.failed += other.failed
    mine.dead += other.dead
    if other.first_failed_at:
        mine.first_failed_at = min(mine.first_failed_at or other.first_failed_at, other.first_failed_at)


_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(StateEvidence)


def encode_evidence(evidence: StateEvidence) -> bytes:
    """Returns the bytes that the store keeps: under 2 kB, most of it counts."""
    return _encoder.encode(evidence)


def decode_evidence(data: bytes) -> StateEvidence:
    """Returns the evidence in the store's bytes; none if another version of this program wrote them."""
    try:
        return _decoder.decode(data)
    except msgspec.DecodeError:
        return StateEvidence()


def evidence_by_tenant(entries: Iterable[HistoryEntry]) -> Mapping[TenantKey, StateEvidence]:
    """Returns the evidence in entries of many tenants. Entries without a tenant, and skipped events, don't count."""
    found: defaultdict[TenantKey, StateEvidence] = defaultdict(StateEvidence)
    for entry in entries:
        if entry.outcome in COUNTED and entry.org and entry.sandbox:
            key = TenantKey(entry.org, entry.sandbox)
            found[key].add(entry)
    return found
