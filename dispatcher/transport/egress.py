"""Decides which URLs and addresses a request may go to (the egress guard). Pure.

The guard checks a URL when the configuration is read (`problem_of_url`), and every address that a name resolves to
right before the connection (`problem_of_address`), which goes to exactly that address. Messages say what to change, and
not which addresses the operator's own names have.

Public addresses on allowed ports and everything in the operator's `allow` are allowed; `deny` wins over both. A name or
suffix in `allow` opens private, loopback and carrier-grade NAT addresses to that name. Everything else that is denied
by default (metadata services, link-local, multicast, …) needs a CIDR block, so a DNS record alone never reaches it.
"""

import base64
import ipaddress
import re
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from dispatcher.config.endpoint_urls import split_url
from dispatcher.config.settings import EgressSettings, ProxySettings
from dispatcher.config.web_addresses import cidr_block
from dispatcher.errors import Problem
from dispatcher.transport.addresses import INTERNAL, Address, AddressKind, Network, carried, kind_of
from dispatcher.transport.tls import bundle_problems, endpoint_context

DEFAULT_PORTS = "443, 8443 and 1024 to 65535"

_PRIVATE_DOMAINS = (".internal", ".local", ".localdomain", ".home.arpa", ".svc")
"""Domains that the public DNS never has: ICANN's for private use (cloud metadata services have names in it), RFC 6762,
RFC 8375, and what resolvers in a Kubernetes cluster complete."""

_INTERNAL_BY_HABIT = (".consul", ".corp", ".lan", ".home", ".intranet", ".private", ".intra")
"""Domains that networks use internally and that are not public."""

_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
_NUMBER = re.compile(r"\d+|0x[0-9a-f]*")
_QUAD = re.compile(r"(0|[1-9]\d{0,2})(\.(0|[1-9]\d{0,2})){3}")
_NETLOC = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:\d{1,5})?", re.IGNORECASE)


def literal(host: str) -> Address | None:
    """Returns the address if the host is an address in its only accepted spelling; None if it is a name."""
    try:
        if ":" in host:
            return None if "%" in host else ipaddress.IPv6Address(host)
        return ipaddress.IPv4Address(host) if _QUAD.fullmatch(host) else None
    except ValueError:
        return None


def spelling_problem(host: str) -> str | None:
    """Returns why a host's spelling is refused: only ASCII names, dotted quads and plain IPv6 are unambiguous."""
    if literal(host) is not None:
        return None
    if ":" in host or "%" in host:
        return "not a host: write an IPv6 address in brackets and without a zone (%…), a name without percent signs"
    if host.endswith("."):
        return "ends in a dot: leave the dot out"
    if not host.isascii():
        return "not an ASCII name: write it as xn--…"
    labels = host.lower().split(".")
    if _NUMBER.fullmatch(labels[-1]):
        return "not an IP address: write four decimal numbers from 0 to 255, without leading zeros"
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        return "not a host name: use letters, digits, hyphens and dots"
    return None


@dataclass(frozen=True, slots=True)
class _Rules:
    """A parsed allow-list or deny-list."""

    networks: tuple[Network, ...] = ()
    suffixes: tuple[str, ...] = ()
    names: frozenset[str] = frozenset()

    def has_name(self, host: str) -> bool:
        return host in self.names or host.endswith(self.suffixes)

    def has_address(self, address: Address) -> bool:
        """Returns True if a block contains the address or any IPv4 address that it carries: the rule for deny."""
        return any(self._holds(candidate) for candidate in (address, *carried(address)))

    def has_exactly(self, address: Address) -> bool:
        """Returns True if a block contains the address itself: the rule for allow.

        A mapped form *is* its IPv4 address (the kernel connects by IPv4). Any other form ends on a network that an IPv4
        block in allow did not mean.
        """
        mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
        return self._holds(mapped or address)

    def _holds(self, address: Address) -> bool:
        return any(address.version == network.version and address in network for network in self.networks)


