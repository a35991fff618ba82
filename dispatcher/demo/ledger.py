"""Records what a receiver saw: the other side's evidence of what was delivered.

Safe to write from the receiver's thread and to read from any other. It knows endpoints by their names and events by
their webhook-ids; `demo.accounts` compares them with what should have arrived.
"""

import asyncio
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

_RECENT: Final = 2_000
_VIOLATIONS_KEPT: Final = 100


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request, as it was read."""

    endpoint: str
    """The endpoint's name: its path without the slash."""
    webhook_id: str
    attempt: int
    """Header `webhook-attempt`, 0 if it is missing or no number."""
    headers: Mapping[str, str]
    """Without regard to case."""
    body: bytes
    at: float
    """Unix seconds."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One attempt and its answer."""

    at: float
    attempt: int
    status: int
    """0 if the connection was closed without an answer."""


@dataclass(frozen=True, slots=True)
class Violation:
    """A request that breaks the contract: of the payload, the headers or the authentication."""

    endpoint: str
    webhook_id: str
    reason: str

    def __str__(self) -> str:
        return f"{self.endpoint}: {self.webhook_id or 'no webhook-id'}: {self.reason}"


@dataclass(frozen=True, slots=True)
class EndpointTally:
    """One endpoint in numbers."""

    requests: int = 0
    accepted: int = 0
    """Events with at least one 2xx."""
    twice: int = 0
    """2xx beyond the first of an event."""


@dataclass(slots=True)
class _Account:
    requests: int = 0
    twice: int = 0
    attempts: dict[str, list[Seen]] = field(default_factory=lambda: defaultdict(list))
    accepted: dict[str, int] = field(default_factory=dict)
    recent: deque[tuple[str, float]] = field(default_factory=lambda: deque(maxlen=_RECENT))


class Ledger:
    """For each endpoint and webhook-id: the attempts, and how many of them were accepted (2xx)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._accounts: dict[str, _Account] = defaultdict(_Account)
        self._violations: list[Violation] = []
        self.violation_count = 0

    def __repr__(self) -> str:
        with self._lock:
            accepted = sum(len(one.accepted) for one in self._accounts.values())
            requests = sum(one.requests for one in self._accounts.values())
        return f"<Ledger {accepted} events accepted in {requests} requests, {self.violation_count} violations>"

    def record(self, arrival: Arrival, status: int) -> None:
        """Records a request that was or will be answered with `status`; 0: with nothing."""
        with self._lock:
            account = self._accounts[arrival.endpoint]
            account.requests += 1
            account.attempts[arrival.webhook_id].append(Seen(arrival.at, arrival.attempt, status))
            if 200 <= status < 300:
                times = account.accepted.get(arrival.webhook_id, 0)
                account.accepted[arrival.webhook_id] = times + 1
                account.twice += times > 0
                if not times:
                    account.recent.append((arrival.webhook_id, time.time()))

    def violate(self, arrival: Arrival, reason: str) -> None:
        """Records a request that broke the contract."""
        with self._lock:
            self.violation_count += 1
            if len(self._violations) < _VIOLATIONS_KEPT:
                self._violations.append(Violation(arrival.endpoint, arrival.webhook_id, reason))

    @property
    def violations(self) -> tuple[Violation, ...]:
        """The first hundred violations; `violation_count` counts all."""
        with self._lock:
            return tuple(self._violations)

    def tally(self, endpoint: str) -> EndpointTally:
        """Returns the endpoint's numbers so far."""
        with self._lock:
            account = self._accounts.get(endpoint) or _Account()
            return EndpointTally(account.requests, len(account.accepted), account.twice)

    def accepted(self) -> dict[tuple[str, str], int]:
        """Returns how many times each (endpoint, webhook-id) was accepted, without those that never were."""
        with self._lock:
            return {(name, one): n for name, account in self._accounts.items() for one, n in account.accepted.items()}

    def attempts(self, endpoint: str, webhook_id: str) -> tuple[Seen, ...]:
        """Returns the attempts at one event, in order of arrival."""
        with self._lock:
            account = self._accounts.get(endpoint)
            return () if account is None else tuple(account.attempts.get(webhook_id, ()))

    def recent(self, endpoint: str) -> list[tuple[str, float]]:
        """Returns (webhook-id, unix time of its first 2xx) of the last 2,000 events accepted."""
        with self._lock:
            account = self._accounts.get(endpoint)
            return [] if account is None else list(account.recent)

    async def until(self, condition: "Callable[[Ledger], bool]", timeout_s: float = 10.0) -> None:
        """Waits until the ledger fulfils the condition.

        Raises:
            TimeoutError: the condition was not fulfilled in time. The message sums up the ledger.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while not condition(self):  # noqa: ASYNC110  (written from another thread: an event would need its loop)
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise TimeoutError(f"not fulfilled after {timeout_s} s: {self!r}") from None
