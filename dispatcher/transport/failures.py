"""Represents failed connections: a reason for metrics and a sentence for people.

`TransportError` is raised by the step that fails and is turned into an `Attempt` by the client; it never leaves the
package. The table `CONNECT_FAILURE_OF` translates foreign exceptions of sockets and TLS.
"""

import errno
import os
import ssl
from typing import Final

from dispatcher.contract.outcomes import FailureReason, Phases
from dispatcher.errors import DispatcherError
from dispatcher.transport.endpoint import Endpoint

MAX_DETAIL = 256
"""Characters of `Attempt.detail`, and so of what a remote peer can write into our logs."""


_UNKNOWN_CA_CURE: Final = "; trust its CA in egress.ca_bundle"
_WEBHOOK_CA_CURE: Final = ", or in the webhook's tls.ca"
"""Helps with a webhook's own endpoint only: token endpoints and the egress proxy are verified with the bundle."""

_UNKNOWN_CA = frozenset({2, 18, 19, 20, 21})
"""OpenSSL's verify codes (X509_V_ERR_…) for a chain that ends at no trusted certificate."""


class TransportError(DispatcherError):
    """A request failed before its answer. `reason` is for metrics, `detail` for people."""

    def __init__(
        self, reason: FailureReason, detail: str, phases: Phases | None = None, *, is_unknown_ca: bool = False
    ) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
        self.phases = phases
        """The phases that were completed, if known."""
        self.is_unknown_ca = is_unknown_ca
        """The server's certificate ends at no trusted one."""

    def detail_for(self, endpoint: Endpoint) -> str:
        """Returns the detail, with what helps this endpoint only."""
        is_helped = self.is_unknown_ca and endpoint.is_webhook
        return clip(self.detail + _WEBHOOK_CA_CURE) if is_helped else self.detail


LOCAL_ERRORS: Final = frozenset(
    {
        errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM,  # out of file descriptors or memory
        errno.EADDRNOTAVAIL,  # out of local ports
        errno.ENETDOWN, errno.ENETUNREACH,  # no network, or no route that leads out
        errno.EPERM, errno.EACCES,  # a firewall of our own
    }
)  # fmt: skip
"""Errors of this machine, not of the endpoint: they aren't evidence against a tenant."""

CONNECT_FAILURE_OF: tuple[tuple[type[OSError], FailureReason], ...] = (  # first match wins
    (ssl.SSLError, FailureReason.TLS),
    (ConnectionRefusedError, FailureReason.CONNECT_REFUSED),
    (TimeoutError, FailureReason.CONNECT_TIMEOUT),
    (OSError, FailureReason.CONNECT),
)


def is_local(error: BaseException) -> bool:
    """Returns True if this machine caused the error."""
    return isinstance(error, OSError) and not isinstance(error, ssl.SSLError) and error.errno in LOCAL_ERRORS


def connect_failure(error: OSError) -> TransportError:
    """Returns the failure for an error of connect or of the TLS handshake."""
    if is_local(error):
        return local_failure(error)
    reason = next(reason for kind, reason in CONNECT_FAILURE_OF if isinstance(error, kind))
    return TransportError(reason, describe(error))


def local_failure(error: BaseException) -> TransportError:
    """Returns the failure for an error of this machine. The text is safe to show tenants."""
    return TransportError(FailureReason.LOCAL, clip(f"the dispatcher's own machine failed: {describe(error)}"))


def describe(error: BaseException) -> str:
    """Returns an exception of sockets or TLS in a few words, without the addresses and file lines that Python adds."""
    if isinstance(error, ssl.SSLCertVerificationError):
        cure = _UNKNOWN_CA_CURE if is_unknown_ca(error) else ""
        return clip(f"certificate not accepted: {error.verify_message}{cure}")
    if isinstance(error, ssl.SSLError):
        return clip(f"TLS: {(error.reason or str(error)).lower().replace('_', ' ')}")
    if isinstance(error, OSError) and error.errno:
        return clip(os.strerror(error.errno))
    return clip(str(error) or type(error).__name__)


def is_unknown_ca(error: BaseException) -> bool:
    """Returns True if a server's certificate was refused because it ends at no trusted one."""
    return isinstance(error, ssl.SSLCertVerificationError) and error.verify_code in _UNKNOWN_CA


def clip(text: str) -> str:
    """Returns a text as one printable line of at most 256 characters."""
    line = "".join(c if c.isprintable() else "?" for c in text[: MAX_DETAIL + 1])
    return line if len(line) <= MAX_DETAIL else line[: MAX_DETAIL - 1] + "…"
