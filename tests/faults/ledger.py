"""Which fault each repeat of an event comes from: the arithmetic of the ledger run.

A SIGKILL makes the group process again what the member had not committed. An event that is processed twice has two
lives from then on: each may be delivered, or parked and delivered later. So an event is accepted at most once more for
each life that a fault added. That shows in its requests (a later process sends an attempt of the same number) or, if
nothing was sent before the fault, in the retry topics (the event was parked right before the fault, and then parked for
the same time again, or sent twice).
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tests.integration.harness import Sent

CLOCK_S = 0.05
"""How much too late the time of a retry record may be, which another process took in milliseconds."""

COMMITTED_S = 1.5
"""Time within which finished records are committed, see `committing`; a busy process takes a little longer."""
SOON_S = 15.0
"""Time for which an event may be tried again before it is parked."""


@dataclass(frozen=True)
class Fault:
    """One SIGKILL of a process, or one fault of the broker. Times are seconds of the monotonic clock."""

    what: str
    at: float
    until: float
    """When the process or the broker was ready again, and the group had settled."""
    in_flight: int
    """POSTs in flight by the metric, in the process that is killed, or in all processes."""
    per_second: float
    """Events accepted a second just before, from the process that is killed, or from all processes."""
    sender: str | None = None
    """The killed process; None if the fault is the broker's."""

    @property
    def bound(self) -> float:
        """The most repeats that the median fault may cause."""
        return max(2 * self.in_flight, self.per_second / 10)


@dataclass(frozen=True)
class Parked:
    """One record of a retry topic."""

    times: int
    """How often the event had been parked, this time included."""
    at: float


@dataclass
class Repeats:
    """The repeats by fault. A repeat is an acceptance of an event beyond the first."""

    of_fault: Counter[str] = field(default_factory=Counter)
    parked: Counter[str] = field(default_factory=Counter)
    """Those among them whose event was parked twice."""
    unexplained: list[str] = field(default_factory=list)
    """Webhook-ids, one for each repeat that no fault explains."""
    longest_uncommitted: dict[str, float] = field(default_factory=dict)
    """By kill: seconds since its repeated events were accepted, the longest."""

    def add(self, name: str, sent: Sequence[Sent], parked: Sequence[Parked], faults: Sequence[Fault]) -> None:
        """Attributes the repeats of one event."""
        requests = repeated_requests(sent, faults)
        copies = parked_again(parked, faults)
        causes = copies + [one for one in requests if one not in copies]
        causes += [one for one in sent_beside_a_copy(sent, parked, faults) if one not in causes]
        for number in range(sum(one.accepted_at is not None for one in sent) - 1):
            if number >= len(causes):
                self.unexplained.append(name)
                continue
            self.of_fault[causes[number].what] += 1
            if number < len(copies):
                self.parked[causes[number].what] += 1
        for fault in requests:
            for one in sent:
                if one.sender == fault.sender and one.accepted_at is not None:
                    known = self.longest_uncommitted.get(fault.what, 0.0)
                    self.longest_uncommitted[fault.what] = max(known, fault.at - one.accepted_at)


def attribute(
    of_event: Mapping[str, Sequence[Sent]], parked: Mapping[str, Sequence[Parked]], faults: Sequence[Fault]
) -> Repeats:
    """Returns the repeats of all events by fault. `parked` needs to name only events that were accepted again."""
    result = Repeats()
    for name, sent in of_event.items():
        if sum(one.accepted_at is not None for one in sent) > 1:
            result.add(name, sent, parked.get(name, ()), faults)
    return result


def repeated_requests(sent: Sequence[Sent], faults: Sequence[Fault]) -> list[Fault]:
    """Returns a fault for each life that it added: the killed process's attempt was made again by another one."""
    found: list[Fault] = []
    for fault in faults:
        before = Counter(one.attempt for one in sent if _is_before(one, fault))
        after = Counter(one.attempt for one in sent if one.at >= fault.at and one.sender != fault.sender)
        lives = max((min(count, after[attempt]) for attempt, count in before.items()), default=0)
        found += [fault] * lives
    return sorted(found, key=lambda one: one.sender is None)  # a kill explains more exactly


def _is_before(one: Sent, fault: Fault) -> bool:
    """Returns whether the fault may have undone the request: its sender was killed, and had not committed the event."""
    if fault.sender is None:
        return fault.at - COMMITTED_S <= one.at <= fault.until
    uncommitted = one.at + SOON_S if one.accepted_at is None else one.accepted_at
    return one.sender == fault.sender and uncommitted >= fault.at - COMMITTED_S


def parked_again(parked: Iterable[Parked], faults: Sequence[Fault]) -> list[Fault]:
    """Returns a fault for each life that it added: the event was parked before it, and the same time again after it.

    Later records of both lives aren't evidence: only a rise of the number of records from one time to the next is.
    """
    at = defaultdict[int, list[float]](list)
    for one in parked:
        at[one.times].append(one.at)
    found: list[Fault] = []
    for _, moments in sorted(at.items()):
        new = len(moments) - 1 - len(found)
        between = [one for one in faults if _is_uncommitted(moments, one) and one.at - CLOCK_S <= max(moments)]
        found += sorted(between, key=lambda one: one.at)[-new:] if new > 0 else []
    return found


def sent_beside_a_copy(sent: Sequence[Sent], parked: Iterable[Parked], faults: Sequence[Fault]) -> list[Fault]:
    """Returns the faults right before which the event was parked, if the record and the event itself were sent then."""
    moments = [one.at for one in parked]
    return [
        fault
        for fault in faults
        if _is_uncommitted(moments, fault)
        and max(Counter(one.attempt for one in sent if one.at >= fault.at).values(), default=0) > 1
    ]


def _is_uncommitted(moments: Iterable[float], fault: Fault) -> bool:
    """Returns whether one of these records was written so late that the fault may have come before the commit."""
    latest = fault.until if fault.sender is None else fault.at + CLOCK_S
    return any(fault.at - COMMITTED_S <= one <= latest for one in moments)
