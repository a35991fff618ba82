"""Resolves a host once and checks every address of the answer.

The dialer connects to the addresses returned here and resolves nothing itself, so a name whose answer changes between
the check and the connection (DNS rebinding) has no effect.
"""

import asyncio
import socket
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Self

import structlog

from dispatcher.config.settings import EgressSettings
from dispatcher.contract.outcomes import NO_PUBLIC_ADDRESS, FailureReason
from dispatcher.tasks import SingleFlight, retrieve_error
from dispatcher.transport import dns
from dispatcher.transport.egress import EgressGuard, literal, nameserver
from dispatcher.transport.failures import TransportError, clip, is_local, local_failure
from dispatcher.transport.resolved_addresses import ResolvedAddresses

TTL_S = 10.0
"""Seconds for which an answer is used again. Short, because endpoints move by DNS."""
TIMEOUT_S = 5.0
"""Seconds for one name, all servers and tries together."""
MAX_CACHED = 10_000
MAX_ADDRESSES = 32
"""Addresses of one name that are connected to: the first ones of the answer. All of the answer is checked."""
MAX_ANSWERED = 1024
"""Addresses of one name that are checked; a name with more is refused."""
REFRESHES_PER_S = 50.0
"""Background lookups per second, all hosts together: bounds what ten thousand busy hosts cost."""
_SLOW_ANSWER_S = 1.0
"""The system's resolver waits for both A and AAAA. After these seconds, A is looked up alone as well."""
_THREADS = 64
"""`getaddrinfo` blocks its thread for as long as a dead DNS server takes. In a separate pool it can't block the few
threads of the default executor (uvloop: four), which would stop every tenant."""
_NO_THREAD: Final = (
    f"the dispatcher's {_THREADS} DNS lookups at once all wait for servers that don't answer: name servers of its own "
    "(egress.nameservers) need no threads"
)


_NOT_FOUND: Final = frozenset({socket.EAI_NONAME, socket.EAI_NODATA})
"""The resolver answered that the name, or an address of it, does not exist."""
MAX_REPORTED: Final = 1_000
"""Hosts whose denied address is logged within `REPORT_EVERY_S`; further ones are counted in the metrics only."""
REPORT_EVERY_S: Final = 600.0

log = structlog.get_logger(__name__)


