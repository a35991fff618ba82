"""How the demo's endpoints answer, one object per endpoint. Tests have behaviours of their own.

Called in the receiver's thread only, so a behaviour may keep state without a lock.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from dispatcher.demo.ledger import Arrival


@dataclass(frozen=True, slots=True)
class ReceiverAnswer:
    """The receiver's response."""

    status: int = 200
    """0: the connection is closed without an answer."""
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


class Behaviour(Protocol):
    """Answers requests that broke no rule."""

    async def answer(self, arrival: Arrival) -> ReceiverAnswer: ...


@dataclass(frozen=True, slots=True)
class Always:
    """Answers every request with the same status."""

    status: int = 200

    async def answer(self, arrival: Arrival) -> ReceiverAnswer:  # noqa: ARG002  (the protocol's)
        return ReceiverAnswer(self.status)
