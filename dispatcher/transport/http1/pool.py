"""Keeps idle connections by destination and TLS identity and reuses the most recently used one first."""

from collections import OrderedDict
from weakref import WeakValueDictionary

from dispatcher.transport.http1.connection import Connection
from dispatcher.transport.http1.destination import Destination, Stack

IDLE_S = 60.0
"""Seconds after which an idle connection is closed."""


class Pool:
    """Idle connections, at most `limit` of them; beyond it the one that was idle longest is closed."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._stacks: WeakValueDictionary[Destination, Stack] = WeakValueDictionary()
        self._resting: OrderedDict[Connection, Stack] = OrderedDict()

    def __repr__(self) -> str:
        return f"<Pool {len(self._resting)} resting, {len(self._stacks)} destinations>"

    def stack_of(self, destination: Destination) -> Stack:
        """Returns the stack of a destination; the caller keeps it for as long as requests go there."""
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
        """Keeps a usable connection, or closes it if it is too old or its host has moved."""
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
        """Drops a connection that ended while it was idle. Does nothing if it was in use."""
        stack = self._resting.pop(connection, None)
        if stack is not None:
            stack.remove(connection)

    def close(self) -> None:
        """Closes every idle connection."""
        while self._resting:
            connection = next(iter(self._resting))
            self.forget(connection)
            connection.abort()


def _is_over(connection: Connection, stack: Stack, now: float) -> bool:
    address = connection.phases.address
    return now >= connection.retires_at or (
        stack.answer is not None and address is not None and stack.answer.is_outdated(address)
    )
