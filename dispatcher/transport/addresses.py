"""Classifies IP addresses (public, private, loopback, …) by the IANA special-purpose registries. Pure.

`ipaddress.is_global` is not used: its answers changed between Python versions, and it does not look into the
forms of IPv6 that carry an IPv4 address.
"""

from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


class AddressKind(StrEnum):
    """Kinds of address. Messages to operators contain the values."""

    PUBLIC = "public"
    PRIVATE = "private"
    LOOPBACK = "loopback"
    SHARED = "carrier-grade NAT"
    METADATA = "a cloud's metadata service"
    LINK_LOCAL = "link-local"
    UNSPECIFIED = "unspecified"
    MULTICAST = "multicast"
    DOCUMENTATION = "for documentation only"
    BENCHMARKING = "for benchmarks only"
    RESERVED = "reserved"
    TRANSLATED = "a form of IPv6 that hides an IPv4 address"


INTERNAL = frozenset({AddressKind.PRIVATE, AddressKind.LOOPBACK, AddressKind.SHARED})
"""Kinds that an operator's own services have. A *name* in the allow-list opens these; the rest needs a CIDR block."""

_METADATA = frozenset(
    {
        IPv4Address("169.254.169.254"),  # AWS, Azure, Google Cloud, and most others
        IPv4Address("169.254.170.2"),  # AWS ECS task credentials
        IPv4Address("169.254.170.23"),  # AWS EKS pod identity
        IPv4Address("168.63.129.16"),  # Azure's wire server, a public address
        IPv4Address("100.100.100.200"),  # Alibaba Cloud
        IPv4Address("192.0.0.192"),  # Oracle Cloud
        IPv6Address("fd00:ec2::254"),  # AWS
        IPv6Address("fd00:ec2::23"),  # AWS EKS pod identity
        IPv6Address("fd20:ce::254"),  # Google Cloud
    }
)


def _four(*rows: tuple[str, AddressKind]) -> tuple[tuple[IPv4Network, AddressKind], ...]:
    return tuple((IPv4Network(block), kind) for block, kind in rows)


def _six(*rows: tuple[str, AddressKind]) -> tuple[tuple[IPv6Network, AddressKind], ...]:
    return tuple((IPv6Network(block), kind) for block, kind in rows)


_FOUR = _four(  # IANA IPv4 Special-Purpose Address Registry (RFC 6890)
    ("0.0.0.0/32", AddressKind.UNSPECIFIED),
    ("0.0.0.0/8", AddressKind.RESERVED),
    ("10.0.0.0/8", AddressKind.PRIVATE),
    ("100.64.0.0/10", AddressKind.SHARED),
    ("127.0.0.0/8", AddressKind.LOOPBACK),
    ("169.254.0.0/16", AddressKind.LINK_LOCAL),
    ("172.16.0.0/12", AddressKind.PRIVATE),
    ("192.0.0.0/24", AddressKind.RESERVED),
    ("192.0.2.0/24", AddressKind.DOCUMENTATION),
    ("192.88.99.0/24", AddressKind.TRANSLATED),  # the 6to4 relays (RFC 7526)
    ("192.168.0.0/16", AddressKind.PRIVATE),
    ("198.18.0.0/15", AddressKind.BENCHMARKING),
    ("198.51.100.0/24", AddressKind.DOCUMENTATION),
    ("203.0.113.0/24", AddressKind.DOCUMENTATION),
    ("224.0.0.0/4", AddressKind.MULTICAST),
    ("240.0.0.0/4", AddressKind.RESERVED),
)

_SIX = _six(  # IANA IPv6 Special-Purpose Address Registry; what is outside 2000::/3 and not here is reserved
    ("::/128", AddressKind.UNSPECIFIED),
    ("::1/128", AddressKind.LOOPBACK),
    ("::/96", AddressKind.TRANSLATED),  # IPv4-compatible (RFC 4291, deprecated)
    ("::ffff:0:0:0/96", AddressKind.TRANSLATED),  # IPv4-translated (RFC 2765, historic)
    ("64:ff9b:1::/48", AddressKind.TRANSLATED),  # local-use NAT64 (RFC 8215), IPv4 address at an unknown position
    ("100::/64", AddressKind.RESERVED),
    ("2001::/32", AddressKind.TRANSLATED),  # Teredo (RFC 4380)
    ("2001:2::/48", AddressKind.BENCHMARKING),
    ("2001:db8::/32", AddressKind.DOCUMENTATION),
    ("2001::/23", AddressKind.RESERVED),  # IETF protocol assignments
    ("2002::/16", AddressKind.TRANSLATED),  # 6to4 (RFC 3056, deprecated by RFC 7526)
    ("3fff::/20", AddressKind.DOCUMENTATION),
    ("fc00::/7", AddressKind.PRIVATE),
    ("fe80::/10", AddressKind.LINK_LOCAL),
    ("fec0::/10", AddressKind.PRIVATE),  # site-local (deprecated)
    ("ff00::/8", AddressKind.MULTICAST),
)

_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052: how an IPv6-only cluster reaches the public IPv4 Internet
_LOCAL_NAT64 = IPv6Network("64:ff9b:1::/48")
_UNICAST = IPv6Network("2000::/3")
_ISATAP = frozenset({0x00005EFE, 0x02005EFE, 0x01005EFE, 0x03005EFE})  # RFC 5214, section 6.1


def _inner(address: IPv6Address) -> IPv4Address | None:
    # Returns the IPv4 address that a packet to this IPv6 address arrives at: mapped, NAT64 and ISATAP forms.
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    bits = int(address)
    if address in _NAT64 or (bits >> 32) & 0xFFFFFFFF in _ISATAP:
        return IPv4Address(bits & 0xFFFFFFFF)
    return None


def carried(address: Address) -> tuple[IPv4Address, ...]:
    """Returns every IPv4 address that an IPv6 address carries, by any scheme."""
    if isinstance(address, IPv4Address):
        return ()
    teredo = address.teredo or (None, None)
    found = [_inner(address), address.sixtofour, *teredo]
    if int(address) >> 32 in (0, 0xFFFF0000) or address in _LOCAL_NAT64:
        found.append(IPv4Address(int(address) & 0xFFFFFFFF))
    return tuple(one for one in found if one is not None)


def kind_of(address: Address) -> AddressKind:
    """Returns the kind of an address. An IPv6 address that carries an IPv4 address is never better than that one."""
    if address in _METADATA:
        return AddressKind.METADATA
    if isinstance(address, IPv4Address):
        return next((kind for block, kind in _FOUR if address in block), AddressKind.PUBLIC)
    inner = _inner(address)
    if inner is not None:
        kind = kind_of(inner)
        if kind is not AddressKind.PUBLIC or address.ipv4_mapped is not None or address in _NAT64:
            return kind
    found = next((kind for block, kind in _SIX if address in block), None)
    return found or (AddressKind.PUBLIC if address in _UNICAST else AddressKind.RESERVED)
