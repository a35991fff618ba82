"""Looks up the A and AAAA records of a name at the operator's DNS servers (a stub resolver; RFC 1035, RFC 3596).

Recursion is the server's work. An answer counts if it comes from the queried server (a connected socket) and repeats
the query's random id and its question, which a server's error may lack; the kernel chooses a random source port. CNAME
chains are followed up to 8 links. After a truncated answer the query is repeated by TCP (RFC 7766). Nothing is cached
here.
"""

import asyncio
import ipaddress
import secrets
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

from dispatcher.transport.failures import describe

_A, _CNAME, _AAAA, _IN = 1, 5, 28, 1
_ERRORS_OF_SERVERS = frozenset({1, 2, 4, 5})
"""FORMERR, SERVFAIL, NOTIMP, REFUSED: a server may send these without the question (RFC 1035, section 4.1.1)."""
_TRY_S = 1.5
"""Time for one server to answer one question."""
_ROUNDS = 2
_MAX_CNAMES = 8
_MAX_ANSWER = 16 * 1024


RESOLUTION_DELAY_S = 0.05
"""Seconds that a good answer to A or AAAA waits for the other one (RFC 8305, section 3)."""


class DnsError(Exception):
    """No address of the name was found; the message says why."""


class NameNotFound(DnsError):
    """A DNS server answered that the name, or an address of it, does not exist."""


class ServerUnreachable(DnsError):
    """No packet could be exchanged with any DNS server: the operator's side failed, not the name."""


class _Malformed(Exception):
    """The received message isn't an answer to the question."""


@dataclass(slots=True)
class _Answer:
    truncated: bool
    rcode: int
    addresses: list[str] = field(default_factory=list)
    alias: str | None = None
    """The end of the CNAME chain in this answer, if it has no address there."""


async def query(host: str, servers: Sequence[tuple[str, int]]) -> list[str]:
    """Returns the IPv4 and IPv6 addresses of a name, IPv6 first.

    If only one of the two questions gets a good answer, that is enough: the other is waited for 50 ms longer.

    Raises:
        DnsError: no server gave an address.
    """
    six = asyncio.create_task(_addresses(host, _AAAA, servers), name="dns AAAA")
    four = asyncio.create_task(_addresses(host, _A, servers), name="dns A")
    try:
        return await first_good(six, four)
    finally:
        for task in (six, four):
            task.cancel()
        await asyncio.gather(six, four, return_exceptions=True)


async def first_good(one: "asyncio.Future[list[str]]", other: "asyncio.Future[list[str]]") -> list[str]:
    """Returns the addresses of both lookups, or of the one that succeeded if the other takes 50 ms longer.

    Raises:
        DnsError: neither found an address. The error of the first one that failed, if any.
    """
    await asyncio.wait([one, other], return_when=asyncio.FIRST_COMPLETED)
    if any(_found(task) for task in (one, other)):
        await asyncio.wait([one, other], timeout=RESOLUTION_DELAY_S)
    else:
        await asyncio.wait([one, other])
    found = _found(one) + _found(other)
    if found:  # only what was found, and is checked then, is ever connected to
        return found
    for task in (one, other):
        if task.done():
            task.result()
    raise NameNotFound("the name has no address")


def _found(task: "asyncio.Future[list[str]]") -> list[str]:
    return [] if not task.done() or task.cancelled() or task.exception() is not None else task.result()


async def _addresses(host: str, kind: int, servers: Sequence[tuple[str, int]]) -> list[str]:
    name = host.lower()
    for _ in range(_MAX_CNAMES + 1):
        answer = await _ask_in_turn(name, kind, servers)
        if answer.rcode == 3:
            raise NameNotFound("the name does not exist")
        if answer.addresses or answer.alias is None:
            return answer.addresses
        name = answer.alias
    raise DnsError(f"more than {_MAX_CNAMES} CNAMEs one after the other")


async def _ask_in_turn(name: str, kind: int, servers: Sequence[tuple[str, int]]) -> _Answer:
    problem, unreachable = "", None
    for server in [*servers] * _ROUNDS:
        try:
            async with asyncio.timeout(_TRY_S):
                answer = await _ask(name, kind, server)
        except TimeoutError:
            problem = problem or "no DNS server answered"
        except OSError as error:
            unreachable = error
        except (_Malformed, EOFError) as error:
            problem = f"the DNS server failed ({error or type(error).__name__})"
        else:
            if answer.rcode in (0, 3):
                return answer
            problem = f"the DNS server answered with error {answer.rcode}"
    if problem or unreachable is None:
        raise DnsError(problem)
    raise ServerUnreachable(f"no DNS server can be reached ({describe(unreachable)})") from unreachable


async def _ask(name: str, kind: int, server: tuple[str, int]) -> _Answer:
    ident = secrets.randbits(16)
    question = _encode_name(name) + struct.pack("!HH", kind, _IN)
    packet = struct.pack("!HHHHHH", ident, 0x0100, 1, 0, 0, 0) + question
    answer = await _by_udp(packet, ident, name, kind, server)
    return await _by_tcp(packet, ident, name, kind, server) if answer.truncated else answer


