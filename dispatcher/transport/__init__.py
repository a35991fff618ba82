"""Sends one POST and returns it as an `Attempt`: egress guard, DNS, TLS and the two HTTP clients."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from dispatcher.config.settings import DeliverySettings, EgressSettings
from dispatcher.contract.outcomes import Attempt
from dispatcher.transport.egress import EgressGuard, egress_problems
from dispatcher.transport.http1 import LeanTransport
from dispatcher.transport.request import Endpoint, Exchange, Request

__all__ = ["EgressGuard", "Endpoint", "Request", "Transport", "egress_problems", "open_transport"]


class Transport(Protocol):
    """Sends one POST; never raises for anything that the network can do."""

    async def post(self, request: Request) -> Attempt: ...

    def begin(self, request: Request, ended: Callable[[Attempt], None]) -> Exchange | None:
        """Sends the request without awaiting if a connection is idle. Returns None, and sends nothing, if none is."""
        ...


def open_transport(delivery: DeliverySettings, egress: EgressSettings) -> AbstractAsyncContextManager[Transport]:
    """Returns the HTTP client that `delivery.transport` names. Leaving the context closes every connection."""
    if delivery.transport == "lean":
        return LeanTransport(delivery, egress)
    from dispatcher.transport.aiohttp_client import AiohttpTransport

    return AiohttpTransport(delivery, egress)
