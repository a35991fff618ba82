"""Defines which requests may share a connection, and the list of the idle ones.

A module of its own because mypyc, which compiles the pool, can't compile a subclass of list.
"""

from typing import NamedTuple

from dispatcher.transport.http1.connection import Connection
from dispatcher.transport.resolved_addresses import ResolvedAddresses
from dispatcher.transport.tls_sessions import TlsContext


class Destination(NamedTuple):
    """Properties that two requests must have in common to share a connection."""

    scheme: str
    host: str
    port: int
    context: TlsContext | None
    """Compared by identity: it has the CA and the client certificate."""


class Stack(list[Connection]):
    """The idle connections of one destination. Lives as long as an endpoint or a connection refers to it."""

    __slots__ = ("__weakref__", "answer")

    def __init__(self) -> None:
        super().__init__()
        self.answer: ResolvedAddresses | None = None
        """The latest DNS answer for the host; None if it isn't resolved here."""
