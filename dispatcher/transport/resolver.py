"""From a host to the addresses that may be connected to: resolved once, all of them checked.

The dialer connects to the addresses given here and resolves nothing itself, so that a name that changes its mind
between the check and the connect (DNS rebinding) finds nothing to change.
"""

import asyncio
import socket
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Self

from dispatcher.config.settings import EgressSettings
from dispatcher.contract.outcomes import FailureReason
from dispatcher.transport import dns
from dispatcher.transport.egress import EgressGuard, literal, nameserver
from dispatcher.transport.failures import TransportError, clip

TTL_S = 10.0
"""How long an answer is used again. Short: endpoints move by DNS."""
TIMEOUT_S = 5.0
"""For one name, all servers and tries together."""
MAX_CACHED = 10_000
MAX_ADDRESSES = 32
"""Addresses of one name that are looked at; with more, the name is refused rather than half checked."""
_THREADS = 64
"""`getaddrinfo` blocks its thread for as long as a dead DNS server likes. A pool of our own keeps that from the
default executor's few threads (uvloop: four), where it would stop every tenant."""


class Resolver:
    """Resolves and checks. Single flight: a name that many requests ask for is asked for once.

    Use as an async context manager; leaving it cancels what is under way.
    """

    def __init__(
        self, settings: EgressSettings, guard: EgressGuard, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._guard = guard
        self._servers = tuple(server for text in settings.nameservers if (server := nameserver(text)) is not None)
        self._clock = clock
        self._cache: OrderedDict[str, tuple[float, tuple[str, ...]]] = OrderedDict()
        self._under_way: dict[str, asyncio.Task[tuple[str, ...]]] = {}
        self._threads: ThreadPoolExecutor | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)

    async def resolve(self, scheme: str, host: str, port: int) -> tuple[str, ...]:
        """Addresses to connect to, in order of preference; all of them have passed the guard.

        Raises:
            Failed: DNS, or EGRESS_DENIED where the guard refuses the host or *any* of its addresses.
        """
        problem = self._guard.problem_of_target(scheme, host, port)
        if problem:
            raise TransportError(FailureReason.EGRESS_DENIED, clip(problem))
        addresses = await self.lookup(host)
        for address in addresses:
            problem = self._guard.problem_of_address(host, address, port)
            if problem:
                raise TransportError(FailureReason.EGRESS_DENIED, clip(problem))
        return addresses

    async def lookup(self, host: str) -> tuple[str, ...]:
        """Addresses of a host, not checked: for the operator's own proxy.

        Raises:
            Failed: DNS.
        """
        address = literal(host)
        if address is not None:
            return (str(address),)
        cached = self._cache.get(host)
        if cached is not None and self._clock() < cached[0]:
            return cached[1]
        task = self._under_way.get(host)
        if task is None:
            task = self._under_way[host] = asyncio.create_task(self._look_up(host), name="dns lookup")
            task.add_done_callback(lambda done: self._finished(host, done))
        return await asyncio.shield(task)

    def _finished(self, host: str, task: asyncio.Task[tuple[str, ...]]) -> None:
        del self._under_way[host]
        if task.cancelled() or task.exception() is not None:  # read, so that asyncio does not complain of it
            return
        self._cache[host] = (self._clock() + TTL_S, task.result())
        self._cache.move_to_end(host)
        if len(self._cache) > MAX_CACHED:
            self._cache.popitem(last=False)

    async def _look_up(self, host: str) -> tuple[str, ...]:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                found = await (dns.query(host, self._servers) if self._servers else self._by_system(host))
        except TimeoutError:
            raise TransportError(
                FailureReason.DNS, f"{clip(host)}: no answer from DNS within {TIMEOUT_S:g} s"
            ) from None
        except (dns.DnsError, OSError, UnicodeError) as error:
            why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise TransportError(FailureReason.DNS, clip(f"{host}: {why}")) from error
        addresses = tuple(dict.fromkeys(found))
        if not addresses or len(addresses) > MAX_ADDRESSES:
            raise TransportError(
                FailureReason.DNS, clip(f"{host}: {len(addresses)} addresses, want 1 to {MAX_ADDRESSES}")
            )
        return addresses

    async def _by_system(self, host: str) -> list[str]:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="dns")
        return await asyncio.get_running_loop().run_in_executor(self._threads, _getaddrinfo, host)


def _getaddrinfo(host: str) -> list[str]:
    rows = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return [str(address[0]) for _, _, _, _, address in rows]
