"""The addresses of a host, as DNS answered last, which each connection is compared with before it is used again."""


class ResolvedAddresses:
    """The latest DNS answer for a host. Later lookups change it in place, so pools can keep a reference."""

    __slots__ = ("addresses", "expires_at", "is_allowed")

    def __init__(self, addresses: tuple[str, ...], expires_at: float, *, is_allowed: bool) -> None:
        self.addresses = addresses
        self.expires_at = expires_at
        self.is_allowed = is_allowed
        """No address of it is denied. A denied one closes no working connection: resolvers lie briefly."""

    def is_outdated(self, address: str) -> bool:
        """Returns True if the host has moved away from the address: a connection to it is not used again."""
        return self.is_allowed and address not in self.addresses