def _entry(text: str) -> Network | str:
    """Reads an entry: a CIDR block, a suffix with its leading dot, or a name.

    Raises:
        ValueError: it is none of them.
    """
    if "://" in text:
        raise ValueError("write the host alone, without scheme and path; or a CIDR block as 10.0.0.0/8")
    if "/" in text or literal(text) is not None:
        return cidr_block(text)
    name = text.lower()
    problem = spelling_problem(name.removeprefix("."))
    if problem:
        raise ValueError(f"{problem}; or a CIDR block as 10.0.0.0/8, or a suffix as .svc.example")
    return name


def _rules(entries: tuple[str, ...]) -> _Rules:
    read = [_entry(text) for text in entries]
    texts = [entry for entry in read if isinstance(entry, str)]
    return _Rules(
        networks=tuple(entry for entry in read if not isinstance(entry, str)),
        suffixes=tuple(text for text in texts if text.startswith(".")),
        names=frozenset(text for text in texts if not text.startswith(".")),
    )


class EgressGuard:
    """Decides where requests may not go, and says why.

    Raises:
        ValueError: an entry of allow or deny can't be read; `egress_problems` names each one beforehand.
    """

    def __init__(self, settings: EgressSettings) -> None:
        self._allow = _rules(settings.allow)
        self._deny = _rules(settings.deny)
        self._ports = frozenset(settings.ports)
        self._allow_http = settings.allow_http
        self._judges_names_only = settings.proxy is not None and settings.proxy.resolve == "proxy"
        """The proxy resolves, so addresses are unknown here: a name that may be internal must be allowed by name."""

    def problem_of_url(self, url: str) -> str | None:
        """Returns the mistake in a URL, as far as it is known without a network; None if there is none."""
        try:
            parts = split_url(url)
        except ValueError as error:
            return str(error)
        if not _NETLOC.fullmatch(parts.netloc):
            host = parts.hostname or ""
            return spelling_problem(host) or "the part between // and the path must be a host and perhaps :port"
        port = parts.port or (443 if parts.scheme == "https" else 80)
        return self.problem_of_target(parts.scheme, parts.hostname or "", port)

    def problem_of_target(self, scheme: str, host: str, port: int) -> str | None:
        """Checks the parts of a URL: scheme, host without brackets, port. Repeated at each connection."""
        if scheme != "https" and not (scheme == "http" and self._allow_http):
            return "must begin with https://: plain HTTP is not allowed here"
        problem = spelling_problem(host) or self._port_problem(port)
        if problem:
            return problem
        host = host.lower()
        address = literal(host)
        if address is not None:
            return self.problem_of_address(host, str(address), port)
        if self._deny.has_name(host):
            return f"{host} is on the operator's deny-list: use another host"
        if self._allow.has_name(host):
            return None
        is_internal = "." not in host or host.endswith((*_PRIVATE_DOMAINS, ".localhost"))
        if is_internal and (self._judges_names_only or not (self._allow.networks or _is_localhost(host))):
            return f"{host} can only be a name inside the operator's network: use a public host name"
        if _is_localhost(host):  # RFC 6761, section 6.3
            return self.problem_of_address(host, "127.0.0.1", port)
        return None

    def warning_of_url(self, url: str) -> str | None:
        """Returns what may go wrong with a URL that is accepted, as a warning of `check`; None if nothing is known."""
        host = (split_url(url).hostname or "").lower()
        if literal(host) is not None:
            return None
        if "_" in host:
            return f"{host} has an underscore: it isn't a host name (RFC 1123); many certificates and servers refuse it"
        if "." not in host or host.endswith((*_PRIVATE_DOMAINS, *_INTERNAL_BY_HABIT)):
            return f"{host} is a name that only an internal DNS knows: the dispatcher's resolver must know it too"
        return None

    def problem_of_address(self, host: str, ip: str, port: int) -> str | None:
        """Returns why no connection may be made to this address, found for this host; None if it may."""
        return self._port_problem(port) or self._address_problem(host.lower(), ip)

    def denies(self, host: str, ip: str) -> bool:
        """Returns True if no connection may be made to this address, found for this host, on any port."""
        return self._address_problem(host.lower(), ip) is not None

    def _address_problem(self, host: str, ip: str) -> str | None:
        try:
            address = ipaddress.ip_address(ip)
        except ValueError:
            return f"{host} resolves to something that is not an address: use another host"
        named = f"{host} is" if literal(host) == address else f"{host} resolves to an address that is"
        if self._deny.has_name(host) or self._deny.has_address(address):
            return f"{named} on the operator's deny-list: use another host"
        if isinstance(address, ipaddress.IPv6Address) and address.scope_id is not None:
            return f"{named} for one network interface only (it has a zone): use a public address"
        kind = kind_of(address)
        if kind is AddressKind.PUBLIC or self._allow.has_exactly(address):
            return None
        if kind in INTERNAL and self._allow.has_name(host):
            return None
        return f"{named} not public ({kind.value}): use a host with public addresses only, or allow it in egress.allow"

    def _port_problem(self, port: int) -> str | None:
        if self._ports:
            if port in self._ports:
                return None
            return f"port {port} is not allowed: use one of {', '.join(map(str, sorted(self._ports)))}"
        if port in (443, 8443) or 1024 <= port <= 65535:
            return None
        return f"port {port} is not allowed: use {DEFAULT_PORTS}"


