"""The connections that rest: by where they go and under which TLS identity, the last used first."""

from collections import OrderedDict
from typing import NamedTuple
from weakref import WeakValueDictionary

from dispatcher.transport.http1.connection import Connection
from dispatcher.transport.resolver import Answer
from dispatcher.transport.tls import TlsContext

IDLE_S = 60.0
"""A connection that rested for so long is closed."""


class Destination(NamedTuple):
    """What two requests must have in common to share a connection."""

    scheme: str
    host: str
    port: int
    context: TlsContext | None
    """By identity: the CA and the client certificate."""


class Stack(list[Connection]):
    """The resting connections of one destination. Lives as long as an endpoint or a connection refers to it."""

    __slots__ = ("__weakref__", "answer")

    def __init__(self) -> None:
        super().__init__()
        self.answer: Answer | None = None
        """What DNS says of the host; None if it isn't resolved here."""


class Pool:
    """Resting connections, at most `limit` of them; past it the one that rested longest is closed."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._stacks: WeakValueDictionary[Destination, Stack] = WeakValueDictionary()
        self._resting: OrderedDict[Connection, Stack] = OrderedDict()

    def __repr__(self) -> str:
        return f"<Pool {len(self._resting)} resting, {len(self._stacks)} destinations>"

    def stack_of(self, destination: Destination) -> Stack:
        """The stack of a destination; keep it for as long as requests go there."""
        stack = self._stacks.get(destination)
        if stack is None:
            stack = self._stacks[destination] = Stack()
        return stack

    def take(self, stack: Stack, now: float) -> Connection | None:
        """Returns the connection used last, the likeliest to be alive; None if there is none that may be used."""
        while stack:
            connection = stack.pop()
            del self._resting[connection]
            if not _is_over(connection, stack, now):
                return connection
            connection.abort()
        return None

    def put(self, stack: Stack, connection: Connection, now: float) -> None:
        """Lets a usable connection rest, or closes it if it is too old or its host has moved."""
        if _is_over(connection, stack, now):
            connection.abort()
            return
        stack.append(connection)
        self._resting[connection] = stack
        connection.rest(now + IDLE_S)
        if len(self._resting) > self._limit:
            oldest = next(iter(self._resting))
            self.forget(oldest)
            oldest.abort()

    def forget(self, connection: Connection) -> None:
        """A connection ended while it rested; one that does not rest is no matter."""
        stack = self._resting.pop(connection, None)
        if stack is not None:
            stack.remove(connection)

    def close(self) -> None:
        """Close every connection that rests."""
        while self._resting:
            connection = next(iter(self._resting))
            self.forget(connection)
            connection.abort()


def _is_over(connection: Connection, stack: Stack, now: float) -> bool:
    address = connection.phases.address
    return now >= connection.retires_at or (
        stack.answer is not None and address is not None and stack.answer.is_outdated(address)
    )
