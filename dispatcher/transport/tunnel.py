"""A tunnel through the operator's egress proxy (CONNECT, RFC 9110, section 9.3.6) to a checked address.

Whatever goes wrong on the way is the proxy's failure and never held against the tenant. The proxy's answer is read
to the end of its header block and must have nothing behind it: in a tunnel the client speaks first.
"""

import asyncio
import re
import ssl
from collections.abc import Sequence

from dispatcher.contract.outcomes import FailureReason
from dispatcher.transport.egress import ProxyAddress
from dispatcher.transport.failures import TransportError, clip, describe
from dispatcher.transport.happy_eyeballs import connect_first
from dispatcher.transport.tls import TlsContext

MAX_ANSWER = 8192
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})(?: ([^\r\n]*))?\r?\n")


class _ConnectAnswer(asyncio.Protocol):
    """Collects the proxy's answer."""

    def __init__(self) -> None:
        self.head: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._received = b""

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self.head.done() and (b"\r\n\r\n" in self._received or len(self._received) > MAX_ANSWER):
            self.head.set_result(self._received)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.head.done():
            self.head.set_exception(exc or ConnectionResetError("closed the connection"))


async def open_tunnel(
    proxy: ProxyAddress,
    entrances: Sequence[str],
    outer: TlsContext | None,
    targets: Sequence[str],
    port: int,
) -> tuple[asyncio.Transport, str]:
    """A connection to the first of the targets that the proxy connects to, and that target.

    `entrances` are the proxy's own addresses, `outer` its TLS. The caller bounds the time.

    Raises:
        Failed: PROXY; CONNECT where the proxy says that it can't reach the target (502, 504).
    """
    for target in targets[:-1]:
        try:
            return await _connect(proxy, entrances, outer, target, port), target
        except TransportError as error:
            if error.reason is not FailureReason.CONNECT:
                raise
    return await _connect(proxy, entrances, outer, targets[-1], port), targets[-1]


async def _connect(
    proxy: ProxyAddress, entrances: Sequence[str], outer: TlsContext | None, target: str, port: int
) -> asyncio.Transport:
    loop = asyncio.get_running_loop()
    try:
        sock, _ = await connect_first(entrances, proxy.port)
        try:
            transport, protocol = await loop.create_connection(
                _ConnectAnswer, sock=sock, ssl=outer, server_hostname=None if outer is None else proxy.host
            )
        except BaseException:
            sock.close()
            raise
    except (OSError, ssl.CertificateError) as error:
        raise TransportError(FailureReason.PROXY, clip(f"the egress proxy: {describe(error)}")) from error
    authority = f"[{target}]:{port}" if ":" in target else f"{target}:{port}"
    try:
        transport.write(f"CONNECT {authority} HTTP/1.1\r\nhost: {authority}\r\n\r\n".encode("ascii"))
        _check(await protocol.head)
    except OSError as error:
        transport.abort()
        raise TransportError(FailureReason.PROXY, clip(f"the egress proxy: {describe(error)}")) from error
    except BaseException:
        transport.abort()
        raise
    return transport


def _check(head: bytes) -> None:
    status = _STATUS.match(head)
    if status is None or not head.endswith(b"\r\n\r\n") or head.count(b"\r\n\r\n") != 1:
        raise TransportError(FailureReason.PROXY, "the egress proxy's answer to CONNECT is not one")
    if status[1][:1] == b"2":
        return
    text = clip(f"the egress proxy answered {status[1].decode()} to CONNECT")
    unreachable = status[1] in (b"502", b"504")
    raise TransportError(FailureReason.CONNECT if unreachable else FailureReason.PROXY, text)
