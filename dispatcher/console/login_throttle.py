"""Throttles sign-ins after failures: by client address, and in total. Pure; bounded memory.

Tokens can't be guessed (256 random bits). Throttling spares the database the queries of such attempts and makes them
visible in the metrics.
"""

from collections import OrderedDict
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Final

from dispatcher.listener import address_of, peer_of

FREE: Final = 5
"""Failures of one address that cause no wait: typing errors."""
FREE_IN_ALL: Final = 100
"""The same for all addresses together; one is forgotten each second."""
LONGEST_S: Final = 900.0
LONGEST_IN_ALL_S: Final = 30.0
"""Short, because it delays legitimate sign-ins, too."""
FORGOTTEN_AFTER_S: Final = 3600.0
MAX_ADDRESSES: Final = 10_000
MAX_FORWARDED: Final = 2048
"""Characters of an X-Forwarded-For header that are read, from its end."""


@dataclass(slots=True)
class _Failures:
    count: int = 0
    last: float = 0.0


class LoginThrottle:
    """Counts failures and computes how long a client has to wait."""

    def __init__(self) -> None:
        self._by_address: OrderedDict[str, _Failures] = OrderedDict()
        self._in_all = 0.0
        self._last = 0.0

    def wait_s(self, address: str, now: float) -> float:
        """Returns the seconds until the address may try again; 0 if it may now."""
        waits = [_wait(self._in_all_now(now) - FREE_IN_ALL, LONGEST_IN_ALL_S) - (now - self._last)]
        failures = self._by_address.get(peer_of(address))
        if failures is not None and now - failures.last < FORGOTTEN_AFTER_S:
            waits.append(_wait(failures.count - FREE, LONGEST_S) - (now - failures.last))
        return max(0.0, *waits)

    def failed(self, address: str, now: float) -> None:
        """Counts a failed sign-in of the address."""
        key = peer_of(address)
        failures = self._by_address.pop(key, _Failures())
        if now - failures.last >= FORGOTTEN_AFTER_S:
            failures.count = 0
        failures.count += 1
        failures.last = now
        while len(self._by_address) >= MAX_ADDRESSES:
            self._by_address.popitem(last=False)
        self._by_address[key] = failures
        self._in_all, self._last = self._in_all_now(now) + 1, now

    def succeeded(self, address: str) -> None:
        """Forgets the failures of an address from which a client signed in."""
        self._by_address.pop(peer_of(address), None)

    def _in_all_now(self, now: float) -> float:
        return max(0.0, self._in_all - max(0.0, now - self._last))


def is_trusted(peer: str | None, trusted: tuple[str, ...]) -> bool:
    """Returns True if the peer is one of our own proxies.

    Args:
        trusted: CIDR blocks of our proxies.
    """
    address = address_of(peer or "")
    return address is not None and any(address in ip_network(block) for block in trusted)


def client_address(peer: str | None, forwarded_for: list[str], trusted: tuple[str, ...]) -> str:
    """Returns the client's address: the last one in the chain that isn't a trusted proxy.

    Args:
        peer: address of the connection's peer.
        forwarded_for: every X-Forwarded-For header, in their order.
        trusted: CIDR blocks of our proxies. X-Forwarded-For of other peers is ignored.
    """
    hops = [hop.strip() for line in forwarded_for for hop in line[-MAX_FORWARDED:].split(",")]
    current = peer or ""
    while hops and is_trusted(current, trusted):
        current = hops.pop()
    return current if address_of(current) is not None else peer or ""


def _wait(beyond: float, longest_s: float) -> float:
    return 0.0 if beyond < 0 else min(longest_s, 2.0 ** min(beyond, 20.0))
