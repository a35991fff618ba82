"""Checks URLs in the settings: their form, and whether connections to them are protected."""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import SplitResult, urlsplit


def checked_url(url: str) -> str:
    """Returns the URL if it is a web address without a query.

    Raises:
        ValueError: it is not one; the message says what to change.
    """
    parts = split_web_address(url)
    if parts.query:
        raise ValueError("must not carry a query (?…)")
    return url


def protected_url(url: str) -> str:
    """Returns the URL if the connection to it is protected against changes: https, or the loopback.

    Raises:
        ValueError: it is not; the message says what to change.
    """
    checked_url(url)
    if not is_protected(url):
        raise ValueError("must begin with https://, unless it is on this machine")
    return url


def checked_listen_host(host: str) -> str:
    """Returns the host if it can be an address or name to listen on.

    Raises:
        ValueError: it can't be one; the message says what to write.
    """
    is_address = ":" in host or (host != "" and not host.strip("0123456789."))
    if not can_be_host(host) or (is_address and _address(host) is None):
        raise ValueError("must be an IP address or a host name, without brackets or a port")
    return host


def cidr_block(text: str) -> IPv4Network | IPv6Network:
    """Returns the block of addresses that a CIDR notation means; an address alone is a block.

    Raises:
        ValueError: it is none; the message says what to write.
    """
    try:
        return ip_network(text)
    except ValueError:
        pass
    try:
        block = ip_network(text, strict=False)
    except ValueError:
        raise ValueError("write a CIDR block: 10.0.0.0/8, or 192.0.2.7/32") from None
    raise ValueError(f"is not the first address of its block: write {block}")


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


def can_be_host(host: str) -> bool:
    """Returns True if the text can be an address or a host name; only the system knows whether it is one."""
    try:
        host.encode("idna")
    except UnicodeError:  # a label that is empty, or has over 63 characters
        return False
    return host.isprintable()


def is_protected(url: str) -> bool:
    """Returns True if the connection is protected against changes: https, or the loopback."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme == "https":
        return bool(host)
    try:
        return parts.scheme == "http" and (host == "localhost" or ip_address(host).is_loopback)
    except ValueError:
        return False


def split_web_address(url: str) -> SplitResult:
    """Returns the parts of an http or https URL.

    Raises:
        ValueError: it is not one; the message says what to change.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"not a URL: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or not url.isascii():
        raise ValueError("write a URL with scheme and host: https://login.example")
    if "@" in parts.netloc or "#" in url:
        raise ValueError("must not carry a user name, a password or a fragment (#…)")
    return parts
