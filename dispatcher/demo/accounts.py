"""The balance of what was produced against what happened to it. Pure arithmetic.

The dispatcher is not asked: an event counts as delivered if its receiver answered 200, and as dead if it is in the
dead-letter topic. Only skipped events can't be seen from outside, so the dispatcher's counters are compared with the
plan.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from dispatcher.contract.outcomes import DeadReason
from dispatcher.demo.planning import Planned

_OURS = (DeadReason.UNREADABLE, DeadReason.INTERNAL)
"""Reasons that a good event must not die of, whatever its endpoint does."""


@dataclass(frozen=True, slots=True)
class Balance:
    """The count of events by what happened to them."""

    produced: int = 0
    delivered: int = 0
    skipped: int = 0
    dead: int = 0
    lost: int = 0
    twice: int = 0
    """Events delivered more than once: allowed by at-least-once, and reported."""
    problems: tuple[str, ...] = ()
    """Everything that must not be."""

    @property
    def holds(self) -> bool:
        """True if every event is accounted for as planned."""
        total = self.delivered + self.skipped + self.dead
        return not self.lost and not self.problems and self.produced == total

    def __str__(self) -> str:
        return (
            f"{self.produced:,} events = {self.delivered:,} delivered + {self.skipped:,} skipped + {self.dead:,} dead; "
            f"lost {self.lost:,}; delivered twice {self.twice:,}"
        )


def balance(
    planned: Iterable[Planned],
    accepted: Mapping[tuple[str, str], int],
    dead: Mapping[str, str],
    skipped: Mapping[str, int],
) -> Balance:
    """Accounts for every event.

    Args:
        planned: what was produced.
        accepted: how often each (organisation, webhook-id) was answered with 200.
        dead: the reason of each record in the dead-letter topic, by its key.
        skipped: how many events the dispatcher says it skipped, by reason.
    """
    counts: Counter[str] = Counter()
    problems: list[str] = []
    to_skip: Counter[str] = Counter()
    deliveries: set[tuple[str, str]] = set()
    keys: set[str] = set()
    for event in planned:
        delivery = (event.tenant.org, event.webhook_id)
        deliveries.add(delivery)
        keys.add(event.event_id)
        times = accepted.get(delivery, 0)
        result, problem = _account(event, times, dead.get(event.event_id))
        counts.update(("produced", result))
        counts["twice"] += times > 1
        if problem:
            problems.append(f"{event.event_id}: {problem}")
        if event.skip is not None:
            to_skip[event.skip.value] += 1
    problems += [f"{org}: {one} was never produced" for org, one in accepted if (org, one) not in deliveries]
    problems += [f"{key}: in the dead-letter topic, and was never produced" for key in dead if key not in keys]
    unseen, of_skips = _skips(to_skip, skipped)
    counts["skipped"] -= unseen
    counts["lost"] += unseen
    return Balance(**counts, problems=(*problems, *of_skips))


def _account(event: Planned, accepted: int, dead: str | None) -> tuple[str, str | None]:
    """Returns the count that the event belongs to, and what is wrong about it."""
    if not event.readable:
        if accepted:
            return "delivered", "delivered, though it is unreadable"
        if dead is None:
            return "lost", "unreadable, and not in the dead-letter topic"
        return "dead", None if dead == DeadReason.UNREADABLE else f"unreadable, but dead as {dead}"
    if event.skip is not None:
        if accepted or dead is not None:
            return ("delivered" if accepted else "dead"), f"should have been skipped ({event.skip.value})"
        return "skipped", None
    if accepted:
        return "delivered", None if dead is None else "delivered, and in the dead-letter topic too"
    if dead is None:
        return "lost", "neither delivered nor in the dead-letter topic"
    return "dead", f"dead as {dead}, though nothing is wrong with it" if dead in _OURS else None


def _skips(planned: Mapping[str, int], reported: Mapping[str, int]) -> tuple[int, list[str]]:
    """Returns the number of skips that were not observed, and the reasons whose count is not as planned."""
    missing, problems = 0, []
    for reason in sorted(planned.keys() | reported.keys()):
        expected, counted = planned.get(reason, 0), reported.get(reason, 0)
        if expected != counted:
            missing += max(0, expected - counted)
            problems.append(f"skipped for {reason}: {counted} of {expected}")
    return missing, problems


def percentile(values: Sequence[float], share: float) -> float | None:
    """Returns the nearest-rank percentile, or None without values."""
    if not values:
        return None
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]