class _Datagrams(asyncio.DatagramProtocol):
    """Waits for the first datagram that answers the question; other datagrams are unrelated or forged."""

    def __init__(self, ident: int, name: str, kind: int) -> None:
        self.answer: asyncio.Future[_Answer] = asyncio.get_running_loop().create_future()
        self._question = (ident, name, kind)

    def datagram_received(self, data: bytes, _addr: tuple[str | object, int]) -> None:
        try:
            answer = _parse(data, *self._question)
        except (_Malformed, struct.error, IndexError, UnicodeError):
            return
        except DnsError as error:
            self.error_received(error)
            return
        if not self.answer.done():
            self.answer.set_result(answer)

    def error_received(self, exc: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(exc)


async def _by_udp(packet: bytes, ident: int, name: str, kind: int, server: tuple[str, int]) -> _Answer:
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_datagram_endpoint(lambda: _Datagrams(ident, name, kind), remote_addr=server)
    try:
        transport.sendto(packet)
        return await protocol.answer
    finally:
        transport.close()


async def _by_tcp(packet: bytes, ident: int, name: str, kind: int, server: tuple[str, int]) -> _Answer:
    reader, writer = await asyncio.open_connection(*server)
    try:
        writer.write(struct.pack("!H", len(packet)) + packet)
        (size,) = struct.unpack("!H", await reader.readexactly(2))
        return _parse(await reader.readexactly(min(size, _MAX_ANSWER)), ident, name, kind)
    except (struct.error, IndexError, UnicodeError) as error:
        raise _Malformed("not an answer") from error
    finally:
        writer.close()


def _encode_name(name: str) -> bytes:
    labels = [label.encode("ascii") for label in name.rstrip(".").split(".")]
    if any(not 1 <= len(label) <= 63 for label in labels) or sum(map(len, labels)) + len(labels) > 254:
        raise DnsError("not a host name")
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"


def _read_name(data: bytes, at: int) -> tuple[str, int]:
    """Returns a name, which may be compressed, and the offset behind it."""
    labels: list[str] = []
    end = -1
    while (size := data[at]) != 0:
        if size >= 0xC0:  # a pointer: only backwards, so that it ends
            target = (size & 0x3F) << 8 | data[at + 1]
            if target >= at:
                raise _Malformed("a compression loop")
            end, at = (at + 2 if end < 0 else end), target
            continue
        if size > 63 or len(labels) > 127:
            raise _Malformed("not a name")
        labels.append(data[at + 1 : at + 1 + size].decode("ascii").lower())
        at += 1 + size
    return ".".join(labels), at + 1 if end < 0 else end


def _parse(data: bytes, ident: int, name: str, kind: int) -> _Answer:
    """Returns the answer in a message, if it answers this question.

    Raises:
        _Malformed: it does not; also `struct.error`, `IndexError`, `UnicodeError` if the message ends too soon.
    """
    got, flags, questions, answers = struct.unpack_from("!HHHH", data)
    if got != ident or not flags & 0x8000:
        raise _Malformed("another question's answer")
    if questions == 0 and flags & 0x000F in _ERRORS_OF_SERVERS:
        return _Answer(truncated=False, rcode=flags & 0x000F)
    if questions != 1:
        raise _Malformed("another question's answer")
    asked, at = _read_name(data, 12)
    if asked != name or struct.unpack_from("!HH", data, at) != (kind, _IN):
        raise _Malformed("another question's answer")
    answer = _Answer(truncated=bool(flags & 0x0200), rcode=flags & 0x000F)
    if answer.truncated:
        return answer
    aliases, addresses = _read_records(data, at + 4, answers, kind)
    owner = name
    for _ in range(_MAX_CNAMES):
        if owner not in aliases:
            break
        owner = aliases[owner]
    else:
        raise DnsError(f"more than {_MAX_CNAMES} CNAMEs one after the other")
    answer.addresses = addresses.get(owner, [])
    answer.alias = owner if owner != name and not answer.addresses else None
    return answer


def _read_records(data: bytes, at: int, count: int, kind: int) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Returns the CNAMEs and the addresses of an answer, each by owner name."""
    aliases: dict[str, str] = {}
    addresses: dict[str, list[str]] = {}
    for _ in range(count):
        owner, at = _read_name(data, at)
        rtype, rclass, _ttl, size = struct.unpack_from("!HHIH", data, at)
        at += 10
        if at + size > len(data):
            raise _Malformed("a record beyond the end")
        if rclass == _IN and rtype == _CNAME:
            aliases[owner], _end = _read_name(data, at)
        elif rclass == _IN and rtype == kind and size == (16 if kind == _AAAA else 4):
            addresses.setdefault(owner, []).append(str(ipaddress.ip_address(data[at : at + size])))
        at += size
    return aliases, addresses
