"""Opens the listening sockets of a port, and says what to change if the port can't be used."""

import errno
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import structlog

from dispatcher.errors import DispatcherError

log = structlog.get_logger(__name__)


def listen_refusal(where: str, error: OSError, addresses: str) -> str:
    """Returns why a port can't be listened on, and the cure. `addresses`: what to choose if the address is at fault."""
    if error.errno == errno.EADDRINUSE:
        return f"can't listen on {where}: another process has the port; end it, or choose another port"
    if error.errno == errno.EACCES:
        return f"can't listen on {where}: not permitted; choose a port above 1023"
    why = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
    return f"can't listen on {where}: {why}; choose {addresses}"


def listening_sockets(setting: str, host: str | None, port: int) -> list[socket.socket]:
    """Opens the sockets of a port; for all addresses one of IPv4 and one of IPv6, if the host has IPv6.

    Args:
        setting: prefix of the settings' names in messages, `ops` or `console`.
        host: the address to listen on; None for all addresses, IPv4 and IPv6.
        port: the port; 0 takes a free one, which all sockets have.

    Raises:
        DispatcherError: the address or port can't be used; the message names the settings.
    """
    sockets: list[socket.socket] = []
    try:
        for family, address in _addresses(host, port):
            with _without_ipv6(host is None and family == socket.AF_INET6):
                sockets.append(_bound(family, (address[0], port, *address[2:])))
                port = int(sockets[0].getsockname()[1])
    except OSError as error:
        for sock in sockets:
            sock.close()
        where = f"{setting}.host {host or '(all addresses)'}, {setting}.port {port}"
        raise DispatcherError(listen_refusal(where, error, "an address of this host, or null for all")) from error
    return sockets


def _addresses(host: str | None, port: int) -> Sequence[tuple[int, tuple[str | int, ...]]]:
    if host is None:
        on_ipv4, on_ipv6 = (socket.AF_INET, ("0.0.0.0", 0)), (socket.AF_INET6, ("::", 0))  # noqa: S104  (host null means all addresses)
        return [on_ipv4, on_ipv6] if socket.has_ipv6 else [on_ipv4]
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except ValueError:  # UnicodeError among them: an empty or too long label, a null character
        raise OSError("it isn't a host name") from None
    return list(dict.fromkeys((int(one[0]), tuple(map(_plain, one[4]))) for one in found))


def _plain(part: object) -> str | int:
    return part if isinstance(part, int) else str(part)


def _bound(family: int, address: tuple[str | int, ...]) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setblocking(False)
        sock.bind(address)
    except BaseException:
        sock.close()
        raise
    return sock


@contextmanager
def _without_ipv6(may_lack: bool) -> Iterator[None]:
    """Skips an address that can't be opened because the host has no IPv6."""
    try:
        yield
    except OSError as error:
        if not may_lack or error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT):
            raise
        log.info("this host has no IPv6: listening on IPv4 only")
