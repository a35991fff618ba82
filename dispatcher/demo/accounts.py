"""The balance of what was produced against what happened to it. Pure arithmetic.

The dispatcher is not asked first: an event counts as delivered if its receiver answered 200, and as dead if it is in
the dead-letter topic. Only skipped events can't be seen from outside, so the dispatcher's counters are compared with
the plan. If a tenant was changed in the console, or its events sent again, the plan no longer holds for it: what
neither receiver nor dead-letter topic has is then counted as the dispatcher's history says.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field

from dispatcher.contract.history import HistoryOutcome
from dispatcher.contract.outcomes import DeadReason, SkipReason
from dispatcher.demo.planning import Planned

_OURS = (DeadReason.UNREADABLE, DeadReason.INTERNAL)
"""Reasons that a good event must not die of, whatever its endpoint does."""
_UNFINISHED = ("lost", "waiting")

Said = tuple[HistoryOutcome, str]
"""The last outcome of an event in the history topic, and its reason."""


@dataclass(frozen=True, slots=True)
class Balance:
    """The count of events by what happened to them."""

    produced: int = 0
    delivered: int = 0
    skipped: int = 0
    dead: int = 0
    lost: int = 0
    waiting: int = 0
    """Events that the dispatcher says are parked, held or being attempted."""
    twice: int = 0
    """Events delivered more than once: allowed by at-least-once, and reported."""
    problems: tuple[str, ...] = ()
    """Everything that must not be."""

    @property
    def is_complete(self) -> bool:
        """True if every event has ended."""
        return not self.lost and not self.waiting

    @property
    def holds(self) -> bool:
        """True if every event is accounted for as planned."""
        total = self.delivered + self.skipped + self.dead
        return self.is_complete and not self.problems and self.produced == total

    def __str__(self) -> str:
        waiting = f"still waiting {self.waiting:,}; " if self.waiting else ""
        return (
            f"{self.produced:,} events = {self.delivered:,} delivered + {self.skipped:,} skipped + {self.dead:,} dead; "
            f"{waiting}lost {self.lost:,}; delivered twice {self.twice:,}"
        )


@dataclass(slots=True)
class _Tally:
    """The planned events, each counted by what happened to it, before the dispatcher's counters of skips are used."""

    counts: Counter[str] = field(default_factory=Counter)
    """Fields of `Balance`, with the number of events."""
    problems: list[str] = field(default_factory=list)
    unfinished: list[tuple[str, str]] = field(default_factory=list)
    """Count and problem of each event without an end whose tenant was changed. If its webhook was deleted, the
    dispatcher has skipped it."""
    to_skip: Counter[str] = field(default_factory=Counter)
    """Skips that the dispatcher has to report, by reason; without those of changed tenants."""
    without_webhook: int = 0
    """Events that were planned as skipped because their tenant has no webhook, and were."""


def balance(
    planned: Iterable[Planned],
    accepted: Mapping[tuple[str, str], int],
    dead: Mapping[str, str],
    skipped: Mapping[str, int],
    history: Mapping[str, Said] | None = None,
    changed: Set[str] = frozenset(),
) -> Balance:
    """Accounts for every event.

    Args:
        planned: what was produced.
        accepted: how often each (organisation, webhook-id) was answered with 200.
        dead: the reason of each record in the dead-letter topic, by its key.
        skipped: how many events the dispatcher says it skipped, by reason.
        history: what the dispatcher says about events, by webhook-id.
        changed: organisations that were changed in the console, or whose events were sent again by it.
    """
    planned = tuple(planned)
    tally = _tally(planned, accepted, dead, history or {}, changed)
    _skip_without_webhook(tally, skipped.get(SkipReason.NO_WEBHOOK, 0))
    unseen, of_skips = _skips(tally.to_skip, skipped, is_exact=not changed)
    tally.counts["skipped"] -= unseen
    tally.counts["lost"] += unseen
    problems = (*tally.problems, *_never_produced(planned, accepted, dead, changed), *of_skips)
    return Balance(**tally.counts, problems=problems)


