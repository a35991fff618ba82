"""Connects to a broker by the first of its name's addresses that answers.

asyncio tries one address after the other, each until the system gives up after minutes. If the first one is silent, as
that of a broker's lost machine or of IPv6 behind a firewall, a client would never get to the others.
"""

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any

from dispatcher.kafka.broker_access import CONNECT_S
from dispatcher.transport.happy_eyeballs import connect_first

Connect = Callable[[Any], Awaitable[Any]]


class _ConnectingLoop:
    """An event loop whose connections to a name with several addresses are made to the first that answers."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    async def create_connection(
        self, factory: Callable[[], asyncio.Protocol], host: str, port: int, *, ssl: ssl.SSLContext | None
    ) -> tuple[asyncio.Transport, asyncio.Protocol]:
        found = await self._loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = list(dict.fromkeys(str(address[0]) for *_, address in found))
        if len(addresses) < 2:
            return await self._loop.create_connection(factory, host, port, ssl=ssl)
        sock, _ = await connect_first(addresses, port, CONNECT_S)
        try:
            return await self._loop.create_connection(
                factory, sock=sock, ssl=ssl, server_hostname=None if ssl is None else host
            )
        except BaseException:
            sock.close()
            raise


def by_any_address(connect: Connect) -> Connect:
    """Wraps the `connect` of aiokafka's connections."""

    @wraps(connect)
    async def patched(connection: Any) -> Any:
        connection._loop = _ConnectingLoop(asyncio.get_running_loop())  # noqa: SLF001
        return await connect(connection)

    return patched