class Resolver:
    """Resolves and checks hosts. Concurrent lookups of one name share one query (single flight).

    Use as an async context manager; leaving it cancels lookups in progress.
    """

    def __init__(
        self, settings: EgressSettings, guard: EgressGuard, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._guard = guard
        self._servers = tuple(server for text in settings.nameservers if (server := nameserver(text)) is not None)
        self._clock = clock
        self._answers: OrderedDict[str, ResolvedAddresses] = OrderedDict()
        self._lookups = SingleFlight[str, tuple[str, ...]]("dns lookup")
        self._next_refresh = 0.0
        self._reported_at: OrderedDict[str, float] = OrderedDict()
        self._threads: ThreadPoolExecutor | None = None
        self._asked: dict[str, list[socket.AddressFamily]] = {}
        """Address families that a thread has begun to look up, by host; none while the lookup waits for a thread."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._lookups.close()
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)

    def check(self, scheme: str, host: str, port: int) -> None:
        """Checks scheme, host and port without resolving the host.

        Raises:
            TransportError: URL_DENIED if the host is a denied address, EGRESS_DENIED if a rule refuses it.
        """
        problem = self._guard.problem_of_target(scheme, host, port)
        if problem:
            address = literal(host)
            for_good = address is not None and self._guard.denies(host, str(address))
            raise TransportError(FailureReason.URL_DENIED if for_good else FailureReason.EGRESS_DENIED, clip(problem))

    async def resolve(self, scheme: str, host: str, port: int, within_s: float = TIMEOUT_S) -> tuple[str, ...]:
        """Returns addresses to connect to, in order of preference, at most 32. The whole answer passed the guard.

        A lookup that takes longer than `within_s` goes on in the background.

        Raises:
            TransportError: DNS, LOCAL, URL_DENIED, or EGRESS_DENIED if the guard refuses the host or *any* of its
                addresses. The text for a denied address is the same as for a name that doesn't exist; the log has more.
        """
        self.check(scheme, host, port)
        addresses = await self.lookup(host, within_s)
        for address in addresses:
            problem = self._guard.problem_of_address(host, address, port)
            if problem:
                self._report(host, problem)
                raise TransportError(FailureReason.EGRESS_DENIED, _no_public_address(host))
        return addresses[:MAX_ADDRESSES]

    def _report(self, host: str, problem: str) -> None:
        """Logs a denied address for the operator, once in ten minutes for each host."""
        now, reported = self._clock(), self._reported_at
        while reported and next(iter(reported.values())) <= now - REPORT_EVERY_S:
            reported.popitem(last=False)
        if host not in reported and len(reported) < MAX_REPORTED:
            reported[host] = now
            log.warning("a host resolves to a denied address: nothing is sent there", host=host, why=clip(problem))

    def watch(self, host: str) -> ResolvedAddresses | None:
        """Returns the last answer for a host, and looks it up again in the background if it is old.

        None if the host is an address, or was never resolved here. While DNS fails, the last answer stays.
        """
        answer = self._answers.get(host)
        if answer is None or host in self._lookups:
            return answer
        now = self._clock()
        if now >= answer.expires_at and now >= self._next_refresh:
            # At most REFRESHES_PER_S on average, and a second's worth at once.
            self._next_refresh = max(self._next_refresh, now - 1.0) + 1.0 / REFRESHES_PER_S
            self._start(host)
        return answer

    async def lookup(self, host: str, within_s: float = TIMEOUT_S) -> tuple[str, ...]:
        """Returns the addresses of a host, unchecked: for the operator's own proxy. `within_s` as in `resolve`.

        Raises:
            TransportError: DNS or LOCAL.
        """
        address = literal(host)
        if address is not None:
            return (str(address),)
        known = self._answers.get(host)
        if known is not None and self._clock() < known.expires_at:
            return known.addresses
        lookup = self._start(host)
        if within_s < TIMEOUT_S:  # otherwise the lookup's own limit ends it first
            await asyncio.wait([lookup], timeout=within_s)
            if not lookup.done():
                raise self._no_answer(host, within_s)
        return await asyncio.shield(lookup)

    def _start(self, host: str) -> "asyncio.Task[tuple[str, ...]]":
        return self._lookups.start(host, lambda: self._look_up_and_keep(host))

    async def _look_up_and_keep(self, host: str) -> tuple[str, ...]:
        addresses = await self._look_up(host)
        expires_at = self._clock() + TTL_S
        is_allowed = not any(self._guard.denies(host, address) for address in addresses)
        answer = self._answers.get(host)
        if answer is None:
            answer = self._answers[host] = ResolvedAddresses(addresses, expires_at, is_allowed=is_allowed)
        answer.addresses, answer.expires_at, answer.is_allowed = addresses, expires_at, is_allowed
        self._answers.move_to_end(host)
        if len(self._answers) > MAX_CACHED:
            self._answers.popitem(last=False)
        return addresses

    async def _look_up(self, host: str) -> tuple[str, ...]:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                found = await (dns.query(host, self._servers) if self._servers else self._by_system(host))
        except TimeoutError:
            raise self._no_answer(host, TIMEOUT_S) from None
        except (dns.DnsError, OSError, UnicodeError) as error:
            raise _dns_failure(host, error) from error
        finally:
            self._asked.pop(host, None)
        addresses = tuple(dict.fromkeys(found))
        if not addresses:
            raise TransportError(FailureReason.DNS, _no_public_address(host))
        if len(addresses) > MAX_ANSWERED:
            raise TransportError(
                FailureReason.DNS, clip(f"{host}: {len(addresses)} addresses, want 1 to {MAX_ANSWERED}")
            )
        return addresses

    def _no_answer(self, host: str, within_s: float) -> TransportError:
        """Returns the failure for a lookup that takes too long: LOCAL if it waits for a thread, else DNS."""
        if self._asked.get(host) == []:
            return TransportError(FailureReason.LOCAL, _NO_THREAD)  # no evidence against this host's endpoint
        return TransportError(FailureReason.DNS, f"{clip(host)}: no answer from DNS within {within_s:.2g} s")

    async def _by_system(self, host: str) -> list[str]:
        """Asks the system's resolver."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="dns")
        threads = self._threads
        asked = self._asked[host] = []

        def ask(family: socket.AddressFamily) -> list[str]:
            asked.append(family)
            return _getaddrinfo(host, family)

        def start(family: socket.AddressFamily) -> asyncio.Future[list[str]]:
            answer = asyncio.get_running_loop().run_in_executor(threads, ask, family)
            answer.add_done_callback(retrieve_error)  # it may come too late
            return answer

        answers = [both := start(socket.AF_UNSPEC)]
        try:
            done, _ = await asyncio.wait(answers, timeout=_SLOW_ANSWER_S)
            if done:
                return both.result()
            answers.append(four := start(socket.AF_INET))
            return await dns.first_good(both, four)
        finally:
            for answer in answers:
                answer.cancel()  # one that still waits for a thread never begins


def _no_public_address(host: str) -> str:
    return f"{clip(host[:100])} {NO_PUBLIC_ADDRESS}"


def _dns_failure(host: str, error: Exception) -> TransportError:
    """Returns DNS, or LOCAL if the lookup failed because of this machine or the operator's own DNS server."""
    if isinstance(error, dns.ServerUnreachable) or is_local(error):
        return local_failure(error.__cause__ or error)
    try:
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close()
    except OSError as own:  # getaddrinfo reports a lack of file descriptors as a failure of the name
        return local_failure(own)
    if isinstance(error, dns.NameNotFound) or (isinstance(error, socket.gaierror) and error.errno in _NOT_FOUND):
        return TransportError(FailureReason.DNS, _no_public_address(host))
    why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return TransportError(FailureReason.DNS, clip(f"{host}: {why}"))


def _getaddrinfo(host: str, family: socket.AddressFamily) -> list[str]:
    rows = socket.getaddrinfo(host, None, family=family, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return [str(address[0]) for _, _, _, _, address in rows]
