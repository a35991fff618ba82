"""Connects to services of the operator, as brokers or databases, by the first of a name's addresses that answers.

asyncio tries one address after the other, each until the system gives up after minutes. If the first one is silent, as
that of a lost machine or of IPv6 behind a firewall, a client would never get to the others. Endpoints of tenants are
connected to by `dispatcher.transport`, which checks the addresses before.
"""

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import Any, Final

from aiohappyeyeballs import AddrInfoType, start_connection

STAGGER_S: Final = 0.25
"""Head start of each address over the next (RFC 8305, section 5)."""
_STARTING_SHARE: Final = 0.5
"""Share of the time within which every address is started, however many there are."""


async def connect_socket(host: str, port: int, within_s: float) -> socket.socket:
    """Returns a socket that is connected to one of the host's addresses.

    Raises:
        OSError: the name has no address, or no address can be connected to.
        TimeoutError: none answered within `within_s`.
    """
    async with asyncio.timeout(within_s):
        loop = asyncio.get_running_loop()
        found: list[AddrInfoType] = list(dict.fromkeys(await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)))
        stagger = min(STAGGER_S, within_s * _STARTING_SHARE / len(found))
        sock = await start_connection(found, happy_eyeballs_delay=stagger)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


async def open_connection(
    host: str, port: int, within_s: float, context: ssl.SSLContext | None = None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Returns the streams of a connection, TLS done if a context is given. `within_s` is for connecting only.

    Raises:
        OSError: as `connect_socket`; `ssl.SSLError` is one.
    """
    sock = await connect_socket(host, port, within_s)
    try:
        return await asyncio.open_connection(sock=sock, ssl=context, server_hostname=None if context is None else host)
    except BaseException:
        sock.close()
        raise


class ConnectingLoop:
    """An event loop for clients that connect by `create_connection`: theirs go to the first address that answers."""

    def __init__(self, within_s: float) -> None:
        """`within_s`: for the connection by TCP to one name, all its addresses together."""
        self._loop = asyncio.get_running_loop()
        self._within_s = within_s

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    async def create_connection(
        self, factory: Callable[[], asyncio.Protocol], host: str, port: int, *, ssl: ssl.SSLContext | None = None
    ) -> tuple[asyncio.Transport, asyncio.Protocol]:
        """Returns transport and protocol of a connection, TLS done if a context is given.

        Raises:
            OSError: as `connect_socket`; `ssl.SSLError` is one.
        """
        sock = await connect_socket(host, port, self._within_s)
        try:
            return await self._loop.create_connection(
                factory, sock=sock, ssl=ssl, server_hostname=None if ssl is None else host
            )
        except BaseException:
            sock.close()
            raise
