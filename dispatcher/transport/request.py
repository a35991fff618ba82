"""Defines a request and the client that sends it."""

from collections.abc import Callable
from dataclasses import field
from typing import Final, Protocol

from dispatcher import __version__
from dispatcher.contract.outcomes import Attempt
from dispatcher.contract.values import HttpHeaders, slots_dataclass
from dispatcher.transport.endpoint import Endpoint

USER_AGENT = f"feedback-dispatcher/{__version__}"

BODY_WAIT_S: Final = 1.0
"""The status is known by then, and an endpoint that doesn't end its answers must not occupy permits for longer. Its
connection is closed then: a body without a length may end with the connection only, and some servers keep it open."""


@slots_dataclass
class Request:
    """One POST.

    It is sent with, in this order: `host`, `content-type`, `user-agent`, `content-length`, then `headers`, then the
    endpoint's own.
    """

    endpoint: Endpoint
    headers: HttpHeaders = field(repr=False)
    """Headers that change with the event or the attempt: webhook-*, traceparent, the token."""
    body: bytes = field(repr=False)
    timeout_s: float
    """Time for the whole POST: DNS, connect, TLS, request, the whole answer."""
    connect_timeout_s: float
    """Time for connect and TLS together, within the timeout."""
    content_type: str = "application/json"
    keep_body: int = field(default=0)
    """Bytes of the answer's body to keep in the attempt: 2,048 for a test event, or if `history.answers` is set; 65,536
    for a token; else 0. Above 0 the attempt's phases are measured, too."""
    body_wait_s: float = BODY_WAIT_S
    """Time for the body behind a complete head, within the timeout. What has come by then is the answer."""


class Exchange(Protocol):
    """A request in progress."""

    def abort(self) -> None:
        """Cancels the request; `on_result` is not called."""
        ...


class Transport(Protocol):
    """Sends one POST. Never raises for anything that a network or an endpoint can do."""

    async def post(self, request: Request) -> Attempt:
        """Sends the request and returns how it went.

        Raises:
            ValueError: the request has a header that can't be sent: a bug of the caller.
        """
        ...

    def start_post(self, request: Request, on_result: Callable[[Attempt], None]) -> Exchange | None:
        """Sends on an idle connection without awaiting; `on_result` is called once, unless the exchange is aborted.

        Returns None, and sends nothing, if no connection is idle or this client can't do it.
        """
        ...
