"""Connects by TCP to the first of several addresses that answers (RFC 8305, sections 5 and 8, without DNS)."""

import asyncio
import ipaddress
import socket
from collections.abc import Sequence
from typing import Final

from dispatcher.transport.failures import is_local

STAGGER_S: Final = 0.25
"""Head start of each address over the next (RFC 8305, section 5)."""
_STARTING_SHARE: Final = 0.5
"""Share of the time within which every address is started, however many there are."""


async def connect_first(addresses: Sequence[str], port: int, within_s: float) -> tuple[socket.socket, str]:
    """Returns a connected socket and its address, which is exactly one of those given.

    Addresses that don't answer share the time evenly: the head start of each one shrinks so that the last of them still
    has half of `within_s`, which the caller enforces.

    Raises:
        OSError: no address could be connected to. It is the first error that occurred, but one of the endpoint goes
            before one of this machine (no route for one of the two families).
    """
    waiting = _interleaved(addresses)
    if len(waiting) == 1:
        return await _connect(waiting[0], port), waiting[0]
    stagger = min(STAGGER_S, within_s * _STARTING_SHARE / len(waiting))
    tasks: dict[asyncio.Task[socket.socket], str] = {}
    problems: list[OSError] = []
    try:
        while waiting or tasks:
            if waiting:
                address = waiting.pop(0)
                tasks[asyncio.create_task(_connect(address, port), name="connect")] = address
            done, _ = await asyncio.wait(
                tasks, timeout=stagger if waiting else None, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                address = tasks.pop(task)
                error = task.exception()
                if error is None:
                    return task.result(), address
                if not isinstance(error, OSError):
                    raise error
                problems.append(error)
    finally:
        await _abandon(tasks)
    raise next((error for error in problems if not is_local(error)), problems[0])


async def _abandon(tasks: dict[asyncio.Task[socket.socket], str]) -> None:
    for task in tasks:
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, socket.socket):  # it connected as well, but too late
            result.close()


def _interleaved(addresses: Sequence[str]) -> list[str]:
    """Returns the addresses with the two families alternating, the first one's family first (RFC 8305, section 4)."""
    first = [a for a in addresses if (":" in a) == (":" in addresses[0])]
    second = [a for a in addresses if (":" in a) != (":" in addresses[0])]
    ordered: list[str] = []
    while first or second:
        ordered += first[:1] + second[:1]
        first, second = first[1:], second[1:]
    return ordered


async def _connect(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ipaddress.ip_address(address).version == 6 else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(sock, (address, port))
    except BaseException:
        sock.close()
        raise
    return sock
