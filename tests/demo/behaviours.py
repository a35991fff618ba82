"""Behaviours of endpoints that only tests need."""

from collections import Counter
from dataclasses import dataclass, field

from dispatcher.demo.behaviours import ReceiverAnswer
from dispatcher.demo.ledger import Arrival

HANG_UP = ReceiverAnswer(status=0)


@dataclass(frozen=True, slots=True)
class HangsUp:
    """Reads each request and closes the connection."""

    async def answer(self, arrival: Arrival) -> ReceiverAnswer:
        return HANG_UP


@dataclass(slots=True)
class Outage:
    """Fine for some requests, out of service for some seconds, fine again."""

    for_s: float
    after: int = 0
    """Requests answered with 200 before it begins."""
    status: int = 503
    retry_after_s: int | None = None
    _answered: int = field(default=0, init=False)
    _over_at: float | None = field(default=None, init=False)

    async def answer(self, arrival: Arrival) -> ReceiverAnswer:
        self._answered += 1
        if self._answered <= self.after:
            return ReceiverAnswer()
        if self._over_at is None:
            self._over_at = arrival.at + self.for_s
        if arrival.at >= self._over_at:
            return ReceiverAnswer()
        headers = {} if self.retry_after_s is None else {"retry-after": str(self.retry_after_s)}
        return ReceiverAnswer(self.status, headers)


@dataclass(slots=True)
class Flaky:
    """Fails the first attempts at each event, then takes it."""

    failures: int = 1
    status: int = 503
    _failed: Counter[str] = field(default_factory=Counter, init=False)

    async def answer(self, arrival: Arrival) -> ReceiverAnswer:
        if self._failed[arrival.webhook_id] >= self.failures:
            return ReceiverAnswer()
        self._failed[arrival.webhook_id] += 1
        return ReceiverAnswer(self.status) if self.status else HANG_UP
