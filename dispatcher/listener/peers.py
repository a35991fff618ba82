"""Defines what counts as one peer of a port: an IPv4 address, or the network of an IPv6 host."""

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Networks = Sequence[IPv4Network | IPv6Network]


def address_of(text: str) -> IPv4Address | IPv6Address | None:
    """Returns the IP address without its zone; an IPv4-mapped one as IPv4. None if the text isn't an address."""
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return address.ipv4_mapped or address if isinstance(address, IPv6Address) else address


def peer_of(text: str) -> str:
    """Returns what counts as one peer: an IPv4 address, or the /64 of an IPv6 address, which one host has."""
    address = address_of(text)
    if isinstance(address, IPv6Address):
        return str(ip_network((int(address), 64), strict=False))
    return "" if address is None else str(address)
