"""Renders the header block of a request, the same for both HTTP clients.

Names and values were checked when the configuration was read; they are checked again here, because one line break in
a header is a second request on a connection that tenants may share.
"""

import re
from functools import lru_cache
from typing import Final

from dispatcher.contract.values import HttpHeaders
from dispatcher.errors import unchained
from dispatcher.transport.endpoint import Endpoint
from dispatcher.transport.request import USER_AGENT

_NAME: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110, section 5.6.2
_FRAMING: Final = frozenset(
    {"host", "connection", "content-type", "content-length", "content-encoding", "transfer-encoding", "te", "trailer"}
    | {"upgrade", "keep-alive", "expect", "user-agent", "proxy-connection", "proxy-authorization", "cookie"}
)
_COUNTED: Final = bytes(byte if 0x20 <= byte < 0x7F else 0x0A for byte in range(256))
"""Turns each byte that is not visible into a line feed, so that one count finds those that don't end a line."""
_TARGET: Final = re.compile(r"/[\x21-\x7e]*")
_AUTHORITY: Final = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:\d{1,5})?")


_SENDABLE: Final = frozenset(
    {"webhook-id", "webhook-timestamp", "webhook-signature", "webhook-attempt", "webhook-event-time", "authorization"}
)
"""Names that nearly every request has; they need no check."""


@lru_cache(maxsize=1024)
def _sendable_name(name: str) -> bool:
    return _NAME.fullmatch(name) is not None and name.lower() not in _FRAMING


def checked(headers: HttpHeaders) -> HttpHeaders:
    """Returns the headers if each of them may be sent.

    Raises:
        ValueError: a name or value can't be sent, or the transport sets this header itself. The caller has a bug.
    """
    _lines(headers)
    return headers


class HeaderBlock:
    """The part of a request's head that is the same for all requests to an endpoint, rendered once.

    Raises:
        ValueError: the endpoint has a target, authority or header that can't be sent.
    """

    __slots__ = ("_end", "_start", "_starts", "authority", "endpoint_headers", "target")

    def __init__(self, endpoint: Endpoint) -> None:
        if not _TARGET.fullmatch(endpoint.target) or not _AUTHORITY.fullmatch(endpoint.authority):
            raise ValueError("an endpoint that can't be sent to")
        self.target = endpoint.target
        self.authority = endpoint.authority
        self.endpoint_headers = checked(endpoint.headers)
        self._start = f"POST {endpoint.target} HTTP/1.1\r\nhost: {endpoint.authority}\r\n"
        self._starts: dict[str, bytes] = {}
        """Rendered starts by content type, of which an endpoint has one or two."""
        self._end = _lines(self.endpoint_headers) + b"\r\n"

    def render(self, content_type: str, length: int, headers: HttpHeaders) -> bytes:
        """Returns the whole head of one request.

        Raises:
            ValueError: as `checked`.
        """
        start = self._starts.get(content_type)
        if start is None:
            text = f"{self._start}content-type: {content_type}\r\nuser-agent: {USER_AGENT}\r\ncontent-length: "
            start = self._starts[content_type] = text.encode("ascii")
        return b"%b%d\r\n%b%b" % (start, length, _lines(headers), self._end)


def _lines(headers: HttpHeaders) -> bytes:
    """Returns the headers as they are sent. One check covers all values: none has a line break or control character."""
    for name, _ in headers:
        if name not in _SENDABLE and not _sendable_name(name):
            raise ValueError("a header name that can't be sent")
    try:
        lines = "".join([f"{name}: {value}\r\n" for name, value in headers]).encode("ascii")
    except UnicodeEncodeError:
        raise unchained(ValueError("a header value that can't be sent")) from None
    if lines.translate(_COUNTED).count(b"\n") != 2 * len(headers):  # the line ends that are rendered here
        raise ValueError("a header value that can't be sent")
    return lines
