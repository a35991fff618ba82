"""Sends one POST and returns it as an `Attempt`: egress guard, DNS, TLS and the two HTTP clients."""

from contextlib import AbstractAsyncContextManager

from dispatcher.config.settings import DeliverySettings, EgressSettings
from dispatcher.transport.egress import EgressGuard, egress_problems
from dispatcher.transport.endpoint import Endpoint
from dispatcher.transport.http1 import Http1Transport
from dispatcher.transport.request import Request, Transport

__all__ = ["EgressGuard", "Endpoint", "Request", "Transport", "egress_problems", "open_transport"]


def open_transport(delivery: DeliverySettings, egress: EgressSettings) -> AbstractAsyncContextManager[Transport]:
    """Returns the HTTP client that `delivery.transport` names. Leaving the context closes every connection."""
    if delivery.transport == "lean":
        return Http1Transport(delivery, egress)
    from dispatcher.transport.aiohttp_client import AiohttpTransport

    return AiohttpTransport(delivery, egress)
