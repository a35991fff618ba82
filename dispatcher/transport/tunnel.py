"""Opens a tunnel through the operator's egress proxy (CONNECT, RFC 9110, section 9.3.6) to a checked address or host.

Any failure before the tunnel is open is the proxy's failure and never evidence against the tenant, unless the proxy
says that it can't reach the target. The proxy's answer is read to the end of its header block. What follows a refusal
is its body and ignored. Nothing may follow a 2xx: in a tunnel the client speaks first.
"""

import asyncio
import re
import ssl
from collections.abc import Sequence

from dispatcher.contract.outcomes import FailureReason
from dispatcher.transport.egress import ProxyAddress
from dispatcher.transport.failures import TransportError, clip, describe, is_local, local_failure
from dispatcher.transport.happy_eyeballs import connect_first
from dispatcher.transport.tls_sessions import TlsContext

MAX_ANSWER = 8192
"""Bytes of the answer's header block."""
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})(?: ([^\r\n]*))?\r?\n")


class _ConnectAnswer(asyncio.Protocol):
    """Collects the proxy's answer."""

    def __init__(self) -> None:
        self.head: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        """The bytes received when the header block was complete, or too long."""
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
    within_s: float,
) -> tuple[asyncio.Transport, str]:
    """Returns a connection to the first of the targets that the proxy connects to, and that target.

    `entrances` are the proxy's own addresses, `outer` its TLS. The targets share `within_s` evenly: one that hangs
    leaves the others their part. The caller bounds the whole time.

    Raises:
        TransportError: PROXY, LOCAL; CONNECT if the proxy says that it can't reach the target (502, 503, 504).
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + within_s
    for number, target in enumerate(targets[:-1]):
        try:
            async with asyncio.timeout((until - loop.time()) / (len(targets) - number)):
                return await _connect(proxy, entrances, outer, target, port, within_s), target
        except TimeoutError:
            continue
        except TransportError as error:
            if error.reason is not FailureReason.CONNECT:
                raise
    return await _connect(proxy, entrances, outer, targets[-1], port, within_s), targets[-1]


async def _connect(
    proxy: ProxyAddress, entrances: Sequence[str], outer: TlsContext | None, target: str, port: int, within_s: float
) -> asyncio.Transport:
    loop = asyncio.get_running_loop()
    try:
        sock, _ = await connect_first(entrances, proxy.port, within_s)
        try:
            transport, protocol = await loop.create_connection(
                _ConnectAnswer, sock=sock, ssl=outer, server_hostname=None if outer is None else proxy.host
            )
        except BaseException:
            sock.close()
            raise
    except (OSError, ssl.CertificateError) as error:
        raise _proxy_failure(error) from error
    authority = f"[{target}]:{port}" if ":" in target else f"{target}:{port}"
    head = f"CONNECT {authority} HTTP/1.1\r\nhost: {authority}\r\n"
    if proxy.authorization is not None:
        head += f"proxy-authorization: {proxy.authorization}\r\n"
    try:
        transport.write(f"{head}\r\n".encode("ascii"))
        _check(await protocol.head, is_authorized=proxy.authorization is not None)
    except OSError as error:
        transport.abort()
        raise _proxy_failure(error) from error
    except BaseException:
        transport.abort()
        raise
    return transport


def _proxy_failure(error: OSError | ssl.CertificateError) -> TransportError:
    if is_local(error):
        return local_failure(error)
    return TransportError(FailureReason.PROXY, clip(f"the egress proxy: {describe(error)}"))


def _check(received: bytes, *, is_authorized: bool) -> None:
    status = _STATUS.match(received)
    end = received.find(b"\r\n\r\n", 0, MAX_ANSWER) + 4
    is_open = status is not None and status[1][:1] == b"2"
    if status is None or end < 4 or (is_open and end != len(received)):
        raise TransportError(FailureReason.PROXY, "the egress proxy's answer to CONNECT is not one")
    if is_open:
        return
    text = f"the egress proxy answered {status[1].decode()} to CONNECT"
    if status[1] == b"407":
        text += ": it refused username and password" if is_authorized else ": it wants username and password"
    unreachable = status[1] in (b"502", b"503", b"504")
    raise TransportError(FailureReason.CONNECT if unreachable else FailureReason.PROXY, text)