def _tally(
    planned: Iterable[Planned],
    accepted: Mapping[tuple[str, str], int],
    dead: Mapping[str, str],
    history: Mapping[str, Said],
    changed: Set[str],
) -> _Tally:
    """Counts each planned event by what happened to it. The arguments are those of `balance`."""
    tally = _Tally()
    for event in planned:
        times, is_changed = accepted.get((event.tenant.org, event.webhook_id), 0), event.tenant.org in changed
        said = history.get(event.webhook_id)
        result, problem = _account(event, times, dead.get(event.event_id), said, is_changed=is_changed)
        tally.counts.update(("produced", result))
        tally.counts["twice"] += times > 1
        if is_changed and result in _UNFINISHED and problem:
            tally.unfinished.append((result, f"{event.event_id}: {problem}"))
        elif problem:
            tally.problems.append(f"{event.event_id}: {problem}")
        if event.skip is not None and not (is_changed and result != "skipped"):
            tally.without_webhook += event.skip is SkipReason.NO_WEBHOOK
            tally.to_skip[event.skip.value] += not is_changed
    return tally


def _skip_without_webhook(tally: _Tally, reported: int) -> None:
    """Counts unfinished events of changed tenants as skipped, as far as the reported skips exceed the planned ones.

    `reported`: events that the dispatcher says it skipped because their tenant has no webhook.
    """
    seen = min(len(tally.unfinished), max(0, reported - tally.without_webhook))
    tally.counts.subtract(result for result, _ in tally.unfinished[:seen])
    tally.counts["skipped"] += seen
    tally.problems += [problem for _, problem in tally.unfinished[seen:]]


def _never_produced(
    planned: Iterable[Planned], accepted: Iterable[tuple[str, str]], dead: Iterable[str], changed: Set[str]
) -> list[str]:
    """Returns a problem for each delivery and each dead letter that belongs to no planned event."""
    deliveries, keys = set(), set()
    for event in planned:
        deliveries.add((event.tenant.org, event.webhook_id))
        keys.add(event.event_id)
    strangers = [(org, one) for org, one in accepted if (org, one) not in deliveries and org not in changed]
    return [
        *(f"{org}: {one} was never produced" for org, one in strangers),
        *(f"{key}: in the dead-letter topic, and was never produced" for key in dead if key not in keys),
    ]


def _account(
    event: Planned, accepted: int, dead: str | None, said: Said | None, *, is_changed: bool
) -> tuple[str, str | None]:
    """Returns the count that the event belongs to, and what is wrong about it."""
    if not event.readable:
        if accepted:
            return "delivered", "delivered, though it is unreadable"
        if dead is None:
            return "lost", "unreadable, and not in the dead-letter topic"
        return "dead", None if dead == DeadReason.UNREADABLE else f"unreadable, but dead as {dead}"
    if event.skip is not None and not is_changed:
        if accepted or dead is not None:
            return ("delivered" if accepted else "dead"), f"should have been skipped ({event.skip.value})"
        return "skipped", None
    if accepted:
        is_odd = dead is not None and not is_changed
        return "delivered", "delivered, and in the dead-letter topic too" if is_odd else None
    if dead is not None:
        return "dead", f"dead as {dead}, though nothing is wrong with it" if dead in _OURS else None
    return _as_said(event, said, is_changed=is_changed)


def _as_said(event: Planned, said: Said | None, *, is_changed: bool) -> tuple[str, str | None]:
    """Returns what `_account` does for an event that was neither received nor given up, by what the dispatcher says."""
    if said is None:
        if event.skip is not None:
            return "skipped", None
        return "lost", "neither delivered nor in the dead-letter topic"
    outcome, reason = said
    if outcome is HistoryOutcome.SKIPPED:
        return "skipped", None if is_changed else f"skipped ({reason}), though its webhook wants it"
    if outcome is HistoryOutcome.DELIVERED:
        if is_changed:  # to another address
            return "delivered", None
        return "lost", "delivered, as the dispatcher says, and not received"
    if outcome is HistoryOutcome.DEAD:
        return "lost", f"dead as {reason}, as the dispatcher says, and not in the dead-letter topic"
    return "waiting", f"not finished: the last that happened to it is {outcome} ({reason})"


def _skips(planned: Mapping[str, int], reported: Mapping[str, int], *, is_exact: bool) -> tuple[int, list[str]]:
    """Returns the number of skips that were not observed, and the reasons whose count is not as planned.

    `is_exact`: more skips than planned are wrong, too.
    """
    missing, problems = 0, []
    for reason in sorted(planned.keys() | reported.keys()):
        expected, counted = planned.get(reason, 0), reported.get(reason, 0)
        if expected > counted or (is_exact and expected != counted):
            missing += max(0, expected - counted)
            problems.append(f"skipped for {reason}: {counted} of {expected}")
    return missing, problems


def percentile(values: Sequence[float], share: float) -> float | None:
    """Returns the nearest-rank percentile, or None without values."""
    if not values:
        return None
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]
