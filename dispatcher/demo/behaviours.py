"""How an endpoint answers: small scripts, one object for one endpoint. A test can bring its own.

Called in the receiver's thread only, so a behaviour may keep state without a lock.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from dispatcher.demo.ledger import Arrival


@dataclass(frozen=True, slots=True)
class ReceiverAnswer:
    """What goes back."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


HANG_UP = ReceiverAnswer(status=0)
"""Close the connection, answer nothing."""


class Behaviour(Protocol):
    """Answers requests that broke no rule."""

    async def answer(self, arrival: Arrival) -> ReceiverAnswer: ...


@dataclass(frozen=True, slots=True)
class Always:
    """The same answer to everybody."""

    status: int = 200

    async def answer(self, arrival: Arrival) -> ReceiverAnswer:  # noqa: ARG002  (the protocol's)
        return ReceiverAnswer(self.status)


@dataclass(frozen=True, slots=True)
class HangsUp:
    """Reads each request and closes the connection."""

    async def answer(self, arrival: Arrival) -> ReceiverAnswer:  # noqa: ARG002  (the protocol's)
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