def _is_localhost(host: str) -> bool:
    return host == "localhost" or host.endswith(".localhost")


def rule_problems(settings: EgressSettings) -> list[Problem]:
    """Returns the mistakes in the operator's rules, without which there is no guard."""
    problems = []
    for key, entries in (("allow", settings.allow), ("deny", settings.deny)):
        for index, text in enumerate(entries):
            try:
                _entry(text)
            except ValueError as error:
                problems.append(Problem(str(error), f"egress.{key}[{index}]"))
    return problems


def egress_problems(settings: EgressSettings) -> list[Problem]:
    """Returns every mistake in the operator's egress settings; called once, at the start."""
    problems = rule_problems(settings)
    for index, text in enumerate(settings.nameservers):
        if nameserver(text) is None:
            problems.append(Problem("write a DNS server as ip:port, 10.0.0.53:53", f"egress.nameservers[{index}]"))
    if settings.proxy is not None:
        try:
            ProxyAddress.of(settings.proxy)
        except ValueError as error:
            problems.append(Problem(str(error), "egress.proxy.url"))
        if settings.allow_http:
            problems.append(Problem("a proxy tunnels HTTPS only: drop allow_http, or the proxy", "egress.allow_http"))
    return [*problems, *bundle_problems(settings.ca_bundle, "egress.ca_bundle", endpoint_context)]


def nameserver(text: str) -> tuple[str, int] | None:
    """Reads `10.0.0.53:53`, `[fd00::53]:53` or an address alone as address and port; None if it is none of them."""
    match = re.fullmatch(r"\[([0-9a-f:.]+)\](?::(\d{1,5}))?|([0-9.]+)(?::(\d{1,5}))?|([0-9a-f:]+)", text)
    if match is None:
        return None
    host, port = match[1] or match[3] or match[5], int(match[2] or match[4] or 53)
    return (host, port) if literal(host) is not None and 1 <= port <= 65535 else None


@dataclass(frozen=True, slots=True)
class ProxyAddress:
    """The operator's egress proxy. The guard does not check it, because the operator chose it."""

    tls: bool
    host: str
    port: int
    resolves: bool
    """CONNECT names the host, and the proxy resolves it; otherwise CONNECT names an address that was checked here."""
    authorization: str | None = field(default=None, repr=False)
    """Value of `proxy-authorization` (RFC 9110, section 11.7.2; Basic, RFC 7617)."""

    @classmethod
    def of(cls, settings: ProxySettings) -> "ProxyAddress":
        """Returns the address in the settings.

        Raises:
            ValueError: the URL is not `http://proxy:3128` or `https://…`.
        """
        parts = urlsplit(settings.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("write the proxy as http://proxy:3128 or https://proxy:3128")
        if "@" in parts.netloc:
            raise ValueError("must not carry a user name or password: write them as username and password beside url")
        if parts.path not in ("", "/") or parts.query or parts.fragment:
            raise ValueError("the proxy has a host and a port, and no path")
        tls = parts.scheme == "https"
        authorization = None
        if settings.username is not None and settings.password is not None:
            pair = settings.username.encode() + b":" + settings.password.reveal()
            authorization = "Basic " + base64.b64encode(pair).decode("ascii")
        return cls(
            tls, parts.hostname, parts.port or (443 if tls else 3128), settings.resolve == "proxy", authorization
        )
